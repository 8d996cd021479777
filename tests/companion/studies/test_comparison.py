"""The comparison: one pass gives what `evaluate` gives, confidences are calibrated alike, failures count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from companion.baselines import Baseline, EdgeOrientationMatcher, SiftMatcher, TemplateMatcher
from companion.settings import book_profile
from companion.studies import comparison, learned_baselines
from companion.studies.ablation import study_run
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation.protocols import evaluate, evaluation_crops, spread
from sarmatch.matching.matches import Matches

SMOKE = book_profile("smoke").replace(studies={"seeds": (0,), "test_pairs": 4, "fit_pairs": 3})
MEASURED = dataclasses.replace(SMOKE.evaluation, max_pairs=4)


class Silent(Baseline):
    """Finds nothing."""

    def match(self, sar, optical, search_radius=None):
        return Matches.empty()


@pytest.fixture(scope="module")
def split():
    return split_pairs(open_pairs(SMOKE.data, SMOKE.seed), SMOKE.data)


@pytest.fixture(scope="module")
def run(split, tmp_path_factory):
    return study_run(SMOKE, "both", 0, split, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def compared(run, split):
    matchers = {"template": TemplateMatcher(29), "SIFT": SiftMatcher(300), "nothing": Silent()}
    return comparison.compare(run, matchers, split, SMOKE, 16.0)


def test_one_pass_gives_the_records_of_evaluate(run, split) -> None:
    for matcher, radius in ((TemplateMatcher(29), 16.0), (SiftMatcher(300), None), (Silent(), 16.0)):
        matches = comparison.compared_matches(run, matcher, type(matcher).__name__, split.test, radius, MEASURED)
        expected = evaluate(matcher, split.test, "shift", radius, MEASURED)
        found = comparison.compared_records(matches, split.test, MEASURED)
        pd.testing.assert_frame_equal(found, expected[list(found)])


def test_matches_are_kept_and_each_setting_has_its_own(run, split, monkeypatch) -> None:
    first = comparison.compared_matches(run, SiftMatcher(300), "kept", split.test, 16.0, MEASURED)
    other = comparison.compared_matches(run, SiftMatcher(20), "kept", split.test, 16.0, MEASURED)
    assert len(other) < len(first)
    monkeypatch.setattr(SiftMatcher, "match", None)  # a second call does not match again
    again = comparison.compared_matches(run, SiftMatcher(300), "kept", split.test, 16.0, MEASURED)
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("radius", [0.0, -3.0, float("inf"), float("nan")])
def test_a_search_radius_that_makes_no_sense_is_rejected(run, split, radius: float) -> None:
    with pytest.raises(ValueError, match="search_radius must be positive"):
        comparison.compared_matches(run, Silent(), "nothing", split.test, radius, MEASURED)


def test_every_method_and_every_pair_counts(compared, split) -> None:
    records, matches = compared
    assert records.groupby("method")["id"].nunique().to_dict() == {"template": 4, "SIFT": 4, "nothing": 4}
    nothing = records[records["method"] == "nothing"]
    assert (nothing["mma_3px"] == 0).all() and (nothing["n_matches"] == 0).all()
    assert set(matches["method"]) == {"template", "SIFT"}
    assert matches["confidence"].between(0, 1).all() and matches["probability"].between(0, 1).all()
    ids = {pair.id for pair in spread(split.test, 4)}
    assert set(records["id"]) == ids


def test_confidence_is_fitted_on_validation_pairs_of_the_method_itself(run, split) -> None:
    matcher = TemplateMatcher(29)
    _, whole = comparison.compare(run, {"template": matcher}, split, SMOKE, 16.0)
    other = dataclasses.replace(split, validation=split.train)
    _, changed = comparison.compare(run, {"template": matcher}, other, SMOKE, 16.0)
    np.testing.assert_array_equal(whole["probability"], changed["probability"])
    assert not np.array_equal(whole["confidence"], changed["confidence"])


def test_a_sweep_has_every_method_at_every_radius(run, split) -> None:
    matchers = {"SIFT": SiftMatcher(100), "nothing": Silent()}
    table = comparison.radius_sweep(run, matchers, split.test, MEASURED, (8.0, None))
    assert len(table) == 2 * 2 * 4 and table["search_radius"].isna().sum() == 8


def test_methods_have_a_word_each_and_no_more_keypoints_than_the_grid(run) -> None:
    trained = dict.fromkeys([*learned_baselines.OURS, learned_baselines.PER_CELL, *learned_baselines.PEERS], Silent())
    found = comparison.all_methods(run.net, 96, trained)
    missing = set(comparison.without_packages())
    assert list(found) == [name for name in comparison.STANDS_FOR if name not in missing]
    budgets = {m.max_keypoints for m in found.values() if hasattr(m, "max_keypoints")}
    assert budgets == {24 * 24}


def test_rows_of_packages_that_are_not_installed_are_left_out(run, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "installed", lambda features: False)
    assert comparison.without_packages() == list(comparison.OFF_THE_SHELF)
    assert not set(comparison.methods(run.net, 96)) & set(comparison.OFF_THE_SHELF)


def test_times_are_of_every_method(run, split) -> None:
    crops = evaluation_crops(split.test[0], "shift", MEASURED)
    matchers = {"SIFT": SiftMatcher(100), "edges": EdgeOrientationMatcher(29)}
    table = comparison.seconds_per_pair(matchers, crops, 8.0, repeats=2)
    assert table["method"].tolist() == list(matchers)
    assert (table["seconds_low"] <= table["seconds"]).all() and (table["seconds"] <= table["seconds_high"]).all()
