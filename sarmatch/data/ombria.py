"""OMBRIA as its authors publish it: Sentinel-1 and Sentinel-2 patches of flood-prone places, before and after a flood.

Layout (as `sarmatch data get ombria --to data/ombria` fetches it), 8 bits, 256 x 256 px of 10 m, no georeference::

    OmbriaS1/train/BEFORE/S1_before_0001.png       VV; AFTER/S1_after_0001.png is later; likewise test
    OmbriaS2/train/BEFORE/S2_before_0001.png       red, green, blue = B11, B8, B3
    2021/ALBANIA/Sentinel1/BEFORE/imbefore_1.png   likewise AFTER/imafter_1.png, Sentinel2, FRANCE, GUYANA, TIMOR

A pair is the SAR and the optical patch from before the flood; the SAR patch from after it is the later acquisition.
`registries/ombria_scenes.csv` names the scenes of 746 pairs (not France and Timor), which the layout does not, and
marks those mostly empty or saturated. Drakonakis et al. (2022), IEEE JSTARS 15, doi:10.1109/JSTARS.2022.3155559;
https://github.com/geodrak/OMBRIA (no licence stated; modified Copernicus Sentinel data).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

SCENES = Path(__file__).parent / "registries" / "ombria_scenes.csv"
"""One row a pair: id, its three files, scene, and usable (0 or 1), in the order of the manifest we publish with."""


def is_ombria(root: Path) -> bool:
    """Whether a folder holds any part of OMBRIA's own layout."""
    return any((root / folder).is_dir() for folder in ("OmbriaS1", "OmbriaS2", "2021/ALBANIA", "2021/GUYANA"))


def ombria(root: Path) -> pd.DataFrame:
    """All pairs of OMBRIA, 725 of them usable, whichever of their files the folder holds."""
    return pd.read_csv(SCENES, dtype=str, keep_default_na=False).assign(dataset="ombria")
