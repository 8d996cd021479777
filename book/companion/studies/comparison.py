"""Every method of the paper's tables over the same pairs, with the same prior and keypoint budget (table 1, figure 9).

Accuracy, calibration and registration are computed from all matches of a method, which are kept in the run store.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from companion import baselines
from companion.baselines.lightglue import Features, LightGlueMatcher, installed
from companion.cache import cached_table
from companion.intervals import paired_difference, summarise, verdict
from companion.settings import BookConfig
from companion.studies.calibration import score_table, stacked
from companion.timing import interleave, summary
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.metrics import match_errors, pair_record
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.io import commit
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import STRIDE, SarOpticalNet
from sarmatch.training.runs import Run

STANDS_FOR: Mapping[str, str] = {
    "network": "the proposed method, with neighbours that vote and gradient channels, both ours; one pass",
    "network, cell by cell": "the same network, each cell by itself: our most literal reading",
    "network, short": "the same with the training of the learned methods below",
    "network, short, all learned": "that without gradient channels",
    "network, short, cell by cell": "and each cell by itself",
    "oriented gradients": "CFOG (Ye et al. 2019); the strongest classical method known to us",
    "edge orientations": "MOEFC (ref. 15), its idea",
    "mutual information": "area-based matching by grey values",
    "phase correlation": "area-based matching in frequency",
    "RIFT": "RIFT (ref. 13)",
    "SIFT": "SIFT (refs. 10, 16)",
    "RootSIFT": "SIFT with a better distance",
    "ORB": "ORB (ref. 10)",
    "AKAZE": "local features of a nonlinear scale space",
    "BRISK": "binary local features",
    "pseudo-siamese CNN": "match or no match of two patches (ref. 7)",
    "three-step CNN": "goodness, correspondence, outliers (ref. 8)",
    "co-attention": "CAM-Net with CAMM (ref. 3)",
    "transformer": "LoFTR (ref. 24); stands for learning features and attention (ref. 30) too",
    "detect and describe": "D2-Net (ref. 5) on the paper's encoders",
    "patch CNN": "match or no match with shared layers (ref. 19)",
    "multiscale chain": "displacement regressed scale by scale (ref. 29)",
    "translation": "conditional GAN, then templates of grey values (ref. 18)",
    "XFeat + LighterGlue": "learned on photographs, with its own weights",
    "ALIKED + LightGlue": "learned on photographs, with its own weights",
    "DISK + LightGlue": "learned on photographs, with its own weights",
}
"""What each row is, or what it stands for."""
MISSING: Mapping[str, str] = {
    "SURF (refs. 1, 10)": "patented; the OpenCV packages one can install are built without it",
    "Zhang et al. (ref. 30)": "not run by itself: its attention between features is what the row transformer has; as "
    "printed 12.0 % within 1 px",
    "RDFM (ref. 2)": "not run: matches features of a network pretrained on photographs, whose weights are a download",
    "DarkFeat (ref. 6)": "not run: made for raw camera images in the dark; a sensor's Bayer pattern is its input",
    "Chen and Bruzzone (ref. 4)": "not run: fuses registered images and does not match; its contrast over pixels "
    "of one grid is what our contrastive pretraining does",
}
"""Systems that the paper names and that have no row, with the reason."""
OFF_THE_SHELF: Mapping[str, Features] = {
    "XFeat + LighterGlue": "xfeat",
    "ALIKED + LightGlue": "aliked",
    "DISK + LightGlue": "disk",
}
"""Rows that are there only where the packages with their weights are installed."""
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
    "CAM-Net + CAMM": ("co-attention", "repeatability and localisation are of its detector, which has no counterpart"),
    "three-step CNN": ("three-step CNN", "nothing printed to compare with"),
    "MOEFC": ("edge orientations", "RMSE of the matches that were kept, no share of all"),
    "the paper's own": ("network, cell by cell", "within 1 px; protocol and prior are not stated"),
}
CORNER_PX = (1.0, 3.0, 5.0, 10.0)
"""Corner errors within which an image counts as registered."""


def methods(net: SarOpticalNet, crop_size: int, trained: Mapping[str, CropMatcher]) -> dict[str, CropMatcher]:
    """All rows by name, in the order of `STANDS_FOR`, `trained` those of `learned_baselines.peer_matchers`.

    Detectors keep at most one keypoint a cell of the grid in images of `crop_size` px.
    """
    n = (crop_size // STRIDE) ** 2
    found: dict[str, CropMatcher] = {
        "network": Matcher(net),
        "network, cell by cell": Matcher(net, use_consensus=False),
        "oriented gradients": baselines.TemplateMatcher(),
        "edge orientations": baselines.EdgeOrientationMatcher(),
        "mutual information": baselines.MutualInformationMatcher(),
        "phase correlation": baselines.PhaseCorrelationMatcher(),
        "RIFT": baselines.RiftMatcher(n),
        "SIFT": baselines.SiftMatcher(n, root=False),
        "RootSIFT": baselines.SiftMatcher(n),
        "ORB": baselines.OrbMatcher(n),
        "AKAZE": baselines.AkazeMatcher(n),
        "BRISK": baselines.BriskMatcher(n),
    }
    found |= {name: LightGlueMatcher(kind, n) for name, kind in OFF_THE_SHELF.items() if installed(kind)}
    found |= trained
    if missing := set(found) - set(STANDS_FOR):
        raise ValueError(f"describe {sorted(missing)} in STANDS_FOR: a row that stands for nothing is not shown")
    return {name: found[name] for name in STANDS_FOR if name in found}


def without_packages() -> list[str]:
    """Rows of `OFF_THE_SHELF` whose packages are not installed here."""
    return [name for name, kind in OFF_THE_SHELF.items() if not installed(kind)]


def compared_matches(
    run: Run, matcher: CropMatcher, name: str, pairs: Pairs, search_radius: float | None, config: EvaluationConfig
) -> pd.DataFrame:
    """All matches of a method under `shift` on `config.max_pairs` of the pairs; kept with the run under its name."""

    def make() -> pd.DataFrame:
        parts = []
        for pair in tqdm(spread(pairs, config.max_pairs), name, disable=None):
            crops = evaluation_crops(pair, "shift", config)
            matches = matcher.match_crops(crops, search_radius)
            table = matches.to_frame()[["x_sar", "y_sar", "x_optical", "y_optical", "confidence"]]
            table["error_px"] = match_errors(matches, crops.A_sar_to_optical)
            parts.append(table.assign(id=pair.id, scene=pair.scene, dataset=pair.dataset))
        return pd.concat(parts, ignore_index=True).assign(commit=commit())

    radius = "none" if search_radius is None else f"{search_radius:g}"
    on = {"matcher": matcher, "radius": search_radius, "pairs": pairs, "config": config}
    return cached_table(run.path, f"compared-{name}-R{radius}", on, make)


def compared_records(matches: pd.DataFrame, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """The records that `sarmatch.evaluate` gives, from the `compared_matches` of one method on these pairs."""
    rows = []
    for pair in spread(pairs, config.max_pairs):
        table = matches[matches["id"] == pair.id]
        positions = (table[["x_sar", "y_sar"]].to_numpy(), table[["x_optical", "y_optical"]].to_numpy())
        found = Matches(*positions, table["confidence"].to_numpy())
        crops = evaluation_crops(pair, "shift", config)
        height, width = crops.sar.shape[-2:]
        record = {name: getattr(pair, name) for name in INDEX_COLUMNS}
        rows.append(record | pair_record(found, crops.A_sar_to_optical, (height, width), config.thresholds_px))
    return pd.DataFrame(rows)


def compare(
    run: Run, matchers: Mapping[str, CropMatcher], split: Split, config: BookConfig, search_radius: float | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All methods on test pairs: records, and matches with the `probability` that a method gives and a `confidence`.

    The latter is calibrated like ours on validation pairs, for each method by itself. Resumable.
    """
    measured = dataclasses.replace(config.evaluation, max_pairs=config.studies.test_pairs)
    fitted = dataclasses.replace(config.evaluation, max_pairs=config.studies.fit_pairs)
    records, tables = [], []
    for name, matcher in matchers.items():
        known = compared_matches(run, matcher, name, split.calibration, search_radius, fitted)
        found = compared_matches(run, matcher, name, split.test, search_radius, measured)
        calibrator = fit_calibrator(known.rename(columns={"confidence": "probability"}), ("logit_probability",))
        found = found.rename(columns={"confidence": "probability"})
        found["confidence"] = calibrator(found)
        tables.append(found.assign(method=name))
        own = compared_records(found, split.test, measured)
        records.append(own.assign(method=name, commit=found["commit"].iloc[0] if len(found) else commit()))
    return pd.concat(records, ignore_index=True), pd.concat(tables, ignore_index=True)


def seconds_per_pair(
    matchers: Mapping[str, CropMatcher], crops: EvaluationCrops, search_radius: float | None, repeats: int = 3
) -> pd.DataFrame:
    """`timing.summary` of each method for one pair, all in turn in one process, with torch's number of threads."""
    runs = {name: partial(matcher.match_crops, crops, search_radius) for name, matcher in matchers.items()}
    before = cv2.getNumThreads()
    cv2.setNumThreads(torch.get_num_threads())
    try:
        measured = interleave(runs, repeats)
    finally:
        cv2.setNumThreads(before)
    rows = [{"method": name} | summary(seconds) for name, seconds in measured.items()]
    return pd.DataFrame(rows).assign(threads=torch.get_num_threads())


def ranked(records: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric of each method with intervals over scenes, the best within 3 px first."""
    table = summarise(records, ["method"], metrics)
    return table.sort_values("mma_3px", ascending=False, kind="stable", ignore_index=True)


def network_ahead(records: pd.DataFrame, metrics: Sequence[str], ours: str = "network") -> pd.DataFrame:
    """What our network has more than each other method on the same pairs, with intervals over scenes; worst first."""
    network = records[records["method"] == ours]
    rows = []
    for name, other in records[records["method"] != ours].groupby("method", sort=False):
        for metric in metrics:
            found = paired_difference(network, other, metric)
            row = {"against": name, "metric": metric} | found.named("difference", "")
            row |= {"n_pairs": other["id"].nunique(), "n_scenes": found.n_clusters}
            rows.append(row | {"verdict": verdict(found.low, found.high, found.n_clusters)})
    return pd.DataFrame(rows).sort_values("difference", kind="stable", ignore_index=True)


def leaders(ranking: pd.DataFrame, calibration: pd.DataFrame, registration: pd.DataFrame) -> pd.DataFrame:
    """The best other method by each measure beside ours; those where it is ahead first.

    The tables are those of `ranked`, `calibration_by_method` and `registration_table`.
    """
    reliable = calibration["accuracy"] >= calibration.set_index("method").loc["network", "accuracy"] / 2
    calibration = calibration[reliable]  # a method that is nearly always wrong can have a low ECE
    measures = [(ranking, "mma_1px", 1), (ranking, "mma_3px", 1)]
    measures += [(calibration, "ece", -1), (calibration, "brier", -1), (calibration, "auroc", 1)]
    measures += [(registration, f"success_{t:g}px", 1) for t in CORNER_PX[:2]]
    rows = []
    for table, name, sign in [*measures, (registration, "median_corner_error_px", -1)]:
        column = table.set_index("method")[name]
        others, ours = column[~column.index.str.startswith("network")].dropna(), column["network"]
        best = (sign * others).idxmax() if len(others) else None
        row = {"measure": name, "ours": ours, "other": others.get(best, np.nan), "method": best}
        rows.append(row | {"ahead": best is not None and bool(sign * (others[best] - ours) > 0)})
    return pd.DataFrame(rows).sort_values("ahead", ascending=False, kind="stable", ignore_index=True)


def beside_printed(ranking: pd.DataFrame) -> pd.DataFrame:
    """Table 1 of the paper beside the MMA of the row that stands for each method; NaN where `ranking` lacks it."""
    beside = pd.DataFrame.from_dict(_BESIDE, orient="index", columns=["row", "remark"])
    table = TABLE_1[["method", "accuracy as printed"]].join(beside, on="method")
    table = table.join(ranking.set_index("method")[["mma_1px", "mma_2px", "mma_3px"]], on="row")
    return table[[*table.columns.drop("remark"), "remark"]]


def calibration_by_method(matches: pd.DataFrame) -> pd.DataFrame:
    """Scores of each method's calibrated confidence and its accuracy within 3 px, with intervals over scenes."""
    parts = {}
    for name, found in matches.groupby("method", sort=False):
        scores = score_table(found, found[["confidence"]], scores=("ece", "brier", "auroc"), n=100)
        accuracy = (found["error_px"] <= CONFIDENT_PX).mean()
        parts[name, len(found), accuracy] = scores.drop(columns="confidence")
    return stacked(parts, ["method", "matches", "accuracy"])


def registration_table(records: pd.DataFrame) -> pd.DataFrame:
    """Share of pairs whose corners a robust affine map of all matches places within `CORNER_PX`, and median error.

    Failures, pairs without any map, count as infinitely far off.
    """
    errors = records["corner_error_px"].fillna(np.inf)
    within = {f"success_{t:g}px": errors <= t for t in CORNER_PX}
    rest = {"failures": np.isinf(errors), "median_corner_error_px": errors}
    how = dict.fromkeys(within, "mean") | {"failures": "sum", "median_corner_error_px": "median"}
    return records[["method"]].assign(**within, **rest).groupby("method", sort=False).agg(how).reset_index()
