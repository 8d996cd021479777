"""A SAR and an optical scene on one grid, read window by window and warped on the fly.

The reference gives the grid, its px enlarged by a whole factor where the other image is coarser. Where either image has
no place on the ground, px are taken to be of one size and the displacement to be unknown.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import torch
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import Raster
from sarmatch.data.units import OpticalUnits, SarUnits, Scaling, optical_scaling, sar_scaling
from sarmatch.scenes.files import (
    SceneRefusal,
    opened,
    optical_bands_of,
    outside_options,
    read_window,
    sample_values,
    sar_bands_of,
    transform_of,
)
from sarmatch.scenes.grids import GDAL_ERRORS, Grid, Region, extent, scale_ratio

Image = Literal["sar", "optical"]
MARGIN = 1024
"""Px around the grid of the reference that the other image can be read from: more than any search radius."""
MIN_OVERLAP_PX = 48
"""Least side of the common ground."""


@dataclass(frozen=True)
class SceneOptions:
    """Which bands (zero-based; None: the first of SAR, red, green and blue), which units (None: guessed from samples),
    and whose grid counts; the other image is the one that moves.
    """

    to: Image = "sar"
    sar_bands: tuple[int, ...] | None = None
    optical_bands: tuple[int, ...] | None = None
    sar_units: SarUnits | None = None
    optical_units: OpticalUnits | None = None

    def __post_init__(self) -> None:
        if self.to not in ("sar", "optical"):
            raise ValueError(f"to must be 'sar' or 'optical', got {self.to!r}")


@dataclass(frozen=True, eq=False)
class Scene:
    """An open image on the common grid.

    Attributes:
        own: the grid of the file.
        view: the file itself, or it warped; its px (0, 0) is px `origin` of the common grid.
        bands: zero-based.
    """

    dataset: DatasetReader
    image: Image
    own: Grid
    view: DatasetReader | WarpedVRT
    origin: tuple[int, int]
    bands: tuple[int, ...]
    scaling: Scaling

    @property
    def extent(self) -> Region:
        """What of the common grid can be read."""
        return Region(*self.origin, self.view.width, self.view.height)

    def read(self, region: Region) -> Raster:
        """A window of the common grid, (C, H, W) in [0, 1]; not valid where the image shows nothing."""
        values, valid = self.values(region)
        image = torch.from_numpy(np.where(valid, self.scaling(values), np.float32(0)))
        return Raster(image, torch.from_numpy(valid), None, None)

    def reduced(self, factor: int) -> Raster:
        """All of the image that the common grid shows, its px averaged to px `factor` times as large."""
        height, width = (max(n // factor, 1) for n in (self.view.height, self.view.width))
        left, top = (round(-o / factor) for o in self.origin)
        window = Window(0, 0, width * factor, height * factor)
        window = window.intersection(Window(0, 0, self.view.width, self.view.height))
        size = {"out_shape": (height, width), "resampling": Resampling.average}
        values, valid = read_window(self.view, self.bands, window, self.dataset.name, **size)
        image = torch.from_numpy(np.where(valid, self.scaling(values), np.float32(0)))
        inner = np.s_[top : height - top or None, left : width - left or None]
        return Raster(image[:, *inner], torch.from_numpy(valid[inner]), None, None)

    def values(self, region: Region) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a window as stored, (C, H, W), and where they are valid, (H, W)."""
        shown = region.intersection(self.extent)
        values = np.zeros((len(self.bands), region.height, region.width), self.view.dtypes[self.bands[0]])
        valid = np.zeros(values.shape[1:], bool)
        if shown.width and shown.height:
            window = Window(shown.x - self.origin[0], shown.y - self.origin[1], shown.width, shown.height)
            left, top = shown.x - region.x, shown.y - region.y
            at = np.s_[top : top + shown.height, left : left + shown.width]
            values[:, *at], valid[at] = read_window(self.view, self.bands, window, self.dataset.name)
        if self.scaling.units == "reflectance":
            valid &= (values != 0).any(axis=0)  # Sentinel-2's nodata
        return values, valid


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes on one grid.

    Attributes:
        grid: the common grid, whose px are `factor` px of the reference wide.
        located: whether both images have a place on the ground.
        to: which of them is the reference.
    """

    sar: Scene
    optical: Scene
    grid: Grid
    factor: int
    located: bool
    to: Image

    @property
    def reference(self) -> Scene:
        return self.sar if self.to == "sar" else self.optical

    @property
    def moving(self) -> Scene:
        return self.optical if self.to == "sar" else self.sar

    @property
    def moving_extent(self) -> Region:
        """The window of the common grid that encloses the moving image."""
        return extent(self.moving.own, self.grid) if self.located else self.moving.own.region

    def region(self, shift: tuple[int, int] = (0, 0)) -> Region:
        """What both images may show where the moving one is displaced by `shift` px; SceneRefusal if too little."""
        common = self.grid.region.intersection(self.moving_extent.moved(-shift[0], -shift[1]))
        if min(common.width, common.height) < MIN_OVERLAP_PX:
            raise SceneRefusal(
                f"{self.sar.dataset.name} and {self.optical.dataset.name} have {common.width} x {common.height} px in "
                f"common, at least {MIN_OVERLAP_PX} x {MIN_OVERLAP_PX} are needed; do both show the same ground?"
            )
        return common


@contextmanager
def open_pair(
    sar: str | Path | DatasetReader,
    optical: str | Path | DatasetReader,
    options: SceneOptions | None = None,
    sar_channels: int = 1,
    optical_channels: int = 3,
) -> Iterator[ScenePair]:
    """Open two rasters (paths or open datasets) and decide their common grid; nothing but small samples is read.

    Args:
        sar_channels, optical_channels: how many bands the network takes.

    Raises:
        FileNotFoundError: there is no such file.
        PairError: a file is broken, lacks a band, or holds numbers that mean nothing known.
        SceneRefusal: an image is all nodata or constant, or both have no ground in common.
    """
    options = options or SceneOptions()
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=128))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        files = {"sar": opened(stack, sar, "SAR image"), "optical": opened(stack, optical, "optical image")}
        bands = {
            "sar": sar_bands_of(files["sar"], options.sar_bands, sar_channels),
            "optical": optical_bands_of(files["optical"], options.optical_bands, optical_channels),
        }
        own = {name: Grid(f.width, f.height, transform_of(f), f.crs) for name, f in files.items()}
        to, other = options.to, "optical" if options.to == "sar" else "sar"
        located = own[to].located and own[other].located
        factor = max(1, round(scale_ratio(own[other], own[to]))) if located else 1
        grid = own[to].coarser(factor)
        scenes = {}
        for name in (to, other):
            view, origin = _view(stack, files[name], own[name], grid, located and (name == other or factor > 1))
            scenes[name] = _scene(files[name], name, own[name], view, origin, bands[name], options)
        pair = ScenePair(scenes["sar"], scenes["optical"], grid, factor, located, to)
        if located:
            pair.region()
        yield pair


def _same(first: Grid, second: Grid) -> bool:
    """Whether the px (0, 0) and the size of px of two grids agree to a millionth of a px."""
    if first.transform is None or second.transform is None or first.crs != second.crs:
        return False
    ends = np.array([[0.0, 0.0], [1e3, 0.0], [0.0, 1e3]])
    return bool(np.abs(second.from_map(first.to_map(ends)) - ends).max() < 1e-3)


def _view(
    stack: ExitStack, dataset: DatasetReader, own: Grid, grid: Grid, warp: bool
) -> tuple[DatasetReader | WarpedVRT, tuple[int, int]]:
    """What to read an image through, and the px of the grid where that begins."""
    if not warp or _same(own, grid):
        return dataset, (0, 0)
    transform = grid.transform @ Affine.translation(-MARGIN, -MARGIN)
    size = {"width": grid.width + 2 * MARGIN, "height": grid.height + 2 * MARGIN}
    try:
        how = {"resampling": Resampling.bilinear, **size, **outside_options(dataset)}
        view = WarpedVRT(dataset, crs=grid.crs, transform=transform, **how)
    except (*GDAL_ERRORS, ValueError) as error:
        raise PairError(f"{dataset.name}: cannot be warped to {grid.crs} ({error}); warp it first") from error
    return stack.enter_context(view), (-MARGIN, -MARGIN)


def _scene(
    dataset: DatasetReader,
    image: str,
    own: Grid,
    view: DatasetReader | WarpedVRT,
    origin: tuple[int, int],
    bands: tuple[int, ...],
    options: SceneOptions,
) -> Scene:
    what = f"{'SAR' if image == 'sar' else 'optical'} image {dataset.name}"
    sample = sample_values(dataset, bands, what)
    if image == "sar":
        scaling = sar_scaling(sample, bands, options.sar_units, what)
    else:
        scaling = optical_scaling(sample, options.optical_units, what)
    return Scene(dataset, "sar" if image == "sar" else "optical", own, view, origin, bands, scaling)
