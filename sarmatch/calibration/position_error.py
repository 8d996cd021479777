"""Error model of matches: calibrated covariances and conformal radii (distributional: Chernozhukov et al., PNAS 2021).

A match is correct with the probability that its confidence states; then its error follows its covariance, else the
distribution of wrong matches. Coverage holds on average over scenes like the validation scenes, not in each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
from scipy.stats import rayleigh

from sarmatch.calibration.calibrators import Calibrator, cross_fitted
from sarmatch.config import CONFIDENT_PX

COVERAGE = 0.9  #: Of radii, unless another is asked for.
LEVELS = tuple(np.linspace(0.02, 0.98, 49).round(2).tolist())  #: Coverages with a threshold; interpolated in between.


@dataclass(frozen=True)
class Precision:
    """The error model of a match, and its conformal correction."""

    scale: float  #: A covariance is `scale` times the raw spread plus `floor` on both axes.
    floor: float  #: Px^2, such as the error of the ground truth.
    wrong: tuple[float, ...]  #: Quantiles of the errors of wrong matches, px, at even steps from 0 to 1.
    levels: tuple[float, ...]  #: Coverages that have a threshold.
    thresholds: tuple[float, ...]  #: Probability of the error model within the radius of each level.

    def __post_init__(self) -> None:
        numbers = np.array([self.scale, self.floor, *self.wrong, *self.levels, *self.thresholds], dtype=np.float64)
        if not np.isfinite(numbers).all() or self.scale < 0 or self.floor <= 0:
            raise ValueError(f"scale >= 0 and floor > 0 must be finite, got {self.scale} and {self.floor}")
        curves = (self.wrong, self.levels, self.thresholds)
        if len(self.levels) != len(self.thresholds) or any((np.diff(values) < 0).any() for values in curves):
            raise ValueError("wrong, levels and thresholds must ascend, and every level needs one threshold")

    def covariance(self, raw: np.ndarray) -> np.ndarray:
        """Covariances (N, 2, 2) px^2 of correct matches from their raw spread."""
        return self.scale * np.asarray(raw, dtype=np.float64) + self.floor * np.eye(2)

    def error_cdf(self, error: Any, confidence: Any, raw: np.ndarray) -> np.ndarray:
        """Modelled probability (N,) that matches are off by `error` px (N,) at most.

        The confidence (N,) is the calibrated probability of an error up to 3 px, the spread (N, 2, 2) is raw.
        """
        error, confidence = (np.asarray(values, dtype=np.float64) for values in (error, confidence))
        sigma = self._sigma(raw)
        near = rayleigh.cdf(np.minimum(error, CONFIDENT_PX), scale=sigma) / rayleigh.cdf(CONFIDENT_PX, scale=sigma)
        far = np.interp(error, self.wrong, np.linspace(0, 1, len(self.wrong)))
        return confidence * near + (1 - confidence) * np.where(error > CONFIDENT_PX, far, 0)

    def radius(self, confidence: Any, raw: np.ndarray, coverage: float) -> np.ndarray:
        """Radius (N,) px around each optical position that holds the true one in this share of cases."""
        check_coverage(coverage)
        needed = np.interp(coverage, self.levels, self.thresholds)
        confidence, sigma = np.asarray(confidence, dtype=np.float64), self._sigma(raw)
        share = np.minimum(needed / np.maximum(confidence, 1e-12), 1 - 1e-12)  # of all, no radius but infinity
        near = rayleigh.ppf(share * rayleigh.cdf(CONFIDENT_PX, scale=sigma), scale=sigma)
        rest = np.clip((needed - confidence) / np.maximum(1 - confidence, 1e-12), 0, 1)
        far = np.interp(rest, np.linspace(0, 1, len(self.wrong)), self.wrong)
        return np.where(needed <= confidence, np.minimum(near, CONFIDENT_PX), np.maximum(far, CONFIDENT_PX))

    def _sigma(self, raw: np.ndarray) -> np.ndarray:
        """Standard deviation (N,) px on one axis, by the mean variance of both: a radius knows no direction."""
        return np.sqrt(np.trace(self.covariance(raw), axis1=1, axis2=2) / 2)


def check_coverage(coverage: float) -> float:
    """The coverage, or a ValueError where it lies outside `LEVELS`."""
    if not LEVELS[0] <= coverage <= LEVELS[-1]:
        raise ValueError(
            f"coverage must lie between {LEVELS[0]} and {LEVELS[-1]}, the share of matches whose true position is to "
            f"lie within their radius; got {coverage}"
        )
    return coverage


def raw_covariance(table: pd.DataFrame) -> np.ndarray:
    """Spread (N, 2, 2) px^2 of the matches of a `match_table`."""
    return table[["var_x", "var_xy", "var_xy", "var_y"]].to_numpy(np.float64).reshape(-1, 2, 2)


def scene_weights(table: pd.DataFrame) -> np.ndarray:
    """Weights (N,) of matches that let every scene count alike, of sum 1."""
    scenes = table["scene"]
    return (1 / scenes.map(scenes.value_counts()) / scenes.nunique()).to_numpy(np.float64)


def fit_precision(table: pd.DataFrame, fit_calibrator: Callable[[pd.DataFrame], Calibrator]) -> Precision:
    """The error model of all scenes, with cross-conformal thresholds: each fold is scored by the model of the others.

    Scenes count alike, not matches: those of one scene are not exchangeable. The table is a
    `sarmatch.evaluation.confidence_fit.match_table` of validation pairs; a ValueError where no match has a spread.
    """
    table = table[table["var_x"].notna()]
    if not len(table):
        raise ValueError("none of the matches has a spread to fit a precision on; take a matcher that refines them")

    def scorer(known: pd.DataFrame) -> Callable[[pd.DataFrame], np.ndarray]:
        model, calibrator = _error_model(known), fit_calibrator(known)
        return lambda own: model.error_cdf(own["error_px"], calibrator(own), raw_covariance(own))

    scores = cross_fitted(table, table, scorer)
    thresholds = weighted_quantiles(scores, scene_weights(table), LEVELS)
    return replace(_error_model(table), thresholds=tuple(np.minimum(thresholds, 1).tolist()))


def _error_model(table: pd.DataFrame) -> Precision:
    """Before its conformal correction."""
    right = table["error_px"].to_numpy() <= CONFIDENT_PX
    weights = scene_weights(table)
    residuals = table[["error_x", "error_y"]].to_numpy(np.float64)
    scale, floor = fit_covariance(raw_covariance(table)[right], residuals[right], weights[right])
    wrong = np.full(41, CONFIDENT_PX)
    if not right.all():
        errors, levels = table["error_px"].to_numpy()[~right], np.linspace(0, 1, len(wrong))
        wrong[1:] = weighted_quantiles(errors, weights[~right], levels)[1:]
    return Precision(scale, floor, tuple(wrong.tolist()), LEVELS, LEVELS)


def fit_covariance(raw: np.ndarray, residuals: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Scale and floor of greatest Gaussian likelihood: residuals (N, 2) px ~ N(0, scale raw + floor I)."""
    if not len(raw):
        return 1.0, 1.0
    values, vectors = np.linalg.eigh(raw)
    squares = np.einsum("nji,nj->ni", vectors, residuals) ** 2
    weights = weights / weights.sum()

    def loss(logs: np.ndarray) -> float:
        variances = np.exp(logs[0]) * np.maximum(values, 0) + np.exp(logs[1])
        return float(weights @ (np.log(variances) + squares / variances).sum(1))

    found = scipy.optimize.minimize(loss, np.log([0.3, 0.3]), method="L-BFGS-B", bounds=[(-12, 6), (-7, 6)])
    return float(np.exp(found.x[0])), float(np.exp(found.x[1]))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, levels: Any) -> np.ndarray:
    """The least of the values below or at which each share of the weight lies."""
    levels = np.maximum(np.asarray(levels) - 1e-12, 0)  # weights add up but for rounding
    return np.quantile(np.asarray(values, dtype=np.float64), levels, weights=weights, method="inverted_cdf")
