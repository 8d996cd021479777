"""A SAR and an optical scene on one grid, read window by window and warped on the fly.

The reference gives the grid; px are made larger by a whole factor where the other image is coarser, since a matcher
gains nothing from px that show nothing. Where either image has no place on the ground, px are taken to be of one size
and the displacement to be unknown.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import RED_GREEN_BLUE, Raster, open_raster, require_whole_png
from sarmatch.data.units import OpticalUnits, SarUnits, Scaling, optical_scaling, sar_scaling
from sarmatch.registration import RegistrationError
from sarmatch.scenes.grids import GDAL_ERRORS, Grid, Region, extent, scale_ratio

Image = Literal["sar", "optical"]
MARGIN = 1024
"""Px around the grid of the reference that the other image can be read from: more than any search radius."""
MAX_BLOCK_BYTES = 2**30
"""Larger blocks of a file (one strip that holds the whole image) cannot be read within bounded memory."""
MAX_SIDE = 500_000
"""Longer sides are taken for a broken header, px: ten times the longest Sentinel-1 strip."""
MIN_OVERLAP_PX = 48
"""Shorter sides of the common ground hold nothing to match."""
SAMPLE_SIDE = 128


class SceneRefusal(RegistrationError):
    """Files that can be read, but show nothing in common: no overlap, no data, or matches that do not agree."""


@dataclass(frozen=True)
class SceneOptions:
    """What a user may say of two scenes.

    Attributes:
        to: whose grid counts; the other image is the one that moves.
        sar_bands, optical_bands: zero-based; None takes the first SAR bands, and red, green and blue.
        sar_units, optical_units: None tells them from samples.
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
    """An open image, seen through the common grid.

    Attributes:
        dataset: the file.
        image: which of the two it is.
        own: the grid of the file.
        view: what is read: the file itself, or it warped; its px (0, 0) is px `origin` of the common grid.
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
        values, valid = _read(self.view, self.bands, window, self.dataset.name, **size)
        image = torch.from_numpy(np.where(valid, self.scaling(values), np.float32(0)))
        inner = np.s_[top : height - top or None, left : width - left or None]
        return Raster(image[:, *inner], torch.from_numpy(valid[inner]), None, None)

    def values(self, region: Region) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a window as stored, (C, H, W), and where they are valid, (H, W)."""
        seen = region.intersection(self.extent)
        values = np.zeros((len(self.bands), region.height, region.width), self.view.dtypes[self.bands[0]])
        valid = np.zeros(values.shape[1:], bool)
        if seen.width and seen.height:
            window = Window(seen.x - self.origin[0], seen.y - self.origin[1], seen.width, seen.height)
            left, top = seen.x - region.x, seen.y - region.y
            at = np.s_[top : top + seen.height, left : left + seen.width]
            values[:, *at], valid[at] = _read(self.view, self.bands, window, self.dataset.name)
        if self.scaling.units == "reflectance":
            valid &= (values != 0).any(axis=0)  # Sentinel-2's nodata
        return values, valid


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes on one grid.

    Attributes:
        grid: the common grid; `factor` px of the reference wide.
        located: whether both images have a place on the ground; if not, the displacement is unknown.
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
        """What both images may show where the moving one is displaced by `shift` px.

        Raises:
            SceneRefusal: too little for a single match.
        """
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
    """Open two rasters and decide their common grid; nothing but small samples is read.

    Args:
        sar, optical: paths or open rasterio datasets.
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
        files = {"sar": _opened(stack, sar, "SAR image"), "optical": _opened(stack, optical, "optical image")}
        bands = {
            "sar": _sar_bands(files["sar"], options, sar_channels),
            "optical": _optical_bands(files["optical"], options, optical_channels),
        }
        own = {name: Grid(f.width, f.height, _transform(f), f.crs) for name, f in files.items()}
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


def _opened(stack: ExitStack, source: str | Path | DatasetReader, what: str) -> DatasetReader:
    if isinstance(source, str | Path) and Path(source).is_dir():
        raise PairError(f"{what} {source}: a folder; give the raster file in it")
    dataset = stack.enter_context(open_raster(source, what))
    name = f"{what} {dataset.name}"
    if dataset.driver == "PNG":
        require_whole_png(dataset.name, what)
    if dataset.count == 0:
        raise PairError(f"{name}: no bands; a container of subdatasets? name one of them")
    if max(dataset.width, dataset.height) > MAX_SIDE:
        raise PairError(
            f"{name}: {dataset.width} x {dataset.height} px are more than {MAX_SIDE} px a side; a broken header?"
        )
    rows, columns = dataset.block_shapes[0]
    if rows * columns * np.dtype(_dtype(dataset, name)).itemsize > MAX_BLOCK_BYTES:
        raise PairError(
            f"{name}: its blocks of {columns} x {rows} px must be read as a whole; tile it first "
            "(gdal_translate -co TILED=YES)"
        )
    if dataset.gcps[0] and _transform(dataset) is None:
        crs = dataset.gcps[1]
        if crs is None:
            return dataset
        # Raw products carry ground control points; their own default warp is a grid as any other.
        options = {"crs": crs, "src_crs": crs, "resampling": Resampling.bilinear, **_alpha(dataset)}
        try:
            return stack.enter_context(WarpedVRT(dataset, **options))
        except GDAL_ERRORS as error:
            raise PairError(f"{name}: its ground control points make no grid ({error}); warp it first") from error
    return dataset


def _dtype(dataset: DatasetReader, name: str) -> str:
    dtype = str(dataset.dtypes[0])
    if dtype.startswith("complex"):
        raise PairError(f"{name}: complex values (single look complex); detect it first, take the amplitude |z|")
    return dtype


def _transform(dataset: DatasetReader) -> Affine | None:
    transform = dataset.transform
    if transform.is_identity or transform.determinant == 0 or not np.isfinite(list(transform)).all():
        return None
    return transform


def _color_bands(dataset: DatasetReader) -> list[int]:
    return [i for i, meaning in enumerate(dataset.colorinterp) if meaning != ColorInterp.alpha]


def _sar_bands(dataset: DatasetReader, options: SceneOptions, channels: int) -> tuple[int, ...]:
    _dtype(dataset, f"SAR image {dataset.name}")
    if options.sar_bands is not None:
        return _existing(options.sar_bands, dataset, "SAR image", channels)
    bands = _color_bands(dataset)
    if len(bands) >= 3 and (len(bands) != 3 or _differ(dataset, bands)):
        raise PairError(
            f"SAR image {dataset.name}: {len(bands)} bands look like an optical image; the order is SAR, then "
            "optical, or choose bands (sar_bands)"
        )
    return _existing(tuple(bands[:channels]), dataset, "SAR image", channels)


def _optical_bands(dataset: DatasetReader, options: SceneOptions, channels: int) -> tuple[int, ...]:
    _dtype(dataset, f"optical image {dataset.name}")
    if options.optical_bands is not None:
        return _existing(options.optical_bands, dataset, "optical image", channels)
    bands = _color_bands(dataset)
    if channels == 3 and len(bands) in (12, 13):
        bands = list(RED_GREEN_BLUE)
    elif channels == 3 and len(bands) in (1, 2):
        bands = bands[:1] * 3  # a grey image
    return _existing(tuple(bands[:channels]), dataset, "optical image", channels)


def _existing(bands: Sequence[int], dataset: DatasetReader, what: str, channels: int) -> tuple[int, ...]:
    if len(bands) != channels or not all(0 <= band < dataset.count for band in bands):
        raise PairError(
            f"{what} {dataset.name}: {channels} bands among {dataset.count} are needed, counted from 0; got "
            f"{tuple(bands)}; choose them (sar_bands, optical_bands)"
        )
    return tuple(bands)


def _differ(dataset: DatasetReader, bands: Sequence[int]) -> bool:
    """Whether three bands are more than one grey image stored as colours."""
    for window in _sample_windows(dataset.width, dataset.height):
        values, _ = _read(dataset, bands, window, dataset.name)
        if (values != values[:1]).any():
            return True
    return False


def _alpha(dataset: DatasetReader) -> dict[str, bool]:
    """Warping knows what lies outside by nodata, else by an alpha band, which has to be added where there is none."""
    return {} if dataset.nodata is not None or _has_alpha(dataset) else {"add_alpha": True}


def _has_alpha(dataset: DatasetReader) -> bool:
    return ColorInterp.alpha in dataset.colorinterp


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
        view = WarpedVRT(
            dataset, crs=grid.crs, transform=transform, resampling=Resampling.bilinear, **size, **_alpha(dataset)
        )
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
    sample = _sample(dataset, bands, what)
    if image == "sar":
        scaling = sar_scaling(sample, bands, options.sar_units, what)
    else:
        scaling = optical_scaling(sample, options.optical_units, what)
    return Scene(dataset, "sar" if image == "sar" else "optical", own, view, origin, bands, scaling)


def _sample(dataset: DatasetReader, bands: Sequence[int], what: str) -> np.ndarray:
    """Valid values (C, N) of windows spread over the image.

    Raises:
        SceneRefusal: there are none, or all are one.
    """
    parts = []
    for window in _sample_windows(dataset.width, dataset.height):
        values, valid = _read(dataset, bands, window, dataset.name)
        parts.append(values[:, valid])
    sample = np.concatenate(parts, axis=1)
    if not sample.shape[1]:
        raise SceneRefusal(f"{what}: no valid pixel, all are nodata or NaN; there is nothing to match")
    if (sample.min(axis=1) == sample.max(axis=1)).all():
        raise SceneRefusal(f"{what}: constant ({sample.flat[0]}), there is nothing to match")
    return sample


def _sample_windows(width: int, height: int, n: int = 4) -> Iterator[Window]:
    side = (min(width, SAMPLE_SIDE), min(height, SAMPLE_SIDE))
    for y in sorted({round(v) for v in np.linspace(0, height - side[1], n)}):
        for x in sorted({round(v) for v in np.linspace(0, width - side[0], n)}):
            yield Window(x, y, *side)


def _read(
    view: DatasetReader | WarpedVRT, bands: Sequence[int], window: Window, name: str, **size: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, H, W) of a window and the mask of its valid px, (H, W)."""
    try:
        values = view.read([band + 1 for band in bands], window=window, **size)
        if ColorInterp.alpha in view.colorinterp:
            valid = view.dataset_mask(window=window, **size) > 0  # GDAL itself sees an alpha band in 2 and 4 bands only
        else:
            valid = (view.read_masks([band + 1 for band in bands], window=window, **size) > 0).all(axis=0)
    except GDAL_ERRORS as error:
        raise PairError(f"{name}: truncated or not a raster ({error}); fetch it again") from error
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    return values, valid
