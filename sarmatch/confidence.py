"""From matches with raw scores to calibrated confidence and to the answer "no match" (section 4.3.3).

A confidence means the probability of lying within 3 px of the truth. Calibrators are fitted on validation scenes under
`shift` at the headline radius, travel in the header of the weights, and are applied by `Matcher`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from sarmatch.calibrators import Calibrator, Isotonic, Logistic, calibrator_from_dict
from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation import EvaluationCrops, evaluation_crops, spread
from sarmatch.matches import Matches
from sarmatch.matching import RawMatches
from sarmatch.metrics import match_residuals
from sarmatch.precision import CONFIDENT_PX, COVERAGE, FOLDS, Precision, scene_folds

CONFIDENCE_FILE = "confidence.json"

SCORES = ("probability", "aleatoric", "epistemic")
"""Raw scores of a match, of which confidence is made."""
SPREAD = ("error_x", "error_y", "var_x", "var_xy", "var_y")
"""Found less true optical position, px, and the raw covariance of the found one, px^2."""

RawMatcher = Callable[[EvaluationCrops], RawMatches]


@dataclass(frozen=True)
class Overlap:
    """The decision whether two images show the same ground, from how confident their matches are.

    Attributes:
        threshold: least mean confidence of pairs that are accepted.
        n_unrelated, n_accepted: unrelated validation pairs that it was chosen on, and how many of them pass.
    """

    threshold: float
    n_unrelated: int
    n_accepted: int

    def accepts(self, confidence: np.ndarray) -> bool:
        return agreement(confidence) >= self.threshold


@dataclass(frozen=True)
class Confidence:
    """How a matcher turns raw scores into confidence.

    Attributes:
        calibrators: by mode of inference: `single` pass, `distilled`, `monte_carlo`.
        overlaps: the decision on a pair, by mode.
        search_radius: px, with which both were fitted; the decision is not taken with another, since fewer candidates
            make any match look likelier.
        mc_passes: of the mode `monte_carlo`; with another number, whose mutual information has another scale, the
            calibrator of a single pass serves.
        precision: what covariances and radii are made with, by mode; empty in files of before they were fitted.
        fitted_on: digits of the weights, pairs and settings of the fit; empty in files of before they were kept.
    """

    calibrators: Mapping[str, Calibrator]
    overlaps: Mapping[str, Overlap]
    search_radius: float
    mc_passes: int
    precision: Mapping[str, Precision] = field(default_factory=dict)
    fitted_on: str = ""

    def to_json(self) -> str:
        return json.dumps(
            {
                "calibrators": {mode: c.to_dict() for mode, c in self.calibrators.items()},
                "overlaps": {mode: asdict(o) for mode, o in self.overlaps.items()},
                "search_radius": self.search_radius,
                "mc_passes": self.mc_passes,
                "precision": {mode: p.to_dict() for mode, p in self.precision.items()},
                "fitted_on": self.fitted_on,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Confidence:
        """Raises ValueError where the text was not written by `to_json`."""
        try:
            content = json.loads(text)
            calibrators = {mode: calibrator_from_dict(c) for mode, c in content["calibrators"].items()}
            overlaps = {mode: Overlap(**o) for mode, o in content["overlaps"].items()}
            precision = {mode: Precision.from_dict(p) for mode, p in content.get("precision", {}).items()}
            radius, passes = float(content["search_radius"]), int(content["mc_passes"])
            return cls(calibrators, overlaps, radius, passes, precision, str(content.get("fitted_on", "")))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a description of a confidence ({error!r}): {text[:80]!r}") from error


def match_table(
    matcher: RawMatcher, pairs: Pairs, protocol: Protocol, config: EvaluationConfig, progress: bool = True
) -> pd.DataFrame:
    """All matches of all pairs with their raw scores and errors, one row a match.

    Args:
        matcher: gives raw matches of two crops.

    Returns:
        columns id, dataset, scene, x, y (SAR position, px), error_px, `SCORES` and `SPREAD`.
    """
    parts = []
    for pair in tqdm(spread(pairs, config.max_pairs), desc=f"matches, {protocol}", disable=None if progress else True):
        crops = evaluation_crops(pair, protocol, config)
        raw = matcher(crops)
        xy = raw.xy_sar.cpu().numpy(), raw.xy_optical.cpu().numpy()
        residuals = match_residuals(xy, crops.A_sar_to_optical)
        table = {"x": xy[0][:, 0], "y": xy[0][:, 1], "error_px": np.linalg.norm(residuals, axis=1)}
        table |= {name: getattr(raw, name).cpu().numpy() for name in SCORES}
        spread_of_position = raw.covariance.cpu().numpy()[:, [0, 0, 1], [0, 1, 1]]
        table |= dict(zip(SPREAD, np.hstack([residuals, spread_of_position]).T, strict=True))
        labels = {"id": pair.id, "dataset": pair.dataset, "scene": pair.scene}
        parts.append(pd.DataFrame(table).astype(np.float32).assign(**labels))
    return pd.concat(parts, ignore_index=True)


def fit_calibrator(table: pd.DataFrame, names: tuple[str, ...], threshold_px: float = CONFIDENT_PX) -> Calibrator:
    """Logistic regression on raw scores, then isotonic; every match counts alike, as it does in the scores of eq. 8.

    Args:
        table: matches of validation pairs, see `match_table`.
        names: features, keys of `calibrators.FEATURES`.
    """
    correct = table["error_px"].to_numpy() <= threshold_px
    if correct.all() or not correct.any():  # nothing tells right from wrong, as after a few steps of training
        return Isotonic((0.5,), (float(len(correct) > 0 and correct.all()),))
    return Logistic.fit(table, correct, None, names, isotonic=True)


def agreement(confidence: np.ndarray) -> float:
    """Mean confidence of the matches of a pair; 0 without matches."""
    return float(np.mean(confidence)) if len(confidence) else 0.0


def cross_fitted(
    fitted_on: pd.DataFrame,
    table: pd.DataFrame,
    fit: Callable[[pd.DataFrame], Calibrator],
    folds: int = FOLDS,
) -> np.ndarray:
    """Confidence (N,) of each match by a calibrator that has not seen its scene.

    Args:
        fitted_on: matches to fit on; `table` may be the same or another of the same scenes. Matches of scenes that are
            not among them have the calibrator of all.
        fit: makes a calibrator of matches.
        folds: at most so many groups of scenes, each left out once. A single scene is fitted on itself.
    """
    fold = scene_folds(fitted_on["scene"], folds)
    confidence = np.asarray(fit(fitted_on)(table), dtype=np.float64)
    for left_out in sorted(set(fold.values())) if len(set(fold.values())) > 1 else ():
        others = fitted_on[fitted_on["scene"].map(fold) != left_out]
        own = (table["scene"].map(fold) == left_out).to_numpy()
        if own.any():
            confidence[own] = fit(others)(table[own])
    return confidence


def pair_agreements(table: pd.DataFrame, confidence: np.ndarray, pairs: Pairs) -> pd.Series:
    """`agreement` of all pairs of a match table with these confidences, by id; pairs without matches have 0."""
    found = table[["id"]].assign(confidence=confidence).groupby("id")["confidence"].mean()
    return found.reindex(pairs.index["id"], fill_value=0.0)


def fit_overlap(related: np.ndarray, unrelated: np.ndarray, false_accept: float = 0.01) -> Overlap:
    """The lowest threshold that lets at most this share of unrelated validation pairs through.

    It lies halfway between the most confident unrelated pair that it refuses and the next related one above. With fewer
    than 1 / `false_accept` pairs it refuses all of them, which does not show that the rate is that low.

    Args:
        related, unrelated: agreements of pairs of one place, and of pairs of different scenes.
    """
    if not len(related) or not len(unrelated):
        raise ValueError(f"related and unrelated pairs are needed, got {len(related)} and {len(unrelated)}")
    allowed = int(false_accept * len(unrelated))
    highest = np.sort(unrelated)[::-1][allowed]
    above = related[related > highest]
    threshold = float((highest + above.min()) / 2 if len(above) else np.nextafter(highest, np.inf))
    return Overlap(threshold, len(unrelated), int((unrelated >= threshold).sum()))


def acceptance_rates(related: np.ndarray, unrelated: np.ndarray) -> pd.DataFrame:
    """Shares of related and of unrelated pairs (or matches) accepted at every threshold: a ROC curve.

    Returns:
        columns threshold, true_accept, false_accept; thresholds fall.
    """
    thresholds = np.unique(np.concatenate([related, unrelated]))[::-1]
    shares = [np.searchsorted(np.sort(-x), -thresholds, side="right") / len(x) for x in (related, unrelated)]
    return pd.DataFrame({"threshold": thresholds, "true_accept": shares[0], "false_accept": shares[1]})


def apply(
    raw: RawMatches,
    confidence: Confidence | None,
    mode: str,
    search_radius: float | None,
    coverage: float = COVERAGE,
) -> Matches:
    """Matches with calibrated confidence, covariance and radius, and the decision on the pair; raw probabilities and
    spreads where nothing is fitted.

    Args:
        mode: key of `confidence`.
        search_radius: px, with which the matches were found; None where they were found otherwise. With another one
            than was fitted, nothing is decided and radii are NaN: how far off wrong matches are is not known then.
        coverage: of the radii.
    """
    arrays = {name: value.cpu().numpy() for name, value in raw._asdict().items()}
    scores = {name: arrays[name] for name in SCORES}
    calibrator = confidence.calibrators.get(mode) if confidence else None
    fits = confidence is not None and confidence.search_radius == search_radius
    overlap = confidence.overlaps.get(mode) if confidence is not None and fits else None
    precision = confidence.precision.get(mode) if confidence else None
    value = scores["probability"] if calibrator is None else calibrator(scores)
    spread_of_position = arrays["covariance"]
    radius = np.full(len(value), np.nan)
    if precision is not None and fits:
        radius = precision.radius(value, spread_of_position, coverage)
    return Matches(
        arrays["xy_sar"],
        arrays["xy_optical"],
        value,
        scores["aleatoric"],
        scores["epistemic"],
        spread_of_position if precision is None else precision.covariance(spread_of_position),
        radius,
        overlaps=None if overlap is None else overlap.accepts(np.asarray(value)),
    )


def warn_of_missing_confidence(source: str) -> None:
    """Say that what `Matches.confidence` holds is no confidence."""
    warnings.warn(
        f"{source}: no confidence was fitted for these weights; `confidence` of matches is then the raw dual-softmax "
        "probability, not the probability of lying within 3 px, and `overlaps` is not decided. `sarmatch train` fits "
        "it at its end, `sarmatch.confidence_fit.confidence_or_load` for a run that was trained otherwise",
        stacklevel=3,
    )


def read_confidence(folder: Path) -> Confidence | None:
    """What was fitted for the run in a folder, or None."""
    path = folder / CONFIDENCE_FILE
    return Confidence.from_json(path.read_text()) if path.is_file() else None
