"""Robust estimation of an affine map, a similarity or a shift from point matches."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from scipy.spatial import cKDTree

from sarmatch.config import CONFIDENT_PX

AffineModel = Literal["affine", "similarity", "shift"]
MINIMAL_SAMPLE: dict[AffineModel, int] = {"affine": 3, "similarity": 2, "shift": 1}  #: Point pairs a model needs.


class RegistrationError(ValueError):
    """The matches do not determine a map: too few, or too few that agree."""


@dataclass(frozen=True, eq=False)
class AffineFit:
    """A robustly estimated map from SAR to optical pixel coordinates."""

    matrix: np.ndarray  #: (3, 3) float64, acts on column vectors (x, y, 1).
    inliers: np.ndarray  #: (N,) bool, the matches within the threshold of the map.
    rmse_px: float  #: Root mean square distance of the inliers to the map, px.

    @property
    def n_inliers(self) -> int:
        return int(self.inliers.sum())


def fit_affine(
    xy_from: np.ndarray,
    xy_to: np.ndarray,
    model: AffineModel = "affine",
    threshold_px: float = CONFIDENT_PX,
    min_inliers: int = 8,
) -> AffineFit:
    """Estimate the map that most matches agree with, then refit it by least squares to those matches.

    By MAGSAC++ (affine), RANSAC (similarity; OpenCV has no MAGSAC++ for it) or the densest place among the
    displacements (shift); all are deterministic.

    Args:
        xy_from, xy_to: (N, 2) matched points, px.
        threshold_px: a match agrees with a map when it lies within this distance of it.
        min_inliers: fewer agreeing matches than this are taken for chance, a `RegistrationError`.
    """
    if model not in MINIMAL_SAMPLE:
        raise ValueError(f"model must be one of {sorted(MINIMAL_SAMPLE)}, got {model!r}")
    if not threshold_px > 0:
        raise ValueError(f"threshold_px must be positive, got {threshold_px}")
    source, target = np.asarray(xy_from, dtype=np.float64), np.asarray(xy_to, dtype=np.float64)
    needed = max(min_inliers, MINIMAL_SAMPLE[model])
    if len(source) < needed:
        raise RegistrationError(
            f"{len(source)} matches, but a robust {model} needs at least {needed}; lower min_inliers or the "
            "confidence threshold, or match a larger overlap"
        )
    if model == "shift":
        matrix = _densest_shift(source, target, threshold_px)
    else:
        matrix = _sample_consensus(source, target, model, threshold_px)
    return _refit(matrix, source, target, model, threshold_px, needed)


def _sample_consensus(source: np.ndarray, target: np.ndarray, model: AffineModel, threshold: float) -> np.ndarray:
    # OpenCV computes in float32: centring keeps the coordinates of large scenes small.
    centre_from, centre_to = np.median(source, axis=0), np.median(target, axis=0)
    points = (source - centre_from).astype(np.float32), (target - centre_to).astype(np.float32)
    settings: dict[str, Any] = dict(ransacReprojThreshold=threshold, maxIters=5000, confidence=0.999)
    if model == "affine":
        found, _ = cv2.estimateAffine2D(*points, method=cv2.USAC_MAGSAC, **settings)
    else:
        found, _ = cv2.estimateAffinePartial2D(*points, method=cv2.RANSAC, **settings)
    if found is None or not np.isfinite(found).all():
        raise RegistrationError(f"no {model} agrees with the {len(source)} matches within {threshold} px")
    return _map(found[:, :2], centre_from, found[:, 2] + centre_to)


def _densest_shift(source: np.ndarray, target: np.ndarray, threshold: float, at_most: int = 512) -> np.ndarray:
    """The displacement of the match that most others agree with, as a map; exact up to `at_most` matches."""
    shift = target - source
    # Counting the neighbours of every displacement would take N^2 steps: a grid of a quarter of the threshold chooses
    # candidates first. A cell has at most 48 others within four cells, however many matches lie in them.
    cells = np.floor(shift / (threshold / 4)).astype(np.int64)
    occupied, which, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    first, second = cKDTree(occupied).query_pairs(4, output_type="ndarray").T
    near = counts + np.bincount(first, counts[second], len(counts)) + np.bincount(second, counts[first], len(counts))
    candidates = np.sort(np.argsort(-near[which.reshape(-1)], kind="stable")[:at_most])
    agreeing = cKDTree(shift).query_ball_point(shift[candidates], r=threshold, return_length=True)
    return _map(np.eye(2), np.zeros(2), shift[candidates[np.argmax(agreeing)]])


def _refit(
    matrix: np.ndarray, source: np.ndarray, target: np.ndarray, model: AffineModel, threshold: float, needed: int
) -> AffineFit:
    """Alternate inlier selection and least squares until the inliers no longer change, ten times at most."""
    previous, inliers = np.zeros(0, bool), _distances(matrix, source, target) <= threshold
    for _ in range(10):
        if inliers.sum() < needed or np.array_equal(inliers, previous):
            break
        matrix = least_squares(source[inliers], target[inliers], model)
        previous, inliers = inliers, _distances(matrix, source, target) <= threshold
    if inliers.sum() < needed:
        raise RegistrationError(
            f"only {inliers.sum()} of {len(source)} matches agree with one {model} within {threshold} px; "
            f"expected at least {needed}"
        )
    rmse = float(np.sqrt(np.mean(_distances(matrix, source[inliers], target[inliers]) ** 2)))
    return AffineFit(matrix, inliers, rmse)


def _distances(matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.linalg.norm(source @ matrix[:2, :2].T + matrix[:2, 2] - target, axis=1)


def least_squares(source: np.ndarray, target: np.ndarray, model: AffineModel) -> np.ndarray:
    """Least-squares map of (N, 2) points onto (N, 2) points, (3, 3); outliers are not handled."""
    centre_from, centre_to = source.mean(axis=0), target.mean(axis=0)
    p, q = source - centre_from, target - centre_to
    linear = np.eye(2)
    if model == "affine":
        linear = np.linalg.lstsq(p, q, rcond=None)[0].T
    elif model == "similarity":
        norm = max(float((p**2).sum()), np.finfo(float).tiny)
        a, b = float((p * q).sum()) / norm, float((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()) / norm
        linear = np.array([[a, -b], [b, a]])
    return _map(linear, centre_from, centre_to)


def _map(linear: np.ndarray, point_from: np.ndarray, point_to: np.ndarray) -> np.ndarray:
    """The map (3, 3) with a linear part (2, 2) that takes one point to another."""
    return np.vstack([np.column_stack([linear, point_to - linear @ point_from]), [0, 0, 1]])
