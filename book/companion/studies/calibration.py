"""Scores of several confidences of the same matches, fitted on validation scenes; intervals resample whole scenes."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
from scipy.special import logit

from companion.cache import cached_table
from companion.intervals import bootstrap, verdict
from sarmatch.calibration.calibrators import Calibrator, Features, Isotonic, Logistic
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.calibration.scores import CLIP, Groups, checked, pooled_aurc, pooled_scores
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import match_table
from sarmatch.evaluation.protocols import spread
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import RawMatches
from sarmatch.training.runs import Run

FEWER_SCORES = ("ece", "brier", "auroc", "aurc")
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


def temperature_scaling(features: Features, correct: Any) -> Logistic:
    """Divides the logit of the probability by the number from 0.01 to 100 of least negative log-likelihood."""
    probability, correct = checked(features["probability"], correct)
    logits = logit(np.clip(probability, CLIP, 1 - CLIP))
    signed = np.where(correct, -logits, logits)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, signed * np.exp(-log_temperature)).sum())

    found = scipy.optimize.minimize_scalar(loss, bounds=np.log([0.01, 100]), method="bounded")
    return Logistic(("logit_probability",), (0.0,), (1.0,), (float(np.exp(-found.x)),), 0.0)


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
    """Matches of one pass that passes with dropout find too, with `mean_probability` and `epistemic` of the latter.

    Pairs that stand in one table only are left out; ValueError where nothing is shared.
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
    raw = table[["probability", "mean_probability"]].set_axis(["plain softmax", "mean of passes"], axis=1)
    raw["1 - aleatoric"] = 1 - table["aleatoric"]
    raw["exp(-information)"] = np.exp(-table["epistemic"])
    raw["product of both"] = raw["1 - aleatoric"] * raw["exp(-information)"]
    return raw.clip(0, 1)


def calibrated_confidences(
    fitted_on: pd.DataFrame,
    measured: pd.DataFrame,
    recipes: Mapping[str, Recipe] = RECIPES,
    threshold_px: float = CONFIDENT_PX,
) -> pd.DataFrame:
    """Confidences of the measured matches, a column a recipe, each fitted on the others; every match counts alike.

    Where all matches to fit on are correct, or all wrong, every confidence is 1, or 0.
    """
    correct = fitted_on["error_px"].to_numpy() <= threshold_px
    if correct.all() or not correct.any():
        return pd.DataFrame(float(correct.mean()), columns=list(recipes), index=measured.index)
    fits = {name: recipe.fit(recipe.features(fitted_on), correct) for name, recipe in recipes.items()}
    found = {name: fit(recipes[name].features(measured)) for name, fit in fits.items()}
    return pd.DataFrame(found, index=measured.index)


def score_table(
    table: pd.DataFrame,
    confidences: pd.DataFrame,
    threshold_px: float = CONFIDENT_PX,
    scores: Sequence[str] = SHOWN_SCORES,
    n: int = 200,
) -> pd.DataFrame:
    """Scores (keys of `calibration_scores`) of each confidence, with 95 % intervals that are NaN for a single scene.

    Scatter adds to a calibration error: for well calibrated matches ece and mce can lie below their intervals. For
    auroc, resamples whose matches are all correct or all wrong do not count.

    Args:
        table: one row a match, with error_px and scene; `confidences` (in [0, 1]) has its rows.
    """

    def chosen(groups: Groups) -> list[float]:
        found = pooled_scores(groups)
        return [found[name] for name in scores]

    found = bootstrap(*_of_resamples(table, confidences, chosen, threshold_px), n)
    columns = {"confidence": list(confidences)}
    for i, score in enumerate(scores):
        columns |= dict(zip((score, f"{score}_low", f"{score}_high"), found[:, :, i], strict=True))
    return pd.DataFrame(columns)


def bootstrap_scores(table: pd.DataFrame, threshold_px: float = CONFIDENT_PX, n: int = 200) -> pd.DataFrame:
    """`score_table` of the column `confidence` and the accuracy, a row a score: `score`, `value`, `low`, `high`."""
    scores = [*SHOWN_SCORES, "accuracy"]
    found = score_table(table, table[["confidence"]], threshold_px, scores, n).drop(columns="confidence")
    long = pd.DataFrame(found.to_numpy().reshape(-1, 3), columns=["value", "low", "high"])
    return pd.DataFrame({"score": scores}).join(long)


def _of_resamples(
    table: pd.DataFrame, confidences: pd.DataFrame, of: Callable[[Groups], Any], threshold_px: float
) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Something `of` the pooled matches of each confidence, as `bootstrap` takes it, and the number of scenes."""
    right = (table["error_px"] <= threshold_px).to_numpy()
    codes, scenes = pd.factorize(table["scene"], sort=True)

    def statistic(counts: np.ndarray) -> np.ndarray:
        found = [[of(g) for g in _pooled(confidences[name], right, codes, counts)] for name in confidences]
        return np.swapaxes(found, 0, 1)

    return statistic, len(scenes)


def _pooled(confidence: Any, correct: Any, scenes: np.ndarray, counts: np.ndarray) -> Iterator[Groups]:
    """The matches under each row of `counts` of scenes; they are sorted once, for all resamples."""
    confidence, correct = checked(confidence, correct)
    order = np.argsort(confidence)
    values, scenes, correct = confidence[order], scenes[order], correct[order].astype(np.float64)
    starts = np.flatnonzero(np.append(True, np.diff(values) > 0))
    for count in counts:
        weights = count[scenes]
        n, right = np.add.reduceat(weights, starts), np.add.reduceat(weights * correct, starts)
        drawn = n > 0
        yield Groups(values[starts][drawn], n[drawn], right[drawn])


def stacked(parts: Mapping[Any, pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Tables one below the other, the key of each in front, in the columns `names`."""
    return pd.concat(parts, names=names).droplevel(-1).reset_index()


def scores_by_threshold(
    fitted_on: pd.DataFrame, measured: pd.DataFrame, thresholds_px: Sequence[float], recipes: Mapping[str, Recipe]
) -> pd.DataFrame:
    """`score_table` of confidences fitted and measured at each threshold, with its `accuracy`."""
    parts = {}
    for t in thresholds_px:
        confidences = calibrated_confidences(fitted_on, measured, recipes, t)
        parts[t, (measured["error_px"] <= t).mean()] = score_table(measured, confidences, t, FEWER_SCORES, n=100)
    return stacked(parts, ["threshold_px", "accuracy"])


def scores_by_dataset(table: pd.DataFrame, confidences: pd.DataFrame) -> pd.DataFrame:
    """`score_table` for the matches of each dataset, with its numbers of pairs and scenes."""
    parts = {}
    for name, part in table.groupby("dataset"):
        found = score_table(part, confidences.loc[part.index], scores=FEWER_SCORES, n=100)
        parts[name, part["id"].nunique(), part["scene"].nunique()] = found
    return stacked(parts, ["dataset", "n_pairs", "n_scenes"])


def aurc_verdicts(table: pd.DataFrame, confidences: pd.DataFrame, against: str, n: int = 200) -> pd.DataFrame:
    """AURC of each confidence less that of one of them (negative sorts the matches better), under the same resamples.

    Arguments as in `score_table`; the column `better` says "yes", "worse", "open" or "too few scenes".
    """
    areas, n_scenes = _of_resamples(table, confidences, pooled_aurc, CONFIDENT_PX)
    base = list(confidences).index(against)

    def differences(counts: np.ndarray) -> np.ndarray:
        found = areas(counts)
        return found - found[:, [base]]

    value, low, high = bootstrap(differences, n_scenes, n)
    columns = {"confidence": list(confidences), "against": against}
    found = pd.DataFrame(columns | {"difference": value, "difference_low": low, "difference_high": high})
    words = ("yes", "worse", "open")
    found["better"] = [verdict(*ends, n_scenes, words=words) for ends in zip(-high, -low, strict=True)]
    return found[found["confidence"] != against].reset_index(drop=True)


def acceptance_rates(related: np.ndarray, unrelated: np.ndarray) -> pd.DataFrame:
    """ROC curve: true_accept and false_accept, shares of pairs (or matches) accepted at each falling threshold."""
    thresholds = np.unique(np.concatenate([related, unrelated]))[::-1]
    shares = [np.searchsorted(np.sort(-x), -thresholds, side="right") / len(x) for x in (related, unrelated)]
    return pd.DataFrame({"threshold": thresholds, "true_accept": shares[0], "false_accept": shares[1]})


def decision_errors(related: Any, unrelated: Any, threshold: float) -> pd.DataFrame:
    """How often the decision on a pair is wrong, with exact (Clopper-Pearson) 95 % intervals over independent pairs.

    Pairs of one place (related) and of different scenes are accepted whose agreement is at or above the threshold.
    """
    rows = []
    refused, accepted = np.asarray(related) < threshold, np.asarray(unrelated) >= threshold
    for name, wrong in (("of one place, refused", refused), ("of two places, accepted", accepted)):
        n, k = len(wrong), wrong.sum()
        rows.append((name, n, k, k / n, *scipy.stats.binomtest(k, n).proportion_ci()))
    columns = ["images", "n_pairs", "wrong", "error_rate", "error_rate_low", "error_rate_high"]
    return pd.DataFrame(rows, columns=columns)


def scores_by_passes(run: Run, split: Split, n_pairs: int, numbers: Sequence[int]) -> pd.DataFrame:
    """Seconds (median a test pair), accuracy and scores for each number of passes, the calibrator fitted anew for each.

    On `n_pairs` of validation and of the test part; the calibrator of one pass does without mutual information.
    """
    config, parts = dataclasses.replace(run.config.evaluation, max_pairs=n_pairs), {}
    for passes in numbers:
        fitted_on, measured = (_timed_matches(run, passes, part, config) for part in (split.calibration, split.test))
        calibrator = fit_calibrator(fitted_on, ALL_SCORES if passes > 1 else ALL_SCORES[:2])
        found = score_table(measured, pd.DataFrame({"passes": calibrator(measured)}), scores=FEWER_SCORES)
        seconds = measured.groupby("id")["seconds"].first().median()
        parts[passes, seconds, (measured["error_px"] <= CONFIDENT_PX).mean()] = found.drop(columns="confidence")
    return stacked(parts, ["passes", "seconds", "accuracy"])


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
