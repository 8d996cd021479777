"""What a data folder holds: its layout, its pairs, and what is broken in it; the command `sarmatch data check`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from sarmatch.data.folder import manifest
from sarmatch.data.ombria import is_ombria, ombria
from sarmatch.data.pairs import AbsentDatasetError, PairError, Pairs
from sarmatch.data.patch_tree import scene_folders, sen12
from sarmatch.data.sen12ms import SEN12MS, SEN12MS_CR, sen12ms


@dataclass(frozen=True)
class Report:
    """Findings of `check_data`."""

    root: Path
    layout: str
    counts: pd.DataFrame  # one row a dataset, season and land cover; columns `pairs` and `scenes`
    problems: tuple[str, ...]  # files and rows that are missing or broken, each with its reason
    read: int  # number of pairs that were read in full

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.root}: {self.layout}, {int(self.counts['pairs'].sum())} pairs, {self.read} read in full", ""]
        lines += [self.counts.to_string(), ""]
        lines += [f"{len(self.problems)} problems" if self.problems else "no problems", *self.problems[:50]]
        if len(self.problems) > 50:
            lines.append(f"... and {len(self.problems) - 50} more")
        return "\n".join(lines)


def recognise(root: str | Path) -> str:
    """The layout of a folder: `manifest`, `ombria`, `sen12ms`, `sen12ms-cr` or `sen1-2`.

    Raises:
        FileNotFoundError: no such folder, or none of these in it.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file, not a folder" if root.is_file() else "no such folder"
        raise FileNotFoundError(f"data folder {root}: {what}; check the path")
    if (root / "manifest.csv").is_file():
        return "manifest"
    if is_ombria(root):
        return "ombria"
    for folder in scene_folders(root):
        if folder.parent.name.endswith(("_s1", "_s2", "_s2_cloudy")):
            return "sen12ms-cr"
        suffixes = {path.suffix for path in folder.iterdir()}
        if suffixes & {".tif", ".png"}:
            return "sen12ms" if ".tif" in suffixes else "sen1-2"
    found = sorted(path.name for path in root.iterdir())[:5]
    raise FileNotFoundError(
        f"{root}: no known layout; looked for manifest.csv (columns id, sar, optical), for OMBRIA "
        "(OmbriaS1/train/BEFORE/S1_before_0001.png, 2021/ALBANIA/...), for SEN12MS or SEN12MS-CR "
        "(ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif, ROIs1158_spring_s1/s1_1/...) and for SEN1-2 (the same as "
        f".png); found {found or 'an empty folder'}"
    )


def open_folder(
    root: str | Path,
    *,
    datasets: Sequence[str] = (),
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] | None = None,
    rescan: bool = False,
) -> Pairs:
    """The pairs of a folder of any known layout; see the readers.

    Args:
        datasets: which to keep of those that a manifest names; empty keeps all. OMBRIA's own layout holds ombria
            alone: asking for others besides warns.
        optical_bands: None is red, green, blue.
        rescan: ignore a stored index of the SEN12MS family.

    Raises:
        FileNotFoundError, AbsentDatasetError, PairError: as `recognise` and the readers.
    """
    layout = recognise(root)
    bands: dict[str, Any] = {"sar_bands": sar_bands}
    if optical_bands is not None:
        bands["optical_bands"] = optical_bands
    if layout == "manifest":
        return manifest(root, datasets=datasets, **bands)
    if layout == "ombria":
        if datasets and "ombria" not in datasets:
            raise AbsentDatasetError(
                f"datasets: {list(datasets)} expected, but {root} holds ombria alone; give another folder"
            )
        if absent := [name for name in datasets if name != "ombria"]:
            warnings.warn(f"{root} holds ombria alone; going on without {', '.join(absent)}", stacklevel=3)
        return ombria(root, **bands)
    if layout == "sen1-2":
        return sen12(root, rescan=rescan)
    return sen12ms(root, rescan=rescan, layout=SEN12MS if layout == "sen12ms" else SEN12MS_CR, **bands)


def check_data(root: str | Path, max_read: int = 2000) -> Report:
    """Recognise a folder, count its pairs and read `max_read` of them in full, evenly spaced over the index.

    Raises:
        FileNotFoundError, PairError: as `open_folder`: there is nothing to check.
    """
    pairs = open_folder(root, rescan=True)
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(max_read, len(pairs))).round().astype(int))
    broken = []
    for i in tqdm(rows, "read", unit="pair", disable=None):
        try:
            pairs[int(i)]
        except (PairError, OSError) as error:
            broken.append(f"{pairs.index['id'].iloc[i]}: {error}")
    counts = pairs.index.groupby(["dataset", "season", "land_cover"])["scene"].agg(pairs="size", scenes="nunique")
    return Report(Path(root), recognise(root), counts, (*pairs.problems, *broken), len(rows))
