"""A small generated pair inside the package, matched in seconds without data or network: `sarmatch demo`.

Its optical image is displaced by a known shift. How well it is matched shows that an installation works, and nothing
about accuracy on real images. The pair is written by `tests/make_demo_pair.py`.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from sarmatch.data.raster import read_optical, read_sar
from sarmatch.evaluation.metrics import match_errors, mma
from sarmatch.geometry import translation
from sarmatch.io import atomic_path
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.visualize import draw_matches

PICTURES = tuple(sorted(f".{name}" for name in FigureCanvasBase.get_supported_filetypes() if name != "pgf"))
"""Suffixes of pictures that matplotlib writes; .pgf would need LaTeX."""
SHIFT_PX = (9.5, -6.25)  # (x, y) in the optical image of the SAR image's pixel (0, 0)
FOLDER = Path(__file__).parent / "demo_pair"


class Demo(NamedTuple):
    """The matches of the pair, their distances from the truth, (N,) px, and the seconds that matching took."""

    matches: Matches
    errors: np.ndarray
    seconds: float

    def __str__(self) -> str:
        counted = f"{len(self.matches)} matches in {self.seconds:.1f} s on a generated pair"
        if not len(self.matches):
            return counted
        share, median = mma(self.errors, 3), np.median(self.errors)
        return (
            f"{counted}, which says nothing about accuracy on real images\n"
            f"{share:.0%} within 3 px of the known shift {SHIFT_PX} px, median error {median:.2f} px"
        )


def match_pair(matcher: Matcher) -> Demo:
    """Match the bundled pair with the default search radius, and compare with the known shift."""
    start = time.perf_counter()
    matches = matcher.match(FOLDER / "sar.tif", FOLDER / "optical.tif")
    seconds = time.perf_counter() - start
    return Demo(matches, match_errors(matches, translation(*SHIFT_PX)), seconds)


def draw_pair(demo: Demo, path: str | os.PathLike[str]) -> None:
    """Write a picture of the bundled pair with its matches by confidence."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    sar, optical = read_sar(FOLDER / "sar.tif"), read_optical(FOLDER / "optical.tif")
    ax = draw_matches(figure.subplots(), sar.image, optical.image, demo.matches)
    ax.set_title(f"Generated pair: SAR and optical image, shifted by {SHIFT_PX} px")
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150)
