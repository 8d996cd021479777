"""Calibrators: from raw scores of a match to the probability that it is correct; and cross-fitting over scenes."""

# scikit-learn is imported only where something is fitted: matching does not wait for it.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

from sarmatch.calibration.scores import CLIP, bin_ends, bin_sums, checked_numbers, pool

TEMPERATURES = (0.01, 100.0)  #: Limits of a fitted temperature.
MAX_KNOTS = 100  #: Of a fitted isotonic map, so that it fits into the header of a file.
FOLDS = 8  #: Groups of scenes for cross-fitting.

Features: TypeAlias = Mapping[str, Any] | pd.DataFrame
"""Arrays (N,) named `probability` and `aleatoric`, in [0, 1], and `epistemic`, at least 0; a match table is one."""


def _logit(probability: np.ndarray) -> np.ndarray:
    return scipy.special.logit(np.clip(probability, CLIP, 1 - CLIP))


FEATURES: Mapping[str, tuple[str, float, Callable[[np.ndarray], np.ndarray]]] = {
    "logit_probability": ("probability", 1.0, _logit),
    "aleatoric": ("aleatoric", 1.0, _logit),
    "epistemic": ("epistemic", float("inf"), lambda information: np.log(information + 1e-6)),
}
"""What `Logistic` can use: the column it comes from, that column's upper limit, and the function of it."""


@dataclass(frozen=True)
class Temperature:
    """Divides the logit of the probability by one number > 0."""

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
        x, y = checked_numbers(self.x, "x"), checked_numbers(self.y, "y")
        if len(x) != len(y) or not len(x) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError(f"x must ascend and y never fall, one value a knot each; got {len(x)} and {len(y)} knots")

    @classmethod
    def fit(cls, features: Features, correct: Any, weights: Any = None) -> Isotonic:
        """Isotonic regression; arguments as `Logistic.fit`.

        More than `MAX_KNOTS` distinct probabilities are first pooled into that many bins of equal mass.
        """
        probability = _column(features, "probability", 1.0)
        correct, weights = _targets(correct, weights, len(probability))
        x, n, right = groups = pool(probability, correct, weights)
        if len(x) > MAX_KNOTS:
            sums = np.stack(bin_sums(groups, bin_ends(groups, MAX_KNOTS, equal_mass=True)))
            n, claimed, right = sums[:, sums[0] > 0]
            x = np.minimum(claimed / n, 1)
        from sklearn.isotonic import IsotonicRegression

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
        names: keys of `FEATURES`, whose columns must not hold NaN.
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
            names: features to use. The penalty is half the squared norm of their weights, against N matches.
            isotonic: whether to fit an `Isotonic` on top.

        Raises:
            ValueError: a feature that is missing, NaN or out of range; lengths that differ; one outcome only.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

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


def scene_folds(scenes: pd.Series, folds: int = FOLDS) -> dict[str, int]:
    """Number of the fold of each scene, 0 to at most `folds` - 1."""
    return {scene: i % folds for i, scene in enumerate(sorted(scenes.unique()))}


def cross_fitted(
    fitted_on: pd.DataFrame,
    table: pd.DataFrame,
    fit: Callable[[pd.DataFrame], Callable[[pd.DataFrame], np.ndarray]],
    folds: int = FOLDS,
) -> np.ndarray:
    """Value (N,) of each match by a function, such as a calibrator, that was fitted without its scene.

    Args:
        fitted_on: matches to fit on; `table` may be the same or another of the same scenes. Matches of scenes that are
            not among them have the value by the function of all.
        fit: makes the function of matches.
        folds: at most so many groups of scenes, each left out once. A single scene is fitted on itself.
    """
    fold = scene_folds(fitted_on["scene"], folds)
    values = np.asarray(fit(fitted_on)(table), dtype=np.float64)
    for left_out in sorted(set(fold.values())) if len(set(fold.values())) > 1 else ():
        others = fitted_on[fitted_on["scene"].map(fold) != left_out]
        own = (table["scene"].map(fold) == left_out).to_numpy()
        if own.any():
            values[own] = fit(others)(table[own])
    return values


def _check_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names) or not set(names) <= set(FEATURES):
        raise ValueError(f"names must be different ones of {list(FEATURES)}, got {list(names)}")


def _column(features: Features, name: str, high: float) -> np.ndarray:
    if name not in features:
        raise ValueError(f"features lack {name!r}; they have {list(features)}")
    return checked_numbers(features[name], f"features[{name!r}]", high, "; choose a calibrator that does without it")


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
