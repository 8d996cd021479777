"""Scores of a confidence (eq. 8 and others); equal confidences are pooled, so the order of rows does not matter."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

BINS = 15  #: Default number of bins of eq. 8.
CLIP = 1e-7  #: Probabilities are kept this far from 0 and 1 before a logarithm: about the step of float32 below 1.


class Groups(NamedTuple):
    """Matches pooled by equal confidence: (G,) float64 each."""

    confidence: np.ndarray  #: Distinct and ascending.
    n: np.ndarray  #: Matches (or their weight) with that confidence, > 0.
    correct: np.ndarray  #: How many of them are correct.


def reliability_table(confidence: Any, correct: Any, bins: int = BINS) -> pd.DataFrame:
    """Mean confidence and accuracy of N matches, confident in [0, 1] and correct or not, by bins of confidence.

    Bins have equal widths and hold low <= confidence < high, the last one also 1; empty ones are kept.

    Returns:
        a row a bin: its edges `low` and `high`, `n`, `confidence` and `accuracy` (means in [0, 1]), `accuracy_low` and
        `accuracy_high` (Wilson, 95 %, as if matches were independent).

    Raises:
        ValueError: no matches, lengths that differ, NaN, values out of range, or no bins; so do all scores below.
    """
    n, claimed, right = bin_sums(pool(confidence, correct), bins)
    edges, filled = np.linspace(0, 1, bins + 1), np.where(n > 0, n, np.nan)
    table = {"low": edges[:-1], "high": edges[1:], "n": n.astype(int)}
    table |= {"confidence": claimed / filled, "accuracy": right / filled}
    tests = [scipy.stats.binomtest(int(k), int(of)) for k, of in zip(right[n > 0], n[n > 0], strict=True)]
    intervals = pd.DataFrame([test.proportion_ci(method="wilson") for test in tests], index=np.flatnonzero(n))
    return pd.DataFrame(table).join(intervals.set_axis(["accuracy_low", "accuracy_high"], axis=1))


def expected_calibration_error(confidence: Any, correct: Any, bins: int = BINS) -> float:
    """Eq. 8: mean over matches of the gap between confidence and accuracy of their bin, in [0, 1].

    "Equally-sized bins" is read as bins of equal width; `ece_equal_mass` of `calibration_scores` is the other reading.
    """
    return _gaps(pool(confidence, correct), bins)[0]


def auroc(confidence: Any, correct: Any) -> float:
    """Chance that a correct match has more confidence than a wrong one, ties counting half; NaN with one outcome."""
    return calibration_scores(confidence, correct)["auroc"]


def risk_coverage(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k / N, and risk, the share of wrong matches among the k most confident, for k = 1 ... N, (N,) each.

    Where k cuts through matches of equal confidence, the risk is its mean over all their orders.
    """
    return _risk_coverage(pool(confidence, correct))


def pooled_aurc(groups: Groups) -> float:
    """Area under `risk_coverage` as the mean of its N risks, in [0, 1]; comparable for the same matches only."""
    return float(_risk_coverage(groups)[1].mean())


def calibration_scores(confidence: Any, correct: Any) -> dict[str, float]:
    """All scores of matches by name, and their `accuracy` and number `n`; arguments as in `reliability_table`.

    Returns:
        `ece` (eq. 8), `ece_equal_mass` (with bins of equal mass), `mce` (the largest gap among bins that hold matches),
        `brier` (mean squared difference of confidence and correctness), all in [0, 1]; `nll` (mean negative
        log-likelihood in nats, confidences clipped to [1e-7, 1 - 1e-7]); `auroc`; `aurc`, see `pooled_aurc`.
    """
    return pooled_scores(pool(confidence, correct))


def pool(confidence: Any, correct: Any) -> Groups:
    """Checked and pooled by equal confidence."""
    confidence, correct = checked(confidence, correct)
    values, inverse = np.unique(confidence, return_inverse=True)
    return Groups(values, np.bincount(inverse).astype(float), np.bincount(inverse, correct))


def checked(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = checked_numbers(confidence, "confidence"), np.asarray(correct)
    if correct.shape != confidence.shape or not len(confidence):
        raise ValueError(
            f"confidence and correct need shape (N,) with N > 0, got {confidence.shape} and {correct.shape}; "
            "leave out pairs without matches"
        )
    if correct.dtype != bool and not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must hold bool or 0 and 1, got {correct.dtype}; compare the errors to a threshold")
    return confidence, correct


def checked_numbers(values: Any, name: str, high: float = 1.0, remedy: str = "") -> np.ndarray:
    """`values` as finite float64 in [0, high], shape (N,)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {array.shape}; flatten it")
    bad = ~(np.isfinite(array) & (array >= 0) & (array <= high))
    if bad.any():
        expected = f"{name} must be finite and in [0, {high:g}]"
        raise ValueError(f"{expected}; {bad.sum()} of {len(array)} are not, e.g. {array[bad][0]:g}{remedy}")
    return array


def bin_sums(groups: Groups, bins: int, equal_mass: bool = False) -> list[np.ndarray]:
    """Number of matches, of matches expected to be correct, and of correct ones in each bin, (bins,) each.

    Bins are cut at equal widths of confidence or at equal shares of the matches; equal confidences stay together.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    place = (np.cumsum(groups.n) - groups.n / 2) / groups.n.sum() if equal_mass else groups.confidence
    number = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], place, side="right")
    return [np.bincount(number, of, bins) for of in (groups.n, groups.n * groups.confidence, groups.correct)]


def _gaps(groups: Groups, bins: int = BINS, equal_mass: bool = False) -> tuple[float, float]:
    n, claimed, right = bin_sums(groups, bins, equal_mass)
    missed = np.abs(right - claimed)
    return float(missed.sum() / n.sum()), float((missed[n > 0] / n[n > 0]).max())


def _risk_coverage(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    n, _, wrong = _most_confident(groups)
    k = np.arange(1, round(n[-1]) + 1)
    return k / n[-1], np.interp(k, n, wrong) / k


def _most_confident(groups: Groups) -> list[np.ndarray]:
    """Numbers of matches, of correct and of wrong ones, among those of at least each confidence, from none to all."""
    return [np.append(0, np.cumsum(n[::-1])) for n in (groups.n, groups.correct, groups.n - groups.correct)]


def pooled_scores(groups: Groups) -> dict[str, float]:
    x, n, correct = groups
    (ece, mce), (_, right, wrong) = _gaps(groups), _most_confident(groups)
    total, clipped, both = float(n.sum()), np.clip(x, CLIP, 1 - CLIP), right[-1] > 0 and wrong[-1] > 0
    return {
        "ece": ece,
        "ece_equal_mass": _gaps(groups, equal_mass=True)[0],
        "mce": mce,
        "brier": float((correct @ (1 - x) ** 2 + (n - correct) @ x**2) / total),
        "nll": float(-(correct @ np.log(clipped) + (n - correct) @ np.log1p(-clipped)) / total),
        "auroc": float(np.trapezoid(right, wrong) / (right[-1] * wrong[-1])) if both else float("nan"),
        "aurc": pooled_aurc(groups),
        "accuracy": float(correct.sum()) / total,
        "n": total,
    }
