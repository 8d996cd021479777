"""The registered raster: the moving image on the reference's grid, block by block, resampled once from the original."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window
from scipy.interpolate import make_interp_spline
from tqdm import tqdm

from sarmatch.io import atomic_path
from sarmatch.scenes.grids import GDAL_ERRORS, Region, coarser
from sarmatch.scenes.settings import Interpolation
from sarmatch.scenes.transforms import CE90

BLOCK = 512  #: Side of the blocks that are resampled and written at once, px.
NODE_STEP = 16  #: Positions are computed at every 16th px and interpolated between, as gdalwarp approximates.
RESAMPLING = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}

Mapping = Callable[[np.ndarray], np.ndarray]


def write_registered(
    path: str | os.PathLike[str],
    moving: DatasetReader,
    grid: GeoBox,
    to_moving: Mapping,
    tags: dict[str, str],
    resampling: Interpolation = "bilinear",
    progress: bool = True,
) -> None:
    """Write the moving image on a grid as a cloud-optimised GeoTIFF; an existing file is replaced in one step.

    Kept of the moving image: dtype, nodata, tags, descriptions, colours and units of bands. Where it has no nodata, a
    mask in the file marks px without data. `to_moving` takes px (N, 2) of the grid to px of the moving image's file.
    """
    profile = _profile(grid, moving.count, moving.dtypes[0]) | {"nodata": moving.nodata, "bigtiff": "if_safer"}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    with _replaced(path) as final:
        working = final.with_name(f"{final.stem}.work.tif")
        try:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=128):
                with rasterio.open(working, "w", **profile) as target:
                    _describe(target, moving, tags)
                    windows = [window for _, window in target.block_windows(1)]
                    for window in tqdm(windows, desc="resampling", unit="block", disable=None if progress else True):
                        values, valid = resample(moving, to_moving, Region(*window.flatten()), resampling)
                        target.write(values, window=window)
                        if moving.nodata is None and ColorInterp.alpha not in moving.colorinterp:
                            target.write_mask(valid, window=window)
                # The driver cannot write block by block; it copies block by block, with overviews.
                rasterio.shutil.copy(working, final, driver="COG", compress="deflate", bigtiff="if_safer")
        finally:
            working.unlink(missing_ok=True)


def _profile(grid: GeoBox, count: int, dtype: str) -> dict[str, Any]:
    profile = {"driver": "GTiff", "width": grid.width, "height": grid.height, "crs": grid.crs, "count": count}
    return profile | {"dtype": dtype, "compress": "deflate", "transform": grid.affine}


@contextmanager
def _replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic_path`; errors of GDAL become OSError."""
    try:
        with atomic_path(path) as partial:
            yield partial
    except GDAL_ERRORS as error:
        raise OSError(f"cannot write {path} ({error}); is the disk full?") from error


def _describe(target: DatasetWriter, moving: DatasetReader, tags: dict[str, str]) -> None:
    kept = {name: value for name, value in moving.tags().items() if name != "AREA_OR_POINT"}
    target.update_tags(**kept, **tags)
    for band in moving.indexes:
        target.update_tags(band, **moving.tags(band))
    target.descriptions = [name or "" for name in moving.descriptions]
    target.units = [unit or "" for unit in moving.units]
    target.scales, target.offsets = moving.scales, moving.offsets
    target.colorinterp = moving.colorinterp


def resample(
    moving: DatasetReader, to_moving: Mapping, block: Region, resampling: Interpolation = "bilinear"
) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, H, W) of the moving image under a block of the grid, nodata where it shows nothing, and the mask."""
    xy = _positions(to_moving, block)
    fill = 0 if moving.nodata is None else moving.nodata
    out = np.full((moving.count, block.height, block.width), fill, moving.dtypes[0])
    finite = xy[np.isfinite(xy).all(-1)]
    part = Region.enclosing(finite, 2, 4) if len(finite) else Region(0, 0, 0, 0)
    part = part.intersection(Region(0, 0, moving.width, moving.height))
    if not (part.width and part.height):
        return out, np.zeros(out.shape[1:], bool)
    # A coarser grid shows averages, not every n-th px.
    step = max(1, int(np.nanmedian(np.linalg.norm(np.diff(xy, axis=1), axis=-1)) + 0.25)) if block.width > 1 else 1
    shape, window = (max(part.height // step, 1), max(part.width // step, 1)), Window(*part)
    reduced = Resampling.average if step > 1 and resampling != "nearest" else Resampling.nearest
    values = moving.read(window=window, out_shape=(moving.count, *shape), resampling=reduced)
    known = (moving.read_masks(window=window, out_shape=values.shape) > 0).all(axis=0)
    if np.issubdtype(values.dtype, np.floating):
        known &= np.isfinite(values).all(axis=0)
    ratio = np.array([part.width / shape[1], part.height / shape[0]])
    local = ((xy + 0.5 - part[:2]) / ratio - 0.5).astype(np.float32)
    local[~np.isfinite(local).all(-1)] = -1e6
    x, y = cv2.split(local)
    share = cv2.remap(known.astype(np.float64), x, y, RESAMPLING[resampling])
    shown = share > (0.5 if resampling != "cubic" else 0.999)
    for band, plane in enumerate(values):
        # Px without data do not blend into their neighbours.
        moved = cv2.remap(np.where(known, plane, 0).astype(np.float64), x, y, RESAMPLING[resampling])
        if resampling == "bilinear":
            moved = moved / np.maximum(share, 1e-6)
        if np.issubdtype(out.dtype, np.integer):
            limits = np.iinfo(out.dtype)
            moved = np.clip(np.round(moved), limits.min, limits.max)
        out[band][shown] = moved[shown]
    return out, shown


def _positions(to_moving: Mapping, block: Region) -> np.ndarray:
    """Where each px of a block lies in the moving image, (H, W, 2) float64."""
    columns, rows = (np.arange(0, n + NODE_STEP, NODE_STEP, dtype=np.float64) for n in (block.width, block.height))
    nodes = np.stack(np.meshgrid(columns + block.x, rows + block.y), -1)
    there = to_moving(nodes.reshape(-1, 2)).reshape(nodes.shape)
    for axis, (at, n) in enumerate(((rows, block.height), (columns, block.width))):
        spline = make_interp_spline(at, there, k=1, axis=axis, check_finite=False)
        there = spline(np.arange(n))
    return there


def write_error_map(path: str | os.PathLike[str], grid: GeoBox, sigma_px: Mapping, metres_per_px: float | None) -> None:
    """Write the map of the registration error: standard deviation an axis, and CE90, both in metres (px where unknown).

    `sigma_px` takes px (N, 2) of the grid to standard deviations (N,) in px; a px of the map is 32 px wide.
    """
    step = 32 if min(grid.shape) >= 64 else 1
    coarse = coarser(grid, step)
    centres = (np.stack(np.meshgrid(np.arange(coarse.width), np.arange(coarse.height)), -1) + 0.5) * step - 0.5
    sigma = sigma_px(centres.reshape(-1, 2)).reshape(coarse.shape).astype(np.float32) * np.float32(metres_per_px or 1)
    with _replaced(path) as partial, rasterio.open(partial, "w", **_profile(coarse, 2, "float32")) as target:
        target.write(np.stack([sigma, sigma * CE90]))
        target.descriptions = ["registration error, sigma per axis", "registration error, CE90"]
        target.units = ["metre" if metres_per_px else "px"] * 2


def write_gcps(
    path: str | os.PathLike[str], reference: GeoBox, xy_reference: np.ndarray, xy_moving: np.ndarray
) -> None:
    """Ground control points for QGIS' georeferencer (`.points`) from (N, 2) px of the two files."""
    places = np.stack(reference.pix2wld(*(xy_reference + 0.5).T), 1)
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        if reference.crs is not None:
            file.write(f"#CRS: {reference.crs.proj.to_wkt('WKT1_GDAL', output_axis_rule=True)}\n")
        file.write("mapX,mapY,sourceX,sourceY,enable,dX,dY,residual\n")
        for (x, y), (column, row) in zip(places, np.asarray(xy_moving, np.float64) + 0.5, strict=True):
            file.write(f"{x:.6f},{y:.6f},{column:.4f},{-row:.4f},1,0,0,0\n")  # QGIS counts lines downwards from zero
