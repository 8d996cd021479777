"""Robust fits: known maps are recovered among outliers, and hopeless cases are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sarmatch.matching import robust_fit
from sarmatch.matching.matches import Matches
from sarmatch.matching.robust_fit import MINIMAL_SAMPLE, AffineModel, RegistrationError, fit_affine, least_squares

TRUE: dict[AffineModel, np.ndarray] = {
    "affine": np.array([[1.04, 0.12, 7.0], [-0.08, 0.95, -4.0], [0, 0, 1]]),
    "similarity": np.array([[0.9, -0.3, 12.0], [0.3, 0.9, 3.0], [0, 0, 1]]),
    "shift": np.array([[1.0, 0, -6.25], [0, 1.0, 9.5], [0, 0, 1]]),
}


def scene(matrix: np.ndarray, n: int = 300, outliers: float = 0.6, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 255, (n, 2))
    target = xy @ matrix[:2, :2].T + matrix[:2, 2] + rng.normal(0, noise, xy.shape)
    wrong = int(n * outliers)
    target[:wrong] = rng.uniform(0, 255, (wrong, 2))
    return xy, target


@pytest.mark.parametrize("model", TRUE)
def test_recovers_the_map_among_outliers(model: AffineModel) -> None:
    xy, target = scene(TRUE[model])
    fit = Matches(xy, target, np.ones(len(xy))).affine(model)
    corners = np.array([[0, 0], [255, 0], [0, 255], [255, 255]])
    found = corners @ fit.matrix[:2, :2].T + fit.matrix[:2, 2]
    expected = corners @ TRUE[model][:2, :2].T + TRUE[model][:2, 2]
    assert np.linalg.norm(found - expected, axis=1).max() < 0.3
    assert fit.inliers[180:].all() and fit.inliers[:180].mean() < 0.05
    assert fit.n_inliers == fit.inliers.sum()
    assert 0.25 < fit.rmse_px < 0.7  # 0.3 px of noise an axis, and a few outliers by chance


@pytest.mark.parametrize("model", TRUE)
def test_deterministic_whatever_ran_before(model: AffineModel) -> None:
    xy, target = scene(TRUE[model])
    first = fit_affine(xy, target, model).matrix
    cv2.setRNGSeed(99)
    np.testing.assert_array_equal(first, fit_affine(xy, target, model).matrix)


@pytest.mark.parametrize("model", TRUE)
def test_large_coordinates_lose_no_precision(model: AffineModel) -> None:
    xy, target = scene(TRUE[model], outliers=0.3, noise=0.0)
    near, far = fit_affine(xy, target, model), fit_affine(xy + 5e5, target + 7e5, model)
    np.testing.assert_array_equal(near.inliers, far.inliers)
    np.testing.assert_allclose(near.matrix[:2, :2], far.matrix[:2, :2], atol=1e-6)


@pytest.mark.parametrize("model", TRUE)
def test_least_squares_is_exact_without_noise(model: AffineModel) -> None:
    xy, target = scene(TRUE[model], n=10, outliers=0.0, noise=0.0)
    np.testing.assert_allclose(least_squares(xy, target, model), TRUE[model], atol=1e-9)


@pytest.mark.parametrize("model", TRUE)
def test_too_few_matches_is_an_error_that_says_so(model: AffineModel) -> None:
    xy = np.arange(14, dtype=float).reshape(7, 2)
    with pytest.raises(RegistrationError, match=r"7 matches, but a robust .* needs at least 8"):
        fit_affine(xy, xy, model)
    with pytest.raises(RegistrationError, match=f"0 matches, but .* at least {MINIMAL_SAMPLE[model]}"):
        fit_affine(xy[:0], xy[:0], model, min_inliers=0)


def test_matches_that_do_not_agree_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RegistrationError, match="agree"):
        fit_affine(rng.uniform(0, 4000, (60, 2)), rng.uniform(0, 4000, (60, 2)), threshold_px=1.0)


def test_rejects_unknown_models_and_thresholds() -> None:
    with pytest.raises(ValueError, match="model must be one of"):
        fit_affine(np.zeros((9, 2)), np.zeros((9, 2)), "homography")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold_px must be positive"):
        fit_affine(np.zeros((9, 2)), np.zeros((9, 2)), threshold_px=0)


def shifted(n: int, spread: float, outliers: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Matches of which most move by (12.25, -4.5) px, give or take `spread` px on each axis."""
    rng = np.random.default_rng(n)
    xy = rng.uniform(0, 2000, (n, 2))
    target = xy + np.array([12.25, -4.5]) + rng.normal(0, spread, xy.shape)
    wrong = rng.random(n) < outliers
    target[wrong] += rng.uniform(-32, 32, (int(wrong.sum()), 2))
    return xy, target


@pytest.mark.parametrize(("n", "spread"), [(60, 0.3), (400, 2.0), (3000, 0.3), (3000, 2.5), (3000, 6.0)])
def test_a_shift_is_at_the_densest_place_of_the_displacements(n: int, spread: float) -> None:
    """Against counting the neighbours of every displacement: as many agree, and the refit ends at the same place."""
    xy, target = shifted(n, spread)
    moved = target - xy
    counts = np.array([(np.linalg.norm(moved - one, axis=1) <= 3.0).sum() for one in moved])
    found = robust_fit._densest_shift(xy, target, 3.0)
    agreeing = (np.linalg.norm(moved - found[:2, 2], axis=1) <= 3.0).sum()
    assert agreeing >= 0.98 * counts.max() and (n > 512 or agreeing == counts.max())
    best = np.eye(3)
    best[:2, 2] = moved[np.argmax(counts)]
    refitted = [robust_fit._refit(matrix, xy, target, "shift", 3.0, 8) for matrix in (found, best)]
    np.testing.assert_allclose(refitted[0].matrix, refitted[1].matrix, atol=0.05 * max(spread, 1))
    assert refitted[0].n_inliers >= 0.98 * refitted[1].n_inliers


@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_work_for_a_shift_grows_with_the_matches_and_not_with_their_square(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours that the search tree reports are its work: all of the N^2 where every match agrees with every one."""
    visits = 0

    class Counting(cKDTree):  # type: ignore[misc]
        def query_ball_point(self, x, r, **options):  # type: ignore[no-untyped-def]
            nonlocal visits
            found = super().query_ball_point(x, r, **options)
            visits += int(np.sum(found))
            return found

        def query_pairs(self, r, **options):  # type: ignore[no-untyped-def]
            nonlocal visits
            found = super().query_pairs(r, **options)
            visits += len(found)
            return found

    monkeypatch.setattr(robust_fit, "cKDTree", Counting)
    work = []
    for n in (2_000, 8_000):
        visits = 0
        robust_fit.fit_affine(*shifted(n, spread, outliers=0.1), "shift")
        work.append(visits)
    assert 0 < work[1] < 5 * work[0], f"four times the matches took {work[1] / work[0]:.1f} times the work"


def test_two_hundred_thousand_agreeing_matches_have_their_shift() -> None:
    fit = robust_fit.fit_affine(*shifted(200_000, 0.3, outliers=0.0), "shift")
    np.testing.assert_allclose(fit.matrix[:2, 2], [12.25, -4.5], atol=0.01)
    assert fit.inliers.all()
