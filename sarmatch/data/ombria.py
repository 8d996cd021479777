"""OMBRIA as its authors publish it: Sentinel-1 and Sentinel-2 patches of flood-prone places, before and after a flood.

Layout (as `sarmatch data get ombria --to data/ombria` fetches it)::

    OmbriaS1/train/BEFORE/S1_before_0001.png       Sentinel-1 VV, 8 bits; AFTER/S1_after_0001.png is later
    OmbriaS2/train/BEFORE/S2_before_0001.png       Sentinel-2, 8 bits, red, green, blue = B11, B8, B3
    OmbriaS1/test/...  OmbriaS2/test/...
    2021/ALBANIA/Sentinel1/BEFORE/imbefore_1.png   likewise AFTER/imafter_1.png, Sentinel2, FRANCE, GUYANA, TIMOR

All patches are 256 x 256 px of 10 m, without a georeference. A pair is the SAR and the optical patch from before the
flood; the SAR patch from after it is the later acquisition. The layout does not name scenes:
`registries/ombria_scenes.csv` does, for 746 pairs (not France and Timor), and marks those mostly empty or saturated.

Drakonakis et al. (2022), IEEE JSTARS 15, doi:10.1109/JSTARS.2022.3155559; https://github.com/geodrak/OMBRIA
(no licence stated; modified Copernicus Sentinel data).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sarmatch.data.folder import pairs_of_table
from sarmatch.data.pairs import Pairs

SCENES = Path(__file__).parent / "registries" / "ombria_scenes.csv"
"""One row a pair: id, its three files, scene, and usable (0 or 1), in the order of the manifest."""


def is_ombria(root: str | Path) -> bool:
    """Whether a folder holds any part of OMBRIA's own layout."""
    return any((Path(root) / folder).is_dir() for folder in ("OmbriaS1", "OmbriaS2", "2021/ALBANIA", "2021/GUYANA"))


def ombria(root: str | Path, *, sar_bands: Sequence[int] = (0,), optical_bands: Sequence[int] = (0, 1, 2)) -> Pairs:
    """Pairs of OMBRIA's own layout (see this module): 725 if all files are there, missing ones are in `problems`.

    Ids, scenes ("ombria/seg000") and order are those of the manifest we publish results with, so the fingerprint of a
    complete folder is that of `manifest(..., datasets=("ombria",))`.

    Raises:
        FileNotFoundError: no such folder, or nothing of the layout in it.
        PairError: no complete pair in it.
    """
    root = Path(root)
    if not is_ombria(root):
        what = "nothing of OMBRIA's layout in it" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"data folder {root}: {what}; expected OmbriaS1/train/BEFORE/S1_before_0001.png and the like; "
            f"fetch them with: sarmatch data get ombria --to {root}"
        )
    table = pd.read_csv(SCENES, dtype=str, keep_default_na=False).assign(dataset="ombria", season="", land_cover="")
    return pairs_of_table(table, root, root, sar_bands=sar_bands, optical_bands=optical_bands)
