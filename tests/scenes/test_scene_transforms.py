"""Maps between scenes: known ones are found among outliers, and say how far they are to be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.transforms import CE90, MODELS, basis, fit_transform

SHIFT = np.array([10, -5])


def bend(xy: np.ndarray) -> np.ndarray:
    return np.stack([4 * np.sin(xy[:, 0] / 300), 3 * np.cos(xy[:, 1] / 250)], 1)


def grid(n: int = 10) -> np.ndarray:
    return np.stack(np.meshgrid(np.linspace(50, 950, n), np.linspace(50, 950, n)), -1).reshape(-1, 2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def with_outliers(rng: np.random.Generator, to: np.ndarray, noise: float = 0.5) -> np.ndarray:
    found = to + rng.normal(0, noise, to.shape)
    found[::4] += rng.uniform(-30, 30, found[::4].shape)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_shift_is_found_by_every_model(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 1000, (800, 2))
    transform = fit_transform(xy, with_outliers(rng, xy + SHIFT), model)
    assert np.abs(transform(grid()) - grid() - [10, -5]).max() < 0.5
    assert 0.70 < transform.inliers.mean() < 0.8


def test_what_bends_needs_a_map_that_bends(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 1000, (1500, 2))
    moved = with_outliers(rng, xy + SHIFT + bend(xy))
    truth = grid() + SHIFT + bend(grid())
    errors = [np.linalg.norm(fit_transform(xy, moved, model)(grid()) - truth, axis=1).max() for model in MODELS]
    assert errors[3] < errors[2] < errors[0] and errors[3] < 0.8


@pytest.mark.parametrize("model", ["affine", "polynomial"])
def test_stated_errors_hold_where_neighbours_err_together(model: str) -> None:
    """CE90 must hold about 90 % of true errors although matches of one cluster share their error."""
    held = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        xy = rng.uniform(0, 1000, (1200, 2))
        shared = rng.normal(0, 0.8, (8, 8, 2))
        at = np.floor(xy / 128).astype(int)
        moved = xy + [3, 4] + shared[at[:, 0], at[:, 1]] + rng.normal(0, 0.5, xy.shape)
        transform = fit_transform(xy, moved, model)
        error = np.linalg.norm(transform(grid(5)) - grid(5) - [3, 4], axis=1)
        held.append(error <= CE90 * transform.sigma(grid(5)))
    assert np.mean(held) >= 0.88


def test_errors_grow_away_from_the_matches(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 500, (600, 2))
    for model in ("affine", "polynomial", "field"):
        transform = fit_transform(xy, xy + rng.normal(0, 0.5, xy.shape), model)
        near, far = transform.sigma(np.array([[250.0, 250.0], [2000.0, 2000.0]]))
        assert far > 1.5 * near, model


def test_a_match_with_a_small_covariance_weighs_more() -> None:
    xy = np.random.default_rng(1).uniform(0, 500, (200, 2))
    moved = xy + np.where(np.arange(200)[:, None] % 2 == 0, [0.0, 0.0], [2.0, 0.0])
    sure = np.where(np.arange(200) % 2 == 0, 0.01, 9.0)[:, None, None] * np.eye(2)
    shift = fit_transform(xy, moved, "shift", covariance=sure)
    assert abs(shift.coefficients[0, 0]) < 0.15
    assert fit_transform(xy, moved, "shift").coefficients[0, 0] == pytest.approx(1, abs=0.2)
    unknown = np.full((200, 2, 2), np.nan)
    assert fit_transform(xy, moved, "shift", covariance=unknown).coefficients[0, 0] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("model", MODELS)
def test_noise_is_refused(model: str, rng: np.random.Generator) -> None:
    with pytest.raises(SceneRefusal):
        fit_transform(rng.uniform(0, 1000, (6, 2)), rng.uniform(0, 1000, (6, 2)), model)


def test_unknown_models_and_orders_are_an_error() -> None:
    with pytest.raises(ValueError, match="model must be one of"):
        fit_transform(grid(), grid(), "spline")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order 2 or 3"):
        fit_transform(grid(), grid(), "polynomial", order=9)


def test_basis_counts_monomials() -> None:
    assert basis(np.array([[2.0, 3.0]]), 2).tolist() == [[1, 2, 3, 4, 6, 9]]
