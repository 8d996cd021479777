"""Verdicts on what the uncertainty maps respond to, computed from the tables of `companion.studies.uncertainty`."""

from collections.abc import Sequence

import pandas as pd
from scipy.stats import spearmanr

from companion.intervals import cluster_bootstrap, verdict
from sarmatch.calibration.scores import auroc

# The branch that is named for a nuisance (sections 3.2.1 and 3.2.2).
NAMED = {"speckle": "speckle", "layover": "geometry", "relief": "geometry", "haze": "atmosphere", "cloud": "atmosphere"}
NAMED |= {"illumination": "illumination", "snow": "season"}
MODALITY = {"speckle": "sar", "layover": "sar", "relief": "sar"}  # whose U a nuisance concerns; of the others optical
STRONG = 0.8  # rank correlation from which a response counts as one
VISIBLE = 0.2  # least change, over the deviation between scenes, that counts


def branch_verdicts(correlations: pd.DataFrame) -> pd.DataFrame:
    """Does the branch named for a nuisance rise with it, and do U of its modality and the total?

    `follows`: correlation at least `STRONG`, its interval above zero, and a change of at least `VISIBLE`. `falls`: the
    same downwards. `hardly moves`: a smaller change. Else `no`. Takes `uncertainty.rank_correlations`.
    """
    by_source, rows = correlations.set_index(["nuisance", "source"]), []
    for nuisance in correlations["nuisance"].unique():
        for measure in (NAMED[nuisance], MODALITY.get(nuisance, "optical"), "total"):
            row = by_source.loc[(nuisance, measure), ["rho", "rho_low", "rho_high", "effect", "change"]].to_dict()
            side = verdict(row["rho_low"], row["rho_high"], words=("follows", "falls", "no"))
            if side not in ("follows", "falls") or not abs(row["rho"]) >= STRONG:
                side = "no"
            elif not abs(row["effect"]) >= VISIBLE:  # NaN hardly moves
                side = "hardly moves"
            rows.append({"nuisance": nuisance, "measure": measure} | row | {"verdict": side})
    return pd.DataFrame(rows)


def claim(records: pd.DataFrame, value: str, neutral: float = 0.0) -> dict[str, object]:
    """Mean of a column over pairs, its interval over scenes, and whether that lies above the neutral value."""
    found = cluster_bootstrap(records, value)
    words = ("yes", "opposite", "open")
    side = verdict(found.low - neutral, found.high - neutral, found.n_clusters, words=words)
    counts = {"n_pairs": found.n_pairs, "n_scenes": found.n_clusters}
    return found.named("mean", "") | counts | {"verdict": side}


def group_correlations(levels: pd.DataFrame, cause: str, sources: Sequence[str]) -> pd.DataFrame:
    """Spearman's correlation of a cause with the columns `mean_<source>` in each dataset of at least four pairs."""
    rows = []
    for dataset, group in levels.groupby("dataset"):
        if len(group) >= 4:
            for source in sources:
                rho = float(spearmanr(group[cause], group[f"mean_{source}"]).statistic)
                rows.append({"dataset": dataset, "source": source, "rho": rho, "n_pairs": len(group)})
    return pd.DataFrame(rows, columns=["dataset", "source", "rho", "n_pairs"])


def aleatoric_order(table: pd.DataFrame, threshold_px: float = 3.0) -> pd.DataFrame:
    """AUROC of 1 - aleatoric uncertainty for a match being right: pooled, and as the mean within pairs over scenes.

    Pairs whose matches are all right or all wrong are left out of the mean, and of the number of pairs.
    """
    rows = []
    for dataset, group in table.groupby("dataset"):
        right = group["error_px"] <= threshold_px
        each = [(scene, auroc(1 - g["aleatoric"], right[g.index])) for (scene, _), g in group.groupby(["scene", "id"])]
        row = {"dataset": dataset, "pooled": auroc(1 - group["aleatoric"], right)}
        known = pd.DataFrame(each, columns=["scene", "auroc"]).dropna()
        if len(known):
            within = cluster_bootstrap(known, "auroc")
            row |= within.named("within_pairs", "") | {"n_pairs": within.n_pairs, "n_scenes": within.n_clusters}
        rows.append(row)
    columns = ["dataset", "pooled", "within_pairs", "low", "high", "n_pairs", "n_scenes"]
    return pd.DataFrame(rows, columns=columns)
