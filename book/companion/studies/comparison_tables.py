"""Tables of the comparison: who is ahead by what, and what the paper printed (table 1, figure 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from companion.studies.calibration import score_table
from sarmatch.calibration.position_error import CONFIDENT_PX
from sarmatch.evaluation.intervals import paired_difference, summarise, verdict
from sarmatch.evaluation.metrics import registration_success

CORNER_PX = (1.0, 3.0, 5.0, 10.0)
"""Corner errors within which an image counts as registered."""

TABLE_1 = pd.DataFrame(
    [
        ("SIFT-based", "10", "not stated", "MMA 2.94 % (<2 px), 7.92 % (<3 px), 13.01 % (<4 px); mean error 9.92 px"),
        ("RIFT", "13", "several multimodal sets", "MMA 8.6 % (<2 px), 25.9 % (<3 px), 53.6 % (<4 px); 2.80 px"),
        ("pseudo-siamese CNN", "7", "generated patches", "high patch accuracy, no number"),
        ("CAM-Net + CAMM", "3", "not stated", "repeatability .434; LE 1.96 px; NN mAP .3090; ACE 7.15"),
        ("three-step CNN", "8", "Sentinel-1/2, urban", "no MMA"),
        ("MOEFC", "15", "urban and rural pairs", "RMSE .645 px (rural), .489 px (urban)"),
        ("the paper's own", "", "SEN12MS", "MMA .145 (1 px); aNM 1298.3; ECE .09"),
    ],
    columns=["method", "reference", "data", "accuracy as printed"],
)
"""Table 1 of the paper."""
_BESIDE: Mapping[str, tuple[str, str]] = {
    "SIFT-based": ("SIFT", "its percentages come from distorted photographs (ref. 10)"),
    "RIFT": ("RIFT", "printed at 2, 3 and 4 px, over image types other than radar too"),
    "pseudo-siamese CNN": ("pseudo-siamese CNN", "accuracy of yes or no on pairs of patches is no matching accuracy"),
    "CAM-Net + CAMM": (
        "co-attention",
        "repeatability and localisation are of its detector, which has no counterpart here",
    ),
    "three-step CNN": ("three-step CNN", "nothing printed to compare with"),
    "MOEFC": ("edge orientations", "RMSE of the matches that were kept, no share of all"),
    "the paper's own": ("network, cell by cell", "within 1 px; protocol and prior are not stated"),
}


def network_ahead(records: pd.DataFrame, metrics: Sequence[str], ours: str = "network") -> pd.DataFrame:
    """What our network has more than each other method on the same pairs, with intervals over scenes; worst first.

    Returns:
        against, metric, difference, low, high, n_pairs, n_scenes and `intervals.verdict`.
    """
    by_method, rows = dict(list(records.groupby("method", sort=False))), []
    for name, other in by_method.items():
        for metric in metrics if name != ours else ():
            found = paired_difference(by_method[ours], other, metric)
            said = verdict(found.low, found.high, found.n_clusters)
            row = {"against": name, "metric": metric} | found.named("difference", "")
            rows.append(row | {"n_pairs": other["id"].nunique(), "n_scenes": found.n_clusters, "verdict": said})
    return pd.DataFrame(rows).sort_values("difference", kind="stable", ignore_index=True)


def leaders(
    ranking: pd.DataFrame, calibration: pd.DataFrame, registration: pd.DataFrame, ours: str = "network"
) -> pd.DataFrame:
    """The best other method by each measure beside ours; those where it is ahead first.

    Calibration is compared with methods at least half as accurate as ours: one that is nearly always wrong can have a
    low ECE.

    Args:
        ranking, calibration, registration: as `ranked`, `calibration_by_method` and `registration_table` return.

    Returns:
        measure, ours, other, method (which other), ahead (whether the other is).
    """
    tables = [table.set_index("method") for table in (ranking, calibration, registration)]
    accuracy = tables[1]["accuracy"]
    tables[1] = tables[1][accuracy >= accuracy[ours] / 2]
    measures = [(0, "mma_1px", 1), (0, "mma_3px", 1), (1, "ece", -1), (1, "brier", -1), (1, "auroc", 1)]
    measures += [(2, f"success_{t:g}px", 1) for t in CORNER_PX[:2]] + [(2, "median_corner_error_px", -1)]
    rows = []
    for i, name, sign in measures:
        column = tables[i][name]
        others = column[~column.index.str.startswith(ours)].dropna()
        best = (sign * others).idxmax() if len(others) else None
        row = {"measure": name, "ours": column[ours], "other": others.get(best, np.nan), "method": best}
        rows.append(row | {"ahead": best is not None and bool(sign * (others[best] - column[ours]) > 0)})
    return pd.DataFrame(rows).sort_values("ahead", ascending=False, kind="stable", ignore_index=True)


def ranked(records: pd.DataFrame, metrics: Sequence[str], by: str = "mma_3px") -> pd.DataFrame:
    """Mean of each metric of each method with intervals over scenes, the best first."""
    table = summarise(records, ["method"], list(metrics))
    return table.sort_values(by, ascending=False, kind="stable", ignore_index=True)


def beside_printed(ranking: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of the paper beside what the row that stands for each method reaches here.

    Args:
        ranking: as `ranked` returns, with mma_1px, mma_2px and mma_3px.

    Returns:
        method, accuracy as printed, row, mma_1px, mma_2px, mma_3px (NaN where the ranking lacks the row), remark.
    """
    ours = ranking.set_index("method")[["mma_1px", "mma_2px", "mma_3px"]]
    rows = []
    for name, printed in zip(TABLE_1["method"], TABLE_1["accuracy as printed"], strict=True):
        row, remark = _BESIDE[name]
        measured = ours.reindex([row]).iloc[0].to_dict()
        rows.append({"method": name, "accuracy as printed": printed, "row": row} | measured | {"remark": remark})
    return pd.DataFrame(rows)


def calibration_by_method(matches: pd.DataFrame) -> pd.DataFrame:
    """Scores of each method's calibrated confidence within 3 px, with intervals over scenes.

    Returns:
        method, matches, accuracy (share within 3 px), ece, brier and auroc with `_low` and `_high`.
    """
    parts = []
    for name, found in matches.groupby("method", sort=False):
        about = {"method": name, "matches": len(found), "accuracy": (found["error_px"] <= CONFIDENT_PX).mean()}
        scores = score_table(found, found[["confidence"]], scores=("ece", "brier", "auroc"), n=100)
        parts.append(pd.DataFrame([about]).join(scores.drop(columns="confidence")))
    return pd.concat(parts, ignore_index=True)


def registration_table(records: pd.DataFrame) -> pd.DataFrame:
    """Share of pairs whose corners a robust affine map of all matches places within `CORNER_PX`; failures count.

    Returns:
        method, success_<t>px, failures (pairs without any map), median_corner_error_px (inf where most fail).
    """
    rows = []
    for name, found in records.groupby("method", sort=False):
        errors = found["corner_error_px"].to_numpy(float)
        success = registration_success(errors, CORNER_PX)
        row = {"method": name} | {f"success_{t:g}px": share for t, share in success.items()}
        lost = ~np.isfinite(errors)
        row |= {"failures": int(lost.sum()), "median_corner_error_px": float(np.median(np.where(lost, np.inf, errors)))}
        rows.append(row)
    return pd.DataFrame(rows)
