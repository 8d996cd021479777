"""Units inferred from samples, and their scaling."""

from __future__ import annotations

import numpy as np
import pytest

from sarmatch.data.pairs import PairError
from sarmatch.data.units import optical_scaling, sar_scaling, scale_optical, scale_sar

RNG = np.random.default_rng(0)
POWER = (0.05 * RNG.exponential(1, (1, 5000))).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "units"),
    [
        (RNG.integers(0, 256, (1, 100)).astype(np.uint8), "byte"),
        (10 * np.log10(POWER), "db"),
        (POWER, "power"),
        (POWER * 40, "power"),  # a bright city
        (np.sqrt(POWER) * 1500, "amplitude"),
        ((np.sqrt(POWER) * 1500).astype(np.uint16), "amplitude"),
        (RNG.uniform(0, 1, (1, 500)).astype(np.float32), "unit"),
    ],
)
def test_sar_units(values: np.ndarray, units: str) -> None:
    assert sar_scaling(values, (0,)).units == units


@pytest.mark.parametrize(
    ("values", "units"),
    [
        (np.full((3, 9), 7, np.uint8), "byte"),
        (np.full((3, 9), 3000, np.uint16), "reflectance"),
        (np.full((3, 9), 0.3, np.float32), "unit"),
        (np.full((3, 9), 3000.0, np.float32), "reflectance"),
    ],
)
def test_optical_units(values: np.ndarray, units: str) -> None:
    assert optical_scaling(values).units == units


def test_power_amplitude_and_decibel_of_one_scene_look_alike() -> None:
    decibel = 10 * np.log10(POWER)
    views = [sar_scaling(v, (0,))(v[..., None]) for v in (POWER, decibel)]
    np.testing.assert_allclose(views[0], views[1], atol=1e-5)
    digital = np.sqrt(POWER) * 1500
    assert np.corrcoef(sar_scaling(digital, (0,))(digital[..., None]).ravel(), views[0].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_windows_are_scaled_as_whole_images_are(dtype: type) -> None:
    values = RNG.integers(1, 255, (1, 8, 8)).astype(dtype)
    values = values if dtype is np.uint8 else -values / 10
    whole, _ = scale_sar(values)
    np.testing.assert_allclose(sar_scaling(values.reshape(1, -1), (0,))(values), whole.numpy(), atol=1e-6)
    reflectance = RNG.integers(1, 9000, (3, 8, 8)).astype(np.uint16)
    whole, _ = scale_optical(reflectance)
    np.testing.assert_allclose(optical_scaling(reflectance.reshape(3, -1))(reflectance), whole.numpy(), atol=1e-6)


def test_units_that_a_user_names_win_and_unknown_ones_are_refused() -> None:
    assert sar_scaling(POWER, (0,), "amplitude").units == "amplitude"
    with pytest.raises(PairError, match="units must be one of"):
        sar_scaling(POWER, (0,), "volts")  # type: ignore[arg-type]
    with pytest.raises(PairError, match="no positive value"):
        sar_scaling(-POWER, (0,), "power")


def test_what_is_not_finite_stays_in_range() -> None:
    scaling = sar_scaling(POWER, (0,))
    scaled = scaling(np.array([[[0.0, np.nan, np.inf, 1e-3]]], np.float32))
    assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1
