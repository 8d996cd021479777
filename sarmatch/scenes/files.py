"""One file of a scene: opened, its bands chosen, its windows read; errors are one line."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import GDAL_ERRORS, RED_GREEN_BLUE, open_raster, read_window
from sarmatch.matching.robust_fit import RegistrationError
from sarmatch.scenes.grids import grid_of
from sarmatch.scenes.settings import Image

View: TypeAlias = DatasetReader | WarpedVRT

NAMES: dict[Image, str] = {"sar": "SAR image", "optical": "optical image"}
MAX_BLOCK_BYTES = 2**30  #: Larger blocks (one strip that holds all) cannot be read within bounded memory.
MAX_SIDE = 500_000  #: Longer sides are taken for a broken header, px: ten times the longest Sentinel-1 strip.


class SceneRefusal(RegistrationError):
    """Files that can be read, but show nothing in common: no overlap, no data, or matches that do not agree."""


def opened(stack: ExitStack, source: str | Path | DatasetReader, image: Image) -> View:
    """A file that can be read window by window; one with ground control points on the grid that these make."""
    what = NAMES[image]
    if isinstance(source, str | Path) and Path(source).is_dir():
        raise PairError(f"{what} {source}: a folder; give the raster file in it")
    dataset = stack.enter_context(open_raster(source, what))
    name = f"{what} {dataset.name}"
    if dataset.count == 0:
        raise PairError(f"{name}: no bands; a container of subdatasets? name one of them")
    if max(dataset.shape) > MAX_SIDE:
        raise PairError(f"{name}: {max(dataset.shape)} px are more than {MAX_SIDE} px a side; a broken header?")
    if dataset.dtypes[0].startswith("complex"):
        raise PairError(f"{name}: complex values (single look complex); detect it first, take the amplitude |z|")
    rows, columns = dataset.block_shapes[0]
    if rows * columns * np.dtype(dataset.dtypes[0]).itemsize > MAX_BLOCK_BYTES:
        remedy = "tile it first (gdal_translate -co TILED=YES)"
        raise PairError(f"{name}: its blocks of {columns} x {rows} px must be read as a whole; {remedy}")
    points, crs = dataset.gcps
    if points and crs is not None and grid_of(dataset).affine.is_identity:  # a raw product
        return warped(stack, dataset, f"{name} by its ground control points", crs=crs, src_crs=crs)
    return dataset


def warped(stack: ExitStack, dataset: DatasetReader, name: str, **grid: Any) -> WarpedVRT:
    """A file read through a warp."""
    if dataset.nodata is None and ColorInterp.alpha not in dataset.colorinterp:
        grid["add_alpha"] = True  # what lies outside is known by nodata, else by an alpha band
    try:
        return stack.enter_context(WarpedVRT(dataset, resampling=Resampling.bilinear, **grid))
    except (*GDAL_ERRORS, ValueError) as error:
        raise PairError(f"{name}: cannot be warped to {grid['crs']} ({error}); warp it first") from error


def bands_of(view: View, image: Image, wanted: Sequence[int] | None, channels: int) -> tuple[int, ...]:
    """Zero-based bands to read: those wanted; else the first of SAR, or red, green and blue."""
    name, bands = f"{NAMES[image]} {view.name}", wanted
    if bands is None:
        bands = [i for i, meaning in enumerate(view.colorinterp) if meaning != ColorInterp.alpha]
        grey = len(bands) == 3 and all((values == values[:1]).all() for values, _ in _samples(view, bands))
        if image == "sar" and len(bands) >= 3 and not grey:  # a grey image may be stored as colours
            raise PairError(
                f"{name}: {len(bands)} bands look like an optical image; the order is SAR, then optical, or choose "
                "bands (sar_bands)"
            )
        if image == "optical" and channels == 3 and len(bands) in (12, 13):
            bands = RED_GREEN_BLUE
        elif image == "optical" and channels == 3 and len(bands) in (1, 2):
            bands = bands[:1] * 3  # a grey image
        bands = bands[:channels]
    if len(bands) != channels or not all(0 <= band < view.count for band in bands):
        raise PairError(
            f"{name}: {channels} bands among {view.count} are needed, counted from 0; got {tuple(bands)}; choose them "
            "(sar_bands, optical_bands)"
        )
    return tuple(bands)


def sample_values(view: View, bands: Sequence[int], what: str) -> np.ndarray:
    """Valid values (C, N) of windows spread over the image; SceneRefusal where there are none, or all are one."""
    sample = np.concatenate([values[:, valid] for values, valid in _samples(view, bands)], axis=1)
    if not sample.shape[1]:
        raise SceneRefusal(f"{what}: no valid pixel, all are nodata or NaN; there is nothing to match")
    if (sample.min(axis=1) == sample.max(axis=1)).all():
        raise SceneRefusal(f"{what}: constant ({sample.flat[0]}), there is nothing to match")
    return sample


def _samples(view: View, bands: Sequence[int], n: int = 4, side: int = 128) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    width, height = min(view.width, side), min(view.height, side)
    for y in sorted({round(v) for v in np.linspace(0, view.height - height, n)}):
        for x in sorted({round(v) for v in np.linspace(0, view.width - width, n)}):
            yield read_window(view, bands, Window(x, y, width, height))
