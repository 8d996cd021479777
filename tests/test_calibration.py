"""Scores on hand-computed cases and against scikit-learn; calibrators against what the data were drawn from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit

from sarmatch import calibration
from sarmatch.calibration import Isotonic, Logistic, Temperature, calibration_scores, calibrator_from_dict

SCORES = ["ece", "ece_equal_mass", "mce", "brier", "nll", "auroc", "aurc", "accuracy", "n"]
ties = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]) | st.floats(0, 1)
rows = st.integers(2, 40).flatmap(
    lambda n: st.tuples(arrays(np.float64, n, elements=ties), arrays(np.bool_, n), st.permutations(range(n)))
)


def simulate(n: int = 4000, seed: int = 0, scenes: int = 12) -> pd.DataFrame:
    """Matches whose chance of being correct is known: logit = 0.8 logit(probability) - 0.7 logit(aleatoric) + 0.3."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"probability": rng.uniform(0.01, 0.99, n), "aleatoric": rng.uniform(0.05, 0.95, n)})
    truth = expit(0.8 * logit(table["probability"]) - 0.7 * logit(table["aleatoric"]) + 0.3)
    scene = rng.integers(0, scenes, n)
    known = {"truth": truth, "epistemic": rng.uniform(0, 0.1, n), "scene": scene, "id": scene}
    error = np.where(rng.random(n) < truth, 1.0, 9.0)
    return table.assign(**known, error_px=error, confidence=table["probability"])


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
    table = calibration.reliability_table(confidence, confidence > 0.25, bins=3, equal_mass=True)
    assert table["n"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(table[["low", "high"]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    np.testing.assert_allclose(table["accuracy"], [0, 1, 1])
    tied = calibration.reliability_table([0.1, 0.5, 0.5, 0.5, 0.5, 0.9], [True] * 6, bins=3, equal_mass=True)
    assert tied["n"].tolist() == [1, 4, 1]
    lump = calibration.reliability_table([0.5] * 6, [True] * 6, bins=3, equal_mass=True)
    assert lump["n"].tolist() == [0, 6, 0] and np.isnan(lump["low"][0])


def test_calibration_errors_by_hand() -> None:
    confidence, correct = np.array([0.2, 0.2, 0.2, 0.9]), np.array([True, False, False, False])
    # gaps: |1/3 - 0.2| for three matches, 0.9 for one
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx((0.4 + 0.9) / 4)
    assert calibration.maximum_calibration_error(confidence, correct) == pytest.approx(0.9)
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
def test_order_of_rows_does_not_matter_and_scores_stay_in_range(
    case: tuple[np.ndarray, np.ndarray, list[int]],
) -> None:
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
        "ece_equal_mass": lambda *a: calibration.expected_calibration_error(*a, equal_mass=True),
        "mce": calibration.maximum_calibration_error,
        "brier": calibration.brier,
        "nll": calibration.negative_log_likelihood,
        "auroc": calibration.auroc,
        "aurc": calibration.aurc,
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
    assert calibration.aurc([0.9, 0.1, 0.5, 0.7], [True, False, True, False]) == pytest.approx(np.mean(risk))


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
    assert calibration.aurc(np.full(1000, 0.4), correct) == pytest.approx(error)
    best = calibration.aurc(correct * 0.5, correct)
    assert calibration.aurc(np.linspace(1, 0, 1000), correct) == pytest.approx(
        error + (1 - error) * math.log(1 - error), abs=1e-3
    )
    assert best < error < calibration.aurc(1.0 - correct, correct)


def test_likelihood_is_clipped_as_documented() -> None:
    assert calibration.negative_log_likelihood([1.0], [False]) == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert calibration.negative_log_likelihood([1.0], [True]) == pytest.approx(0, abs=1e-6)


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
    for score in (calibration_scores, calibration.reliability_table, calibration.risk_coverage, calibration.brier):
        with pytest.raises(ValueError, match=message):
            score(confidence, correct)


def test_there_is_at_least_one_bin() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration.reliability_table([0.5], [True], bins=0)


def test_bootstrap_equals_scores_of_copied_rows() -> None:
    table = simulate(150, scenes=5).round({"confidence": 1})  # many ties
    found = calibration.bootstrap_scores(table, n=40, seed=3).set_index("score")
    groups = [rows for _, rows in table.groupby("scene")]
    draws = np.random.default_rng(3).integers(0, 5, size=(40, 5))
    copies = [pd.concat([groups[i] for i in draw]) for draw in draws]
    expected = pd.DataFrame([calibration_scores(c["confidence"], c["error_px"] <= 3) for c in copies])
    assert found.index.tolist() == SCORES[:-1]
    for name, row in found.iterrows():
        assert row["value"] == pytest.approx(calibration_scores(table["confidence"], table["error_px"] <= 3)[name])
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(expected[name], [0.025, 0.975])))


def test_bootstrap_does_not_depend_on_the_order_of_rows_and_heeds_its_arguments() -> None:
    table = simulate(400)
    first = calibration.bootstrap_scores(table, n=30)
    pd.testing.assert_frame_equal(calibration.bootstrap_scores(table.sample(frac=1, random_state=0), n=30), first)
    assert not calibration.bootstrap_scores(table, n=30, seed=1)["low"].equals(first["low"])
    assert calibration.bootstrap_scores(table, threshold_px=9, n=5).set_index("score")["value"]["accuracy"] == 1
    renamed = table.rename(columns={"confidence": "p", "scene": "place"})
    pd.testing.assert_frame_equal(calibration.bootstrap_scores(renamed, "p", cluster="place", n=30), first)


def test_bootstrap_of_whole_scenes_is_wider_than_of_matches_that_share_their_fate() -> None:
    table = simulate(1000)
    table["error_px"] = np.where(table["scene"] % 2 == 0, 1.0, 9.0)
    table["row"] = np.arange(len(table))
    scenes, single = (calibration.bootstrap_scores(table, cluster=c, n=100) for c in ("scene", "row"))
    assert (scenes["high"] - scenes["low"])[7] > 3 * (single["high"] - single["low"])[7]  # accuracy


def test_bootstrap_of_one_scene_has_no_intervals() -> None:
    found = calibration.bootstrap_scores(simulate(50).assign(scene="only"))
    assert found["value"].notna().all() and found[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"error_px": np.nan}, {}, "error_px at least 0, not NaN"),
        ({"scene": ""}, {}, "'scene' is empty"),
        ({"confidence": 2.0}, {}, r"confidence must be finite and in \[0, 1\]"),
        ({}, {"confidence": "absent"}, r"lacks the columns \['absent'\]"),
        ({}, {"n": 0}, r"n \(0\) must be at least 1"),
        ({}, {"threshold_px": float("nan")}, r"threshold_px \(nan\)"),
    ],
)
def test_bootstrap_rejects_tables_it_cannot_resample(change: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration.bootstrap_scores(simulate(20).assign(**change), **options)


def test_temperature_finds_the_one_the_probabilities_were_sharpened_by() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.02, 0.98, 20_000)
    features = {"probability": expit(2.5 * logit(truth))}
    fitted = Temperature.fit(features, rng.random(20_000) < truth)
    assert fitted.temperature == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(Temperature(2.5)(features), truth, atol=1e-6)
    np.testing.assert_allclose(Temperature(1.0)({"probability": truth}), truth)


def test_temperature_stops_at_its_limit_where_probabilities_say_the_opposite() -> None:
    fitted = Temperature.fit({"probability": [0.9, 0.8, 0.1, 0.2]}, [False, False, True, True])
    assert fitted.temperature == pytest.approx(calibration.TEMPERATURES[1], rel=1e-2)


def test_isotonic_pools_violators_by_hand() -> None:
    features = {"probability": [0.1, 0.2, 0.3, 0.4]}
    fitted = Isotonic.fit(features, [False, True, False, True])
    np.testing.assert_allclose(fitted(features), [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(fitted({"probability": [0.0, 0.15, 1.0]}), [0, 0.25, 1])
    heavier = Isotonic.fit(features, [False, True, False, True], [1, 3, 1, 1])
    np.testing.assert_allclose(heavier(features), [0, 0.75, 0.75, 1])


def test_isotonic_of_many_matches_has_few_knots_and_recovers_the_map() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 20_000)
    fitted = Isotonic.fit({"probability": probability}, rng.random(20_000) < probability**2)
    assert 10 < len(fitted.x) <= calibration.MAX_KNOTS
    grid = np.linspace(0.05, 0.95, 30)
    np.testing.assert_allclose(fitted({"probability": grid}), grid**2, atol=0.06)
    assert (np.diff(fitted({"probability": np.sort(probability)})) >= 0).all()


def test_logistic_recovers_the_chance_of_each_match_and_uses_what_it_is_given() -> None:
    table, other = simulate(20_000), simulate(2000, seed=1)
    fitted = Logistic.fit(table, table["error_px"] <= 3)
    np.testing.assert_allclose(fitted(other), other["truth"], atol=0.06)
    np.testing.assert_allclose(np.array(fitted.weights) / fitted.scale, [0.8, -0.7, 0], atol=0.07)
    blind = Logistic.fit(table, table["error_px"] <= 3, names=("logit_probability",))
    correct = other["error_px"] <= 3
    assert calibration.auroc(fitted(other), correct) > calibration.auroc(blind(other), correct) + 0.03
    without = other.assign(epistemic=np.nan, aleatoric=np.nan)  # not looked at
    np.testing.assert_array_equal(blind(without), blind(other))


def test_isotonic_on_top_of_the_logistic_maps_its_result() -> None:
    table = simulate(5000)
    correct = table["error_px"] <= 3
    plain, topped = (Logistic.fit(table, correct, isotonic=on_top) for on_top in (False, True))
    assert plain.isotonic is None and topped.isotonic is not None
    np.testing.assert_allclose(topped(table), topped.isotonic({"probability": plain(table)}))
    assert calibration.expected_calibration_error(topped(table), correct) < 0.02


def test_only_ratios_of_weights_count_and_pairs_can_count_alike() -> None:
    np.testing.assert_allclose(calibration.pair_weights(["b", "a", "b", "b"]), [1 / 3, 1, 1 / 3, 1 / 3])
    table = simulate(600)
    correct = table["error_px"] <= 3
    weights = calibration.pair_weights(table["id"])
    assert weights.sum() == pytest.approx(table["id"].nunique())
    for kind in (Temperature, Isotonic, Logistic):
        once, scaled = kind.fit(table, correct, weights), kind.fit(table, correct, 1000 * weights)
        np.testing.assert_allclose(once(table), scaled(table), atol=1e-4)
        twice = kind.fit(table, correct, 1 + (table["id"] == 0))
        assert not np.allclose(twice(table), kind.fit(table, correct)(table), atol=1e-6)
    with pytest.raises(ValueError, match="ids must name the pair"):
        calibration.pair_weights(["a", None])


def calibrators() -> list[calibration.Calibrator]:
    isotonic = Isotonic((0.1, 0.5), (0.2, 0.9))
    named = (("logit_probability", "epistemic"), (0.1, -3.0), (1.5, 2.0), (0.7, -0.2), 0.3)
    return [Temperature(1.7), isotonic, Logistic(*named), Logistic(*named, isotonic)]


@pytest.mark.parametrize("calibrator", calibrators(), ids=repr)
def test_calibrators_survive_json_and_share_their_call(calibrator: calibration.Calibrator) -> None:
    again = calibrator_from_dict(json.loads(json.dumps(calibrator.to_dict(), allow_nan=False)))
    assert again == calibrator
    table = simulate(30)
    features = {name: table[name].to_numpy() for name in ("probability", "aleatoric", "epistemic")}
    result = calibrator(features)
    assert result.shape == (30,) and ((result >= 0) & (result <= 1)).all()
    np.testing.assert_array_equal(again(table), result)
    assert calibrator({name: [] for name in features}).shape == (0,)
    extreme = calibrator({"probability": [0.0, 1.0], "epistemic": [0.0, 0.0]})
    assert np.isfinite(extreme).all() and extreme[0] < extreme[1]
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"features\['probability'\] must be finite"):
            calibrator(features | {"probability": np.full(30, bad)})
    with pytest.raises(ValueError, match="features lack 'probability'"):
        calibrator({"epistemic": [0.1]})


def test_fitted_calibrators_survive_json() -> None:
    table = simulate(500)
    for kind in (Temperature, Isotonic, Logistic):
        fitted = kind.fit(table, table["error_px"] <= 3)
        assert calibrator_from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


@pytest.mark.parametrize("kind", [Temperature, Isotonic, Logistic])
@pytest.mark.parametrize(
    ("correct", "weights", "message"),
    [
        ([True, True], None, "with both outcomes"),
        ([True], None, r"correct must be \(2,\) bool"),
        ([1.0, np.nan], None, "with both outcomes"),
        ([True, False], [1.0, 0.0], "finite and positive"),
        ([True, False], [1.0], r"weights must be \(2,\)"),
    ],
)
def test_fits_reject_what_cannot_teach(kind: type, correct: list, weights: list | None, message: str) -> None:
    features = {"probability": [0.2, 0.7], "aleatoric": [0.1, 0.2], "epistemic": [0.0, 0.1]}
    with pytest.raises(ValueError, match=message):
        kind.fit(features, correct, weights)
    with pytest.raises(ValueError, match=r"correct must be \(0,\) bool with both outcomes"):
        kind.fit({name: [] for name in features}, [])


def test_logistic_rejects_features_it_uses_and_cannot_read() -> None:
    features = {"probability": [0.2, 0.7], "aleatoric": [0.1, 0.2], "epistemic": [0.0, np.nan]}
    with pytest.raises(ValueError, match=r"features\['epistemic'\].*1 of 2 are not.*does without it"):
        Logistic.fit(features, [True, False])
    Logistic.fit(features, [True, False], names=("logit_probability", "aleatoric"))
    with pytest.raises(ValueError, match=r"features differ in length: .*'aleatoric': 1"):
        Logistic.fit(features | {"aleatoric": [0.1], "epistemic": [0.0, 0.1]}, [True, False])
    for names in ((), ("probability",), ("aleatoric", "aleatoric")):
        with pytest.raises(ValueError, match="names must be different ones of"):
            Logistic.fit(features, [True, False], names=names)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "platt"}, "kind among"),
        ({}, "got None"),
        ({"kind": "temperature", "t": 1.0}, "not the entries of a temperature"),
        ({"kind": "temperature", "temperature": 0.0}, "temperature must be positive"),
        ({"kind": "isotonic", "x": [0.5, 0.1], "y": [0.1, 0.2]}, "x must ascend"),
        ({"kind": "isotonic", "x": [0.1, 0.5], "y": [0.3, 0.2]}, "y never fall"),
        ({"kind": "isotonic", "x": [], "y": []}, "got 0 and 0 knots"),
        ({"kind": "isotonic", "x": [0.1], "y": [1.2]}, r"y must be finite and in \[0, 1\]"),
        (calibrators()[2].to_dict() | {"scale": [1.0, 0.0]}, "scale > 0"),
        (calibrators()[2].to_dict() | {"mean": [1.0]}, "one finite value for each"),
    ],
)
def test_descriptions_that_name_no_calibrator(description: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrator_from_dict(description)
