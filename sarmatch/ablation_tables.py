"""Table 3 from the matches of its trainings: metrics with intervals, differences, and the paper's t-test beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sarmatch.ablation import calibration_resamples
from sarmatch.statistics import crossed_bootstrap, paired_t_test

PAPER = pd.DataFrame(
    {
        "row": ["baseline", "aleatoric", "epistemic", "both", "contrastive", "rotation"],
        "paper_mma_1px": [0.128, 0.136, 0.132, 0.139, 0.142, 0.145],
        "paper_ece": [np.nan, 0.13, 0.14, 0.11, 0.10, 0.09],
        "paper_n_matches": [1156.2, 1198.5, 1180.4, 1225.7, 1256.4, 1298.3],
    }
)
"""Table 3 as printed, MMA as a share."""
CALIBRATION = ("ece", "ece_raw", "brier")


def metrics_table(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric in each row, with intervals over seeds and scenes.

    Args:
        scores: one row a training and pair, as `ablation.pair_scores` returns, of one way of matching.

    Returns:
        row, n_seeds, n_pairs, n_scenes, and each metric with its `_low` and `_high`; NaN where no pair has it.
    """
    rows = []
    for name, found in scores.groupby("row", sort=False):
        counts = {f"n_{unit}s": found[key].nunique() for unit, key in (("seed", "seed"), ("pair", "id"))}
        row = {"row": name, **counts, "n_scenes": found["scene"].nunique()}
        for metric in metrics:
            known = found[metric].notna().any()
            interval = crossed_bootstrap(found, metric) if known else None
            ends = (interval.mean, interval.low, interval.high) if interval else (np.nan,) * 3
            row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def calibration_table(matches: pd.DataFrame) -> pd.DataFrame:
    """ECE (eq. 8) and Brier score of each row's confidence, and ECE of its bare softmax, with intervals over seeds and
    scenes.

    Args:
        matches: as `ablation.study_matches` returns; those without a confidence do not count.
    """
    rows = []
    for name, found in matches.dropna(subset=["confidence"]).groupby("row", sort=False):
        row = {"row": name, "matches": len(found)}
        for score in CALIBRATION:
            value, drawn = calibration_resamples(found, score)
            low, high = np.quantile(drawn, [0.025, 0.975])
            row |= {score: value, f"{score}_low": low, f"{score}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def gains(scores: pd.DataFrame, metric: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a metric between rows, over the same seeds and pairs.

    The interval draws seeds and scenes. The t-test is the paper's (section 4.4): it takes the pairs as independent,
    each pair's value being the mean over seeds. Pairs of one scene share terrain, season and both acquisitions, so
    there is less evidence than its p-value believes.

    Args:
        scores: as for `metrics_table`.
        steps: (row, the row it is compared with).

    Returns:
        one row a step: row, against, difference, low, high, verdict (`better`, `worse`, or `undecided` where zero lies
        in the interval), relative (the difference over the mean of `against`; NaN
            where that is zero), t, p.

    Raises:
        ValueError: a row of a step is not in the table, or was not measured with the same seeds and pairs.
    """
    table = scores.set_index(["row", "seed", "id"])
    rows = []
    for name, against in steps:
        for wanted in (name, against):
            if wanted not in table.index.get_level_values("row"):
                raise ValueError(f"no row {wanted!r} among {sorted(scores['row'].unique())}")
        one, other = (table.loc[wanted].sort_index() for wanted in (name, against))
        if not one.index.equals(other.index):
            raise ValueError(f"rows {name!r} and {against!r} were not measured with the same seeds and pairs")
        difference = one[["scene"]].assign(difference=one[metric] - other[metric]).reset_index()
        interval = crossed_bootstrap(difference, "difference")
        mean, mean_against = (part.groupby("id")[metric].mean().reset_index() for part in (one, other))
        test = paired_t_test(mean, mean_against, metric)
        before = float(other[metric].mean())
        rows.append(
            {
                "row": name, "against": against, "difference": interval.mean, "low": interval.low,
                "high": interval.high, "verdict": verdict(interval.low, interval.high),
                "relative": interval.mean / before if before else np.nan, "t": test.t, "p": test.p,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def calibration_gains(matches: pd.DataFrame, score: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a calibration score between rows under the same resamples; negative is better calibrated.

    Returns:
        one row a step: row, against, difference, low, high, verdict.
    """
    known = matches.dropna(subset=["confidence"])
    levels = [sorted(known[factor].unique()) for factor in ("seed", "scene")]
    values = {name: calibration_resamples(part, score, levels) for name, part in known.groupby("row", sort=False)}
    rows = []
    for name, against in steps:
        value, drawn = values[name][0] - values[against][0], values[name][1] - values[against][1]
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append((name, against, value, low, high, verdict(-high, -low)))
    return pd.DataFrame(rows, columns=["row", "against", "difference", "low", "high", "verdict"])


def verdict(low: float, high: float) -> str:
    """What the interval of a gain says, of which more is better."""
    if np.isnan(low):
        return "one scene"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
