"""Calibrated confidence and the answer "no match": hand-made scores, JSON, and the way through a matcher."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from patch_net import PatchNet, texture

from sarmatch.calibration.calibrators import Logistic
from sarmatch.calibration.confidence import (
    SCORES,
    SPREAD,
    Confidence,
    Overlap,
    agreement,
    fit_calibrator,
    fit_overlap,
    pair_agreements,
)
from sarmatch.calibration.position_error import LEVELS, Precision
from sarmatch.data.synthetic import synthetic_pairs
from sarmatch.evaluation.confidence_fit import match_table
from sarmatch.matching.cues import CUES
from sarmatch.matching.matcher import Matcher, apply, load_matcher
from sarmatch.matching.refinement import RawMatches
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import save_weights
from sarmatch.profiles import profile


def raw_matches(probability: list[float], aleatoric: float = 0.2) -> RawMatches:
    n = len(probability)
    xy = torch.arange(2.0 * n).reshape(n, 2)
    unknown = torch.full((n,), torch.nan)
    spread = torch.eye(2).expand(n, 2, 2) / 4
    scores = torch.tensor(probability), torch.full((n,), aleatoric), unknown
    return RawMatches(xy, xy + 1, *scores, spread, torch.zeros(n, len(CUES)))


def simulated(n_pairs: int = 40, seed: int = 0) -> pd.DataFrame:
    """Matches that are right with the probability 0.9 where aleatoric uncertainty is low and 0.2 where it is high."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(n_pairs):
        n = int(rng.integers(20, 400))
        aleatoric = rng.choice([0.1, 0.8], n)
        right = rng.random(n) < np.where(aleatoric < 0.5, 0.9, 0.2)
        parts.append(
            pd.DataFrame(
                {"id": f"p{i}", "error_px": np.where(right, 1.0, 20.0), "probability": 0.5, "aleatoric": aleatoric}
            )
        )
    return pd.concat(parts, ignore_index=True)


HALF_LOGIT = Logistic(("logit_probability",), (0.0,), (1.0,), (0.5,), 0.0)
CONFIDENCE = Confidence({"single": HALF_LOGIT}, {"single": Overlap(0.6, 40, 0)}, search_radius=32.0, mc_passes=20)


def test_a_calibrator_of_raw_scores_recovers_what_they_are_worth():
    table = simulated()
    calibrated = fit_calibrator(table, ("logit_probability", "aleatoric"))(table)
    assert calibrated[table["aleatoric"] < 0.5].mean() == pytest.approx(0.9, abs=0.03)
    assert calibrated[table["aleatoric"] > 0.5].mean() == pytest.approx(0.2, abs=0.03)


def test_where_all_are_wrong_confidence_is_zero():
    table = simulated(4).assign(error_px=20.0)
    assert (fit_calibrator(table, ("logit_probability", "aleatoric"))(table) == 0).all()
    assert (fit_calibrator(table.head(0), ("aleatoric",))(table) == 0).all()


def test_confidence_survives_json():
    assert Confidence.from_json(CONFIDENCE.to_json()) == CONFIDENCE


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"calibrators": {"single": {}}, "overlaps": {}})])
def test_other_text_is_rejected(text):
    with pytest.raises(ValueError):
        Confidence.from_json(text)


def test_raw_scores_become_matches_by_the_calibrator_of_the_mode():
    raw = raw_matches([0.1, 0.5, 0.9])
    matches = apply(raw, CONFIDENCE, "single", 32.0)
    assert matches.confidence.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=1e-6)  # logits halved: 1:9 to 1:3
    assert matches.overlaps is False
    assert apply(raw_matches([0.9, 0.9]), CONFIDENCE, "single", 32.0).overlaps is True
    other = apply(raw, CONFIDENCE, "monte_carlo", 32.0)
    assert other.confidence.tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert other.overlaps is None
    assert apply(raw, None, "single", 32.0).aleatoric.tolist() == pytest.approx([0.2] * 3)


def test_a_pair_without_matches_does_not_overlap():
    matches = apply(raw_matches([]), CONFIDENCE, "single", 32.0)
    assert len(matches) == 0
    assert matches.overlaps is False
    assert agreement(np.zeros(0)) == 0.0


def test_threshold_keeps_unrelated_pairs_out_by_hand():
    related, unrelated = np.array([0.9, 0.5, 0.7]), np.array([0.1, 0.6, 0.2])
    overlap = fit_overlap(related, unrelated, 0.01)
    assert overlap.threshold == pytest.approx(0.65)
    assert (overlap.n_unrelated, overlap.n_accepted) == (3, 0)
    half = fit_overlap(related, unrelated, 0.34)  # one of three may pass
    assert half.threshold == pytest.approx(0.35)
    assert half.n_accepted == 1
    assert fit_overlap(np.array([0.1]), np.array([0.9])).threshold > 0.9
    with pytest.raises(ValueError, match="unrelated"):
        fit_overlap(related, np.zeros(0))


def test_nothing_is_decided_beyond_the_radius_that_was_fitted():
    raw = raw_matches([0.9, 0.9])
    for radius in (16.0, None):
        matches = apply(raw, CONFIDENCE, "single", radius)
        assert matches.overlaps is None
        assert matches.confidence == pytest.approx(apply(raw, CONFIDENCE, "single", 32.0).confidence)


def test_other_numbers_of_passes_take_the_calibrator_of_one():
    modes = {n: Matcher(PatchNet(), "cpu", mc_passes=n, confidence=CONFIDENCE).mode for n in (0, 5, 20)}
    assert modes == {0: "single", 5: "single", 20: "monte_carlo"}
    with pytest.raises(ValueError, match="distil"):
        Matcher(SarOpticalNet(profile("smoke").model), "cpu", distilled=True)


def test_agreement_of_each_pair():
    pairs = synthetic_pairs(3, 96, seed=0)
    a, b, c = pairs.index["id"]
    table = pd.DataFrame({"id": [a, b, a], "probability": [0.2, 0.5, 0.6]})
    agreements = pair_agreements(table, table["probability"].to_numpy(), pairs.index["id"])
    assert agreements.to_dict() == pytest.approx({a: 0.4, b: 0.5, c: 0.0})


def test_match_table_has_a_row_a_match_and_the_errors_of_the_protocol():
    config = profile("smoke").evaluation
    pairs = synthetic_pairs(2, 96, seed=3)
    matcher = Matcher(PatchNet(), "cpu")
    table = match_table(lambda crops: matcher.raw_matches(crops, 16.0), pairs, "aligned", config)
    assert list(table) == ["x", "y", "error_px", *SCORES, *CUES, *SPREAD, "id", "dataset", "scene"]
    np.testing.assert_allclose(np.hypot(table["error_x"], table["error_y"]), table["error_px"], rtol=1e-5)
    assert set(table["id"]) <= set(pairs.index["id"])
    assert table["probability"].between(0, 1).all()
    assert (table["error_px"] >= 0).all()


def test_a_matcher_applies_what_was_fitted_for_its_mode():
    image = texture(64)
    matcher = Matcher(PatchNet(), "cpu", confidence=CONFIDENCE)
    matches = matcher.match(image[0], image[0].expand(3, -1, -1), 32.0)
    plain = Matcher(PatchNet(), "cpu").match(image[0], image[0].expand(3, -1, -1), 32.0)
    logit = np.log(plain.confidence / (1 - plain.confidence).clip(1e-7)) / 2
    assert matches.confidence == pytest.approx(1 / (1 + np.exp(-logit)), abs=2e-3)
    assert matches.overlaps is not None
    per_cell = Matcher(PatchNet(), "cpu", use_consensus=False, confidence=CONFIDENCE)
    assert per_cell.match(image[0], image[0].expand(3, -1, -1), 8.0).overlaps is None


def test_covariance_and_radius_are_those_of_the_precision_that_was_fitted():
    precision = Precision(2.0, 0.5, (3.0, 40.0), LEVELS, LEVELS)
    fitted = dataclasses.replace(CONFIDENCE, precision={"single": precision})
    raw = raw_matches([0.9, 0.2])
    matches = apply(raw, fitted, "single", 32.0, coverage=0.8)
    np.testing.assert_allclose(matches.covariance, np.tile(np.eye(2), (2, 1, 1)))  # 2 x 1/4 + 1/2
    expected = precision.radius(matches.confidence, raw.covariance.numpy(), 0.8)
    np.testing.assert_allclose(matches.radius, expected, rtol=1e-5)
    assert matches.radius[1] > matches.radius[0]
    elsewhere = apply(raw, fitted, "single", 16.0)
    np.testing.assert_allclose(elsewhere.covariance, matches.covariance)
    assert np.isnan(elsewhere.radius).all(), "how far off wrong matches are was fitted with another radius"
    np.testing.assert_array_equal(apply(raw, CONFIDENCE, "single", 32.0).covariance, raw.covariance)
    assert Confidence.from_json(fitted.to_json()) == fitted


def test_a_description_of_before_precision_still_loads():
    content = json.loads(CONFIDENCE.to_json())
    del content["precision"]
    assert Confidence.from_json(json.dumps(content)) == CONFIDENCE


def test_a_matcher_makes_radii_of_its_coverage():
    image = texture(64)
    fitted = dataclasses.replace(CONFIDENCE, precision={"single": Precision(1.0, 0.1, (3.0, 40.0), LEVELS, LEVELS)})
    half, most = (
        Matcher(PatchNet(), "cpu", confidence=fitted, coverage=c).match(image[0], image[0].expand(3, -1, -1), 32.0)
        for c in (0.5, 0.95)
    )
    assert (half.radius < most.radius).all()
    with pytest.raises(ValueError, match="coverage must lie between"):
        Matcher(PatchNet(), "cpu", coverage=1.0)


def test_a_run_folder_brings_its_confidence(tmp_path):
    net = SarOpticalNet(profile("smoke").model)
    save_weights(net, tmp_path / "model.safetensors")
    assert load_matcher(tmp_path).confidence is None
    (tmp_path / "confidence.json").write_text(CONFIDENCE.to_json())
    assert load_matcher(tmp_path).confidence == CONFIDENCE
    save_weights(net, tmp_path / "alone.safetensors", confidence=CONFIDENCE.to_json())
    (tmp_path / "confidence.json").unlink()
    assert load_matcher(tmp_path / "alone.safetensors").confidence == CONFIDENCE
