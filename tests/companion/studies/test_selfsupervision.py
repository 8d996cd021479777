"""Convergence computed by hand, and both studies once on the smallest profile."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from companion.settings import book_profile
from companion.studies.selfsupervision import (
    LEVELS,
    contrastive_sweep,
    convergence,
    convergence_histories,
    mean_ratio,
    study_config,
)
from sarmatch.config import Config
from sarmatch.data import Split, open_pairs, split_pairs


def smoke() -> Config:
    return book_profile("smoke").replace(
        data={"n_synthetic": 24},
        training={"validation_pairs": 1},
        studies={"seeds": (0,), "pretraining_steps": 1, "steps": 2, "validate_every": 1, "temperatures": (0.5,)},
    )


@pytest.fixture(scope="module")
def split() -> Split:
    config = smoke()
    return split_pairs(open_pairs(config.data, config.seed), config.data)


def history(seed: int, pretrained: bool, scores: list[float]) -> pd.DataFrame:
    steps = [100 * (i + 1) for i in range(len(scores))]
    return pd.DataFrame({"seed": seed, "pretrained": pretrained, "step": steps, "mma_3px": scores})


def test_convergence_by_hand() -> None:
    """From scratch the best is 0.8: half of it, 0.4, is reached at 200 steps, three quarters at 250, 0.72 at 280."""
    scratch = history(3, False, [0.2, 0.4, 0.8, 0.6])
    pretrained = history(3, True, [0.4, 0.6, 0.68])  # at once; after 200; and 0.72 never
    shuffled = pd.concat([pretrained, scratch]).sample(frac=1, random_state=0)
    table = convergence(shuffled)
    assert table["level"].tolist() == list(LEVELS) and set(table["seed"]) == {3}
    np.testing.assert_allclose(table["score"], [0.4, 0.6, 0.72])
    np.testing.assert_allclose(table["steps_scratch"], [200, 250, 280])
    np.testing.assert_allclose(table["steps_pretrained"], [100, 200, np.nan])
    np.testing.assert_allclose(table["ratio"], [0.5, 0.8, np.nan])


def test_each_seed_is_measured_by_its_own_training_from_scratch() -> None:
    parts = [history(0, False, [0.5, 1]), history(0, True, [1]), history(1, False, [0.05, 0.1]), history(1, True, [0])]
    table = convergence(pd.concat(parts))
    assert table["seed"].tolist() == [0, 1] * len(LEVELS), "by level, then seed"
    np.testing.assert_allclose(table["score"], [0.5, 0.05, 0.75, 0.075, 0.9, 0.09])
    assert table.loc[table["seed"] == 1, "ratio"].isna().all()
    np.testing.assert_allclose(table.loc[table["seed"] == 0, "ratio"], [1, 100 / 150, 100 / 180])


def test_mean_ratio_is_geometric_with_the_t_interval_of_the_logarithms() -> None:
    mean, low, high = mean_ratio(np.array([0.5, 2.0]))
    assert mean == pytest.approx(1)
    # Logarithms -ln 2 and ln 2: standard error ln 2, one degree of freedom.
    assert high == pytest.approx(math.exp(math.log(2) * scipy.stats.t.ppf(0.975, 1)))
    assert low == pytest.approx(1 / high)


def test_mean_ratio_turns_over_with_its_ratios_and_skips_what_is_unknown() -> None:
    ratios = np.array([0.5, 0.7, 0.9, np.nan])
    mean, low, high = mean_ratio(ratios)
    assert low < mean < high
    assert mean_ratio(1 / ratios) == pytest.approx((1 / mean, 1 / high, 1 / low))
    assert mean_ratio(ratios[:3]) == (mean, low, high)


def test_mean_ratio_of_too_few() -> None:
    assert mean_ratio(np.array([0.5, np.nan])) == pytest.approx((0.5, np.nan, np.nan), nan_ok=True)
    assert np.isnan(mean_ratio(np.array([np.nan]))).all()


def test_study_config_changes_what_the_study_says_and_nothing_else() -> None:
    base = book_profile("demo").replace(
        studies={"crop_size": 64, "pretraining_steps": 7, "steps": 9, "validate_every": 3}, training={"patience": 2}
    )
    config = study_config(base, 5, {"temperature": 0.2, "rotation": False})
    expected = base.replace(
        seed=5,
        data={"crop_size": 64},
        model={"oriented_gradients": False},
        pretraining={"max_steps": 7, "validate_every": 7, "temperature": 0.2, "rotation": False},
        training={"max_steps": 9, "validate_every": 3, "cosine": False, "patience": None},
    )
    assert config == expected
    assert study_config(base, 5, {"max_steps": 2}).pretraining.max_steps == 2, "the caller's word is the last"
    small = base.replace(data={"crop_size": 48})
    assert study_config(small, 0, {}).data.crop_size == 48, "never larger than the profile's"


def test_histories_are_trained_once_and_loaded_ever_after(tmp_path, split, monkeypatch) -> None:
    found = convergence_histories(smoke(), split, tmp_path)
    assert set(found["seed"]) == {0}
    assert found[["pretrained", "step"]].to_numpy().tolist() == [[False, 1], [False, 2], [True, 1], [True, 2]]
    assert found["mma_3px"].between(0, 1).all()
    names = {path.name for path in (tmp_path / "smoke").iterdir()}
    assert set(found["run"]) <= names and found["run"].str.startswith("study-").all()
    assert len([name for name in names if name.startswith("pretraining-")]) == 1
    monkeypatch.setattr("sarmatch.training.runs.finetune", None)
    monkeypatch.setattr("sarmatch.training.runs.pretrain", None)
    pd.testing.assert_frame_equal(convergence_histories(smoke(), split, tmp_path), found)


def test_sweep_has_a_row_a_temperature_and_one_each_for_pooled_images_and_the_printed_form(
    tmp_path, split, monkeypatch
) -> None:
    found = contrastive_sweep(smoke(), split, tmp_path)
    expected = [["infonce", "cells", 0.5], ["infonce", "image", 0.07], ["printed", "cells", 0.07]]
    assert found[["form", "over", "temperature"]].to_numpy().tolist() == expected
    assert found[["recall_1", "recall_5"]].stack().between(0, 1).all()
    assert (found["n_pairs"] == 2).all() and found["run"].is_unique
    assert found["loss"].notna().all() and found["loss"].iloc[0] >= 0
    monkeypatch.setattr("sarmatch.training.runs.pretrain", None)
    pd.testing.assert_frame_equal(contrastive_sweep(smoke(), split, tmp_path), found)
