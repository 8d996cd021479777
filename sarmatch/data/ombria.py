"""OMBRIA as its authors publish it: patches of 256 px of flood-prone places, VV and B11, B8, B3 as red, green, blue.

A pair is the SAR and the optical patch from before the flood; the SAR patch from after it is the later acquisition.
Drakonakis et al. (2022), doi:10.1109/JSTARS.2022.3155559; no licence stated; modified Copernicus Sentinel data.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

SCENES = Path(__file__).parent / "registries" / "ombria_scenes.csv"
"""Of 746 pairs (not France and Timor) the files, the scene, and usable: 0 where mostly empty or saturated."""


def is_ombria(root: Path) -> bool:
    """Whether a folder holds any part of OMBRIA's own layout."""
    return any((root / folder).is_dir() for folder in ("OmbriaS1", "OmbriaS2", "2021/ALBANIA", "2021/GUYANA"))


def ombria(root: Path) -> pd.DataFrame:
    """All pairs of OMBRIA, 725 of them usable, whichever of their files the folder holds."""
    return pd.read_csv(SCENES, dtype=str, keep_default_na=False).assign(dataset="ombria")
