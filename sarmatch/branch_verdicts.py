"""Verdicts on what the uncertainty maps respond to, computed from the tables of `sarmatch.nuisances`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.stats import spearmanr

from sarmatch.calibration import auroc
from sarmatch.statistics import FEWEST_CLUSTERS, Interval, cluster_bootstrap

NAMED: Mapping[str, str] = {
    "speckle": "speckle",
    "layover": "geometry",
    "relief": "geometry",
    "haze": "atmosphere",
    "cloud": "atmosphere",
    "illumination": "illumination",
    "snow": "season",
}
"""The branch that is named for a nuisance (sections 3.2.1 and 3.2.2)."""
MODALITY = {"speckle": "sar", "layover": "sar", "relief": "sar"}
"""Modality whose U a nuisance concerns; the others are optical."""
STRONG = 0.8
"""Rank correlation from which a response counts as one."""
VISIBLE = 0.2
"""Least change, over the deviation between scenes, that counts: a map may rise surely and by next to nothing."""


def branch_verdicts(correlations: pd.DataFrame) -> pd.DataFrame:
    """Does the branch named for a nuisance rise with it, and do U of its modality and the total?

    `follows`: correlation at least 0.8, its interval above zero, and a change of at least a fifth of the deviation
    between scenes. `falls`: the same downwards. `hardly moves`: sure, but by less. Else `no`.

    Args:
        correlations: of `nuisances.rank_correlations`.

    Returns:
        one row a nuisance and measure (its branch, U of its modality, total): nuisance, measure, rho, rho_low,
        rho_high, effect, change (of a mean map in [0, 1], from the lowest to the highest dose), verdict.
    """
    rows = []
    for nuisance, group in correlations.groupby("nuisance", sort=False):
        of = group.set_index("source")
        for measure in (NAMED[str(nuisance)], MODALITY.get(str(nuisance), "optical"), "total"):
            row = of.loc[measure]
            numbers = {name: float(row[name]) for name in ("rho", "rho_low", "rho_high", "effect")}
            named = {"nuisance": nuisance, "measure": measure, **numbers, "change": float(row["change"])}
            rows.append({**named, "verdict": _verdict(**numbers)})
    return pd.DataFrame(rows)


def _verdict(rho: float, rho_low: float, rho_high: float, effect: float) -> str:
    sure = (rho >= STRONG and rho_low > 0) or (rho <= -STRONG and rho_high < 0)
    if not sure:
        return "no"
    if not abs(effect) >= VISIBLE:  # NaN too
        return "hardly moves"
    return "follows" if rho > 0 else "falls"


def claim(records: pd.DataFrame, value: str, neutral: float = 0.0) -> dict[str, object]:
    """Mean of a column over pairs, its interval over scenes, and whether that lies above the neutral value.

    Returns:
        mean, low, high, n_pairs, n_scenes, verdict: `yes`, `opposite`, `open` or `too few scenes`.
    """
    interval = cluster_bootstrap(records, value)
    verdict = "too few scenes" if interval.n_clusters < FEWEST_CLUSTERS else _side(interval, neutral)
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {**numbers, "n_pairs": interval.n_pairs, "n_scenes": interval.n_clusters, "verdict": verdict}


def _side(interval: Interval, neutral: float) -> str:
    return "yes" if interval.low > neutral else "opposite" if interval.high < neutral else "open"


def group_correlations(levels: pd.DataFrame, cause: str, sources: Sequence[str]) -> pd.DataFrame:
    """Spearman's correlation over the pairs of each dataset between a cause and mean levels of uncertainty.

    Args:
        levels: of `nuisances.group_levels`.
        cause: column, such as `haze_index`.
        sources: names behind `mean_`.

    Returns:
        columns dataset, source, rho, n_pairs; datasets of fewer than four pairs are left out.
    """
    rows = []
    for dataset, group in levels.groupby("dataset"):
        if len(group) >= 4:
            for source in sources:
                rho = float(spearmanr(group[cause], group[f"mean_{source}"]).statistic)
                rows.append({"dataset": dataset, "source": source, "rho": rho, "n_pairs": len(group)})
    return pd.DataFrame(rows, columns=["dataset", "source", "rho", "n_pairs"])


def aleatoric_order(table: pd.DataFrame, threshold_px: float = 3.0) -> pd.DataFrame:
    """AUROC of one less the aleatoric uncertainty for a match being right: pooled, and as the mean within pairs.

    Within a pair, the difficulty of the whole image cannot help; pairs whose matches are all right or all wrong are
    left out there. The interval is one over scenes.

    Args:
        table: of `confidence_fit.match_table`.

    Returns:
        one row a dataset: dataset, pooled, within_pairs, low, high, n_pairs (that count within), n_scenes.
    """
    rows = []
    for dataset, group in table.groupby("dataset"):
        right = group["error_px"] <= threshold_px
        each = [(scene, auroc(1 - g["aleatoric"], right[g.index])) for (scene, _), g in group.groupby(["scene", "id"])]
        row = {"dataset": dataset, "pooled": auroc(1 - group["aleatoric"], right)}
        known = pd.DataFrame(each, columns=["scene", "auroc"]).dropna()
        if len(known):
            within = cluster_bootstrap(known, "auroc")
            row |= {"within_pairs": within.mean, "low": within.low, "high": within.high}
            row |= {"n_pairs": within.n_pairs, "n_scenes": within.n_clusters}
        rows.append(row)
    columns = ["dataset", "pooled", "within_pairs", "low", "high", "n_pairs", "n_scenes"]
    return pd.DataFrame(rows, columns=columns)
