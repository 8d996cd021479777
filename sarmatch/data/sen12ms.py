"""SEN12MS: 180,662 triplets of Sentinel-1, Sentinel-2 and land-cover patches, the dataset of the paper; and SEN12MS-CR.

Layout (as the archives unpack)::

    ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif    Sentinel-1, 2 bands float32: VV, VH in dB (sigma nought)
    ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif    Sentinel-2 L1C, 13 bands uint16: reflectance x 10,000
    ROIs1158_spring/lc_1/ROIs1158_spring_lc_1_p30.tif    MODIS land cover, 4 bands: IGBP, LCCS cover, use, hydrology

All patches are 256 x 256 px of 10 m in UTM. Patches of a scene overlap their neighbours by half: split by scene.
Schmitt et al. (2019), ISPRS Annals IV-2/W7, doi:10.5194/isprs-annals-IV-2-W7-153-2019; data doi:10.14459/2019mp1474000
(mediaTUM, 510 GB, CC-BY 4.0).

SEN12MS-CR has no land cover, a cloudy twin of each optical patch (not read), and one folder a layer:
`ROIs1158_spring_s1/s1_1/...`. Ebel et al. (2021), IEEE TGRS 59(7), doi:10.1109/TGRS.2020.3024744; data
doi:10.14459/2020mp1554803 (CC-BY 4.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sarmatch.data.pairs import Pairs
from sarmatch.data.patch_tree import Layer, Layout, open_tree
from sarmatch.data.raster import RED_GREEN_BLUE

LAND_COVERS = (
    "forest", "shrubland", "savanna", "grassland", "wetlands",
    "croplands", "urban", "snow/ice", "barren", "water",
)  # fmt: skip
"""The simplified IGBP scheme of SEN12MS and the 2020 Data Fusion Contest, classes 1 to 10."""
SIMPLIFIED_IGBP = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])
"""Simplified class of each IGBP class 0 to 17; 0 is unclassified."""


def dominant_land_cover(igbp: np.ndarray) -> str:
    """Most frequent simplified class of an IGBP map (integers 1 to 17, others ignored), or "" where there is none."""
    classes = igbp[(igbp >= 1) & (igbp <= 17)].astype(int)
    if classes.size == 0:
        return ""
    return LAND_COVERS[int(np.bincount(SIMPLIFIED_IGBP[classes], minlength=11)[1:].argmax())]


SEN12MS = Layout(
    dataset="sen12ms",
    sar=Layer("s1", 2, "float32"),
    optical=Layer("s2", 13, "uint16"),
    suffix="tif",
    label=Layer("lc", 4, None),
    dominant=dominant_land_cover,
    help="SEN12MS has ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif and, beside s1_1, s2_1 and lc_1; get it from "
    "https://doi.org/10.14459/2019mp1474000 and unpack all archives into one folder.",
)
SEN12MS_CR = SEN12MS._replace(
    dataset="sen12ms-cr",
    label=None,
    dominant=None,
    help="SEN12MS-CR has ROIs1158_spring_s1/s1_1/ROIs1158_spring_s1_1_p30.tif and likewise s2; get it from "
    "https://doi.org/10.14459/2020mp1554803 and unpack all archives into one folder.",
)


def sen12ms(
    root: str | Path,
    *,
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] = RED_GREEN_BLUE,
    rescan: bool = False,
    layout: Layout = SEN12MS,
) -> Pairs:
    """Pairs of a SEN12MS tree (layout and source: see this module), or of any part of it.

    The first call opens every file (up to an hour) and stores an index; later calls scan again only if a folder
    changed. Patches with a missing, corrupt or unexpected s1 or s2 file are left out and stand in `problems`; a bad lc
    file leaves the land cover empty.

    Args:
        sar_bands: of VV (0) and VH (1).
        optical_bands: of B1 (0), B2, ..., B8 (7), B8A (8), B9, B10, B11, B12 (12); default red, green, blue.
        rescan: ignore a stored index; needed after a file was overwritten in place.
        layout: `SEN12MS` or `SEN12MS_CR`.

    Returns:
        `season` from the folder's name; `scene` as "sen12ms/spring_1"; `land_cover` the dominant of `LAND_COVERS`.

    Raises:
        FileNotFoundError: no such folder, or no file of the layout in it.
        PairError: no complete pair in it.
    """
    return open_tree(root, layout, sar_bands, optical_bands, rescan)
