"""Is a confidence worth its name? Scores (eq. 8 and its companions), their intervals, and calibrators.

Every score pools matches of equal confidence first, so none depends on the order of the rows. A match is correct when
its error is at most a threshold in px; the caller decides which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

BINS = 15
"""Bins of eq. 8 unless told otherwise."""
CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before a logarithm: about the step of float32 below 1."""
TEMPERATURES = (0.01, 100.0)
"""Limits of a fitted temperature; it reaches the upper one where probabilities say nothing or the opposite."""
MAX_KNOTS = 100
"""Knots of a fitted isotonic map, so that it fits into the header of a file."""


class _Groups(NamedTuple):
    """Matches pooled by equal confidence: (G,) float64 each.

    Attributes:
        confidence: distinct and ascending.
        n: matches (or their weight) with that confidence, > 0.
        correct: how many of them are correct.
    """

    confidence: np.ndarray
    n: np.ndarray
    correct: np.ndarray


def reliability_table(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """What the matches of each bin of confidence claim and what they are worth.

    The intervals take matches as independent. Matches of one scene are not, so these are narrower than the truth.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
        bins: number of bins; empty ones are kept. A bin holds low <= confidence < high, the last one also 1.
        equal_mass: cut at equal shares of the matches instead of equal widths; equal confidences stay together, in the
            bin of their middle rank.

    Returns:
        a row a bin: `low` and `high` (its edges; with `equal_mass` the extremes in it), `n`, `confidence` and
        `accuracy` (means in [0, 1]), `accuracy_low` and `accuracy_high` (Wilson, 95 %); NaN where there are no matches.

    Raises:
        ValueError: no matches, lengths that differ, NaN, values out of range, or no bins; so do all scores below.
    """
    groups = _pool(confidence, correct)
    ends = _bin_ends(groups, bins, equal_mass)
    n, claimed, right = _bin_sums(groups, ends)
    low, high = np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:]
    if equal_mass:
        spans = [groups.confidence[a:b] for a, b in pairwise(ends)]
        low, high = (np.array([span[i] if len(span) else np.nan for span in spans]) for i in (0, -1))
    filled = np.where(n > 0, n, np.nan)
    table = {"low": low, "high": high, "n": n.astype(int), "confidence": claimed / filled, "accuracy": right / filled}
    intervals = [_wilson(int(k), int(of)) for k, of in zip(right, n, strict=True)]
    return pd.DataFrame(table).join(pd.DataFrame(intervals, columns=["accuracy_low", "accuracy_high"]))


def expected_calibration_error(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> float:
    """Eq. 8: mean over matches of the gap between confidence and accuracy of their bin, in [0, 1].

    "Equally-sized bins based on confidence values" is read as bins of equal width, the common definition; `equal_mass`
    is the other reading. Arguments as in `reliability_table`.
    """
    return _gaps(_pool(confidence, correct), bins, equal_mass)[0]


def maximum_calibration_error(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> float:
    """The largest gap of eq. 8 among bins that hold matches, in [0, 1]; a bin of a few matches can decide it."""
    return _gaps(_pool(confidence, correct), bins, equal_mass)[1]


def brier(confidence: Any, correct: Any) -> float:
    """Mean squared difference of confidence and correctness, in [0, 1]; a constant 0.5 has 0.25."""
    return _brier(_pool(confidence, correct))


def negative_log_likelihood(confidence: Any, correct: Any) -> float:
    """Mean of -log of the probability given to what happened, nats.

    Confidences are clipped to [1e-7, 1 - 1e-7] (`CLIP`): what was claimed to be impossible costs 16.1, not infinity.
    """
    return _nll(_pool(confidence, correct))


def auroc(confidence: Any, correct: Any) -> float:
    """Chance that a correct match has more confidence than a wrong one, ties counting half, in [0, 1].

    It judges the order only: 0.5 is no information, and NaN that all matches are correct or all wrong.
    """
    return _auroc(_pool(confidence, correct))


def risk_coverage(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong matches among the k most confident, for k = 1 ... N.

    Where k cuts through matches of equal confidence, the risk is its mean over all their orders.

    Returns:
        coverage: (N,) k / N, ascending in (0, 1].
        risk: (N,) in [0, 1]; the last one is the error rate of all matches.
    """
    return _risk_coverage(_pool(confidence, correct))


def aurc(confidence: Any, correct: Any) -> float:
    """Area under `risk_coverage` as the mean of its N risks, in [0, 1]; the lower the better.

    A constant confidence has exactly the base error rate e (and a random one has it on average). Putting all correct
    matches first comes to about e + (1 - e) log(1 - e); above e the order is worse than none. As e is part of it,
    compare it between confidences of the same matches only.
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def calibration_scores(confidence: Any, correct: Any) -> dict[str, float]:
    """The scores `ece`, `ece_equal_mass`, `mce`, `brier`, `nll`, `auroc` and `aurc` of matches, `accuracy` and `n`.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
    """
    return _scores(_pool(confidence, correct))


def bootstrap_scores(
    table: pd.DataFrame,
    confidence: str = "confidence",
    threshold_px: float = 3.0,
    cluster: str = "scene",
    n: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """`calibration_scores` with 95 % percentile intervals under resampling of whole clusters with replacement.

    Rows are sorted by confidence once. A resample is then only a weight a row, how often its cluster was drawn, and
    every score follows from weighted sums in that order: exact, without a grid and without copying rows. Scatter adds
    to a calibration error and never cancels in it, so that resampled ece and mce tend to lie above their values; for
    well calibrated matches the value can lie below its interval.

    Args:
        table: one row a match, with the columns `error_px`, `confidence` (in [0, 1]) and `cluster`.
        threshold_px: a match is correct up to this error.
        n: number of resamples, drawn with `seed`.

    Returns:
        a row a score (all but `n`): `score`, `value`, `low`, `high`; ends are NaN where there is a single cluster. For
        auroc, resamples whose matches are all correct or all wrong do not count.

    Raises:
        ValueError: missing columns, an unnamed cluster, NaN errors, no resamples, or as `reliability_table`.
    """
    missing = {"error_px", confidence, cluster} - set(table.columns)
    if missing:
        raise ValueError(f"the table of matches lacks the columns {sorted(missing)}; it has {list(table.columns)}")
    if n < 1 or not threshold_px >= 0 or not (table["error_px"] >= 0).all():
        raise ValueError(f"n ({n}) must be at least 1, threshold_px ({threshold_px}) and error_px at least 0, not NaN")
    if table[cluster].isna().any() or (table[cluster].astype(str) == "").any():
        raise ValueError(f"column {cluster!r} is empty for some matches; name the cluster of each or choose another")
    values, correct = table[confidence].to_numpy(np.float64), (table["error_px"] <= threshold_px).to_numpy()
    scores = calibration_scores(values, correct)
    del scores["n"]
    codes, names = pd.factorize(table[cluster], sort=True)
    ends = np.full((2, len(scores)), np.nan)
    if len(names) > 1:
        draws = np.random.default_rng(seed).integers(0, len(names), size=(n, len(names)))
        resampled = pd.DataFrame(_resampled(values, correct, codes, draws))[list(scores)]
        ends = resampled.quantile([0.025, 0.975]).to_numpy()
    return pd.DataFrame({"score": list(scores), "value": list(scores.values()), "low": ends[0], "high": ends[1]})


def _resampled(values: np.ndarray, correct: np.ndarray, codes: np.ndarray, draws: np.ndarray) -> list[dict[str, float]]:
    """Scores of each row of `draws`, numbers of clusters drawn; `codes` (N,) has the cluster of each match."""
    order = np.argsort(values)
    values, codes, correct = values[order], codes[order], correct[order].astype(np.float64)
    starts = np.flatnonzero(np.append(True, np.diff(values) > 0))
    scores = []
    for draw in draws:
        weights = np.bincount(draw, minlength=draws.shape[1]).astype(np.float64)[codes]
        n, right = np.add.reduceat(weights, starts), np.add.reduceat(weights * correct, starts)
        scores.append(_scores(_Groups(values[starts][n > 0], n[n > 0], right[n > 0])))
    return scores


def _pool(confidence: Any, correct: Any, weights: np.ndarray | None = None) -> _Groups:
    """Checked and pooled by equal confidence; `weights` (N,) count the matches where not all count one."""
    confidence, correct = _numbers(confidence, "confidence"), np.asarray(correct)
    if correct.shape != confidence.shape or not len(confidence):
        raise ValueError(
            f"confidence and correct need shape (N,) with N > 0, got {confidence.shape} and {correct.shape}; "
            "leave out pairs without matches"
        )
    if correct.dtype != bool and not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must hold bool or 0 and 1, got {correct.dtype}; compare the errors to a threshold")
    values, inverse = np.unique(confidence, return_inverse=True)
    weights = np.ones(len(confidence)) if weights is None else weights
    return _Groups(values, np.bincount(inverse, weights), np.bincount(inverse, weights * correct))


def _numbers(values: Any, name: str, high: float = 1.0, remedy: str = "") -> np.ndarray:
    """`values` as finite float64 in [0, high], shape (N,); the message says `name` and `remedy`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {array.shape}; flatten it")
    bad = ~(np.isfinite(array) & (array >= 0) & (array <= high))
    if bad.any():
        expected = f"{name} must be finite and in [0, {high:g}]"
        raise ValueError(f"{expected}; {bad.sum()} of {len(array)} are not, e.g. {array[bad][0]:g}{remedy}")
    return array


def _bin_ends(groups: _Groups, bins: int, equal_mass: bool) -> np.ndarray:
    """Where bins begin and end among the groups, (bins + 1,) int."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    share = (np.cumsum(groups.n) - groups.n / 2) / groups.n.sum()
    inner = np.searchsorted(share if equal_mass else groups.confidence, np.linspace(0, 1, bins + 1)[1:-1])
    return np.concatenate([[0], inner, [len(groups.n)]])


def _bin_sums(groups: _Groups, ends: np.ndarray) -> list[np.ndarray]:
    """Number of matches, of matches expected to be correct, and of correct ones in each bin, (bins,) each."""
    summed = (groups.n, groups.n * groups.confidence, groups.correct)
    return [np.array([values[a:b].sum() for a, b in pairwise(ends)]) for values in summed]


def _wilson(correct: int, n: int) -> tuple[float, float]:
    if n == 0:
        return float("nan"), float("nan")
    interval = scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _gaps(groups: _Groups, bins: int = BINS, equal_mass: bool = False) -> tuple[float, float]:
    n, claimed, right = _bin_sums(groups, _bin_ends(groups, bins, equal_mass))
    missed = np.abs(right - claimed)
    return float(missed.sum() / n.sum()), float((missed[n > 0] / n[n > 0]).max())


def _brier(groups: _Groups) -> float:
    x, n, correct = groups
    return float((correct @ (1 - x) ** 2 + (n - correct) @ x**2) / n.sum())


def _nll(groups: _Groups) -> float:
    x, n, correct = np.clip(groups.confidence, CLIP, 1 - CLIP), groups.n, groups.correct
    return float(-(correct @ np.log(x) + (n - correct) @ np.log1p(-x)) / n.sum())


def _auroc(groups: _Groups) -> float:
    right, wrong = (np.append(0, np.cumsum(n[::-1])) for n in (groups.correct, groups.n - groups.correct))
    if right[-1] == 0 or wrong[-1] == 0:
        return float("nan")
    return float(sklearn.metrics.auc(wrong / wrong[-1], right / right[-1]))  # roc_auc_score would sort once more


def _risk_coverage(groups: _Groups) -> tuple[np.ndarray, np.ndarray]:
    n, wrong = (np.append(0, np.cumsum(n[::-1])) for n in (groups.n, groups.n - groups.correct))
    k = np.arange(1, round(n[-1]) + 1)
    return k / n[-1], np.interp(k, n, wrong) / k


def _scores(groups: _Groups) -> dict[str, float]:
    (ece, mce), n = _gaps(groups), float(groups.n.sum())
    scores = {"ece": ece, "ece_equal_mass": _gaps(groups, equal_mass=True)[0], "mce": mce}
    scores |= {"brier": _brier(groups), "nll": _nll(groups), "auroc": _auroc(groups)}
    area, accuracy = float(_risk_coverage(groups)[1].mean()), float(groups.correct.sum()) / n
    return scores | {"aurc": area, "accuracy": accuracy, "n": n}


Features: TypeAlias = Mapping[str, Any] | pd.DataFrame
"""Arrays (N,) named `probability` and `aleatoric`, in [0, 1], and `epistemic`, at least 0; a match table is one."""


def _logit(probability: np.ndarray) -> np.ndarray:
    return scipy.special.logit(np.clip(probability, CLIP, 1 - CLIP))


FEATURES: Mapping[str, tuple[str, float, Callable[[np.ndarray], np.ndarray]]] = {
    "logit_probability": ("probability", 1.0, _logit),
    "aleatoric": ("aleatoric", 1.0, _logit),
    "epistemic": ("epistemic", float("inf"), lambda variance: np.log(variance + 1e-6)),
}
"""What `Logistic` can use: the column it comes from, that column's upper limit, and the function of it."""


@dataclass(frozen=True)
class Temperature:
    """Divides the logit of the probability by one number > 0; it changes no order and cannot move the middle, 0.5."""

    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    @classmethod
    def fit(cls, features: Features, correct: Any, weights: Any = None) -> Temperature:
        """The temperature of least negative log-likelihood, within `TEMPERATURES`; arguments as `Logistic.fit`."""
        logits = _feature(features, "logit_probability")
        correct, weights = _targets(correct, weights, len(logits))
        signed = np.where(correct, -logits, logits)

        def loss(log_temperature: float) -> float:
            return float(weights @ np.logaddexp(0, signed * np.exp(-log_temperature)))

        found = scipy.optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
        return cls(float(np.exp(found.x)))

    def __call__(self, features: Features) -> np.ndarray:
        return scipy.special.expit(_feature(features, "logit_probability") / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "temperature", **asdict(self)}


@dataclass(frozen=True)
class Isotonic:
    """A map of the probability that never falls: linear between knots `x` (ascending) with values `y`, flat outside."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = _numbers(self.x, "x"), _numbers(self.y, "y")
        if len(x) != len(y) or not len(x) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError(f"x must ascend and y never fall, one value a knot each; got {len(x)} and {len(y)} knots")

    @classmethod
    def fit(cls, features: Features, correct: Any, weights: Any = None) -> Isotonic:
        """Isotonic regression; arguments as `Logistic.fit`.

        More than `MAX_KNOTS` distinct probabilities are first pooled into that many bins of equal mass, each standing
        at its mean. An end where all matches of a bin are wrong (or correct) is mapped to 0 (or 1).
        """
        probability = _column(features, "probability", 1.0)
        correct, weights = _targets(correct, weights, len(probability))
        x, n, right = groups = _pool(probability, correct, weights)
        if len(x) > MAX_KNOTS:
            sums = np.stack(_bin_sums(groups, _bin_ends(groups, MAX_KNOTS, equal_mass=True)))
            n, claimed, right = sums[:, sums[0] > 0]
            x = np.minimum(claimed / n, 1)
        model = IsotonicRegression(y_min=0, y_max=1).fit(x, right / n, sample_weight=n)
        return cls(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))

    def __call__(self, features: Features) -> np.ndarray:
        return np.interp(_column(features, "probability", 1.0), self.x, self.y)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "isotonic", "x": list(self.x), "y": list(self.y)}


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardised features, with an isotonic map of its result where there is one.

    Attributes:
        names: keys of `FEATURES`; their columns must not hold NaN, others are not looked at.
        mean, scale, weights: one value a feature; scale > 0.
        bias: log-odds where all features have their mean.
        isotonic: applied to the probability, or None.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    isotonic: Isotonic | None = None

    def __post_init__(self) -> None:
        _check_names(self.names)
        numbers = np.array([*self.mean, *self.scale, *self.weights, self.bias], dtype=np.float64)
        lengths = {len(self.names), len(self.mean), len(self.scale), len(self.weights)}
        if len(lengths) > 1 or not np.isfinite(numbers).all() or min(self.scale) <= 0:
            raise ValueError(f"mean, scale > 0 and weights need one finite value for each of {self.names}")

    @classmethod
    def fit(
        cls,
        features: Features,
        correct: Any,
        weights: Any = None,
        names: Sequence[str] = tuple(FEATURES),
        isotonic: bool = False,
    ) -> Logistic:
        """Fits all parameters on matches of validation pairs.

        Args:
            features: see `Features`.
            correct: (N,) bool, both of which must occur.
            weights: (N,) > 0, as from `pair_weights`; only their ratios count. None weighs all matches alike.
            names: features to use. The penalty is half the squared norm of their weights, against N matches.
            isotonic: whether to fit an `Isotonic` on top.

        Raises:
            ValueError: a feature that is missing, NaN or out of range; lengths that differ; one outcome only.
        """
        _check_names(names)
        columns = _design(features, names)
        correct, weights = _targets(correct, weights, len(columns))
        scaler = StandardScaler().fit(columns, sample_weight=weights)
        model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(columns), correct, sample_weight=weights)
        mean, scale, slopes = (tuple(values.tolist()) for values in (scaler.mean_, scaler.scale_, model.coef_[0]))
        plain = cls(tuple(names), mean, scale, slopes, float(model.intercept_[0]))
        if not isotonic:
            return plain
        return replace(plain, isotonic=Isotonic.fit({"probability": plain(features)}, correct, weights))

    def __call__(self, features: Features) -> np.ndarray:
        columns = (_design(features, self.names) - self.mean) / self.scale
        probability = scipy.special.expit(columns @ self.weights + self.bias)
        return probability if self.isotonic is None else self.isotonic({"probability": probability})

    def to_dict(self) -> dict[str, Any]:
        lists = {key: list(getattr(self, key)) for key in ("names", "mean", "scale", "weights")}
        on_top = None if self.isotonic is None else self.isotonic.to_dict()
        return {"kind": "logistic", **lists, "bias": self.bias, "isotonic": on_top}


Calibrator: TypeAlias = Temperature | Isotonic | Logistic
"""Called with `Features`, gives the probability (N,) in [0, 1] that each match is correct; no matches give none."""


def calibrator_from_dict(description: Mapping[str, Any]) -> Calibrator:
    """The calibrator whose `to_dict` gave `description`, also after a trip through JSON.

    Raises:
        ValueError: unknown kind, missing or unknown entries, or values that the calibrator rejects.
    """
    kinds: dict[str, Callable[..., Calibrator]] = {
        "temperature": Temperature, "isotonic": Isotonic, "logistic": Logistic,
    }  # fmt: skip
    entries: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
    }
    kind = entries.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"a calibrator needs a kind among {sorted(kinds)}, got {kind!r}")
    if entries.get("isotonic") is not None:
        entries["isotonic"] = calibrator_from_dict(entries["isotonic"])
    try:
        return kinds[kind](**entries)
    except TypeError as error:
        raise ValueError(f"these are not the entries of a {kind} calibrator: {sorted(entries)}") from error


def pair_weights(ids: Any) -> np.ndarray:
    """Weights (N,) that sum to one over the matches of each pair, so that pairs count alike; `ids` (N,) name pairs."""
    codes, _ = pd.factorize(pd.Series(ids))
    if not len(codes) or (codes < 0).any():
        raise ValueError("ids must name the pair of every match; there are none, or some are missing")
    return 1 / np.bincount(codes)[codes]


def _check_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names) or not set(names) <= set(FEATURES):
        raise ValueError(f"names must be different ones of {list(FEATURES)}, got {list(names)}")


def _column(features: Features, name: str, high: float) -> np.ndarray:
    if name not in features:
        raise ValueError(f"features lack {name!r}; they have {list(features)}")
    return _numbers(features[name], f"features[{name!r}]", high, "; choose a calibrator that does without it")


def _feature(features: Features, name: str) -> np.ndarray:
    column, high, function = FEATURES[name]
    return function(_column(features, column, high))


def _design(features: Features, names: Sequence[str]) -> np.ndarray:
    """(N, number of names) float64."""
    columns = {name: _feature(features, name) for name in names}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"features differ in length: { ({name: len(column) for name, column in columns.items()}) }")
    return np.stack(list(columns.values()), axis=1)


def _targets(correct: Any, weights: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Checked: correct (N,) bool with both outcomes, and weights (N,) > 0 of mean 1."""
    correct = np.asarray(correct)
    if correct.shape != (length,) or set(np.unique(correct).tolist()) != {0, 1}:  # False and True are 0 and 1
        raise ValueError(f"correct must be ({length},) bool with both outcomes, got {correct.dtype} {correct.shape}")
    weights = np.ones(length) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (length,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights must be ({length},), finite and positive, got shape {weights.shape}")
    return correct.astype(bool), weights / weights.mean()
