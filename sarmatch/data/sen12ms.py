"""SEN12MS, the dataset of the paper, and its relatives SEN12MS-CR and SEN1-2: trees of patches.

All keep patch 30 of scene 1 as `ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif`, and so for the other layers s2 and
lc; SEN12MS-CR unpacks into one folder a layer, `ROIs1158_spring_s1/s1_1/...`. Patches are 256 x 256 px of 10 m. Scene
numbers are those of the family: do not train on one dataset and test on another without comparing the places.
"""

import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from tqdm import tqdm

LAND_COVERS = (
    "forest", "shrubland", "savanna", "grassland", "wetlands",
    "croplands", "urban", "snow/ice", "barren", "water",
)  # fmt: skip
"""The simplified IGBP scheme of SEN12MS and the 2020 Data Fusion Contest, classes 1 to 10."""
SIMPLIFIED_IGBP = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])
"""Simplified class of each IGBP class 0 to 17; 0 is unclassified."""

PATCH_FILE = re.compile(r"(ROIs\d+_(spring|summer|fall|winter))_(s1|s2|lc)_(\d+)_p(\d+)(\.\w+)")
COLUMN = {"s1": "sar", "s2": "optical", "lc": "label"}


class Tree(NamedTuple):
    """A dataset of the family; of each layer the number of bands and the type (None: any)."""

    dataset: str
    layers: dict[str, tuple[int, str | None]]
    suffix: str = ".tif"
    folder_a_layer: bool = False


# VV and VH in dB, Sentinel-2 L1C, MODIS land cover; CC-BY 4.0, doi:10.5194/isprs-annals-IV-2-W7-153-2019
SEN12MS = Tree("sen12ms", {"s1": (2, "float32"), "s2": (13, "uint16"), "lc": (4, None)})
# Its cloudy twins of optical patches are not read; CC-BY 4.0, doi:10.1109/TGRS.2020.3024744
SEN12MS_CR = Tree("sen12ms-cr", {"s1": (2, "float32"), "s2": (13, "uint16")}, folder_a_layer=True)
# VV; red, green, blue; CC-BY 4.0, doi:10.5194/isprs-annals-IV-1-141-2018
SEN12 = Tree("sen1-2", {"s1": (1, "uint8"), "s2": (3, "uint8")}, ".png")


def scene_folders(root: Path) -> Iterator[Path]:
    """Folders of patches, `ROIs1158_spring/s1_1` and the like, in order."""
    return (folder for folder in sorted(root.glob("ROIs*/*_*")) if folder.is_dir())


def is_tree(root: Path, tree: Tree) -> bool:
    """Whether the first folder of patches that holds images is one of this dataset."""
    for folder in scene_folders(root):
        suffixes = {path.suffix for path in folder.iterdir()}
        if suffixes & {".tif", ".png"}:
            folder_a_layer = folder.parent.name.endswith(("_s1", "_s2", "_s2_cloudy", "_lc"))
            return tree.suffix in suffixes and tree.folder_a_layer == folder_a_layer
    return False


def scan(root: Path, tree: Tree) -> pd.DataFrame:
    """All patches, each opened (up to an hour for SEN12MS), with what is wrong with it as `problem`.

    Patches with a missing, corrupt or unexpected s1 or s2 file are not usable; a bad lc file leaves the land cover, the
    most frequent of `LAND_COVERS`, empty.
    """
    table = _find(root, tree)
    no_labels = bool((table["label"] == "").all())  # a tree without land cover is no problem of each patch
    layers = {name: form for name, form in tree.layers.items() if not (name == "lc" and no_labels)}
    with warnings.catch_warnings(), ThreadPoolExecutor(16) as pool:  # it mostly waits for the disk
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rows = pool.map(partial(_examine, root=root, layers=layers), table.to_dict("records"))
        found = list(tqdm(rows, f"index {tree.dataset}", total=len(table), unit="patch", disable=None))
    return table.drop(columns="label").join(pd.DataFrame(found, columns=["usable", "land_cover", "problem"]))


def _find(root: Path, tree: Tree) -> pd.DataFrame:
    """All patches by name, sorted; the path of a layer that a patch lacks is empty."""
    patches: dict[tuple[str, int, int], dict[str, str]] = {}
    for folder in scene_folders(root):
        for name in os.listdir(folder):
            match = PATCH_FILE.fullmatch(name)
            if match is None or match[3] not in tree.layers or match[6] != tree.suffix:
                continue
            roi, season, layer, scene, patch, _ = match.groups()
            row = {"id": f"{roi}_{scene}_p{patch}", "scene": f"{season}_{scene}", "season": season}
            row = patches.setdefault((roi, int(scene), int(patch)), row | dict.fromkeys(COLUMN.values(), ""))
            row[COLUMN[layer]] = (folder / name).relative_to(root).as_posix()
    found = [patches[key] | {"dataset": tree.dataset} for key in sorted(patches)]
    return pd.DataFrame(found, columns=["id", "dataset", "scene", "season", *COLUMN.values()])


def _examine(row: dict[str, str], *, root: Path, layers: dict[str, tuple[int, str | None]]) -> tuple[str, str, str]:
    """Whether a patch is usable, its land cover, and what is wrong with it."""
    for layer, (bands, dtype) in layers.items():
        if problem := _problem(root, row[COLUMN[layer]], layer, bands, dtype):
            return ("1" if layer == "lc" else "0"), "", problem
    if "lc" not in layers:
        return "1", "", ""
    with rasterio.open(root / row["label"]) as dataset:
        return "1", dominant_land_cover(dataset.read(1)), ""


def _problem(root: Path, path: str, layer: str, bands: int, dtype: str | None) -> str:
    """What is wrong with a file, or nothing: its form, and whether its last row, where truncation shows, is there."""
    if not path:
        return f"has no {layer} file"
    try:
        with rasterio.open(root / path) as dataset:
            found = (dataset.count, dataset.dtypes[0], dataset.width, dataset.height)
            dataset.read(dataset.count, window=Window(0, dataset.height - 1, dataset.width, 1))
    except RasterioError as error:
        return f"{path} is corrupt or truncated ({error})"
    expected = (bands, dtype or found[1], 256, 256)
    form = "{}: expected {} bands of {} and {}x{} px, found {} of {} and {}x{}"
    return "" if found == expected else form.format(path, *expected, *found)


def dominant_land_cover(igbp: np.ndarray) -> str:
    """Most frequent simplified class of an IGBP map (integers 1 to 17, others ignored), or "" where there is none."""
    classes = SIMPLIFIED_IGBP[igbp[(igbp >= 1) & (igbp <= 17)].astype(int)]
    return LAND_COVERS[np.bincount(classes).argmax() - 1] if len(classes) else ""
