"""Scores on hand-computed cases and against scikit-learn; calibrators against what the data were drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from simulated_matches import simulate

from companion.studies import calibration as study
from sarmatch.calibration import scores as calibration
from sarmatch.calibration.scores import calibration_scores

SCORES = ["ece", "ece_equal_mass", "mce", "brier", "nll", "auroc", "aurc", "accuracy", "n"]
ties = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]) | st.floats(0, 1)
rows = st.integers(2, 40).flatmap(
    lambda n: st.tuples(arrays(np.float64, n, elements=ties), arrays(np.bool_, n), st.permutations(range(n)))
)


def aurc(confidence, correct) -> float:
    return calibration.pooled_aurc(calibration.pool(confidence, correct))


def test_reliability_by_hand() -> None:
    table = calibration.reliability_table([0.0, 0.1, 0.5, 0.9, 1.0], [False, True, False, True, True], bins=4)
    np.testing.assert_allclose(table["low"], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(table["high"], [0.25, 0.5, 0.75, 1])
    assert table["n"].tolist() == [2, 0, 1, 2]  # 0.5 opens its bin and 1 lies in the last one
    np.testing.assert_allclose(table["confidence"], [0.05, np.nan, 0.5, 0.95])
    np.testing.assert_allclose(table["accuracy"], [0.5, np.nan, 0, 1])
    assert table.loc[1, ["accuracy_low", "accuracy_high"]].isna().all()
    z2 = 1.959964**2  # Wilson for 2 of 2 ends at n / (n + z^2)
    np.testing.assert_allclose(table.loc[3, ["accuracy_low", "accuracy_high"]].astype(float), [2 / (2 + z2), 1])


def test_bins_of_equal_mass_keep_ties_together() -> None:
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    sums = calibration.bin_sums(calibration.pool(confidence, confidence > 0.25), 3, equal_mass=True)
    np.testing.assert_allclose(sums, [[2, 2, 2], [0.3, 0.7, 1.1], [0, 2, 2]])
    tied = calibration.pool([0.1, 0.5, 0.5, 0.5, 0.5, 0.9], [True] * 6)
    assert calibration.bin_sums(tied, 3, equal_mass=True)[0].tolist() == [1, 4, 1]
    lump = calibration.pool([0.5] * 6, [True] * 6)
    assert calibration.bin_sums(lump, 3, equal_mass=True)[0].tolist() == [0, 6, 0]


def test_calibration_errors_by_hand() -> None:
    confidence, correct = np.array([0.2, 0.2, 0.2, 0.9]), np.array([True, False, False, False])
    # gaps: |1/3 - 0.2| for three matches, 0.9 for one
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx((0.4 + 0.9) / 4)
    assert calibration_scores(confidence, correct)["mce"] == pytest.approx(0.9)
    assert calibration.expected_calibration_error(confidence, correct, bins=1) == pytest.approx(0.375 - 0.25)
    assert calibration.expected_calibration_error([0.25] * 4, correct) == pytest.approx(0)


def test_matches_that_are_right_as_often_as_they_say_have_small_errors() -> None:
    table = simulate(20_000)
    correct = table["error_px"] <= 3
    honest = calibration_scores(table["truth"], correct)
    raw = calibration_scores(table["probability"], correct)
    assert honest["ece"] < 0.015 < 0.05 < raw["ece"]
    assert honest["ece_equal_mass"] < 0.015 < 0.05 < raw["ece_equal_mass"]
    assert all(honest[name] < raw[name] for name in ("brier", "nll", "aurc"))


@settings(deadline=None)
@given(rows)
def test_scores_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray, list[int]]) -> None:
    confidence, correct, _ = case
    scores = calibration_scores(confidence, correct)
    assert list(scores) == SCORES
    assert scores["brier"] == pytest.approx(np.mean((confidence - correct) ** 2))
    clipped = np.clip(confidence, calibration.CLIP, 1 - calibration.CLIP)
    assert scores["nll"] == pytest.approx(sklearn.metrics.log_loss(correct, clipped, labels=[False, True]))
    assert (scores["accuracy"], scores["n"]) == (pytest.approx(correct.mean()), len(correct))
    if correct.all() or not correct.any():
        assert math.isnan(scores["auroc"])
    else:
        assert scores["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(correct, confidence))


@settings(deadline=None)
@given(rows)
def test_order_of_rows_does_not_matter_and_scores_stay_in_range(case: tuple[np.ndarray, np.ndarray, list[int]]) -> None:
    confidence, correct, order = case
    scores = calibration_scores(confidence, correct)
    shuffled = calibration_scores(confidence[order], correct[order])
    assert shuffled == pytest.approx(scores, nan_ok=True)
    assert all(0 <= scores[name] <= 1 + 1e-12 for name in ("ece", "ece_equal_mass", "mce", "brier", "aurc"))
    assert scores["ece"] <= scores["mce"] + 1e-12
    assert scores["ece"] >= abs(confidence.mean() - scores["accuracy"]) - 1e-12  # one bin is the coarsest view
    risk, again = (calibration.risk_coverage(confidence[i], correct[i])[1] for i in (slice(None), order))
    np.testing.assert_allclose(risk, again)
    assert risk[-1] == pytest.approx(1 - scores["accuracy"])


def test_single_scores_are_those_of_the_table() -> None:
    table = simulate(300)
    confidence, correct = table["confidence"].to_numpy(), (table["error_px"] <= 3).to_numpy()
    single: dict[str, Callable[..., float]] = {
        "ece": calibration.expected_calibration_error,
        "auroc": calibration.auroc,
        "aurc": aurc,
    }
    together = calibration_scores(confidence, correct)
    assert {name: score(confidence, correct) for name, score in single.items()} == {n: together[n] for n in single}
    bins = calibration.reliability_table(confidence, correct).dropna()
    by_table = (bins["n"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(table)
    assert together["ece"] == pytest.approx(by_table)


def test_risk_coverage_by_hand() -> None:
    coverage, risk = calibration.risk_coverage([0.9, 0.1, 0.5, 0.7], [True, False, True, False])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc([0.9, 0.1, 0.5, 0.7], [True, False, True, False]) == pytest.approx(np.mean(risk))


def test_ties_have_the_mean_risk_of_all_their_orders() -> None:
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([False, True, True, False, True])
    rng, risks = np.random.default_rng(0), []
    for _ in range(4000):
        broken = confidence + rng.uniform(0, 1e-3, 5)
        risks.append(calibration.risk_coverage(broken, correct)[1])
    np.testing.assert_allclose(calibration.risk_coverage(confidence, correct)[1], np.mean(risks, axis=0), atol=0.02)


def test_area_of_a_constant_confidence_is_the_error_rate_and_order_moves_it_as_documented() -> None:
    correct = np.arange(1000) < 700
    error = 0.3
    assert aurc(np.full(1000, 0.4), correct) == pytest.approx(error)
    best = aurc(correct * 0.5, correct)
    assert aurc(np.linspace(1, 0, 1000), correct) == pytest.approx(error + (1 - error) * math.log(1 - error), abs=1e-3)
    assert best < error < aurc(1.0 - correct, correct)


def test_likelihood_is_clipped_as_documented() -> None:
    assert calibration_scores([1.0], [False])["nll"] == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert calibration_scores([1.0], [True])["nll"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "leave out pairs without matches"),
        ([0.5], [True, False], r"got \(1,\) and \(2,\)"),
        ([0.5, np.nan], [True, False], r"confidence must be finite and in \[0, 1\]; 1 of 2"),
        ([1.5], [True], r"in \[0, 1\]; 1 of 1 are not, e.g. 1.5"),
        ([[0.5]], [[True]], r"must have shape \(N,\)"),
        ([0.5, 0.5], [0.4, 9.0], "correct must hold bool"),
        ([0.5, 0.5], [1.0, np.nan], "correct must hold bool"),
    ],
)
def test_scores_reject_what_they_cannot_judge(confidence: list, correct: list, message: str) -> None:
    for score in (calibration_scores, calibration.reliability_table, calibration.risk_coverage):
        with pytest.raises(ValueError, match=message):
            score(confidence, correct)


def test_there_is_at_least_one_bin() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration.reliability_table([0.5], [True], bins=0)


def test_bootstrap_equals_scores_of_copied_rows() -> None:
    table = simulate(150, scenes=5).round({"confidence": 1})  # many ties
    found = study.bootstrap_scores(table, n=40).set_index("score")
    groups = [rows for _, rows in table.groupby("scene")]
    draws = np.random.default_rng(0).integers(0, 5, size=(40, 5))
    copies = [pd.concat([groups[i] for i in draw]) for draw in draws]
    expected = pd.DataFrame([calibration_scores(c["confidence"], c["error_px"] <= 3) for c in copies])
    assert found.index.tolist() == SCORES[:-1]
    for name, row in found.iterrows():
        assert row["value"] == pytest.approx(calibration_scores(table["confidence"], table["error_px"] <= 3)[name])
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(expected[name], [0.025, 0.975])))


def test_bootstrap_does_not_depend_on_the_order_of_rows_and_heeds_its_arguments() -> None:
    table = simulate(400)
    first = study.bootstrap_scores(table, n=30)
    pd.testing.assert_frame_equal(study.bootstrap_scores(table.sample(frac=1, random_state=0), n=30), first)
    assert study.bootstrap_scores(table, threshold_px=9, n=5).set_index("score")["value"]["accuracy"] == 1


def test_bootstrap_of_whole_scenes_is_wider_than_of_matches_that_share_their_fate() -> None:
    table = simulate(1000)
    table["error_px"] = np.where(table["scene"] % 2 == 0, 1.0, 9.0)
    scenes, single = (study.bootstrap_scores(t, n=100) for t in (table, table.assign(scene=np.arange(len(table)))))
    assert (scenes["high"] - scenes["low"])[7] > 3 * (single["high"] - single["low"])[7]  # accuracy


def test_bootstrap_of_one_scene_has_no_intervals() -> None:
    found = study.bootstrap_scores(simulate(50).assign(scene="only"))
    assert found["value"].notna().all() and found[["low", "high"]].isna().all(axis=None)
