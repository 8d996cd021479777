"""Trees of patches of the SEN1-2 family: found by name, examined once, indexed in a parquet file; and SEN1-2 itself.

All these datasets keep patch 30 of scene 1 as `ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif`, and so for the other
layers s2, s2_cloudy and lc; some unpack into one folder a layer, `ROIs1158_spring_s1/s1_1/...`. Scene numbers are those
of the family: do not train on one of the datasets and test on another without comparing the places.

SEN1-2: 282,384 pairs of Sentinel-1 VV (`s1_0/ROIs1158_spring_s1_0_p5.png`) and Sentinel-2 red, green, blue (`s2_0`),
8 bits, 256 x 256 px of 10 m without georeference. Schmitt et al. (2018), ISPRS Annals IV-1,
doi:10.5194/isprs-annals-IV-1-141-2018; data doi:10.14459/2018mp1436631 (mediaTUM, CC-BY 4.0).
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pooch
import rasterio
from pyarrow import ArrowException
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from tqdm import tqdm

from sarmatch.data.pairs import PairError, Pairs
from sarmatch.data.raster import read_row
from sarmatch.io import atomic_path

INDEX_VERSION = 1  # part of an index's name: another version of this module makes its own
THREADS = 16  # more than processors: the first scan waits for the disk most of the time

ROI_FOLDER = re.compile(r"ROIs\d+_(spring|summer|fall|winter)(_s1|_s2|_s2_cloudy|_lc)?")
SCENE_FOLDER = re.compile(r"(s1|s2|s2_cloudy|lc)_(\d+)")
PATCH_FILE = re.compile(r"(ROIs\d+_(spring|summer|fall|winter))_(s1|s2|s2_cloudy|lc)_(\d+)_p(\d+)\.(\w+)")


class Layer(NamedTuple):
    """One image of a patch: its folder's name, number of bands and numpy type (None: any)."""

    name: str
    bands: int
    dtype: str | None


class Layout(NamedTuple):
    """A dataset of the family."""

    dataset: str
    sar: Layer
    optical: Layer
    suffix: str
    help: str  # what is expected and how to get it, for errors
    label: Layer | None = None  # land cover
    dominant: Callable[[np.ndarray], str] | None = None  # names the land cover of the first band of `label`


SEN12 = Layout(
    dataset="sen1-2",
    sar=Layer("s1", 1, "uint8"),
    optical=Layer("s2", 3, "uint8"),
    suffix="png",
    help="SEN1-2 has ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p5.png and, beside s1_0, s2_0; get it from "
    "https://doi.org/10.14459/2018mp1436631 and unpack all archives into one folder.",
)


def sen12(root: str | Path, *, rescan: bool = False) -> Pairs:
    """Pairs of a SEN1-2 tree, VV and RGB; index, problems and errors as in `sen12ms`; the land cover is unknown."""
    return open_tree(root, SEN12, (0,), (0, 1, 2), rescan)


def open_tree(
    root: str | Path,
    layout: Layout,
    sar_bands: Sequence[int],
    optical_bands: Sequence[int],
    rescan: bool = False,
) -> Pairs:
    """The pairs of a tree, from the stored index if it fits the folders, else from a scan that is then stored."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root}: no such folder. {layout.help}")
    table = _load_or_scan(root, layout, rescan)
    bad = table[table["problem"] != ""]
    problems = tuple(bad["id"] + ": " + bad["problem"])
    index = table[table["usable"]].drop(columns=["problem", "usable"]).reset_index(drop=True)
    if index.empty:
        raise PairError(f"{root}: no usable {layout.dataset} pair; first problems: {'; '.join(problems[:3])}")
    read = partial(read_row, root=root, sar_bands=tuple(sar_bands), optical_bands=tuple(optical_bands))
    return Pairs(index, read, problems=problems)


def scene_folders(root: Path) -> Iterator[Path]:
    """Folders of patches, `ROIs1158_spring/s1_1` and the like, in order."""
    for roi in sorted(root.iterdir()):
        if ROI_FOLDER.fullmatch(roi.name) and roi.is_dir():
            yield from (sub for sub in sorted(roi.iterdir()) if SCENE_FOLDER.fullmatch(sub.name) and sub.is_dir())


def _load_or_scan(root: Path, layout: Layout, rescan: bool) -> pd.DataFrame:
    """The index with its problems; stored in `root`, or in the user's cache where that is read-only."""
    folders = list(scene_folders(root))
    state = "\n".join(f"{folder.relative_to(root)} {folder.stat().st_mtime_ns}" for folder in folders)
    digest = hashlib.sha256(f"{INDEX_VERSION}\n{layout.dataset}\n{state}".encode()).hexdigest()[:12]
    paths = [
        place / f"sarmatch-{layout.dataset}-{digest}.parquet" for place in (root, Path(pooch.os_cache("sarmatch")))
    ]
    for path in paths:
        if not rescan and path.is_file():
            try:
                return pd.read_parquet(path)
            except (ArrowException, OSError) as error:
                warnings.warn(f"index {path} is unreadable ({error}); scanning {root} again", stacklevel=4)
    table = scan(root, layout, folders)
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                table.to_parquet(temporary, index=False)
            return table
        except OSError:
            continue
    warnings.warn(f"no place to store the index of {root}, tried {[str(path) for path in paths]}", stacklevel=4)
    return table


def scan(root: Path, layout: Layout, folders: list[Path]) -> pd.DataFrame:
    """Find, pair and examine all patches; FileNotFoundError where there is nothing of the layout.

    Returns:
        one row a patch: `INDEX_COLUMNS`, `sar` and `optical` (paths relative to `root`), `usable` (bool), `problem`.
    """
    table = _find(root, layout, folders)
    if table.empty:
        raise FileNotFoundError(f"{root}: no {layout.dataset} patches found. {layout.help}")
    no_labels = bool((table["label"] == "").all())  # a tree without land cover is no problem of each patch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with ThreadPoolExecutor(THREADS) as pool:
            examine = partial(_examine, root=root, layout=layout, no_labels=no_labels)
            rows = pool.map(examine, table["sar"], table["optical"], table["label"])
            results = list(tqdm(rows, f"index {layout.dataset}", total=len(table), unit="patch", disable=None))
    found = pd.DataFrame(results, columns=["usable", "land_cover", "problem"])
    return pd.concat([table.drop(columns="label"), found], axis=1)


def _find(root: Path, layout: Layout, folders: list[Path]) -> pd.DataFrame:
    """All patches by name, sorted; the path of a layer that a patch lacks is empty."""
    column = {layout.sar.name: "sar", layout.optical.name: "optical"}
    if layout.label:
        column[layout.label.name] = "label"
    patches: dict[tuple[str, int, int], dict[str, str]] = {}
    for folder in folders:
        relative = folder.relative_to(root).as_posix()
        for name in os.listdir(folder):
            match = PATCH_FILE.fullmatch(name)
            if match is None or match[3] not in column or match[6] != layout.suffix:
                continue
            roi, season, scene, patch = match[1], match[2], match[4], match[5]
            row = patches.setdefault(
                (roi, int(scene), int(patch)),
                {
                    "id": f"{roi}_{scene}_p{patch}", "dataset": layout.dataset, "season": season,
                    "scene": f"{layout.dataset}/{season}_{scene}", "sar": "", "optical": "", "label": "",
                },
            )  # fmt: skip
            row[column[match[3]]] = f"{relative}/{name}"
    return pd.DataFrame([patches[key] for key in sorted(patches)])


def _examine(
    sar: str, optical: str, label: str, *, root: Path, layout: Layout, no_labels: bool
) -> tuple[bool, str, str]:
    """Whether a patch is usable, its land cover, and what is wrong with it; without a label it stays usable."""
    for layer, path in ((layout.sar, sar), (layout.optical, optical)):
        if problem := _problem(root, path, layer):
            return False, "", problem
    if no_labels or layout.label is None or layout.dominant is None:
        return True, "", ""
    if problem := _problem(root, label, layout.label):
        return True, "", problem
    with rasterio.open(root / label) as dataset:
        return True, layout.dominant(dataset.read(1)), ""


def _problem(root: Path, path: str, layer: Layer) -> str:
    """What is wrong with a file, or nothing: its form, and whether its last row, where truncation shows, is there."""
    if not path:
        return f"has no {layer.name} file"
    try:
        with rasterio.open(root / path) as dataset:
            dtype = dataset.dtypes[0]
            found = (dataset.count, dtype, dataset.width, dataset.height)
            dataset.read(dataset.count, window=Window(0, dataset.height - 1, dataset.width, 1))
    except RasterioError as error:
        return f"{path} is corrupt or truncated ({error})"
    expected = (layer.bands, layer.dtype or dtype, 256, 256)
    if found != expected:
        return "{}: expected {} bands of {} and {}x{} px, found {} of {} and {}x{}".format(path, *expected, *found)
    return ""
