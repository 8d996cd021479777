"""Calibrated confidence of matches, the probability of an error up to 3 px, and the decision on overlap."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sarmatch.calibration.calibrators import Calibrator, Isotonic, Logistic, calibrator_from_dict
from sarmatch.calibration.position_error import Precision
from sarmatch.config import CONFIDENT_PX, from_dict

CONFIDENCE_FILE = "confidence.json"

SCORES = ("probability", "aleatoric", "epistemic")  #: Raw scores of a match, of which confidence is made.
SPREAD = ("error_x", "error_y", "var_x", "var_xy", "var_y")  #: Found less true position, px; raw covariance, px^2.


@dataclass(frozen=True)
class Overlap:
    """The decision whether two images show the same ground, from the confidence of their matches."""

    threshold: float  #: Least mean confidence of accepted pairs.
    n_unrelated: int  #: Unrelated validation pairs that the threshold was chosen on.
    n_accepted: int  #: How many of them it accepts.


@dataclass(frozen=True)
class Confidence:
    """How a matcher turns raw scores into confidence, for its modes of inference: single, distilled, monte_carlo."""

    calibrators: Mapping[str, Calibrator]
    overlaps: Mapping[str, Overlap]
    search_radius: float  #: Px, of the fit; no decision with another: fewer candidates make any match likelier.
    mc_passes: int  #: Of the mode `monte_carlo`; with another number the calibrator of a single pass serves.
    precision: Mapping[str, Precision] = field(default_factory=dict)
    fitted_on: str = ""  #: Digest of the weights, pairs and settings of the fit.

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Confidence:
        """Raises ValueError where the text was not written by `to_json`."""
        try:
            content = json.loads(text)
            calibrators = {mode: calibrator_from_dict(c) for mode, c in content.pop("calibrators").items()}
            overlaps = {mode: from_dict(Overlap, o) for mode, o in content.pop("overlaps").items()}
            precision = {mode: from_dict(Precision, p) for mode, p in content.pop("precision", {}).items()}
            return cls(calibrators, overlaps, precision=precision, **content)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a description of a confidence ({error!r}): {text[:80]!r}") from error


def fit_calibrator(table: pd.DataFrame, names: tuple[str, ...]) -> Calibrator:
    """Logistic regression on raw scores, then isotonic; every match counts alike, as it does in the scores of eq. 8.

    The table is a `confidence_fit.match_table` of validation pairs, the names are keys of `calibrators.FEATURES`.
    """
    correct = table["error_px"].to_numpy() <= CONFIDENT_PX
    if correct.all() or not correct.any():  # nothing tells right from wrong, as after a few steps of training
        return Isotonic((0.5,), (float(len(correct) > 0 and correct.all()),))
    return Logistic.fit(table, correct, names, isotonic=True)


def agreement(confidence: np.ndarray) -> float:
    """Mean confidence of the matches of a pair; 0 without matches."""
    return float(np.mean(confidence)) if len(confidence) else 0.0


def pair_agreements(table: pd.DataFrame, confidence: np.ndarray, ids: pd.Series) -> pd.Series:
    """`agreement` of pairs by id, from a match table and its confidences (N,); pairs without matches have 0."""
    found = table[["id"]].assign(confidence=confidence).groupby("id")["confidence"].mean()
    return found.reindex(ids, fill_value=0.0)


def fit_overlap(related: np.ndarray, unrelated: np.ndarray, false_accept: float = 0.01) -> Overlap:
    """The lowest threshold that accepts at most this share of unrelated pairs, from `pair_agreements`.

    It lies halfway between the most confident unrelated pair that it refuses and the next related one above.
    """
    if not len(related) or not len(unrelated):
        raise ValueError(f"related and unrelated pairs are needed, got {len(related)} and {len(unrelated)}")
    allowed = int(false_accept * len(unrelated))
    highest = np.sort(unrelated)[::-1][allowed]
    above = related[related > highest]
    threshold = float((highest + above.min()) / 2 if len(above) else np.nextafter(highest, np.inf))
    return Overlap(threshold, len(unrelated), int((unrelated >= threshold).sum()))


def calibrated(
    raw: Mapping[str, np.ndarray],
    confidence: Confidence | None,
    mode: str,
    search_radius: float | None,
    coverage: float,
) -> dict[str, Any]:
    """The arguments of `Matches` that come from raw `SCORES` (N,) and `covariance` (N, 2, 2) px^2.

    They are confidence, covariance, radius and the decision `overlaps`; raw where nothing is fitted. With another
    search radius than was fitted, or None, nothing is decided and radii are NaN.
    """
    fitted = confidence or Confidence({}, {}, search_radius=0.0, mc_passes=0)
    calibrator, precision = fitted.calibrators.get(mode), fitted.precision.get(mode)
    value = calibrator(raw) if calibrator else raw["probability"]
    covariance, radius, overlaps = raw["covariance"], np.full(len(value), np.nan), None
    if fitted.search_radius == search_radius:
        radius = precision.radius(value, covariance, coverage) if precision else radius
        overlaps = agreement(value) >= fitted.overlaps[mode].threshold if mode in fitted.overlaps else None
    if precision:
        covariance = precision.covariance(covariance)
    return {"confidence": value, "covariance": covariance, "radius": radius, "overlaps": overlaps}


def warn_of_missing_confidence(source: str) -> None:
    warnings.warn(
        f"{source}: no confidence was fitted for these weights; `confidence` of matches is then the raw dual-softmax "
        "probability, not the probability of lying within 3 px, and `overlaps` is not decided. `sarmatch train` fits "
        "it at its end, `sarmatch.training.runs.confidence_or_load` for a run that was trained otherwise",
        stacklevel=3,
    )


def read_confidence(folder: Path) -> Confidence | None:
    """The confidence fitted for the run in a folder, or None."""
    path = folder / CONFIDENCE_FILE
    return Confidence.from_json(path.read_text()) if path.is_file() else None
