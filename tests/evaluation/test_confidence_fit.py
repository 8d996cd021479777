"""Confidence of a run: fitted on scenes that chose no weights, judged on others than it was fitted on, kept with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from companion import cache
from sarmatch.calibration.calibrators import Isotonic, cross_fitted
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.config import Config
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.evaluation import protocols as evaluation
from sarmatch.evaluation.confidence_fit import FITTED_UNDER, MODES, collect_matches, fitted_on
from sarmatch.profiles import profile
from sarmatch.training import runs, supervised
from sarmatch.training.runs import Run, confidence_or_load, train_or_load


def tiny(**sections) -> Config:
    return profile("smoke").replace(
        **{
            "data": {"n_synthetic": 144},
            "training": {"max_steps": 2, "validation_pairs": 1},
            "pretraining": {"contrastive": False, "rotation": False},
            "evaluation": {"calibration_pairs": 2},
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
    scenes, protocols = set(), set()

    def watched(matcher, name, pairs, config, protocol):
        scenes.update(pairs.index["scene"])
        protocols.add(protocol)
        return collect_matches(matcher, name, pairs, config, protocol)

    confidence = confidence_or_load(run, split, watched)
    assert scenes == set(split.calibration.index["scene"])
    assert protocols == set(FITTED_UNDER)
    assert (
        set(confidence.calibrators) == set(confidence.overlaps) == set(MODES) - {"distilled"}
    )  # nothing was distilled
    assert set(confidence.precision) == set(confidence.calibrators)
    monkeypatch.setattr(runs, "fit_confidence", None)  # the stored one is read
    assert confidence_or_load(run, split) == confidence == run.matcher.confidence


def test_fitted_anew_for_other_weights_or_sizes_of_the_fit(run, split):
    first = confidence_or_load(run, split)
    other = dataclasses.replace(run, config=tiny(evaluation={"calibration_pairs": 3}))
    key = fitted_on(run.net, other.config, split.calibration)
    assert key != first.fitted_on == fitted_on(run.net, run.config, split.calibration)
    assert confidence_or_load(other, split).fitted_on == key
    run.net.plain_log_scale.data += 0.1
    assert confidence_or_load(run, split).fitted_on != first.fitted_on


def test_the_book_keeps_the_matches_that_it_fits_on(run, split):
    confidence = cache.confidence_or_load(run, split)
    kept = {path.name.split("-")[1] for path in (run.path / "records").iterdir() if path.suffix == ".parquet"}
    assert kept == {"validation", "unrelated"}
    (run.path / "confidence.json").unlink()
    assert confidence_or_load(run, split) == confidence


def test_the_choice_of_weights_uses_no_scene_that_fits_confidence(tmp_path, split, monkeypatch):
    scenes, scores = set(), evaluation.validation_scores

    def watched(matcher, pairs, config, deformed):
        scenes.update(pairs.index["scene"])
        return scores(matcher, pairs, config, deformed)

    monkeypatch.setattr(supervised, "validation_scores", watched)
    train_or_load(tiny(), tmp_path, split=split, show_progress=False)
    assert scenes == set(split.selection.index["scene"])


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


def test_no_scene_is_judged_by_a_calibrator_fitted_on_it():
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
    table = matches(n_scenes=24, n=4)  # three scenes of eight folds
    fitted: list[int] = []

    def counted(part: pd.DataFrame) -> Isotonic:
        fitted.append(part["scene"].nunique())
        return fit(part)

    cross_fitted(table, table, counted)
    assert fitted == [24] + [21] * 8


def test_the_real_calibrator_can_be_cross_fitted():
    rng = np.random.default_rng(0)
    table = matches(6, 200).assign(probability=rng.uniform(0.1, 0.9, 1200), error_px=rng.choice([1.0, 9.0], 1200))
    found = cross_fitted(table, table, lambda t: fit_calibrator(t, ("logit_probability",)))
    assert found.shape == (1200,) and ((found >= 0) & (found <= 1)).all()
