"""Windows of pixel grids, which are odc-geo's GeoBoxes, and what lies where on them.

Positions are px whose (0, 0) is the centre of the first px; that of odc-geo and rasterio is its corner.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.io import DatasetReader

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import GDAL_ERRORS

EARTH_RADIUS = 6_371_008.8  # m
_DEGREES = GeoBox((1, 1), Affine.identity(), "EPSG:4326")


class Region(NamedTuple):
    """A window of a grid in whole px; `x + width` and `y + height` are outside. It may lie outside the grid."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def enclosing(cls, xy: np.ndarray, before: int = 0, after: int = 0) -> Region:
        """What encloses positions (N, 2), with a margin at the upper left and at the lower right."""
        low, high = np.floor(xy.min(0)).astype(int) - before, np.ceil(xy.max(0)).astype(int) + after
        return cls(*low.tolist(), *(high - low).tolist())

    def moved(self, dx: int, dy: int) -> Region:
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def intersection(self, other: Region) -> Region:
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Region(x, y, max(right - x, 0), max(bottom - y, 0))

    def nodes(self, n: int) -> np.ndarray:
        """Positions (n * n, 2) spread evenly over the window, row by row."""
        x, y = np.linspace(self.x, self.x + self.width - 1, n), np.linspace(self.y, self.y + self.height - 1, n)
        return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def grid_of(dataset: DatasetReader) -> GeoBox:
    """The grid of a file."""
    usable = dataset.transform.determinant != 0 and np.isfinite(list(dataset.transform)).all()
    try:
        return GeoBox(dataset.shape, dataset.transform if usable else Affine.identity(), dataset.crs or None)
    except (*GDAL_ERRORS, ProjError) as error:
        raise PairError(f"{dataset.name}: an unknown reference system ({error}); warp it first") from error


def located(grid: GeoBox) -> bool:
    return grid.crs is not None and not grid.affine.is_identity


def coarser(grid: GeoBox, factor: int) -> GeoBox:
    """The same ground in px `factor` times as large; what does not fill a px at the right and lower end is cut."""
    shape = (max(grid.height // factor, 1), max(grid.width // factor, 1))
    return GeoBox(shape, grid.affine if grid.affine.is_identity else grid.affine @ Affine.scale(factor), grid.crs)


def between(source: GeoBox, target: GeoBox, xy: np.ndarray) -> np.ndarray:
    """Positions (N, 2) px of one grid on another with a reference system; not finite where they have none there."""
    x, y = source.pix2wld(*(np.asarray(xy, np.float64) + 0.5).T)
    try:
        if source.crs is not None and target.crs is not None and source.crs != target.crs:
            x, y = source.crs.transformer_to_crs(target.crs)(x, y)
    except ProjError as error:
        raise PairError(f"no transformation {_names(source, target)} ({error}); warp both to one system") from error
    with np.errstate(invalid="ignore"):
        return np.stack(target.wld2pix(x, y), 1) - 0.5


def _names(source: GeoBox, target: GeoBox) -> str:
    return "from " + " to ".join(grid.crs.proj.name for grid in (source, target) if grid.crs is not None)


def extent(source: GeoBox, target: GeoBox) -> Region:
    """The window of `target` that encloses a located grid; PairError where none of its points has a place there."""
    xy = between(source, target, source.boundary(33) - 0.5) + 0.5
    xy = xy[np.isfinite(xy).all(axis=1) & (np.abs(xy) < 2**31).all(axis=1)]
    if not len(xy):
        raise PairError(
            f"no point of the one image has a place in the other's reference system ({_names(source, target)}); warp "
            "both to one system (gdalwarp -t_srs), a projected one such as UTM"
        )
    return Region.enclosing(np.stack([xy.min(0) + 1e-6, xy.max(0) - 1e-6]))  # what rounding adds is not enclosed


def metres_per_px(grid: GeoBox) -> float | None:
    """Ground distance of neighbouring px at the middle of the grid, m; None where the grid is not located."""
    if not located(grid):
        return None
    x, y = np.radians(between(grid, _DEGREES, _middle(grid)) + 0.5).T
    return float(np.sqrt(np.prod(np.hypot((x[1:] - x[0]) * np.cos(y[0]), y[1:] - y[0]) * EARTH_RADIUS)))


def scale_ratio(source: GeoBox, target: GeoBox) -> float:
    """How many px of `target` one px of `source` is wide, at the middle of what `source` shows."""
    xy = between(source, target, _middle(source))
    ratio = float(np.sqrt(np.prod(np.linalg.norm(xy[1:] - xy[0], axis=1))))
    if not (math.isfinite(ratio) and ratio > 0):
        raise PairError(f"the size of a px cannot be carried {_names(source, target)}; warp both to one system first")
    return ratio


def _middle(grid: GeoBox) -> np.ndarray:
    """Positions (3, 2) of a px in the middle and its neighbours to the right and below."""
    return np.array([grid.width / 2, grid.height / 2]) + np.array([[0, 0], [1, 0], [0, 1]])
