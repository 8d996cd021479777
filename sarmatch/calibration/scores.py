"""Scores of a confidence (eq. 8 and others); equal confidences are pooled, so the order of rows does not matter."""

from __future__ import annotations

from itertools import pairwise
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


def reliability_table(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """Mean confidence and accuracy of the matches in each bin of confidence.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
        bins: number of bins; empty ones are kept. A bin holds low <= confidence < high, the last one also 1.
        equal_mass: cut at equal shares of the matches; equal confidences stay together.

    Returns:
        a row a bin: `low` and `high` (its edges; with `equal_mass` the extremes in it), `n`, `confidence` and
        `accuracy` (means in [0, 1]), `accuracy_low` and `accuracy_high` (Wilson, 95 %, as if matches were independent).

    Raises:
        ValueError: no matches, lengths that differ, NaN, values out of range, or no bins; so do all scores below.
    """
    groups = pool(confidence, correct)
    ends = bin_ends(groups, bins, equal_mass)
    n, claimed, right = bin_sums(groups, ends)
    edges = np.linspace(0, 1, bins + 1)
    low, high = edges[:-1], edges[1:]
    if equal_mass:
        spans = [groups.confidence[a:b] for a, b in pairwise(ends)]
        low, high = (np.array([span[i] if len(span) else np.nan for span in spans]) for i in (0, -1))
    filled = np.where(n > 0, n, np.nan)
    table = {"low": low, "high": high, "n": n.astype(int), "confidence": claimed / filled, "accuracy": right / filled}
    tests = [scipy.stats.binomtest(int(k), int(of)) for k, of in zip(right[n > 0], n[n > 0], strict=True)]
    intervals = pd.DataFrame([test.proportion_ci(method="wilson") for test in tests], index=np.flatnonzero(n))
    return pd.DataFrame(table).join(intervals.set_axis(["accuracy_low", "accuracy_high"], axis=1))


def expected_calibration_error(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> float:
    """Eq. 8: mean over matches of the gap between confidence and accuracy of their bin, in [0, 1].

    "Equally-sized bins" is read as bins of equal width; `equal_mass` is the other reading. Arguments as in
    `reliability_table`.
    """
    return _gaps(pool(confidence, correct), bins, equal_mass)[0]


def auroc(confidence: Any, correct: Any) -> float:
    """Chance that a correct match has more confidence than a wrong one, ties counting half; NaN with one outcome."""
    return _auroc(pool(confidence, correct))


def risk_coverage(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong matches among the k most confident, for k = 1 ... N.

    Where k cuts through matches of equal confidence, the risk is its mean over all their orders.

    Returns:
        coverage: (N,) k / N, ascending in (0, 1].
        risk: (N,) in [0, 1]; the last one is the error rate of all matches.
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


def bin_ends(groups: Groups, bins: int, equal_mass: bool) -> np.ndarray:
    """Where bins begin and end among the groups, (bins + 1,) int."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    share = (np.cumsum(groups.n) - groups.n / 2) / groups.n.sum()
    inner = np.searchsorted(share if equal_mass else groups.confidence, np.linspace(0, 1, bins + 1)[1:-1])
    return np.concatenate([[0], inner, [len(groups.n)]])


def bin_sums(groups: Groups, ends: np.ndarray) -> list[np.ndarray]:
    """Number of matches, of matches expected to be correct, and of correct ones in each bin, (bins,) each."""
    summed = (groups.n, groups.n * groups.confidence, groups.correct)
    return [np.array([values[a:b].sum() for a, b in pairwise(ends)]) for values in summed]


def _gaps(groups: Groups, bins: int = BINS, equal_mass: bool = False) -> tuple[float, float]:
    n, claimed, right = bin_sums(groups, bin_ends(groups, bins, equal_mass))
    missed = np.abs(right - claimed)
    return float(missed.sum() / n.sum()), float((missed[n > 0] / n[n > 0]).max())


def _auroc(groups: Groups) -> float:
    right, wrong = (np.append(0, np.cumsum(n[::-1])) for n in (groups.correct, groups.n - groups.correct))
    if right[-1] == 0 or wrong[-1] == 0:
        return float("nan")
    return float(np.trapezoid(right / right[-1], wrong / wrong[-1]))


def _risk_coverage(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    n, wrong = (np.append(0, np.cumsum(n[::-1])) for n in (groups.n, groups.n - groups.correct))
    k = np.arange(1, round(n[-1]) + 1)
    return k / n[-1], np.interp(k, n, wrong) / k


def pooled_scores(groups: Groups) -> dict[str, float]:
    (x, n, correct), (ece, mce) = groups, _gaps(groups)
    total, clipped = float(n.sum()), np.clip(x, CLIP, 1 - CLIP)
    scores = {"ece": ece, "ece_equal_mass": _gaps(groups, equal_mass=True)[0], "mce": mce}
    scores["brier"] = float((correct @ (1 - x) ** 2 + (n - correct) @ x**2) / total)
    scores["nll"] = float(-(correct @ np.log(clipped) + (n - correct) @ np.log1p(-clipped)) / total)
    scores |= {"auroc": _auroc(groups), "aurc": pooled_aurc(groups)}
    return scores | {"accuracy": float(correct.sum()) / total, "n": total}
