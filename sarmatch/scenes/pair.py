"""A SAR and an optical scene on one grid, read window by window and warped on the fly.

The reference gives the grid, its px enlarged by a whole factor where the other image is coarser; px are of one size
where either image has no place on the ground.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import rasterio
import torch
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from sarmatch.config import ModelConfig
from sarmatch.data.raster import Raster, Source, read_window
from sarmatch.data.units import Scaling, optical_scaling, sar_scaling
from sarmatch.scenes.files import NAMES, SceneRefusal, View, bands_of, opened, sample_values, warped
from sarmatch.scenes.grids import Region, between, coarser, extent, grid_of, located, scale_ratio
from sarmatch.scenes.settings import Image, SceneOptions

T = TypeVar("T")

MARGIN = 1024  #: Px around the grid of the reference that can be read of the other image: over any search radius.
MIN_OVERLAP_PX = 48  #: Least side of the common ground.


@dataclass(frozen=True, eq=False)
class Scene:
    """An open image on the common grid."""

    dataset: View
    own: GeoBox  #: The grid of the file.
    view: View  #: The file itself, or it warped.
    origin: tuple[int, int]  #: Px of the common grid that is px (0, 0) of the view.
    bands: tuple[int, ...]  #: Zero-based.
    scaling: Scaling

    def read(self, region: Region) -> Raster:
        """A window of the common grid, (C, H, W) in [0, 1]; not valid where the image shows nothing."""
        shown = region.intersection(Region(*self.origin, self.view.width, self.view.height))
        values = np.zeros((len(self.bands), region.height, region.width), self.view.dtypes[self.bands[0]])
        valid = np.zeros(values.shape[1:], bool)
        if shown.width and shown.height:
            left, top = shown.x - region.x, shown.y - region.y
            at = np.s_[top : top + shown.height, left : left + shown.width]
            window = Window(*shown.moved(-self.origin[0], -self.origin[1]))
            values[:, *at], valid[at] = read_window(self.view, self.bands, window)
        if self.scaling.units == "reflectance":
            valid &= (values != 0).any(axis=0)  # Sentinel-2's nodata
        return self._scaled(values, valid)

    def reduced(self, factor: int) -> Raster:
        """All of the image that the common grid shows, its px averaged to px `factor` times as large."""
        height, width = (max(n // factor, 1) for n in (self.view.height, self.view.width))
        left, top = (round(-o / factor) for o in self.origin)
        window = Window(0, 0, min(width * factor, self.view.width), min(height * factor, self.view.height))
        size = {"out_shape": (height, width), "resampling": Resampling.average}
        values, valid = read_window(self.view, self.bands, window, **size)
        inner = np.s_[top : height - top or None, left : width - left or None]
        return self._scaled(values[:, *inner], valid[inner])

    def _scaled(self, values: np.ndarray, valid: np.ndarray) -> Raster:
        image = np.where(valid, self.scaling(values), np.float32(0))
        return Raster(torch.from_numpy(image), torch.from_numpy(valid))


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes on one grid."""

    sar: Scene
    optical: Scene
    grid: GeoBox  #: The common one.
    factor: int  #: How many px of the reference's file a px of the common grid is wide.
    located: bool  #: Whether both images have a place on the ground.
    to: Image  #: Which of them is the reference.

    def ordered(self, sar: T, optical: T) -> tuple[T, T]:
        """What belongs to the reference and what to the moving image; of these two, what to SAR and what to optical."""
        return (sar, optical) if self.to == "sar" else (optical, sar)

    @property
    def reference(self) -> Scene:
        return self.ordered(self.sar, self.optical)[0]

    @property
    def moving(self) -> Scene:
        return self.ordered(self.sar, self.optical)[1]

    @property
    def moving_extent(self) -> Region:
        """The window of the common grid that encloses the moving image."""
        own = self.moving.own
        return extent(own, self.grid) if self.located else Region(0, 0, own.width, own.height)

    def region(self, shift: tuple[int, int] = (0, 0)) -> Region:
        """What both images may show where the moving one is displaced by `shift` px; SceneRefusal if too little."""
        whole = Region(0, 0, self.grid.width, self.grid.height)
        common = whole.intersection(self.moving_extent.moved(-shift[0], -shift[1]))
        if min(common.width, common.height) < MIN_OVERLAP_PX:
            raise SceneRefusal(
                f"{self.names} have {common.width} x {common.height} px in common, at least {MIN_OVERLAP_PX} x "
                f"{MIN_OVERLAP_PX} are needed; do both show the same ground?"
            )
        return common

    @property
    def names(self) -> str:
        return f"{self.sar.dataset.name} and {self.optical.dataset.name}"

    def to_reference(self, xy: np.ndarray) -> np.ndarray:
        """Px (N, 2) of the reference's file at px of the common grid."""
        return (np.asarray(xy, np.float64) + 0.5) * self.factor - 0.5

    def to_moving(self, xy: np.ndarray) -> np.ndarray:
        """Px (N, 2) of the moving image's file at px of the common grid; not finite where there are none."""
        return between(self.grid, self.moving.own, xy) if self.located else np.asarray(xy, np.float64)

    @property
    def optical_scale(self) -> float:
        """Px of the optical file that a px of the common grid is wide, at its middle."""
        if self.to == "optical" or not self.located:
            return float(self.factor)
        return 1 / scale_ratio(self.optical.own, self.grid)


@contextmanager
def open_pair(
    sar: Source, optical: Source, options: SceneOptions | None = None, model: ModelConfig | None = None
) -> Iterator[ScenePair]:
    """Open two rasters and decide their common grid; nothing but small samples is read.

    Args:
        model: config of the network, which says how many bands it takes.

    Raises:
        FileNotFoundError: there is no such file.
        PairError: a file is broken, lacks a band, or holds numbers that mean nothing known.
        SceneRefusal: an image is all nodata or constant, or both have no ground in common.
    """
    options, model = options or SceneOptions(), model or ModelConfig()
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=128))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        files: dict[Image, View] = {"sar": opened(stack, sar, "sar"), "optical": opened(stack, optical, "optical")}
        reference, moving = grid_of(files["sar"]), grid_of(files["optical"])
        if options.to == "optical":
            reference, moving = moving, reference
        both = located(reference) and located(moving)
        factor = max(1, round(scale_ratio(moving, reference))) if both else 1
        grid = coarser(reference, factor)
        common = grid if both else None
        first, second = (_scene(stack, image, file, options, model, common) for image, file in files.items())
        pair = ScenePair(first, second, grid, factor, both, options.to)
        if both:
            pair.region()
        yield pair


def _scene(
    stack: ExitStack, image: Image, file: View, options: SceneOptions, model: ModelConfig, grid: GeoBox | None
) -> Scene:
    """A file on a grid, with a margin around it, or as it is where there is no grid or it has the same one."""
    own, what = grid_of(file), f"{NAMES[image]} {file.name}"
    if image == "sar":
        bands = bands_of(file, image, options.sar_bands, model.sar_channels)
        scaling = sar_scaling(sample_values(file, bands, what), bands, options.sar_units, what)
    else:
        bands = bands_of(file, image, options.optical_bands, model.optical_channels)
        scaling = optical_scaling(sample_values(file, bands, what), options.optical_units, what)
    if grid is None or _same(own, grid):
        return Scene(file, own, file, (0, 0), bands, scaling)
    outer = grid.pad(MARGIN)
    place = {"crs": grid.crs, "transform": outer.affine, "width": outer.width, "height": outer.height}
    view = warped(stack, file, file.name, **place)
    return Scene(file, own, view, (-MARGIN, -MARGIN), bands, scaling)


def _same(first: GeoBox, second: GeoBox) -> bool:
    """Whether the px (0, 0) and the size of px of two grids agree to a millionth of a px."""
    ends = np.array([[0.0, 0.0], [1e3, 0.0], [0.0, 1e3]])
    return first.crs == second.crs and bool(np.abs(between(first, second, ends) - ends).max() < 1e-3)
