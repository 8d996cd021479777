"""The layouts of folders that can be read; `sarmatch.data` says how to add one."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from sarmatch.data.pairs import PairError
from sarmatch.data.sen12ms import SEN12, SEN12MS, SEN12MS_CR, Tree, is_tree, scan, scene_folders


class Dataset(NamedTuple):
    """How folders of one layout are recognised and read."""

    holds: str  # a file of it, for errors
    is_in: Callable[[Path], bool]  # of a folder
    table: Callable[[Path], pd.DataFrame]  # its pairs, one a row, as `sarmatch.data` describes them
    parts: Callable[[Path], Iterable[Path]] | None = None  # stores a slow table until one of these folders changes
    source: str = "manifest"  # the `DataConfig.source` that opens it
    archives: str = ""  # where they are, if it comes in archives to be unpacked into one folder


SCENES = Path(__file__).parent / "registries" / "ombria_scenes.csv"
"""Of 746 pairs of OMBRIA (not France and Timor) the files, the scene, and usable: 0 where mostly empty or saturated."""


def is_ombria(root: Path) -> bool:
    """Whether a folder holds any part of OMBRIA's own layout."""
    return any((root / folder).is_dir() for folder in ("OmbriaS1", "OmbriaS2", "2021/ALBANIA", "2021/GUYANA"))


def ombria(root: Path) -> pd.DataFrame:
    """All pairs of OMBRIA (Drakonakis et al., 2022, doi:10.1109/JSTARS.2022.3155559), whichever files a folder holds.

    VV and, as red, green and blue, B11, B8 and B3 from before a flood; VV from after it is the later acquisition.
    """
    return pd.read_csv(SCENES, dtype=str, keep_default_na=False).assign(dataset="ombria")


def manifest(root: Path) -> pd.DataFrame:
    """The pairs that a folder's own `manifest.csv`, or another file of this form, lists."""
    path = root if root.is_file() else root / "manifest.csv"
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise PairError(f"{path}: not a readable CSV ({error}); expected UTF-8 text, one row a pair") from error


def _tree(tree: Tree, holds: str, doi: str) -> Dataset:
    is_in, table = partial(is_tree, tree=tree), partial(scan, tree=tree)
    return Dataset(holds, is_in, table, scene_folders, "sen12ms", f"https://doi.org/{doi}")


PATCH = "s1_1/ROIs1158_spring_s1_1_p30"  # of SEN12MS and its relatives
DATASETS = {
    "manifest": Dataset(
        "manifest.csv with the columns id, sar, optical",
        lambda root: root.suffix == ".csv" or (root / "manifest.csv").is_file(),
        manifest,
    ),
    "ombria": Dataset("OmbriaS1/train/BEFORE/S1_before_0001.png (sarmatch data get ombria)", is_ombria, ombria),
    "sen12ms": _tree(SEN12MS, f"ROIs1158_spring/{PATCH}.tif, s2_1 and lc_1 beside s1_1", "10.14459/2019mp1474000"),
    "sen12ms-cr": _tree(SEN12MS_CR, f"ROIs1158_spring_s1/{PATCH}.tif and likewise s2", "10.14459/2020mp1554803"),
    "sen1-2": _tree(SEN12, f"ROIs1158_spring/{PATCH}.png, s2_1 beside s1_1", "10.14459/2018mp1436631"),
}
"""By name of the layout; the first that recognises a folder reads it."""


def recognise(root: str | Path) -> str:
    """The name in `DATASETS` of the layout of a folder, or of a manifest file in it.

    FileNotFoundError for no such folder or file, or for none of these layouts in it.
    """
    root = Path(root)
    if not root.is_dir() and not (root.is_file() and root.suffix == ".csv"):
        what = "is neither a folder nor a manifest (.csv)" if root.is_file() else "no such folder or manifest"
        raise FileNotFoundError(f"data {root}: {what}; check the path")
    for name, dataset in DATASETS.items():
        if dataset.is_in(root):
            return name
    looked_for = "".join(f"\n  {name}: {dataset.holds}" for name, dataset in DATASETS.items())
    found = sorted(path.name for path in root.iterdir())[:5]
    raise FileNotFoundError(f"{root}: no known layout; found {found or 'an empty folder'}, looked for{looked_for}")
