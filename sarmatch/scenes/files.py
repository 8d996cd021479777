"""One file of a scene: opened, its bands chosen, its windows read; errors are one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import RED_GREEN_BLUE, open_raster
from sarmatch.matching.robust_fit import RegistrationError
from sarmatch.scenes.grids import GDAL_ERRORS

MAX_BLOCK_BYTES = 2**30
"""Larger blocks of a file (one strip that holds the whole image) cannot be read within bounded memory."""
MAX_SIDE = 500_000
"""Longer sides are taken for a broken header, px: ten times the longest Sentinel-1 strip."""
SAMPLE_SIDE = 128
"""Side of the windows that units are guessed from, px."""


class SceneRefusal(RegistrationError):
    """Files that can be read, but show nothing in common: no overlap, no data, or matches that do not agree."""


def opened(stack: ExitStack, source: str | Path | DatasetReader, what: str) -> DatasetReader:
    if isinstance(source, str | Path) and Path(source).is_dir():
        raise PairError(f"{what} {source}: a folder; give the raster file in it")
    dataset = stack.enter_context(open_raster(source, what))
    name = f"{what} {dataset.name}"
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
    if dataset.gcps[0] and transform_of(dataset) is None:
        crs = dataset.gcps[1]
        if crs is None:
            return dataset
        # Raw products carry ground control points; their own default warp is a grid as any other.
        options = {"crs": crs, "src_crs": crs, "resampling": Resampling.bilinear, **outside_options(dataset)}
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


def transform_of(dataset: DatasetReader) -> Affine | None:
    transform = dataset.transform
    if transform.is_identity or transform.determinant == 0 or not np.isfinite(list(transform)).all():
        return None
    return transform


def _color_bands(dataset: DatasetReader) -> list[int]:
    return [i for i, meaning in enumerate(dataset.colorinterp) if meaning != ColorInterp.alpha]


def sar_bands_of(dataset: DatasetReader, wanted: Sequence[int] | None, channels: int) -> tuple[int, ...]:
    _dtype(dataset, f"SAR image {dataset.name}")
    if wanted is not None:
        return _existing(wanted, dataset, "SAR image", channels)
    bands = _color_bands(dataset)
    if len(bands) >= 3 and (len(bands) != 3 or _differ(dataset, bands)):
        raise PairError(
            f"SAR image {dataset.name}: {len(bands)} bands look like an optical image; the order is SAR, then "
            "optical, or choose bands (sar_bands)"
        )
    return _existing(tuple(bands[:channels]), dataset, "SAR image", channels)


def optical_bands_of(dataset: DatasetReader, wanted: Sequence[int] | None, channels: int) -> tuple[int, ...]:
    _dtype(dataset, f"optical image {dataset.name}")
    if wanted is not None:
        return _existing(wanted, dataset, "optical image", channels)
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
        values, _ = read_window(dataset, bands, window, dataset.name)
        if (values != values[:1]).any():
            return True
    return False


def outside_options(dataset: DatasetReader) -> dict[str, bool]:
    """Warping knows what lies outside by nodata, else by an alpha band, which has to be added where there is none."""
    known = dataset.nodata is not None or ColorInterp.alpha in dataset.colorinterp
    return {} if known else {"add_alpha": True}


def sample_values(dataset: DatasetReader, bands: Sequence[int], what: str) -> np.ndarray:
    """Valid values (C, N) of windows spread over the image; SceneRefusal where there are none, or all are one."""
    parts = []
    for window in _sample_windows(dataset.width, dataset.height):
        values, valid = read_window(dataset, bands, window, dataset.name)
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


def read_window(
    view: DatasetReader | WarpedVRT, bands: Sequence[int], window: Window, name: str, **size: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, H, W) of a window and the mask of its valid px, (H, W)."""
    try:
        values = view.read([band + 1 for band in bands], window=window, **size)
        if ColorInterp.alpha in view.colorinterp:
            valid = view.dataset_mask(window=window, **size) > 0  # GDAL itself finds alpha in 2 and 4 bands only
        else:
            valid = (view.read_masks([band + 1 for band in bands], window=window, **size) > 0).all(axis=0)
    except GDAL_ERRORS as error:
        raise PairError(f"{name}: truncated or not a raster ({error.__cause__ or error}); fetch it again") from error
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    return values, valid
