"""Scores of several confidences of the same matches, fitted on validation scenes; intervals resample whole scenes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from companion.cache import cached_table
from sarmatch.calibration.calibrators import Calibrator, Isotonic, Logistic, temperature_scaling
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.calibration.scores import Groups, calibration_scores, checked, pooled_aurc, pooled_scores
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import match_table
from sarmatch.evaluation.intervals import bootstrap, check_columns, verdict
from sarmatch.evaluation.protocols import spread
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import RawMatches
from sarmatch.training.runs import Run

SHOWN_SCORES = ("ece", "ece_equal_mass", "mce", "brier", "nll", "auroc", "aurc")
ALL_SCORES = ("logit_probability", "aleatoric", "epistemic")


class Recipe(NamedTuple):
    """How a confidence is fitted, and its columns for probability and epistemic uncertainty."""

    fit: Callable[..., Calibrator]
    probability: str = "probability"
    epistemic: str = "epistemic"

    def features(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(probability=table[self.probability], epistemic=table[self.epistemic])


def logistic(*names: str) -> Callable[..., Calibrator]:
    """Logistic regression on these scores, then isotonic, as `fit_calibrator` does it."""
    return partial(Logistic.fit, names=names, isotonic=True)


RECIPES: Mapping[str, Recipe] = {
    "plain softmax": Recipe(Isotonic.fit),
    "plain, temperature": Recipe(temperature_scaling),
    "aleatoric": Recipe(logistic("aleatoric")),
    "epistemic": Recipe(logistic("epistemic")),
    "both": Recipe(logistic("aleatoric", "epistemic")),
    "all three": Recipe(logistic(*ALL_SCORES), "mean_probability"),
}
"""Confidences of the chapter on calibration; `all three` has the scores of a matcher with Monte Carlo passes."""


def shared_matches(single: pd.DataFrame, monte_carlo: pd.DataFrame) -> pd.DataFrame:
    """Matches that one pass and the passes with dropout both find, with the scores of both.

    Args:
        single, monte_carlo: match tables (`confidence_fit.match_table`); pairs that stand in one only are left out.

    Returns:
        columns id, dataset, scene, x, y, error_px; `probability` and `aleatoric` of the one pass; `mean_probability`
        and `epistemic` (mutual information, nats) of the passes.

    Raises:
        ValueError: there are none.
    """
    there = monte_carlo.rename(columns={"probability": "mean_probability", "error_px": "other_px"})
    there = there[["id", "x", "y", "mean_probability", "epistemic", "other_px"]]
    both = single.drop(columns="epistemic").merge(there, on=["id", "x", "y"], validate="one_to_one")
    # Errors that differ by rounding only are those of one optical cell.
    both = both[(both["error_px"] - both["other_px"]).abs() < 0.01].drop(columns="other_px")
    if both.empty:
        raise ValueError("the two tables share no match; are they of the same pairs under the same protocol?")
    return both.reset_index(drop=True)


def raw_confidences(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of `shared_matches` taken at face value, in [0, 1], a column each."""
    certain = 1 - table["aleatoric"]
    informed = np.exp(-table["epistemic"])
    return pd.DataFrame(
        {
            "plain softmax": table["probability"],
            "mean of passes": table["mean_probability"],
            "1 - aleatoric": certain,
            "exp(-information)": informed,
            "product of both": certain * informed,
        }
    ).clip(0, 1)


def calibrated_confidences(
    fitted_on: pd.DataFrame,
    measured: pd.DataFrame,
    recipes: Mapping[str, Recipe] = RECIPES,
    threshold_px: float = CONFIDENT_PX,
) -> pd.DataFrame:
    """Confidences of the measured matches, a column a recipe, each fitted on the others; every match counts alike.

    Where all matches to fit on are correct, or all wrong, nothing tells scores apart: every confidence is 1, or 0.
    """
    correct = fitted_on["error_px"].to_numpy() <= threshold_px
    if correct.all() or not correct.any():
        constant = np.full((len(measured), len(recipes)), float(correct.mean()))
        return pd.DataFrame(constant, columns=list(recipes), index=measured.index)
    found = {}
    for name, recipe in recipes.items():
        calibrator = recipe.fit(recipe.features(fitted_on), correct)
        found[name] = calibrator(recipe.features(measured))
    return pd.DataFrame(found, index=measured.index)


def score_table(
    table: pd.DataFrame,
    confidences: pd.DataFrame,
    threshold_px: float = CONFIDENT_PX,
    scores: Sequence[str] = SHOWN_SCORES,
    n: int = 200,
) -> pd.DataFrame:
    """`bootstrap_scores` (`n` resamples) of each confidence, a row each; `confidences` has the rows of `table`."""
    rows: list[dict[str, Any]] = []
    for name in confidences:
        values = table.assign(confidence=confidences[name].to_numpy())
        found = bootstrap_scores(values, threshold_px=threshold_px, n=n).set_index("score")
        row: dict[str, Any] = {"confidence": name}
        for score in scores:
            row |= found.loc[score].set_axis([score, f"{score}_low", f"{score}_high"]).to_dict()
        rows.append(row)
    return pd.DataFrame(rows)


def scores_by_threshold(
    fitted_on: pd.DataFrame, measured: pd.DataFrame, thresholds_px: Sequence[float], recipes: Mapping[str, Recipe]
) -> pd.DataFrame:
    """`score_table` of confidences fitted and measured at each threshold, with its `accuracy`."""
    parts = []
    for threshold in thresholds_px:
        confidences = calibrated_confidences(fitted_on, measured, recipes, threshold)
        about = {"threshold_px": threshold, "accuracy": float((measured["error_px"] <= threshold).mean())}
        parts.append(_fewer_scores(measured, confidences, about, threshold))
    return pd.concat(parts, ignore_index=True)


def scores_by_dataset(table: pd.DataFrame, confidences: pd.DataFrame) -> pd.DataFrame:
    """`score_table` for the matches of each dataset, with its numbers of pairs and scenes."""
    parts = []
    for name, part in table.groupby("dataset"):
        about = {"dataset": name, "n_pairs": part["id"].nunique(), "n_scenes": part["scene"].nunique()}
        parts.append(_fewer_scores(part, confidences.loc[part.index], about))
    return pd.concat(parts, ignore_index=True)


def _fewer_scores(
    table: pd.DataFrame, confidences: pd.DataFrame, about: dict[str, Any], threshold_px: float = CONFIDENT_PX
) -> pd.DataFrame:
    """Four scores of each confidence, the columns `about` in front."""
    found = score_table(table, confidences, threshold_px, ("ece", "brier", "auroc", "aurc"), n=100)
    return found.assign(**about)[[*about, *found]]


def aurc_verdicts(
    table: pd.DataFrame, confidences: pd.DataFrame, against: str, threshold_px: float = CONFIDENT_PX, n: int = 200
) -> pd.DataFrame:
    """AURC of each confidence less that of one of them on the same matches, and whether it is better than that one.

    Args:
        table: one row a match: id, error_px and scene; `confidences` (in [0, 1]) has its rows.
        n: number of resamples of whole scenes, for all confidences at once.

    Returns:
        columns confidence, against, difference (negative sorts the matches better) with its ends (NaN where there is a
        single scene) and better: "yes", "worse", "open" or "too few scenes".

    Raises:
        ValueError: another number of confidences than matches.
    """
    if len(table) != len(confidences):
        raise ValueError(f"confidences must have a row a match: {len(confidences)} rows for {len(table)} matches")
    correct = (table["error_px"] <= threshold_px).to_numpy()
    codes, scenes = pd.factorize(table["scene"], sort=True)
    columns = [confidences[name].to_numpy(np.float64) for name in confidences]
    base = list(confidences).index(against)

    def differences(counts: np.ndarray) -> np.ndarray:
        areas = [[pooled_aurc(groups) for groups in resampled_groups(c, correct, codes, counts)] for c in columns]
        return np.transpose(areas) - np.transpose(areas)[:, [base]]

    rows = []
    for name, (value, low, high) in zip(confidences, bootstrap(differences, len(scenes), n).T, strict=True):
        if name != against:
            better = verdict(-high, -low, len(scenes), words=("yes", "worse", "open"))
            rows.append((name, against, value, low, high, better))
    names = ["confidence", "against", "difference", "difference_low", "difference_high", "better"]
    return pd.DataFrame(rows, columns=names)


def decision_errors(related: Any, unrelated: Any, threshold: float) -> pd.DataFrame:
    """How often the decision on a pair is wrong, with exact (Clopper-Pearson) 95 % intervals over independent pairs.

    Args:
        related, unrelated: agreements of pairs of one place, and of pairs of different scenes.
        threshold: pairs at or above it are accepted.
    """
    rows = []
    refused, accepted = np.asarray(related) < threshold, np.asarray(unrelated) >= threshold
    for name, wrong in (("of one place, refused", refused), ("of two places, accepted", accepted)):
        interval = scipy.stats.binomtest(int(wrong.sum()), len(wrong)).proportion_ci()
        rows.append((name, len(wrong), int(wrong.sum()), float(wrong.mean()), interval.low, interval.high))
    rate = "error_rate"
    return pd.DataFrame(rows, columns=["images", "n_pairs", "wrong", rate, f"{rate}_low", f"{rate}_high"])


def scores_by_passes(run: Run, split: Split, n_pairs: int, numbers: Sequence[int]) -> pd.DataFrame:
    """Seconds (median a test pair), accuracy and scores for each number of passes, the calibrator fitted anew for each.

    Args:
        n_pairs: of validation to fit on, and as many of the test part to measure.
        numbers: of Monte Carlo passes; one carries no mutual information, its calibrator does without.
    """
    config, rows = dataclasses.replace(run.config.evaluation, max_pairs=n_pairs), []
    for passes in numbers:
        fitted_on, measured = (_timed_matches(run, passes, part, config) for part in (split.calibration, split.test))
        names = ALL_SCORES if passes > 1 else ALL_SCORES[:2]
        confidence = pd.DataFrame({"passes": fit_calibrator(fitted_on, names)(measured)})
        scores = score_table(measured, confidence, scores=("ece", "brier", "auroc", "aurc"))
        seconds = float(measured.groupby("id")["seconds"].first().median())
        accuracy = float((measured["error_px"] <= CONFIDENT_PX).mean())
        about = pd.DataFrame({"passes": [passes], "seconds": [seconds], "accuracy": [accuracy]})
        rows.append(about.join(scores.drop(columns="confidence")))
    return pd.concat(rows, ignore_index=True)


def _timed_matches(run: Run, passes: int, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """A match table with the seconds that its pair took, measured once and kept with the run."""
    matcher, seconds = Matcher(run.net, mc_passes=passes), []

    def timed(crops: EvaluationCrops) -> RawMatches:
        start = time.perf_counter()
        raw = matcher.raw_matches(crops, config.headline_radius)
        raw.probability.cpu()  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
        return raw

    def make() -> pd.DataFrame:
        table = match_table(timed, pairs, "shift", config)
        ids = spread(pairs, config.max_pairs).index["id"]
        return table.assign(seconds=table["id"].map(dict(zip(ids, seconds, strict=True))))

    return cached_table(run.path, f"timed-{passes}", {"matcher": matcher, "pairs": pairs, "config": config}, make)


def bootstrap_scores(
    table: pd.DataFrame,
    confidence: str = "confidence",
    threshold_px: float = 3.0,
    cluster: str = "scene",
    n: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """`calibration_scores` with 95 % percentile intervals under resampling of whole clusters with replacement.

    Scatter adds to a calibration error: for well calibrated matches ece and mce can lie below their intervals.

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
    check_columns(table, ("error_px", confidence, cluster))
    if n < 1 or not threshold_px >= 0 or not (table["error_px"] >= 0).all():
        raise ValueError(f"n ({n}) must be at least 1, threshold_px ({threshold_px}) and error_px at least 0, not NaN")
    if table[cluster].isna().any() or (table[cluster].astype(str) == "").any():
        raise ValueError(f"column {cluster!r} is empty for some matches; name the cluster of each or choose another")
    values, correct = table[confidence].to_numpy(np.float64), (table["error_px"] <= threshold_px).to_numpy()
    names = [name for name in calibration_scores(values, correct) if name != "n"]
    codes, clusters = pd.factorize(table[cluster], sort=True)

    def scores(counts: np.ndarray) -> np.ndarray:
        found = map(pooled_scores, resampled_groups(values, correct, codes, counts))
        return np.array([[one[name] for name in names] for one in found])

    value, low, high = bootstrap(scores, len(clusters), n, seed)
    return pd.DataFrame({"score": names, "value": value, "low": low, "high": high})


def resampled_groups(confidence: Any, correct: Any, clusters: np.ndarray, counts: np.ndarray) -> Iterator[Groups]:
    """The matches of each resample of whole clusters, pooled; they are sorted once, for all resamples.

    Args:
        confidence, correct, clusters: of each match, (N,): in [0, 1], bool, and the number of its cluster.
        counts: (R, C), how often each resample holds each of the C clusters.
    """
    confidence, correct = checked(confidence, correct)
    order = np.argsort(confidence)
    values, clusters, correct = confidence[order], clusters[order], correct[order].astype(np.float64)
    starts = np.flatnonzero(np.append(True, np.diff(values) > 0))
    distinct = values[starts]
    for count in counts:
        weights = count[clusters]
        n, right = np.add.reduceat(weights, starts), np.add.reduceat(weights * correct, starts)
        drawn = n > 0
        yield Groups(distinct[drawn], n[drawn], right[drawn])
