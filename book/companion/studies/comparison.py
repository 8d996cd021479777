"""Every method of the paper's tables over the same pairs, with the same prior and keypoint budget (table 1, figure 9).

One pass over the pairs gives all matches of a method, kept in the run store beside the network that they are compared
with; accuracy, calibration and registration are computed from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from companion.baselines import (
    AkazeMatcher,
    BriskMatcher,
    EdgeOrientationMatcher,
    MutualInformationMatcher,
    OrbMatcher,
    PhaseCorrelationMatcher,
    RiftMatcher,
    SiftMatcher,
    TemplateMatcher,
)
from companion.baselines.lightglue import Features, LightGlueMatcher, installed
from companion.cache import cached_table
from companion.settings import BookConfig
from companion.timing import interleave, summary
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.config import EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.metrics import match_errors, pair_record
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.geometry import Search
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


def methods(net: SarOpticalNet, crop_size: int) -> dict[str, CropMatcher]:
    """The rows that need no training but that of `net`, by the names of `STANDS_FOR`.

    Detectors may keep as many keypoints as the others have: one a cell of the grid with a spacing of `STRIDE`.

    Args:
        crop_size: side of the images that are matched, px.
    """
    n = (crop_size // STRIDE) ** 2
    found: dict[str, CropMatcher] = {
        "network": Matcher(net),
        "network, cell by cell": Matcher(net, use_consensus=False),
        "oriented gradients": TemplateMatcher(),
        "edge orientations": EdgeOrientationMatcher(),
        "mutual information": MutualInformationMatcher(),
        "phase correlation": PhaseCorrelationMatcher(),
        "RIFT": RiftMatcher(n),
        "SIFT": SiftMatcher(n, root=False),
        "RootSIFT": SiftMatcher(n),
        "ORB": OrbMatcher(n),
        "AKAZE": AkazeMatcher(n),
        "BRISK": BriskMatcher(n),
    }
    return found | {name: LightGlueMatcher(kind, n) for name, kind in OFF_THE_SHELF.items() if installed(kind)}


def all_methods(net: SarOpticalNet, crop_size: int, trained: Mapping[str, CropMatcher]) -> dict[str, CropMatcher]:
    """All rows in the order of `STANDS_FOR`.

    Args:
        trained: as `learned_baselines.peer_matchers` returns.
    """
    found = methods(net, crop_size) | dict(trained)
    return {name: found[name] for name in STANDS_FOR if name in found}


def without_packages() -> list[str]:
    """Rows of `OFF_THE_SHELF` that cannot be had here because their packages are not installed."""
    return [name for name, kind in OFF_THE_SHELF.items() if not installed(kind)]


def compared_matches(
    run: Run,
    matcher: CropMatcher,
    name: str,
    pairs: Pairs,
    search_radius: float | None,
    config: EvaluationConfig,
) -> pd.DataFrame:
    """All matches of a method under `shift`, once; then kept with the run.

    Args:
        name: of the method, and with the radius of the file.
        pairs: of which `config.max_pairs` are matched.

    Returns:
        one row a match: id, scene, dataset, x_sar, y_sar, x_optical, y_optical, confidence (as the method gives it),
        error_px, commit.

    Raises:
        ValueError: a search radius that is not positive.
    """
    Search(search_radius)  # rejects what makes no sense

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
    """The records that `sarmatch.evaluate` gives, from the matches of one method.

    Args:
        matches: as `compared_matches` returns, of these pairs.
        pairs: that were matched; those without a match have their record too.
    """
    by_pair = dict(list(matches.groupby("id")))
    rows = []
    for pair in spread(pairs, config.max_pairs):
        found = _as_matches(by_pair[pair.id]) if pair.id in by_pair else Matches.empty()
        crops = evaluation_crops(pair, "shift", config)
        size = (crops.sar.shape[-2], crops.sar.shape[-1])
        record = {name: getattr(pair, name) for name in INDEX_COLUMNS}
        rows.append(record | pair_record(found, crops.A_sar_to_optical, size, config.thresholds_px))
    return pd.DataFrame(rows)


def _as_matches(table: pd.DataFrame) -> Matches:
    xy_sar, xy_optical = (table[[f"x_{image}", f"y_{image}"]].to_numpy() for image in ("sar", "optical"))
    return Matches(xy_sar, xy_optical, table["confidence"].to_numpy())


def compare(
    run: Run, matchers: Mapping[str, CropMatcher], split: Split, config: BookConfig, search_radius: float | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All methods on test pairs, and each one's confidence calibrated on validation pairs by itself; resumable.

    The confidence of every method goes through the same steps as ours: logistic regression of its logit, then isotonic.

    Returns:
        records of all methods, as `compared_records`, with columns method and commit; their matches, with columns
        method, `probability` (the confidence as the method gives it) and `confidence` (calibrated).
    """
    measured = dataclasses.replace(config.evaluation, max_pairs=config.studies.test_pairs)
    fitted = dataclasses.replace(config.evaluation, max_pairs=config.studies.fit_pairs)
    records, tables = [], []
    for name, matcher in matchers.items():
        known = compared_matches(run, matcher, name, split.calibration, search_radius, fitted)
        found = compared_matches(run, matcher, name, split.test, search_radius, measured)
        calibrator = fit_calibrator(known.rename(columns={"confidence": "probability"}), ("logit_probability",))
        found = found.rename(columns={"confidence": "probability"})
        confidence = calibrator(found) if len(found) else np.empty(0)
        tables.append(found.assign(confidence=confidence, method=name))
        own = compared_records(found.assign(confidence=confidence), split.test, measured)
        records.append(own.assign(method=name, commit=found["commit"].iloc[0] if len(found) else commit()))
    return pd.concat(records, ignore_index=True), pd.concat(tables, ignore_index=True)


def radius_sweep(
    run: Run,
    matchers: Mapping[str, CropMatcher],
    pairs: Pairs,
    config: EvaluationConfig,
    radii: Sequence[float | None],
) -> pd.DataFrame:
    """Records of each method for each search radius, px; None searches the whole image. Kept with the run."""
    parts = []
    for name, matcher in matchers.items():
        for radius in radii:
            found = compared_matches(run, matcher, name, pairs, radius, config)
            parts.append(compared_records(found, pairs, config).assign(method=name, search_radius=radius))
    return pd.concat(parts, ignore_index=True)


def seconds_per_pair(
    matchers: Mapping[str, CropMatcher], crops: EvaluationCrops, search_radius: float | None, repeats: int = 3
) -> pd.DataFrame:
    """Time of each method for one pair of images, all in turn in one process, with as many threads as torch has.

    Returns:
        method, seconds (median), seconds_low and seconds_high (fastest and slowest), threads.
    """
    runs = {name: lambda m=matcher: m.match_crops(crops, search_radius) for name, matcher in matchers.items()}
    before = cv2.getNumThreads()
    cv2.setNumThreads(torch.get_num_threads())
    try:
        measured = interleave(runs, repeats)
    finally:
        cv2.setNumThreads(before)
    rows = [{"method": name} | summary(seconds) for name, seconds in measured.items()]
    return pd.DataFrame(rows).assign(threads=torch.get_num_threads())
