"""Reading rasters: from a file of any usual encoding to float32 in [0, 1] with a mask of valid pixels.

How values are scaled (section 4.1 of the paper only says "normalizing pixel values to [0, 1]"):

* 8-bit images of either sensor: divided by 255.
* SAR in dB: clipped and scaled linearly, VV from [-25, 0] dB and VH from [-32.5, -5] dB (after Meraner et al. 2020,
  DSen2-CR, who end VH at 0 dB, which few cross-polarised pixels come near).
* Optical reflectance times 10,000 (Sentinel-2's integers): clipped at 10,000, then the tone curve x (1 + k) / (x + k)
  with k = 0.3, which spreads the low reflectances of land and saturates nothing.
* Floating point that already lies in [0, 1]: taken as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from torch import Tensor

from sarmatch.data.pairs import INDEX_COLUMNS, Pair, PairError

SAR_RANGES_DB = ((-25.0, 0.0), (-32.5, -5.0))  # backscatter that maps to 0 and 1, for VV (band 0) and VH (band 1)
REFLECTANCE_SCALE = 10_000
REFLECTANCE_KNEE = 0.3  # k of the tone curve
RED_GREEN_BLUE = (3, 2, 1)  # zero-based bands B4, B3, B2 of a Sentinel-2 stack of 12 (L2A) or 13 bands (L1C)

Source: TypeAlias = str | Path | DatasetReader


class Raster(NamedTuple):
    """An image on its grid: `image` (C, H, W) float32 in [0, 1], 0 where not `valid` (H, W) bool; `transform` (affine
    from pixel corners to map coordinates) and `crs` (as rasterio prints it) are None where the file has none.
    """

    image: Tensor
    valid: Tensor
    transform: Any
    crs: str | None


def read_sar(source: Source, bands: Sequence[int] = (0,)) -> Raster:
    """Read SAR bands (zero-based; VV, or VV and VH) from a path or an open rasterio dataset.

    Raises:
        FileNotFoundError: there is no such file.
        PairError: the file is broken, lacks a band, has an unknown encoding, or holds no image (nodata or constant).
    """
    values, known, *grid = _read(source, bands, "SAR image")
    return Raster(*scale_sar(values, bands, known, what=f"SAR image {_name(source)}"), *grid)


def read_optical(source: Source, bands: Sequence[int] | None = None) -> Raster:
    """Read optical bands (zero-based) from a path or an open rasterio dataset; errors as in `read_sar`.

    `bands=None` takes red, green and blue: the first three bands, or `RED_GREEN_BLUE` of 12 or 13 bands.
    """
    values, known, *grid = _read(source, bands, "optical image")
    return Raster(*scale_optical(values, known, what=f"optical image {_name(source)}"), *grid)


def read_pair(
    sar: Source,
    optical: Source,
    id: str,
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] | None = None,
    **labels: str,
) -> Pair:
    """Read two partners of one grid; `labels` are dataset, scene, season and land_cover.

    Raises:
        FileNotFoundError, PairError: as `read_sar` and `check_same_grid`; no pixel is valid in both.
    """
    first, second = read_sar(sar, sar_bands), read_optical(optical, optical_bands)
    check_same_grid(first, second, _name(sar), _name(optical))
    valid = first.valid & second.valid
    if not bool(valid.any()):
        raise PairError(f"{_name(sar)} and {_name(optical)} have no valid pixel in common; choose overlapping images")
    located = first if first.transform is not None else second
    return Pair(first.image, second.image, valid, id, transform=located.transform, crs=located.crs, **labels)


def read_row(
    row: pd.Series, *, root: Path, sar_bands: Sequence[int], optical_bands: Sequence[int] | None = None
) -> Pair:
    """The pair of a row of an index that has the paths `sar` and `optical`, relative to `root`, besides the labels."""
    labels = {name: row[name] for name in INDEX_COLUMNS}
    return read_pair(
        root / row["sar"], root / row["optical"], sar_bands=sar_bands, optical_bands=optical_bands, **labels
    )


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
    to_map, to_second = (np.array(raster.transform).reshape(3, 3) for raster in (first, second))
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    offset = np.hypot(*(np.linalg.solve(to_second, to_map @ corners) - corners)[:2]).max()
    if offset > 0.5:
        raise PairError(f"{names}: their grids differ by up to {offset:.1f} px, at most 0.5 px is expected; {remedy}")


def scale_sar(
    values: np.ndarray, bands: Sequence[int] = (0,), valid: np.ndarray | None = None, what: str = "SAR image"
) -> tuple[Tensor, Tensor]:
    """Scale SAR values (C, H, W) in 8 bits, dB or [0, 1] to [0, 1]; image (C, H, W) float32 and valid (H, W) bool.

    Floating point counts as dB where most of its valid pixels are negative; NaN and infinity become invalid.

    Args:
        bands: which range of `SAR_RANGES_DB` each channel takes.
        valid: (H, W) bool, the pixels known to be valid; None is all.
        what: name of the image in errors.

    Raises:
        PairError: other dtype or value range, no valid pixel, or constant.
    """
    valid, known = _known(values, valid, what)
    if values.dtype == np.uint8:
        return _finish(values, valid, 1 / 255)
    if not np.issubdtype(values.dtype, np.floating):
        raise PairError(f"{what}: expected uint8 or floating point (dB), got {values.dtype}; calibrate it to dB first")
    if mostly_negative(known):
        low, high = np.array([SAR_RANGES_DB[min(band, 1)] for band in bands], np.float32).T[..., None, None]
        scaled = values.astype(np.float32)
        scaled -= low
        scaled /= high - low
        return _finish(np.clip(scaled, 0, 1, out=scaled), valid)
    if known.min() < 0 or known.max() > 1:
        raise PairError(
            f"{what}: expected dB (mostly negative) or values in [0, 1], got [{known.min():.3g}, {known.max():.3g}]; "
            "convert linear backscatter with 10 log10"
        )
    return _finish(values.astype(np.float32), valid)


def scale_optical(
    values: np.ndarray, valid: np.ndarray | None = None, what: str = "optical image"
) -> tuple[Tensor, Tensor]:
    """Scale optical values (C, H, W) in 8 bits, reflectance x 10,000 or [0, 1] to [0, 1]; image float32 and valid bool.

    Integers of 16 bits, where 0 in all bands is nodata, and floating point above 100 are reflectance times 10,000.
    Errors as of `scale_sar`.
    """
    integer = values.dtype in (np.uint16, np.int16)
    if integer:
        filled = (values != 0).any(axis=0)
        valid = filled if valid is None else valid & filled
    valid, known = _known(values, valid, what)
    if values.dtype == np.uint8:
        return _finish(values, valid, 1 / 255)
    if not integer and not np.issubdtype(values.dtype, np.floating):
        raise PairError(
            f"{what}: expected uint8, uint16, int16 or floating point, got {values.dtype}; convert it first"
        )
    if integer or known.max() > 100:
        reflectance = np.clip(values, 0, REFLECTANCE_SCALE).astype(np.float32)
        reflectance /= REFLECTANCE_SCALE
        scaled = reflectance / (reflectance + REFLECTANCE_KNEE)
        scaled *= 1 + REFLECTANCE_KNEE
        return _finish(scaled, valid)
    if known.min() < 0 or known.max() > 1:
        raise PairError(
            f"{what}: expected floating point in [0, 1] or reflectance x {REFLECTANCE_SCALE}, got "
            f"[{known.min():.3g}, {known.max():.3g}]; multiply reflectance by {REFLECTANCE_SCALE} or clip it"
        )
    return _finish(values.astype(np.float32), valid)


def mostly_negative(values: np.ndarray) -> bool:
    """Whether more than half of the values are negative, as backscatter in dB is."""
    return bool(np.count_nonzero(values < 0) * 2 > values.size)


def _known(values: np.ndarray, valid: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The mask without NaN and infinity, and the values under it; no value, or a constant, is an error."""
    if valid is None:
        valid = np.ones(values.shape[-2:], bool)
    if np.issubdtype(values.dtype, np.floating):
        valid = valid & np.isfinite(values).all(axis=0)
    if not valid.any():
        raise PairError(f"{what}: no valid pixel, all are nodata or NaN; leave the file out")
    known = values if valid.all() else values[:, valid]
    by_band = known.reshape(len(known), -1)
    if (by_band.min(axis=1) == by_band.max(axis=1)).all():
        raise PairError(f"{what}: constant ({known.flat[0]}), there is nothing to match; leave the file out")
    return valid, known


def _finish(values: np.ndarray, valid: np.ndarray, factor: float | None = None) -> tuple[Tensor, Tensor]:
    image, mask = torch.from_numpy(values).to(torch.float32), torch.from_numpy(valid)
    if factor is not None:
        image = image * factor
    return (image if valid.all() else torch.where(mask, image, 0.0)), mask


@contextmanager
def open_raster(source: Source, what: str) -> Iterator[DatasetReader]:
    """The open dataset; errors of GDAL, also while reading, become FileNotFoundError or PairError."""
    if isinstance(source, DatasetReader):
        yield source
        return
    try:
        # Folders of patches hold thousands of files, which GDAL would list at each opening to look for side-cars.
        with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=True):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # PNG has no georeference, and need not
            dataset = rasterio.open(source)
        with dataset:
            yield dataset
    except RasterioError as error:
        if not Path(source).exists():
            raise FileNotFoundError(f"{what} {source}: no such file; check the path") from error
        raise PairError(f"{what} {source}: truncated or not a raster ({error}); fetch it again") from error


def _read(source: Source, bands: Sequence[int] | None, what: str) -> tuple[np.ndarray, np.ndarray, Any, str | None]:
    with open_raster(source, what) as dataset:
        if bands is None:
            bands = RED_GREEN_BLUE if dataset.count in (12, 13) else (0, 1, 2)
        if not bands or not all(0 <= band < dataset.count for band in bands):
            raise PairError(
                f"{what} {_name(source)}: expected the bands {tuple(bands)} (counted from 0), the file has "
                f"{dataset.count}; choose others (sar_bands, optical_bands)"
            )
        if dataset.driver == "PNG":
            require_whole_png(dataset.name, what)
        values = dataset.read([band + 1 for band in bands])
        valid = _mask(dataset, values, [dataset.nodatavals[band] for band in bands])
        transform = None if dataset.transform.is_identity else dataset.transform
        return values, valid, transform, str(dataset.crs) if dataset.crs else None


def require_whole_png(path: str, what: str) -> None:
    """GDAL 3.10 reads a truncated PNG without an error and leaves the array as it was, so look for the final chunk."""
    if not Path(path).is_file():
        return  # within an archive or on a server
    with open(path, "rb") as file:
        file.seek(max(Path(path).stat().st_size - 1024, 0))
        if b"IEND" not in file.read():
            raise PairError(f"{what} {path}: truncated or not a raster (a PNG without end); fetch it again")


def _mask(dataset: DatasetReader, values: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray:
    """(H, W) bool from nodata values, alpha band or mask file; only the latter two have to be read besides."""
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.alpha in flags or (MaskFlags.per_dataset in flags and MaskFlags.all_valid not in flags):
        return dataset.dataset_mask() > 0
    valid = np.ones(values.shape[-2:], bool)
    for band, value in zip(values, nodata, strict=True):
        if value is not None and not np.isnan(value):
            valid &= band != value
    return valid


def load_sar(source: Any, channels: int) -> Raster:
    """An array or tensor (H, W) or (C, H, W) as `scale_sar` takes it, or a path or dataset; else ValueError."""
    if isinstance(source, str | Path | DatasetReader):
        return read_sar(source, tuple(range(channels)))
    values = _numpy(source)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] != channels:
        raise ValueError(f"sar: expected (H, W) or ({channels}, H, W), got {np.shape(source)}")
    return Raster(*scale_sar(values, tuple(range(channels))), None, None)


def load_optical(source: Any, channels: int) -> Raster:
    """An array or tensor (C, H, W) or (H, W, C) as `scale_optical` takes it, or a path or dataset, likewise."""
    if isinstance(source, str | Path | DatasetReader):
        return read_optical(source, None if channels == 3 else tuple(range(channels)))
    values = _numpy(source)
    if values.ndim == 3 and values.shape[0] != channels and values.shape[-1] == channels:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != channels:
        raise ValueError(f"optical: expected (H, W, {channels}) or ({channels}, H, W), got {np.shape(source)}")
    return Raster(*scale_optical(values), None, None)


def _numpy(source: Any) -> np.ndarray:
    values = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"expected an array of numbers, a path or an open rasterio dataset, got {type(source).__name__}"
        )
    return values


def _name(source: Source) -> str:
    return source.name if isinstance(source, DatasetReader) else str(source)
