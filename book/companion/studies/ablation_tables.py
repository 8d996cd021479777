"""Table 3 from the matches of its trainings: metrics with intervals, differences, and the paper's t-test beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from companion.studies.ablation import CALIBRATION, calibration_score
from sarmatch.evaluation.intervals import Crossed, crossed, crossed_bootstrap, intervals, paired_t_test, verdict

PAPER = pd.DataFrame(
    {
        "row": ["baseline", "aleatoric", "epistemic", "both", "contrastive", "rotation"],
        "paper_mma_1px": [0.128, 0.136, 0.132, 0.139, 0.142, 0.145],
        "paper_ece": [np.nan, 0.13, 0.14, 0.11, 0.10, 0.09],
        "paper_n_matches": [1156.2, 1198.5, 1180.4, 1225.7, 1256.4, 1298.3],
    }
)
"""Table 3 as printed, MMA as a share."""


def metrics_table(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric in each row, with intervals over seeds and scenes.

    Args:
        scores: one row a training and pair, as `ablation.pair_scores` returns, of one way of matching.

    Returns:
        row, n_seeds, n_pairs, n_scenes, and each metric with its `_low` and `_high`; NaN where no pair has it.
    """
    rows: list[dict[str, Any]] = []
    for name, found in scores.groupby("row", sort=False):
        counts = {
            f"n_{unit}s": found[key].nunique() for unit, key in (("seed", "seed"), ("pair", "id"), ("scene", "scene"))
        }
        rows.append({"row": name} | counts | intervals(found, metrics, crossed_bootstrap))
    return pd.DataFrame(rows)


def calibration_table(matches: pd.DataFrame) -> pd.DataFrame:
    """ECE (eq. 8) and Brier score of each row's confidence, and ECE of its softmax, with intervals over seeds and
    scenes.

    Args:
        matches: as `ablation.study_matches` returns; those without a confidence do not count.
    """
    rows = []
    for name, found in matches.dropna(subset=["confidence"]).groupby("row", sort=False):
        row = {"row": name, "matches": len(found)}
        for score in CALIBRATION:
            measured = crossed(*calibration_score(found, score))
            low, high = measured.interval()
            row |= {score: measured.value, f"{score}_low": max(low, 0.0), f"{score}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def gains(scores: pd.DataFrame, metric: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a metric of which more is better between rows, over the same seeds and pairs.

    The interval is that of other seeds and scenes. The paper's t-test (section 4.4) takes the means over seeds of each
    pair as independent, which overstates the evidence.

    Args:
        scores: as for `metrics_table`.
        steps: (row, the row it is compared with).

    Returns:
        one row a step: row, against, difference, low, high, verdict (see `intervals.verdict`), relative (the
        difference over the mean of `against`; NaN where that is zero), t, p.

    Raises:
        ValueError: a row of a step is not in the table, or was not measured with the same seeds and pairs.
    """
    table, known = scores.set_index(["row", "seed", "id"]), set(scores["row"])
    rows = []
    for name, against in steps:
        _check_rows(known, name, against)
        one, other = (table.loc[wanted].sort_index() for wanted in (name, against))
        if not one.index.is_unique or not one.index.equals(other.index):
            raise ValueError(f"rows {name!r} and {against!r} were not measured once with the same seeds and pairs")
        difference = one[["scene"]].assign(difference=one[metric] - other[metric]).reset_index()
        found = crossed_bootstrap(difference, "difference")
        means = [part.groupby("id")[metric].mean().reset_index() for part in (one, other)]
        test = paired_t_test(means[0], means[1], metric)
        said = verdict(found.low, found.high, found.n_clusters, difference["seed"].nunique())
        before = float(other[metric].mean())
        row = {"row": name, "against": against} | found.named("difference", "") | {"verdict": said}
        relative = found.mean / before if before else np.nan
        rows.append(row | {"relative": relative, "t": float(test.statistic), "p": float(test.pvalue)})
    return pd.DataFrame(rows)


def calibration_gains(matches: pd.DataFrame, score: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a calibration score between rows under the same draws of scenes; negative is better calibrated.

    Returns:
        one row a step: row, against, difference, low, high, verdict.

    Raises:
        ValueError: a row of a step is not in the table.
    """
    known = matches.dropna(subset=["confidence"])
    levels = [sorted(known[factor].unique()) for factor in ("seed", "scene")]
    found = {name: crossed(*calibration_score(part, score, levels)) for name, part in known.groupby("row", sort=False)}
    rows = []
    for name, against in steps:
        _check_rows(set(found), name, against)
        one, other = found[name], found[against]
        n_scenes = min(one.n_second, other.n_second)
        apart = Crossed(one.value - other.value, one.by_first - other.by_first, one.by_draw - other.by_draw, n_scenes)
        low, high = apart.interval()
        rows.append((name, against, apart.value, low, high, verdict(-high, -low, n_scenes, len(levels[0]))))
    return pd.DataFrame(rows, columns=["row", "against", "difference", "low", "high", "verdict"])


def _check_rows(known: set[str], *wanted: str) -> None:
    for name in wanted:
        if name not in known:
            raise ValueError(f"no row {name!r} among {sorted(known)}")
