"""From matches to a map between two scenes, its error, and whether they agree more than those of unrelated images.

Matches of one neighbourhood are not independent: they are thinned to one per 16 px, and covariances count clusters.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy.spatial import cKDTree

from sarmatch.config import CONFIDENT_PX
from sarmatch.matching.robust_fit import RegistrationError, fit_affine
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.settings import Model

MODELS: tuple[Model, ...] = get_args(Model)  #: From the stiffest to the most flexible.
THIN_PX = 16.0  #: Matches nearer than this count once.
CLUSTER_PX = 128.0  #: Side of the neighbourhoods whose matches may err together: more than the widest consensus.
CONSENSUS_PX = 100.0  #: Side of the widest aggregation, px; nearer matches are no independent evidence.
THRESHOLD_PX = CONFIDENT_PX  #: A match agrees with a map when it lies within this distance of it.
CE90 = math.sqrt(-2 * math.log(0.1))  #: Radius of 90 % of errors over their standard deviation on each of both axes.
MIN_INLIERS = 12  #: Fewer agreeing matches, thinned to one per 16 px, are taken for chance.
MIN_GROUPS = 3.0  #: With fewer neighbourhoods than this, unrelated images agree as well as related ones do.
MAX_DISTORTION = 0.2  #: A map that stretches or turns by more cannot be right: matching assumes that it does not.


@dataclass(frozen=True, eq=False)
class SceneTransform:
    """A map from px of the reference to px of the moving image, both on the common grid: p + displacement(p)."""

    model: Model
    order: int  #: Degree of the polynomial displacement; 0 is a shift, 1 an affine map.
    centre: np.ndarray  #: (2,) px; polynomials are in (p - centre) / scale.
    scale: float
    coefficients: np.ndarray  #: (K, 2) px.
    covariance: np.ndarray  #: (2, K, K) px^2 of the coefficients of each axis, by clusters.
    field: Any  #: Gaussian process of what the affine part leaves, px; None for other models.
    inliers: np.ndarray  #: (N,) bool, of the matches it was fitted to.
    residuals: np.ndarray  #: (N, 2) px, matches less map.
    misfit: tuple[np.ndarray, np.ndarray]  #: Centres (M, 2) of clusters, squares (M,) an axis of their mean residuals.

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """Positions (..., 2) px in the moving image of positions in the reference."""
        rows = np.asarray(xy, np.float64).reshape(-1, 2)
        moved = []
        for part in np.array_split(rows, len(rows) // 8192 + 1):  # so that memory stays bounded
            unit = (part - self.centre) / self.scale
            left = 0 if self.field is None else self.field.predict(unit)
            moved.append(part + basis(unit, self.order) @ self.coefficients + left)
        return np.concatenate(moved).reshape(np.shape(xy))

    def sigma(self, xy: np.ndarray) -> np.ndarray:
        """Standard deviation an axis (root mean square of both) of the map and its misfit at (N, 2) positions, px."""
        unit = (np.asarray(xy, np.float64) - self.centre) / self.scale
        rows = basis(unit, self.order)
        parameters = np.einsum("nk,akl,nl->n", rows, self.covariance, rows) / 2
        if self.field is None:
            return np.sqrt(parameters + _smoothed(self.misfit, np.asarray(xy, np.float64)))
        _, deviation = self.field.predict(unit, return_std=True)
        return np.sqrt(parameters + np.mean(np.square(deviation.reshape(len(unit), -1)), axis=1))

    @property
    def rmse_px(self) -> float:
        """Root mean square distance of agreeing matches from the map."""
        return float(np.sqrt(np.mean((self.residuals[self.inliers] ** 2).sum(1))))

    def __str__(self) -> str:
        dx, dy = self.coefficients[0]
        return f"{self.model}, displacement at the centre ({dx:+.2f}, {dy:+.2f}) px"


def degree_of(model: Model, order: int) -> int:
    """Degree of the polynomial of a model; ValueError where there is no such model or order."""
    if model not in MODELS or order not in (2, 3):
        raise ValueError(f"model must be one of {', '.join(MODELS)} and order 2 or 3, got {model!r} and {order}")
    return {"shift": 0, "affine": 1, "polynomial": order, "field": 1}[model]


def basis(unit: np.ndarray, order: int) -> np.ndarray:
    """Monomials up to a total degree of positions (N, 2), (N, K); the constant first."""
    x, y = unit.T
    return np.stack([x ** (degree - j) * y**j for degree in range(order + 1) for j in range(degree + 1)], 1)


# long because inliers, weights and residuals of one iteration are all needed by the next
def fit_transform(
    xy_from: np.ndarray,
    xy_to: np.ndarray,
    model: Model = "affine",
    order: int = 2,
    covariance: np.ndarray | None = None,
) -> SceneTransform:
    """Robustly fit a map to matches that were thinned before; SceneRefusal where too few agree.

    Args:
        xy_from, xy_to: (N, 2) px in the reference and in the moving image.
        order: of the polynomial, 2 or 3.
        covariance: (N, 2, 2) px^2 of each match; None, or NaN for one, where unknown.
    """
    degree, bends = degree_of(model, order), model in ("polynomial", "field")
    source = np.asarray(xy_from, np.float64)
    displacement = np.asarray(xy_to, np.float64) - source
    loose = THRESHOLD_PX * (2 if bends else 1)
    try:
        start = fit_affine(source, xy_to, "shift" if model == "shift" else "affine", loose)
    except RegistrationError as error:
        raise SceneRefusal(str(error)) from error
    inliers = start.inliers & _like_neighbours(source, displacement) if bends else start.inliers
    weights = _weights(covariance, len(source))
    centre, scale = (source.min(0) + source.max(0)) / 2, max(float(np.ptp(source, axis=0).max()) / 2, 1.0)
    unit = (source - centre) / scale
    rows = basis(unit, degree)
    needed = max(8, 2 * rows.shape[1])
    for _ in range(10):
        if inliers.sum() < needed:
            raise SceneRefusal(
                f"only {inliers.sum()} of {len(source)} matches agree with one {model} within {THRESHOLD_PX:g} px; "
                f"expected at least {needed}"
            )
        root = np.sqrt(weights[inliers])[:, None]
        coefficients = np.linalg.lstsq(rows[inliers] * root, displacement[inliers] * root, rcond=None)[0]
        residuals = displacement - rows @ coefficients
        if model == "field":
            break  # the field follows what the affine part leaves; neighbours identified outliers
        previous, inliers = inliers, np.linalg.norm(residuals, axis=1) <= THRESHOLD_PX
        if np.array_equal(previous, inliers):
            break
    field = None
    if model == "field":
        field = _fit_field(unit, residuals, source, inliers)
        residuals = residuals - field.predict(unit)
        inliers = np.linalg.norm(residuals, axis=1) <= THRESHOLD_PX
    clusters = _clusters(source[inliers], CLUSTER_PX)
    spread = _cluster_covariance(rows[inliers], residuals[inliers], weights[inliers], clusters)
    misfit = _means(source[inliers], clusters), (_means(residuals[inliers], clusters) ** 2).mean(1)
    return SceneTransform(model, degree, centre, scale, coefficients, spread, field, inliers, residuals, misfit)


def _weights(covariance: np.ndarray | None, n: int) -> np.ndarray:
    """Inverse variances of matches, of which half a pixel is never known; 1 where unknown for all."""
    variance = np.full(n, np.nan) if covariance is None else np.trace(covariance, axis1=1, axis2=2) / 2
    known = np.isfinite(variance)
    if not known.any():
        return np.ones(n)
    weights = 1 / (np.where(known, variance, np.median(variance[known])) + 0.25)
    return np.asarray(weights / weights.mean())


def _like_neighbours(xy: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Which matches move as the median of their nine nearest, themselves included."""
    _, nearest = cKDTree(xy).query(xy, k=min(9, len(xy)))
    median = np.median(displacement[nearest], axis=1)
    return np.asarray(np.linalg.norm(displacement - median, axis=1) <= THRESHOLD_PX)


def _clusters(xy: np.ndarray, side: float) -> np.ndarray:
    """Numbers (N,) of the square cells that positions lie in, from 0 without gaps."""
    return np.unique(np.floor(xy / side), axis=0, return_inverse=True)[1].ravel()


def _means(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Means (M, K) of values (N, K) by cluster."""
    return np.stack([np.bincount(clusters, column) for column in values.T], 1) / np.bincount(clusters)[:, None]


def _cluster_covariance(
    rows: np.ndarray, residuals: np.ndarray, weights: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """Covariance (2, K, K) of least-squares coefficients whose errors are independent between clusters only.

    The sandwich estimate (Liang and Zeger, 1986), corrected for few clusters; with fewer than twice as many clusters as
    parameters, the classical one with one observation a cluster.
    """
    n_parameters, n_clusters = rows.shape[1], int(clusters.max()) + 1
    inverse = np.linalg.pinv((rows * weights[:, None]).T @ rows)
    if n_clusters < 2 * n_parameters:
        variance = (weights[:, None] * residuals**2).mean(0) * len(rows) / n_clusters
        return np.stack([inverse * v for v in variance])
    scores = np.zeros((n_clusters, n_parameters, 2))
    np.add.at(scores, clusters, rows[:, :, None] * (weights[:, None] * residuals)[:, None, :])
    meat = np.einsum("ckd,cld->dkl", scores, scores) * n_clusters / (n_clusters - n_parameters)
    return np.asarray(inverse @ meat @ inverse)


def _smoothed(misfit: tuple[np.ndarray, np.ndarray], xy: np.ndarray) -> np.ndarray:
    """Mean square of the misfit near each position: clusters weigh by a Gaussian, their overall mean by one of them."""
    centres, squares = misfit
    parts = []
    for part in np.array_split(xy, len(xy) // 4096 + 1):  # so that memory stays bounded
        near = np.exp(-((part[:, None] - centres) ** 2).sum(-1) / (2 * (2 * CLUSTER_PX) ** 2))
        parts.append((near @ squares + squares.mean()) / (near.sum(1) + 1))
    return np.concatenate(parts)


def _fit_field(unit: np.ndarray, residuals: np.ndarray, source: np.ndarray, inliers: np.ndarray) -> Any:
    """A smooth field through the means of neighbourhoods: a Gaussian process, whose spread grows away from them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    # At most 400 clusters: the cost grows with their cube.
    side = max(CLUSTER_PX / 2, math.sqrt(np.prod(np.ptp(source, axis=0) + CLUSTER_PX) / 400))
    clusters = _clusters(source[inliers], side)
    many = np.bincount(clusters) >= 3
    if many.sum() < 8:
        raise SceneRefusal(f"a field needs matches in at least 8 places of {side:.0f} px, there are {many.sum()}")
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(0.5, (0.05, 2.0)) + WhiteKernel(0.1, (1e-2, 10.0))
    process = GaussianProcessRegressor(kernel, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound that is reached: nothing varies, or all does
        return process.fit(*(_means(values[inliers], clusters)[many] for values in (unit, residuals)))


@dataclass(frozen=True)
class Agreement:
    """Evidence for a pair."""

    n_matches: int  #: Of all windows.
    n_thinned: int  #: One per 16 px.
    n_agree: int  #: Those of them within 3 px of one affine map.
    n_windows: int  #: With any matches.
    required: float  #: Share of thinned matches that must agree.
    reason: str  #: Why the pair is refused; empty where it is accepted.

    @property
    def accepted(self) -> bool:
        return not self.reason

    @property
    def share(self) -> float:
        return self.n_agree / self.n_thinned if self.n_thinned else 0.0


def groups(n_thinned: int) -> float:
    """How many neighbourhoods of `CONSENSUS_PX` so many matches, one per 16 px, fill."""
    return n_thinned * (THIN_PX / CONSENSUS_PX) ** 2


def required_share(n_thinned: int) -> float:
    """Least share of matches, thinned to one per 16 px, that must agree: all of few, a quarter of very many.

    Aggregation moves matches in groups of about `CONSENSUS_PX`: most of a few groups may agree by chance, of many not.
    """
    return 0.25 + 0.75 / math.sqrt(max(groups(n_thinned), 1.0))


def judge(xy_from: np.ndarray, xy_to: np.ndarray, counts: Sequence[int]) -> Agreement:
    """Judge a pair by its matches (N, 2), one per 16 px of the common grid, and by how many each window has in all."""
    n, n_agree, distortion, reason = len(xy_from), 0, 0.0, ""
    with suppress(RegistrationError):
        fit = fit_affine(xy_from, xy_to, threshold_px=THRESHOLD_PX, min_inliers=MIN_INLIERS)
        n_agree, distortion = fit.n_inliers, float(np.abs(fit.matrix[:2, :2] - np.eye(2)).max())
    required = required_share(n)
    if n_agree < MIN_INLIERS:
        reason = f"only {n_agree} of {n} matches (one per 16 px) agree, at least {MIN_INLIERS} are needed"
    elif groups(n) < MIN_GROUPS:
        side = round(CONSENSUS_PX * math.sqrt(MIN_GROUPS))
        reason = f"their {n} matches (one per 16 px) are too few to tell agreement from chance; about "
        reason += f"{side} x {side} px of common ground are needed"
    elif distortion > MAX_DISTORTION:
        reason = f"their matches agree on a map that distorts by {distortion:.0%}, which matching cannot see"
    elif (share := n_agree / n) < required:
        reason = f"{share:.0%} of their matches agree on one map, as of unrelated images; {required:.0%} are needed"
    if reason:
        reason += "; do both images show the same ground, within the search radius?"
    return Agreement(sum(counts), n, n_agree, sum(count > 0 for count in counts), required, reason)
