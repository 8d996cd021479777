"""Pixel grids on the ground, and what lies where on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.warp
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from sarmatch.data.pairs import PairError

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What rasterio raises; some errors of GDAL come out of it as they are."""
_CORNER = np.array([[0, 0], [1, 0], [0, 1]])  # a px and its neighbours to the right and below


class Region(NamedTuple):
    """A window of a grid in whole px; `x + width` and `y + height` are outside. It may lie outside the grid."""

    x: int
    y: int
    width: int
    height: int

    def moved(self, dx: int, dy: int) -> Region:
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def intersection(self, other: Region) -> Region:
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Region(x, y, max(right - x, 0), max(bottom - y, 0))


@dataclass(frozen=True)
class Grid:
    """A grid of pixels; without a transform (px corner to map) and a reference system it has no place on the ground."""

    width: int
    height: int
    transform: Affine | None = None
    crs: CRS | None = None

    @property
    def located(self) -> bool:
        return self.transform is not None and self.crs is not None

    @property
    def region(self) -> Region:
        return Region(0, 0, self.width, self.height)

    def coarser(self, factor: int) -> Grid:
        """The same ground in px `factor` times as large; what does not fill a px at the right and lower end is cut."""
        if factor == 1:
            return self
        transform = None if self.transform is None else self.transform @ Affine.scale(factor)
        return Grid(max(self.width // factor, 1), max(self.height // factor, 1), transform, self.crs)

    def to_map(self, xy: np.ndarray) -> np.ndarray:
        """Map coordinates (N, 2) of px positions (N, 2), whose (0, 0) is the centre of the first px."""
        a, b, c, d, e, f = list(self.transform or Affine.identity())[:6]
        column, row = (np.asarray(xy, np.float64) + 0.5).T
        return np.stack([a * column + b * row + c, d * column + e * row + f], 1)

    def from_map(self, xy: np.ndarray) -> np.ndarray:
        """The inverse of `to_map`."""
        a, b, c, d, e, f = list(~(self.transform or Affine.identity()))[:6]
        x, y = np.asarray(xy, np.float64).T
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1) - 0.5

    def metres_per_px(self) -> float | None:
        """Ground distance of neighbouring px at the middle of the grid, m; None where the grid is not located."""
        if not self.located:
            return None
        middle = np.array([[self.width / 2, self.height / 2]])
        around = self.to_map(middle + _CORNER)
        x, y = (np.radians(v) for v in _transformed(self.crs, CRS.from_epsg(4326), around).T)
        steps = np.hypot((x[1:] - x[0]) * np.cos(y[0]), y[1:] - y[0]) * 6_371_008.8
        return float(np.sqrt(np.prod(steps)))


def between(source: Grid, target: Grid, xy: np.ndarray) -> np.ndarray:
    """Positions (N, 2) px of one located grid on another; infinite where they have none there."""
    if source.crs == target.crs:
        return target.from_map(source.to_map(xy))
    return target.from_map(_transformed(source.crs, target.crs, source.to_map(xy)))


def extent(source: Grid, target: Grid) -> Region:
    """The window of `target` that encloses a located grid; PairError where none of its points has a place there."""
    side = np.linspace(0, 1, 33)
    ends = np.concatenate([np.stack(c, 1) for c in ((side, 0 * side), (side, 0 * side + 1), (0 * side, side))])
    ends = np.concatenate([ends, np.stack([0 * side + 1, side], 1)])
    xy = between(source, target, ends * [source.width, source.height] - 0.5) + 0.5
    xy = xy[np.isfinite(xy).all(axis=1) & (np.abs(xy) < 2**31).all(axis=1)]
    if not len(xy):
        raise PairError(
            f"no point of the one image has a place in the other's reference system ({source.crs} to {target.crs}); "
            "warp both to one system (gdalwarp -t_srs), a projected one such as UTM"
        )
    (x, y), (right, bottom) = np.floor(xy.min(0) + 1e-6).astype(int), np.ceil(xy.max(0) - 1e-6).astype(int)
    return Region(int(x), int(y), int(right - x), int(bottom - y))


def scale_ratio(source: Grid, target: Grid) -> float:
    """How many px of `target` one px of `source` is wide, at the middle of what `source` shows."""
    middle = np.array([[source.width / 2, source.height / 2]])
    xy = between(source, target, middle + _CORNER)
    steps = np.linalg.norm(xy[1:] - xy[0], axis=1)
    ratio = float(np.sqrt(np.prod(steps)))
    if not (math.isfinite(ratio) and ratio > 0):
        raise PairError(
            f"the size of a px cannot be carried from {source.crs} to {target.crs}; warp both to one system first"
        )
    return ratio


def _transformed(source: CRS, target: CRS, xy: np.ndarray) -> np.ndarray:
    try:
        with rasterio.Env(OGR_ENABLE_PARTIAL_REPROJECTION="YES"):
            x, y = rasterio.warp.transform(source, target, xy[:, 0], xy[:, 1])
    except GDAL_ERRORS as error:
        raise PairError(f"no transformation from {source} to {target} ({error}); warp both to one system") from error
    return np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], 1)
