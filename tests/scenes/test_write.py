"""Registered rasters keep what the moving image was, and a failure leaves what was there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from scene_files import TRANSFORM, UTM, texture, write

from sarmatch.scenes import write as writing
from sarmatch.scenes.grids import Region
from sarmatch.scenes.write import resample, write_error_map, write_gcps, write_registered

GRID = GeoBox((70, 90), TRANSFORM, UTM)


def moved_by(dx: float, dy: float) -> Any:
    return lambda xy: xy + np.array([dx, dy])


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", None), ("uint16", 0), ("int16", -9999), ("float32", np.nan), ("float64", -1.0), ("int32", None)],
)
def test_values_dtype_nodata_and_tags_are_kept(dtype: str, nodata: float | None, tmp_path: Path) -> None:
    values = np.stack([texture(70, 90), texture(70, 90, 1)]).astype(dtype)
    with rasterio.open(write(tmp_path / "moving.tif", values, nodata=nodata), "r+") as file:
        file.update_tags(SENSOR="S1", AREA="somewhere")
        file.set_band_description(1, "VV")
        file.set_band_unit(1, "dB")
    with rasterio.open(tmp_path / "moving.tif") as moving:
        write_registered(
            tmp_path / "out.tif", moving, GRID, moved_by(5, -3), {"SARMATCH_MODEL": "shift"}, progress=False
        )
    with rasterio.open(tmp_path / "out.tif") as done:
        assert done.crs == UTM and done.transform == TRANSFORM and done.shape == (70, 90)
        assert set(done.dtypes) == {dtype} and done.descriptions[0] == "VV" and done.units[0] == "dB"
        assert done.nodata == nodata or (nodata != nodata and np.isnan(done.nodata))
        assert {"SENSOR": "S1", "SARMATCH_MODEL": "shift"}.items() <= done.tags().items()
        assert done.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(done.read()[:, 3:, :85], values[:, :67, 5:])
        seen = done.dataset_mask() > 0
        assert seen[3:, :85].all() and not seen[:3].any() and not seen[:, 85:].any()


def test_an_alpha_band_tells_what_is_seen(tmp_path: Path) -> None:
    values = np.concatenate([np.stack([texture(70, 90).astype(np.uint8)] * 3), np.full((1, 70, 90), 255, np.uint8)])
    with rasterio.open(write(tmp_path / "a.tif", values, photometric="RGB", alpha="yes")) as moving:
        write_registered(tmp_path / "out.tif", moving, GRID, moved_by(30, 0), {}, progress=False)
    with rasterio.open(tmp_path / "out.tif") as done:
        assert done.count == 4 and not done.read(4)[:, 60:].any() and (done.read(4)[:, :60] == 255).all()


def test_px_without_data_do_not_blend_into_their_neighbours(tmp_path: Path) -> None:
    values = np.full((1, 40, 40), 100.0, np.float32)
    values[0, 10:20, 10:20] = -9999
    with rasterio.open(write(tmp_path / "a.tif", values, nodata=-9999)) as moving:
        done, seen = resample(moving, moved_by(0.4, 0.4), Region(0, 0, 30, 30))
    assert set(np.unique(done[0]).round(3)) == {-9999, 100} and seen.any() and not seen[12, 12]


def test_a_fraction_of_a_px_is_interpolated(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32), (40, 1))
    with rasterio.open(write(tmp_path / "a.tif", ramp)) as moving:
        bilinear, _ = resample(moving, moved_by(0.25, 0), Region(0, 0, 30, 30))
        nearest, _ = resample(moving, moved_by(0.25, 0), Region(0, 0, 30, 30), "nearest")
        coarse, _ = resample(moving, lambda xy: (xy + 0.5) * 4 - 0.5, Region(0, 0, 10, 10))
    np.testing.assert_allclose(bilinear[0], ramp[:30, :30] + 0.25, atol=1e-4)
    np.testing.assert_array_equal(nearest[0], ramp[:30, :30])
    np.testing.assert_allclose(coarse[0, 0], np.arange(10) * 4 + 1.5, atol=1e-4)  # averages of four


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path / "a.tif", texture(120, 120))) as moving:
        whole, _ = resample(moving, lambda xy: xy * 1.01 + 3, Region(0, 0, 90, 70))
        for block in (Region(0, 0, 32, 32), Region(64, 0, 26, 32), Region(64, 64, 26, 6)):
            values, _ = resample(moving, lambda xy: xy * 1.01 + 3, block)
            inner = whole[:, block.y : block.y + block.height, block.x : block.x + block.width]
            np.testing.assert_allclose(values, inner, atol=1e-3)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.tif").write_text("before")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "resample", full)
    with rasterio.open(write(tmp_path / "a.tif", texture(70, 90))) as moving, pytest.raises(OSError, match="No space"):
        write_registered(tmp_path / "out.tif", moving, GRID, moved_by(0, 0), {}, progress=False)
    assert (tmp_path / "out.tif").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "out.tif"]


def test_the_error_map_is_in_metres(tmp_path: Path) -> None:
    grid = GeoBox((256, 320), TRANSFORM, UTM)
    write_error_map(tmp_path / "error.tif", grid, lambda xy: xy[:, 0] / 100, 10.0)
    with rasterio.open(tmp_path / "error.tif") as file:
        sigma, ce90 = file.read()
        assert file.shape == (8, 10) and file.units == ("metre", "metre") and file.res == (320, 320)
    np.testing.assert_allclose(sigma[0], (np.arange(10) * 32 + 15.5) / 10, rtol=1e-5)
    np.testing.assert_allclose(ce90 / sigma, 2.1460, rtol=1e-4)


def test_control_points_as_qgis_reads_them(tmp_path: Path) -> None:
    write_gcps(tmp_path / "out.points", GRID, np.array([[0.0, 0.0]]), np.array([[7.0, 9.0]]))
    crs, head, row = (tmp_path / "out.points").read_text().splitlines()
    assert crs.startswith("#CRS: PROJCS") and head.startswith("mapX,mapY,sourceX,sourceY,enable")
    assert row.split(",")[:5] == ["500005.000000", "4999995.000000", "7.5000", "-9.5000", "1"]
