"""Calibrators: from raw scores of a match to the probability that it is correct; and cross-fitting over scenes."""

# scikit-learn is imported only where something is fitted: matching does not wait for it.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.special

from sarmatch.calibration.scores import CLIP, bin_sums, checked_numbers, pool
from sarmatch.config import from_dict

MAX_KNOTS = 100  #: Of a fitted isotonic map, so that it fits into the header of a file.
FOLDS = 8  #: Groups of scenes for cross-fitting.

Features: TypeAlias = Mapping[str, Any] | pd.DataFrame
"""Arrays (N,) named as the columns that `FEATURES` come from; a match table is one."""


def _logit(probability: np.ndarray) -> np.ndarray:
    return scipy.special.logit(np.clip(probability, CLIP, 1 - CLIP))


FEATURES: Mapping[str, tuple[str, float, Callable[[np.ndarray], np.ndarray]]] = {
    "logit_probability": ("probability", 1.0, _logit),
    "aleatoric": ("aleatoric", 1.0, _logit),
    "epistemic": ("epistemic", float("inf"), lambda information: np.log(information + 1e-6)),
    "entropy": ("entropy", float("inf"), np.asarray),
    "margin": ("margin", float("inf"), np.asarray),
    "spread": ("spread", float("inf"), lambda px: np.log(px + 0.05)),
    "roughness_5": ("roughness_5", float("inf"), lambda px: np.log(px + 0.25)),
    "roughness_25": ("roughness_25", float("inf"), lambda px: np.log(px + 0.25)),
    "matched_25": ("matched_25", 1.0, np.asarray),
    "agreeing_9": ("agreeing_9", 1.0, np.asarray),
}
"""What `Logistic` can use: the column it comes from, that column's upper limit, and the function of it."""


@dataclass(frozen=True)
class Isotonic:
    """A map of the probability that never falls: linear between knots `x` (ascending) with values `y`, flat outside."""

    kind: str = field(default="isotonic", init=False)
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = checked_numbers(self.x, "x"), checked_numbers(self.y, "y")
        if len(x) != len(y) or not len(x) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError(f"x must ascend and y never fall, one value a knot each; got {len(x)} and {len(y)} knots")

    @classmethod
    def fit(cls, features: Features, correct: Any) -> Isotonic:
        """Isotonic regression; arguments as `Logistic.fit`.

        More than `MAX_KNOTS` distinct probabilities are first pooled into that many bins of equal mass.
        """
        from sklearn.isotonic import IsotonicRegression

        probability = _column(features, "probability", 1.0)
        x, n, right = groups = pool(probability, _outcomes(correct, len(probability)))
        if len(x) > MAX_KNOTS:
            sums = np.stack(bin_sums(groups, MAX_KNOTS, equal_mass=True))
            n, claimed, right = sums[:, sums[0] > 0]
            x = np.minimum(claimed / n, 1)
        model = IsotonicRegression(y_min=0, y_max=1).fit(x, right / n, sample_weight=n)
        return cls(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))

    def __call__(self, features: Features) -> np.ndarray:
        return np.interp(_column(features, "probability", 1.0), self.x, self.y)


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardised features, with an isotonic map of its result where there is one."""

    kind: str = field(default="logistic", init=False)
    names: tuple[str, ...]  #: Keys of `FEATURES`, whose columns must not hold NaN.
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float  #: Log-odds where all features have their mean.
    isotonic: Isotonic | None = None

    def __post_init__(self) -> None:
        numbers = np.array([*self.mean, *self.scale, *self.weights, self.bias], dtype=np.float64)
        lengths = {len(self.names), len(self.mean), len(self.scale), len(self.weights)}
        if len(lengths) > 1 or not np.isfinite(numbers).all() or min(self.scale) <= 0:
            raise ValueError(f"mean, scale > 0 and weights need one finite value for each of {self.names}")

    @classmethod
    def fit(
        cls, features: Features, correct: Any, names: Sequence[str] = tuple(FEATURES)[:3], isotonic: bool = False
    ) -> Logistic:
        """Fits all parameters on N matches of validation pairs, penalised by half the squared norm of the weights.

        Raises:
            ValueError: a feature that is missing, NaN or out of range; lengths that differ; one outcome only.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        columns = _design(features, names)
        correct = _outcomes(correct, len(columns))
        scaler = StandardScaler().fit(columns)
        model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(columns), correct)
        mean, scale, slopes = (tuple(values.tolist()) for values in (scaler.mean_, scaler.scale_, model.coef_[0]))
        plain = cls(tuple(names), mean, scale, slopes, float(model.intercept_[0]))
        return replace(plain, isotonic=Isotonic.fit({"probability": plain(features)}, correct)) if isotonic else plain

    def __call__(self, features: Features) -> np.ndarray:
        columns = (_design(features, self.names) - self.mean) / self.scale
        probability = scipy.special.expit(columns @ self.weights + self.bias)
        return probability if self.isotonic is None else self.isotonic({"probability": probability})


Calibrator: TypeAlias = Isotonic | Logistic
"""Called with `Features`, gives the probability (N,) in [0, 1] that each match is correct; no matches give none."""


def calibrator_from_dict(description: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `dataclasses.asdict` described, also after a trip through JSON.

    Unknown kinds and values are a ValueError, missing or unknown entries a TypeError.
    """
    kinds: dict[str, type[Calibrator]] = {c.kind: c for c in (Isotonic, Logistic)}
    entries = dict(description)
    kind = entries.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"a calibrator needs a kind among {sorted(kinds)}, got {kind!r}")
    if entries.get("isotonic"):
        entries["isotonic"] = calibrator_from_dict(entries["isotonic"])
    return from_dict(kinds[kind], entries)


def cross_fitted(
    fitted_on: pd.DataFrame, table: pd.DataFrame, fit: Callable[[pd.DataFrame], Callable[[pd.DataFrame], np.ndarray]]
) -> np.ndarray:
    """Value (N,) of each match by a function, such as a calibrator, that was fitted without its scene.

    The scenes to fit on make at most `FOLDS` groups, each left out once; a single one is fitted on itself. Matches of
    other scenes have the value by the function of all.
    """
    scenes = sorted(fitted_on["scene"].unique())
    fold = {scene: i % FOLDS for i, scene in enumerate(scenes)}
    of_known, of_table = fitted_on["scene"].map(fold), table["scene"].map(fold)
    values = np.asarray(fit(fitted_on)(table), dtype=np.float64)
    for left_out in sorted(of_table.dropna().unique()) if len(scenes) > 1 else ():
        own = (of_table == left_out).to_numpy()
        values[own] = fit(fitted_on[of_known != left_out])(table[own])
    return values


def _column(features: Features, name: str, high: float) -> np.ndarray:
    if name not in features:
        raise ValueError(f"features lack {name!r}; they have {list(features)}")
    return checked_numbers(features[name], f"features[{name!r}]", high, "; choose a calibrator that does without it")


def _design(features: Features, names: Sequence[str]) -> np.ndarray:
    """(N, number of names) float64."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(FEATURES):
        raise ValueError(f"names must be different ones of {list(FEATURES)}, got {list(names)}")
    used = [FEATURES[name] for name in names]
    columns = [function(_column(features, column, high)) for column, high, function in used]
    return np.stack(columns, axis=1)


def _outcomes(correct: Any, length: int) -> np.ndarray:
    """(N,) bool, checked to hold both."""
    correct = np.asarray(correct)
    if correct.shape != (length,) or set(np.unique(correct).tolist()) != {0, 1}:  # False and True are 0 and 1
        raise ValueError(f"correct must be ({length},) bool with both outcomes, got {correct.dtype} {correct.shape}")
    return correct.astype(bool)
