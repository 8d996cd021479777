"""Calibrators: recovered parameters, hand-computed maps, JSON, rejected inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from simulated_matches import simulate

from sarmatch.calibration import calibrators, scores
from sarmatch.calibration.calibrators import Isotonic, Logistic, calibrator_from_dict


def test_isotonic_pools_violators_by_hand() -> None:
    features = {"probability": [0.1, 0.2, 0.3, 0.4]}
    fitted = Isotonic.fit(features, [False, True, False, True])
    np.testing.assert_allclose(fitted(features), [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(fitted({"probability": [0.0, 0.15, 1.0]}), [0, 0.25, 1])


def test_isotonic_of_many_matches_has_few_knots_and_recovers_the_map() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 20_000)
    fitted = Isotonic.fit({"probability": probability}, rng.random(20_000) < probability**2)
    assert 10 < len(fitted.x) <= calibrators.MAX_KNOTS
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
    assert scores.auroc(fitted(other), correct) > scores.auroc(blind(other), correct) + 0.03
    without = other.assign(epistemic=np.nan, aleatoric=np.nan)  # not looked at
    np.testing.assert_array_equal(blind(without), blind(other))


def test_isotonic_on_top_of_the_logistic_maps_its_result() -> None:
    table = simulate(5000)
    correct = table["error_px"] <= 3
    plain, topped = (Logistic.fit(table, correct, isotonic=on_top) for on_top in (False, True))
    assert plain.isotonic is None and topped.isotonic is not None
    np.testing.assert_allclose(topped(table), topped.isotonic({"probability": plain(table)}))
    assert scores.expected_calibration_error(topped(table), correct) < 0.02


def examples() -> list[calibrators.Calibrator]:
    isotonic = Isotonic((0.1, 0.5), (0.2, 0.9))
    named = (("logit_probability", "epistemic"), (0.1, -3.0), (1.5, 2.0), (0.7, -0.2), 0.3)
    return [isotonic, Logistic(*named), Logistic(*named, isotonic)]


@pytest.mark.parametrize("calibrator", examples(), ids=repr)
def test_calibrators_survive_json_and_share_their_call(calibrator: calibrators.Calibrator) -> None:
    again = calibrator_from_dict(json.loads(json.dumps(asdict(calibrator), allow_nan=False)))
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
    for fit in (Isotonic.fit, Logistic.fit):
        fitted = fit(table, table["error_px"] <= 3)
        assert calibrator_from_dict(json.loads(json.dumps(asdict(fitted)))) == fitted


@pytest.mark.parametrize("fit", [Isotonic.fit, Logistic.fit])
@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ([True, True], "with both outcomes"),
        ([True], r"correct must be \(2,\) bool"),
        ([1.0, np.nan], "with both outcomes"),
    ],
)
def test_fits_reject_outcomes_that_decide_nothing(fit: Callable, correct: list, message: str) -> None:
    features = {"probability": [0.2, 0.7], "aleatoric": [0.1, 0.2], "epistemic": [0.0, 0.1]}
    with pytest.raises(ValueError, match=message):
        fit(features, correct)
    with pytest.raises(ValueError, match=r"correct must be \(0,\) bool with both outcomes"):
        fit({name: [] for name in features}, [])


def test_logistic_rejects_features_it_uses_and_cannot_read() -> None:
    features = {"probability": [0.2, 0.7], "aleatoric": [0.1, 0.2], "epistemic": [0.0, np.nan]}
    with pytest.raises(ValueError, match=r"features\['epistemic'\].*1 of 2 are not.*does without it"):
        Logistic.fit(features, [True, False])
    Logistic.fit(features, [True, False], names=("logit_probability", "aleatoric"))
    with pytest.raises(ValueError, match="same shape"):
        Logistic.fit(features | {"aleatoric": [0.1], "epistemic": [0.0, 0.1]}, [True, False])
    for names in ((), ("probability",), ("aleatoric", "aleatoric")):
        with pytest.raises(ValueError, match="names must be different ones of"):
            Logistic.fit(features, [True, False], names=names)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "platt"}, "kind among"),
        ({}, "got None"),
        ({"kind": "isotonic", "x": [0.5, 0.1], "y": [0.1, 0.2]}, "x must ascend"),
        ({"kind": "isotonic", "x": [0.1, 0.5], "y": [0.3, 0.2]}, "y never fall"),
        ({"kind": "isotonic", "x": [], "y": []}, "got 0 and 0 knots"),
        ({"kind": "isotonic", "x": [0.1], "y": [1.2]}, r"y must be finite and in \[0, 1\]"),
        (asdict(examples()[1]) | {"scale": [1.0, 0.0]}, "scale > 0"),
        (asdict(examples()[1]) | {"mean": [1.0]}, "one finite value for each"),
    ],
)
def test_descriptions_that_name_no_calibrator(description: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrator_from_dict(description)
