"""The comparison: one pass gives what `evaluate` gives, confidences are calibrated alike, failures count."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from companion.baselines import Baseline, EdgeOrientationMatcher, SiftMatcher, TemplateMatcher
from companion.settings import book_profile
from companion.studies import comparison, learned_baselines
from sarmatch.evaluation.protocols import evaluate, evaluation_crops, spread
from sarmatch.matching.matches import Matches

SMOKE = book_profile("smoke").replace(studies={"seeds": (0,), "test_pairs": 4, "fit_pairs": 3})
MEASURED = dataclasses.replace(SMOKE.evaluation, max_pairs=4)


class Silent(Baseline):
    """Finds nothing."""

    def match(self, sar, optical, search_radius=None):
        return Matches.empty()


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


def test_methods_have_a_word_each_and_no_more_keypoints_than_the_grid(run) -> None:
    trained = dict.fromkeys([*learned_baselines.OURS, learned_baselines.PER_CELL, *learned_baselines.PEERS], Silent())
    found = comparison.methods(run.net, 96, trained)
    missing = set(comparison.without_packages())
    assert list(found) == [name for name in comparison.STANDS_FOR if name not in missing]
    budgets = {m.max_keypoints for m in found.values() if hasattr(m, "max_keypoints")}
    assert budgets == {24 * 24}


def test_rows_of_packages_that_are_not_installed_are_left_out(run, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "installed", lambda features: False)
    assert comparison.without_packages() == list(comparison.OFF_THE_SHELF)
    assert not set(comparison.methods(run.net, 96, {})) & set(comparison.OFF_THE_SHELF)


def test_times_are_of_every_method(run, split) -> None:
    crops = evaluation_crops(split.test[0], "shift", MEASURED)
    matchers = {"SIFT": SiftMatcher(100), "edges": EdgeOrientationMatcher(29)}
    table = comparison.seconds_per_pair(matchers, crops, 8.0, repeats=2)
    assert table["method"].tolist() == list(matchers)
    assert (table["seconds_low"] <= table["seconds"]).all() and (table["seconds"] <= table["seconds_high"]).all()


def test_ranking_puts_the_best_first() -> None:
    records = pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "scene": ["s", "t", "s", "t"], "mma_3px": [0.1, 0.2, 0.5, 0.7]}
    )
    table = comparison.ranked(records, ["mma_3px"])
    assert table["method"].tolist() == ["b", "a"]
    np.testing.assert_allclose(table["mma_3px"], [0.6, 0.15])


def test_the_network_is_compared_over_the_same_pairs_and_the_worst_comes_first() -> None:
    ours = pd.DataFrame(
        {"id": list("pqrs"), "scene": list("aabb"), "mma_1px": [0.5, 0.6, 0.7, 0.8], "method": "network"}
    )
    better = ours.assign(method="better", mma_1px=ours["mma_1px"] + 0.1)
    worse = ours.assign(method="worse", mma_1px=0.1)
    table = comparison.network_ahead(pd.concat([worse, ours, better]), ["mma_1px"])
    assert table["against"].tolist() == ["better", "worse"]
    np.testing.assert_allclose(table["difference"], [-0.1, 0.55])
    assert table["n_pairs"].tolist() == [4, 4] and table["n_scenes"].tolist() == [2, 2]


def test_where_another_method_is_ahead_stands_first() -> None:
    names = {"method": ["network", "network, short", "a", "b"]}
    ranking = pd.DataFrame(names | {"mma_1px": [0.5, 0.9, 0.4, 0.1], "mma_3px": [0.8, 0.9, 0.85, 0.1]})
    accuracy = {"accuracy": [0.8, 0.9, 0.7, 0.1], "brier": [0.1, 0.1, 0.2, 0.01], "auroc": [0.8, 0.8, 0.7, 0.9]}
    calibration = pd.DataFrame(names | accuracy | {"ece": [0.05, 0.01, 0.04, 0.001]})
    success = {"success_1px": [0.5, 0.5, 0.5, 0.0], "success_3px": [0.9, 0.9, 0.8, 0.0]}
    registration = pd.DataFrame(names | success | {"median_corner_error_px": [0.7, 0.7, 0.6, np.inf]})
    table = comparison.leaders(ranking, calibration, registration).set_index("measure")
    assert table.index[table["ahead"]].tolist() == ["mma_3px", "ece", "median_corner_error_px"]
    assert (table["method"] == "a").all()  # b is too often wrong for its calibration to count
    assert table.loc["ece", ["ours", "other"]].tolist() == [0.05, 0.04]


def test_registration_counts_failures() -> None:
    records = pd.DataFrame(
        {"method": ["a"] * 4 + ["b"] * 2, "corner_error_px": [0.5, 2.0, np.inf, 30.0, np.inf, np.inf]}
    )
    table = comparison.registration_table(records).set_index("method")
    assert table.loc["a", [f"success_{t}px" for t in (1, 3, 5, 10)]].tolist() == [0.25, 0.5, 0.5, 0.5]
    assert table.loc["a", "failures"] == 1 and table.loc["a", "median_corner_error_px"] == 16
    assert table.loc["b", "failures"] == 2 and np.isinf(table.loc["b", "median_corner_error_px"])


def test_calibration_scores_by_hand() -> None:
    sure = pd.DataFrame({"confidence": [1.0] * 8, "error_px": [0.0] * 4 + [9.0] * 4, "method": "sure"})
    fair = pd.DataFrame({"confidence": [0.5] * 8, "error_px": [0.0] * 4 + [9.0] * 4, "method": "fair"})
    matches = pd.concat([sure, fair]).assign(scene=["s", "t"] * 8, id=["p", "q"] * 8)
    table = comparison.calibration_by_method(matches).set_index("method")
    assert table["ece"].tolist() == [0.5, 0.0] and table["brier"].tolist() == [0.5, 0.25]
    assert table["accuracy"].tolist() == [0.5, 0.5] and table["matches"].tolist() == [8, 8]


def test_table_1_stands_beside_the_rows_of_its_methods() -> None:
    ranking = pd.DataFrame({"method": ["SIFT", "RIFT"], "mma_1px": [0.1, 0.2], "mma_2px": [0.3, 0.4], "mma_3px": 0.5})
    table = comparison.beside_printed(ranking).set_index("method")
    assert list(table.index) == comparison.TABLE_1["method"].tolist()
    assert table.loc["RIFT", ["mma_1px", "mma_2px", "mma_3px"]].tolist() == [0.2, 0.4, 0.5]
    assert table.loc["MOEFC", ["mma_1px", "mma_2px"]].isna().all()
    assert set(table["row"]) <= set(comparison.STANDS_FOR) and table["remark"].str.len().min() > 10


def test_every_method_of_table_1_is_a_row_or_has_a_reason() -> None:
    words = " ".join([*comparison.STANDS_FOR, *comparison.STANDS_FOR.values(), *comparison.MISSING])
    for reference in filter(None, comparison.TABLE_1["reference"]):
        assert re.search(rf"refs?\. (\d+, )*{reference}\b", words), reference
    assert all(reason.startswith(("not run", "patented")) for reason in comparison.MISSING.values())
