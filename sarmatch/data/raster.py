"""Reading rasters of any usual encoding as float32 in [0, 1] with a mask of valid pixels; `units` scales the values."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from torch import Tensor

from sarmatch.data.pairs import Pair, PairError
from sarmatch.data.units import scale_optical, scale_sar

RED_GREEN_BLUE = (3, 2, 1)  # zero-based bands B4, B3, B2 of a Sentinel-2 stack of 12 (L2A) or 13 bands (L1C)
GDAL_ERRORS = (RasterioError, CPLE_BaseError)  # some errors of GDAL come out of rasterio as they are

Source: TypeAlias = str | Path | DatasetReader


class Raster(NamedTuple):
    """An image on its grid."""

    image: Tensor  # (C, H, W) float32 in [0, 1]; 0 where not valid
    valid: Tensor  # (H, W) bool
    transform: Any = None  # rasterio's affine from pixel corners to map coordinates
    crs: str | None = None  # as rasterio prints it


def read_sar(source: Source, bands: Sequence[int] = (0,)) -> Raster:
    """Read SAR bands (zero-based; VV, or VV and VH) from a path or an open rasterio dataset.

    FileNotFoundError where there is no such file; PairError where it is broken, lacks a band, has an unknown encoding,
    or holds no image (nodata or constant).
    """
    values, known, *grid = _read(source, bands, "SAR image")
    return Raster(*scale_sar(values, bands, known, f"SAR image {source_name(source)}"), *grid)


def read_optical(source: Source, bands: Sequence[int] | None = None) -> Raster:
    """Read optical bands (zero-based) from a path or an open rasterio dataset; errors as in `read_sar`.

    `bands=None` takes red, green and blue: the first three bands, or `RED_GREEN_BLUE` of 12 or 13 bands.
    """
    values, known, *grid = _read(source, bands, "optical image")
    return Raster(*scale_optical(values, known, f"optical image {source_name(source)}"), *grid)


def load_sar(source: Any, channels: int) -> Raster:
    """A path or dataset as `read_sar` takes it, or an array or tensor as `scale_sar`; ValueError for other shapes."""
    bands = tuple(range(channels))
    if isinstance(source, Source):
        return read_sar(source, bands)
    return Raster(*scale_sar(_array(source, channels, "sar"), bands))


def load_optical(source: Any, channels: int) -> Raster:
    """A path or dataset as `read_optical` takes it, or an array or tensor as `scale_optical`, likewise."""
    if isinstance(source, Source):
        return read_optical(source, None if channels == 3 else tuple(range(channels)))
    return Raster(*scale_optical(_array(source, channels, "optical")))


def _array(source: Any, channels: int, name: str) -> np.ndarray:
    """Numbers of shape (channels, H, W), also from (H, W) or (H, W, channels)."""
    values = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"{name}: expected an array of numbers, a path or a dataset, got {type(source).__name__}")
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and values.shape[0] != channels == values.shape[-1]:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != channels:
        forms = f"({channels}, H, W) or (H, W, {channels}){', or (H, W)' if channels == 1 else ''}"
        raise ValueError(f"{name}: expected {forms}, got {np.shape(source)}")
    return values


def read_pair(
    sar: Source,
    optical: Source,
    id: str,
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] | None = None,
    **labels: str,
) -> Pair:
    """Read two partners of one grid; `labels` are dataset, scene, season and land_cover. Errors as in `read_sar`."""
    first, second = read_sar(sar, sar_bands), read_optical(optical, optical_bands)
    check_same_grid(first, second, source_name(sar), source_name(optical))
    valid = first.valid & second.valid
    if not bool(valid.any()):
        raise PairError(
            f"{source_name(sar)} and {source_name(optical)} have no valid pixel in common; choose overlapping images"
        )
    located = first if first.transform is not None else second
    return Pair(first.image, second.image, valid, id, transform=located.transform, crs=located.crs, **labels)


def check_same_grid(first: Raster, second: Raster, first_name: str, second_name: str) -> None:
    """Raise PairError unless two rasters have one size, CRS and geotransform (within half a pixel, where both have)."""
    names, remedy = f"{first_name} and {second_name}", "resample them to one grid first (gdalwarp -tr -te -t_srs)"
    if first.valid.shape != second.valid.shape:
        sizes = f"{tuple(first.valid.shape)} and {tuple(second.valid.shape)}"
        raise PairError(f"{names}: expected one height and width, got {sizes}; {remedy}")
    if first.crs and second.crs and first.crs != second.crs:
        raise PairError(f"{names}: expected one CRS, got {first.crs} and {second.crs}; {remedy}")
    if first.transform is None or second.transform is None:
        return
    height, width = first.valid.shape
    to_second = ~second.transform @ first.transform
    offset = max(math.dist(to_second @ corner, corner) for corner in product((0, width), (0, height)))
    if offset > 0.5:
        raise PairError(f"{names}: their grids differ by up to {offset:.1f} px, at most 0.5 px is expected; {remedy}")


@contextmanager
def open_raster(source: Source, what: str) -> Iterator[DatasetReader]:
    """The open dataset; errors of GDAL, also while reading, become FileNotFoundError or PairError."""
    path, remedy = Path(source_name(source)), "fetch it again"
    try:
        # Folders of patches hold thousands of files, which GDAL would list at each opening to look for side-cars.
        with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=True):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # PNG has no georeference, and need not
            given = isinstance(source, DatasetReader)
            opened: AbstractContextManager[Any] = nullcontext(source) if given else rasterio.open(source)
        with opened as dataset:
            if dataset.driver == "PNG" and path.is_file():  # of which GDAL 3.10 reads truncated ones without an error
                last = np.fromfile(path, np.uint8, offset=max(path.stat().st_size - 1024, 0)).tobytes()
                if b"IEND" not in last:
                    raise PairError(f"{what} {path}: truncated or not a raster (a PNG without end); {remedy}")
            yield dataset
    except RasterioError as error:
        if not path.exists():
            raise FileNotFoundError(f"{what} {path}: no such file; check the path") from error
        raise PairError(f"{what} {path}: truncated or not a raster ({error}); {remedy}") from error


def _read(source: Source, bands: Sequence[int] | None, what: str) -> tuple[np.ndarray, np.ndarray, Any, str | None]:
    """Values (C, H, W), mask (H, W), transform and CRS."""
    with open_raster(source, what) as dataset:
        if bands is None:
            bands = RED_GREEN_BLUE if dataset.count in (12, 13) else (0, 1, 2)
        if not bands or not all(0 <= band < dataset.count for band in bands):
            found = f"(counted from 0), the file has {dataset.count}; choose others (sar_bands, optical_bands)"
            raise PairError(f"{what} {source_name(source)}: expected the bands {tuple(bands)} {found}")
        transform = None if dataset.transform.is_identity else dataset.transform
        return *read_window(dataset, bands), transform, str(dataset.crs) if dataset.crs else None


def read_window(
    view: DatasetReader | WarpedVRT, bands: Sequence[int], window: Window | None = None, **size: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, H, W) of a window and the mask of its valid px, (H, W)."""
    numbers = [band + 1 for band in bands]
    try:
        values = view.read(numbers, window=window, **size)
        if ColorInterp.alpha in view.colorinterp:
            valid = view.dataset_mask(window=window, **size) > 0  # GDAL itself finds alpha in 2 and 4 bands only
        else:
            valid = (view.read_masks(numbers, window=window, **size) > 0).all(axis=0)
    except GDAL_ERRORS as error:
        why = error.__cause__ or error
        raise PairError(f"{view.name}: truncated or not a raster ({why}); fetch it again") from error
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    return values, valid


def source_name(source: Source) -> str:
    return source.name if isinstance(source, DatasetReader) else str(source)
