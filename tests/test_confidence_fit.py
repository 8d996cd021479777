"""Confidence of a run: fitted on scenes that chose no weights, judged on others than it was fitted on, kept with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from sarmatch import confidence_fit
from sarmatch.calibrators import Isotonic
from sarmatch.confidence import cross_fitted, fit_calibrator
from sarmatch.confidence_fit import MODES, confidence_or_load, fitted_on
from sarmatch.config import Config
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.experiments import Run, train_or_load
from sarmatch.profiles import profile


def tiny(**sections) -> Config:
    return profile("smoke").replace(
        **{
            "data": {"n_synthetic": 144},
            "training": {"max_steps": 2, "validation_pairs": 1},
            "pretraining": {"contrastive": False, "rotation": False},
            "studies": {"calibration_pairs": 2},
        }
        | sections
    )


@pytest.fixture(scope="module")
def split() -> Split:
    config = tiny()
    return split_pairs(open_pairs(config.data, config.seed), config.data)


@pytest.fixture
def run(tmp_path, split) -> Run:
    return train_or_load(tiny(), tmp_path, split=split, show_progress=False)


def test_fitted_once_on_scenes_that_chose_no_weights(run, split, monkeypatch):
    chosen = set(split.selection.index["scene"])
    assert chosen and not chosen & set(split.calibration.index["scene"])
    seen, match_table = set(), confidence_fit.matches_or_load

    def watched(run, matcher, name, pairs, protocol, config):
        seen.update(pairs.index["scene"])
        return match_table(run, matcher, name, pairs, protocol, config)

    monkeypatch.setattr(confidence_fit, "matches_or_load", watched)
    confidence = confidence_or_load(run, split)
    assert seen == set(split.calibration.index["scene"])
    assert (
        set(confidence.calibrators) == set(confidence.overlaps) == set(MODES) - {"distilled"}
    )  # nothing was distilled
    assert set(confidence.precision) == set(confidence.calibrators)
    monkeypatch.setattr(confidence_fit, "fit_confidence", None)  # the stored one is read
    assert confidence_or_load(run, split) == confidence == run.matcher.confidence


def test_fitted_anew_for_other_weights_or_sizes_of_a_study(run, split):
    first = confidence_or_load(run, split)
    other = dataclasses.replace(run, config=tiny(studies={"calibration_pairs": 3}))
    assert fitted_on(other, split) != first.fitted_on == fitted_on(run, split)
    assert confidence_or_load(other, split).fitted_on == fitted_on(other, split)
    run.net.plain_log_scale.data += 0.1
    assert confidence_or_load(run, split).fitted_on != first.fitted_on


def test_the_choice_of_weights_sees_no_scene_that_fits_confidence(tmp_path, split, monkeypatch):
    from sarmatch import experiments

    seen, scores = set(), experiments.validation_scores

    def watched(matcher, pairs, config):
        seen.update(pairs.index["scene"])
        return scores(matcher, pairs, config)

    monkeypatch.setattr(experiments, "validation_scores", watched)
    train_or_load(tiny(), tmp_path, split=split, show_progress=False)
    assert seen == set(split.selection.index["scene"])


def matches(n_scenes: int = 4, n: int = 50) -> pd.DataFrame:
    """Of each scene all matches are right or all wrong, whatever their probability says."""
    scene = np.repeat([f"s{i}" for i in range(n_scenes)], n)
    error = np.where(np.arange(n_scenes * n) // n % 2 == 0, 1.0, 9.0)
    probability = np.where(np.arange(n_scenes * n) // n % 2 == 0, 0.9, 0.1)
    return pd.DataFrame({"scene": scene, "error_px": error, "probability": probability, "id": scene})


def fit(table: pd.DataFrame) -> Isotonic:
    """The share of right matches, for every match alike."""
    share = float((table["error_px"] <= 3).mean())
    return Isotonic((0.5,), (share,))


def test_no_scene_is_judged_by_a_calibrator_that_saw_it():
    table = matches()
    found = pd.Series(cross_fitted(table, table, fit)).groupby(table["scene"]).first()
    # Two of four scenes are right; without a right one it is one of three, without a wrong one two of three.
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 1 / 3, 2 / 3])


def test_unknown_scenes_have_the_calibrator_of_all_and_one_scene_its_own():
    table = matches()
    elsewhere = table.assign(scene="elsewhere")
    assert cross_fitted(table, elsewhere, fit).tolist() == pytest.approx([0.5] * len(table))
    one = table[table["scene"] == "s0"]
    assert cross_fitted(one, one, fit).tolist() == pytest.approx([1.0] * len(one))


def test_folds_leave_out_groups_of_scenes():
    table = matches(n_scenes=6)
    found = cross_fitted(table, table, fit, folds=2)  # even scenes, all right, are judged by odd ones
    assert found.tolist() == pytest.approx(np.where(table["error_px"] <= 3, 0.0, 1.0).tolist())


def test_the_real_calibrator_can_be_cross_fitted():
    rng = np.random.default_rng(0)
    table = matches(6, 200).assign(probability=rng.uniform(0.1, 0.9, 1200), error_px=rng.choice([1.0, 9.0], 1200))
    found = cross_fitted(table, table, lambda t: fit_calibrator(t, ("logit_probability",)))
    assert found.shape == (1200,) and ((found >= 0) & (found <= 1)).all()
