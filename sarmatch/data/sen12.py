"""SEN1-2: 282,384 pairs of 8-bit Sentinel-1 and Sentinel-2 patches.

Layout (as the archives unpack)::

    ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p5.png    Sentinel-1 VV, 8 bits
    ROIs1158_spring/s2_0/ROIs1158_spring_s2_0_p5.png    Sentinel-2 red, green, blue, 8 bits
    ROIs1868_summer/...  ROIs1970_fall/...  ROIs2017_winter/...

All patches are 256 x 256 px of 10 m, without a georeference. Scenes carry the numbers of the SEN12MS family: do not
train on one of these datasets and test on another without comparing the places.

Source: Schmitt et al. (2018), ISPRS Annals IV-1, doi:10.5194/isprs-annals-IV-1-141-2018; data
doi:10.14459/2018mp1436631 (mediaTUM, CC-BY 4.0).
"""

from __future__ import annotations

from pathlib import Path

from sarmatch.data.pairs import Pairs
from sarmatch.data.roi_tree import Layer, Layout, open_tree

SEN12 = Layout(
    dataset="sen1-2",
    sar=Layer("s1", 1, "uint8"),
    optical=Layer("s2", 3, "uint8"),
    suffix="png",
    help="SEN1-2 has ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p5.png and, beside s1_0, s2_0; get it from "
    "https://doi.org/10.14459/2018mp1436631 and unpack all archives into one folder.",
)


def sen12(root: str | Path, *, rescan: bool = False, index_dir: str | Path | None = None) -> Pairs:
    """Pairs of a SEN1-2 tree, VV and RGB; index, problems and errors as in `sen12ms`; the land cover is unknown."""
    return open_tree(root, SEN12, (0,), (0, 1, 2), rescan, index_dir)
