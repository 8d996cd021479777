"""One-pass estimates beside passes: maps, what is kept with a run, and the sentence that sums them up."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from companion.studies.onepass import (
    ESTIMATES,
    density_or_load,
    distilled_or_load,
    error_map,
    estimates_or_load,
    kept_gains,
    kept_statement,
    measure_costs,
    monte_carlo_prediction,
    rank_correlations,
)
from sarmatch.data import open_pairs, split_pairs
from sarmatch.data.crops import EvaluationCrops
from sarmatch.evaluation.protocols import evaluation_crops
from sarmatch.matching.epistemic import attach, row_entropy
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile
from sarmatch.training.runs import Run


@pytest.fixture(scope="module")
def split():
    config = profile("smoke")
    return split_pairs(open_pairs(config.data, config.seed), config.data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    config = profile("smoke")
    return Run(tmp_path_factory.mktemp("run"), config, SarOpticalNet(config.model).eval(), True, pd.DataFrame(), {})


@pytest.fixture(scope="module")
def distilled(run, split):
    return distilled_or_load(run, split, 4)


def gains(better: str, *, cost: float = 1.1) -> pd.DataFrame:
    names = [*ESTIMATES, "passes"]
    verdicts = pd.DataFrame(
        {"confidence": names, "difference": [0.01, -0.01, -0.03, -0.04], "better": ["open", "open", "yes", better]}
    )
    costs = pd.DataFrame({"confidence": names, "passes": [1.0, 1.5, cost, 9.0]})
    return kept_gains(verdicts, costs)


def test_errors_lie_on_the_cells_of_their_matches():
    crops = SimpleNamespace(sar=torch.zeros(1, 8, 12))
    errors = error_map(crops, np.array([[1.5, 1.5], [9.5, 5.5]]), np.array([2.0, 7.0]))
    assert errors.shape == (2, 3) and np.isnan(errors).sum() == 4
    assert (errors[0, 0], errors[1, 2]) == (2.0, 7.0)


def test_a_head_is_distilled_once_and_the_given_network_is_left_alone(run, distilled, split):
    first, curve = distilled
    assert float(first.net.epistemic_head.distilled) == 1 and float(run.net.epistemic_head.distilled) == 0
    (file,) = run.path.glob("distilled-*.safetensors")
    written = file.stat().st_mtime_ns
    second, again = distilled_or_load(run, split, 4)
    assert file.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(curve, again)
    for name, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name])
        assert "epistemic_head" in name or torch.equal(value, run.net.state_dict()[name])


def test_estimates_are_those_that_matches_carry(distilled, split, run):
    """Of each match, what the table says at its SAR cell is what a matcher that estimates so reports."""
    run, _ = distilled
    density, config = density_or_load(run, split, 4), dataclasses.replace(run.config.evaluation, max_pairs=1)
    assert torch.equal(density_or_load(run, split, 4).means, density.means)
    table = estimates_or_load(run, density, split.test, config)
    assert (table[list(ESTIMATES)] >= 0).all(axis=None) and table["id"].nunique() == 1
    pair = next(p for p in split.test if p.id == table["id"][0])
    crops = evaluation_crops(pair, "shift", config)
    raw = Matcher(run.net, "cpu", distilled=True).raw_matches(crops, config.headline_radius)
    cells = pd.DataFrame(raw.xy_sar.numpy(), columns=["x", "y"])
    found = cells.merge(table, on=["x", "y"], how="left", validate="one_to_one")
    np.testing.assert_allclose(found["distilled"], raw.epistemic, atol=1e-6)


def test_passes_see_what_a_matcher_sees(run, split):
    crops: EvaluationCrops = evaluation_crops(split.test[0], "shift", run.config.evaluation)
    prediction = monte_carlo_prediction(run.net, crops, 16.0, passes=2)
    raw = Matcher(run.net, "cpu", mc_passes=2).raw_matches(crops, 16.0)
    cells = ((raw.xy_sar - 1.5) / 4).round().long()
    torch.testing.assert_close(prediction.mutual_information[0, cells[:, 1], cells[:, 0]], raw.epistemic)
    attach(prediction, row_entropy(prediction))


def test_costs_are_relative_to_one_pass(distilled, split):
    run, _ = distilled
    density = density_or_load(run, split, 4)
    costs = measure_costs(run.net, density, split.test.subset([0]), run.config.evaluation, passes=10, repeats=1)
    costs = costs.set_index("confidence")["passes"]
    assert costs["plain softmax"] == costs["no estimate"] == 1
    assert all(costs[name] > 1 for name in ESTIMATES)
    assert costs["passes"] > 1.5


def test_rank_correlation_is_within_pairs():
    one = pd.DataFrame({"id": "p", "scene": "s", "epistemic": [1.0, 2, 3], "row entropy": [3.0, 4, 9]})
    one = one.assign(**{"feature density": [3.0, 2, 1], "distilled": 5.0})
    table = pd.concat([one, one.assign(id="q", **{"row entropy": [-3.0, -4, -9]})])
    found = rank_correlations(table).set_index(["id", "estimate"])["correlation"]
    assert (found["p", "row entropy"], found["q", "row entropy"]) == pytest.approx((1, -1))
    assert found["p", "feature density"] == pytest.approx(-1)
    assert math.isnan(found["p", "distilled"]), "a constant has no rank"


def test_a_share_of_the_gain_is_kept_and_harm_is_negative():
    table = gains("yes").set_index("confidence")["kept"]
    assert table.to_dict() == pytest.approx(dict(zip([*ESTIMATES, "passes"], [-0.25, 0.25, 0.75, 1.0], strict=True)))
    text = kept_statement(gains("yes"))
    assert "row entropy (1.00), distilled (1.10)" in text and "feature density" not in text
    assert "beyond the interval: distilled." in text and "distilled keeps most: 75%" in text


@pytest.mark.parametrize("better", ["open", "worse", "too few scenes"])
def test_a_share_of_no_gain_is_not_stated(better):
    table = gains(better)
    assert table["kept"].isna().all()
    assert "no gain to keep" in kept_statement(table)


def test_nothing_affordable_is_text_so():
    assert kept_statement(gains("yes"), cheap=0.9) == "No estimate costs at most 0.9 passes."
