"""The error model of a match, its covariance and its radius, on matches whose errors are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_errors import fitted, simulated

from sarmatch.calibration.calibrators import Isotonic
from sarmatch.calibration.position_error import (
    CONFIDENT_PX,
    LEVELS,
    Precision,
    check_coverage,
    fit_covariance,
    fit_precision,
    raw_covariance,
    scene_weights,
    weighted_quantiles,
)

MODEL = Precision(0.5, 0.1, (3.0, 10.0, 40.0), LEVELS, LEVELS)


def isotropic(variance: float, n: int = 1) -> np.ndarray:
    return np.tile(variance * np.eye(2), (n, 1, 1))


def test_a_covariance_is_scaled_and_has_a_floor() -> None:
    raw = np.array([[[2.0, 1.0], [1.0, 4.0]]])
    np.testing.assert_allclose(MODEL.covariance(raw), [[[1.1, 0.5], [0.5, 2.1]]])
    assert np.isnan(MODEL.covariance(np.full((1, 2, 2), np.nan))).all()


def test_the_error_model_by_hand() -> None:
    raw = isotropic(0.0)  # so that the variance is the floor
    near = (1 - np.exp(-1 / 0.2)) / (1 - np.exp(-9 / 0.2))
    values = [float(MODEL.error_cdf([error], [0.8], raw)[0]) for error in (0, 1, 3, 10, 25, 40, 99)]
    np.testing.assert_allclose(values, [0, 0.8 * near, 0.8, 0.9, 0.95, 1, 1])


def test_radius_by_hand() -> None:
    raw, confidence = isotropic(0.0, 2), [0.99, 0.8]
    radius = MODEL.radius(confidence, raw, 0.9)
    share = 0.9 / 0.99 * (1 - np.exp(-9 / 0.2))
    np.testing.assert_allclose(radius[0], np.sqrt(-0.2 * np.log(1 - share)))
    np.testing.assert_allclose(radius[1], 10.0)  # half of what is wrong lies below


@given(
    st.floats(0, 1), st.floats(0, 20), st.floats(LEVELS[0], LEVELS[-1]), st.floats(0.01, 5), st.floats(0.01, 5)
)  # fmt: skip
def test_the_error_model_has_its_threshold_at_the_radius(
    confidence: float, variance: float, coverage: float, scale: float, floor: float
) -> None:
    model = dataclasses.replace(MODEL, scale=scale, floor=floor)
    radius = model.radius([confidence], isotropic(variance), coverage)
    assert np.isfinite(radius).all() and radius[0] >= 0
    assert model.error_cdf(radius, [confidence], isotropic(variance))[0] == pytest.approx(coverage, abs=1e-6)


def test_radii_grow_with_coverage_and_uncertainty() -> None:
    coverages = [MODEL.radius([0.95], isotropic(1.0), level)[0] for level in (0.5, 0.8, 0.9, 0.95, 0.98)]
    assert (np.diff(coverages) > 0).all()
    confidences = MODEL.radius(np.linspace(0, 1, 11), isotropic(1.0, 11), 0.9)
    assert (np.diff(confidences) <= 0).all() and confidences[0] > 30 > 3 > confidences[-1]
    spreads = [MODEL.radius([1.0], isotropic(v), 0.9)[0] for v in (0.0, 0.5, 2.0)]
    assert (np.diff(spreads) > 0).all()


def test_a_match_without_spread_has_no_radius_unless_it_is_likely_wrong() -> None:
    unknown = np.full((2, 2, 2), np.nan)
    radius = MODEL.radius([1.0, 0.5], unknown, 0.9)
    assert np.isnan(radius[0]) and radius[1] > CONFIDENT_PX


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1, float("nan"), 90])
def test_impossible_coverages_are_named(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage must lie between"):
        check_coverage(coverage)
    with pytest.raises(ValueError, match="coverage must lie between"):
        MODEL.radius([0.5], isotropic(1.0), coverage)


def test_scale_and_floor_are_recovered() -> None:
    rng = np.random.default_rng(0)
    raw = isotropic(1.0, 20000) * rng.uniform(0, 5, (20000, 1, 1))
    raw[:, 0, 0] *= 4
    residuals = np.einsum("nij,nj->ni", np.linalg.cholesky(0.3 * raw + 0.2 * np.eye(2)), rng.normal(size=(20000, 2)))
    scale, floor = fit_covariance(raw, residuals, np.ones(20000))
    assert scale == pytest.approx(0.3, rel=0.05) and floor == pytest.approx(0.2, rel=0.1)


def test_weighted_quantiles_by_hand() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.25, 0.25])
    np.testing.assert_array_equal(
        weighted_quantiles(values, weights, [0, 0.25, 0.26, 0.5, 0.51, 1]), [1, 1, 2, 2, 3, 3]
    )


def test_scenes_count_alike() -> None:
    weights = scene_weights(pd.DataFrame({"scene": ["a", "a", "a", "b"]}))
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_the_fitted_model_covers_other_scenes() -> None:
    precision, other = fitted(simulated()), simulated(seed=1)
    assert precision.scale == pytest.approx(0.4, rel=0.15) and precision.floor == pytest.approx(0.2, rel=0.2)
    for coverage in (0.5, 0.8, 0.9, 0.95):
        radius = precision.radius(other["probability"], raw_covariance(other), coverage)
        assert np.mean(other["error_px"] <= radius) == pytest.approx(coverage, abs=0.02)


def test_thresholds_come_from_scenes_the_model_was_not_fitted_on() -> None:
    """Half of the scenes have larger errors: models of the others are too narrow or too wide, which thresholds mend."""
    table = pd.concat([simulated(10, hard=h, seed=s).assign(half=h) for s, h in enumerate((0.3, 1.5))])
    table["scene"] = table["scene"] + table["half"].astype(str)
    precision = fitted(table.reset_index(drop=True))
    radius = precision.radius(table["probability"], raw_covariance(table), 0.9)
    assert np.mean(table["error_px"] <= radius) == pytest.approx(0.9, abs=0.02)
    naive = dataclasses.replace(precision, thresholds=LEVELS).radius(table["probability"], raw_covariance(table), 0.9)
    assert abs(np.mean(table["error_px"] <= naive) - 0.9) > abs(np.mean(table["error_px"] <= radius) - 0.9)


def test_an_overconfident_calibrator_is_corrected_by_the_thresholds() -> None:
    table = simulated()
    overconfident = Isotonic((0.0, 1.0), (0.999, 1.0))
    precision, other = fit_precision(table, lambda _: overconfident), simulated(seed=1)
    radius = precision.radius(overconfident(other), raw_covariance(other), 0.8)
    assert np.mean(other["error_px"] <= radius) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("share", [0, 1])
def test_matches_that_are_all_right_or_all_wrong_can_be_fitted(share: int) -> None:
    table = simulated(4, 50)
    table = table[(table["error_px"] <= CONFIDENT_PX) == bool(share)]
    radius = fitted(table).radius(table["probability"], raw_covariance(table), 0.9)
    assert np.isfinite(radius).all()


def test_one_scene_and_no_spread() -> None:
    table = simulated(1, 200)
    assert np.isfinite(fitted(table).thresholds).all()
    with pytest.raises(ValueError, match="none of the matches has a spread"):
        fitted(table.assign(var_x=np.nan))


def test_impossible_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        dataclasses.replace(MODEL, wrong=(5.0, 3.0))
    with pytest.raises(ValueError, match="floor > 0"):
        dataclasses.replace(MODEL, floor=0.0)
