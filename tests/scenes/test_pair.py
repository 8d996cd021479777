"""Two rasters on one grid: windows show the same ground whatever their grids are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from scene_files import TRANSFORM, UTM, texture, write

from sarmatch.data.pairs import PairError
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import open_pair
from sarmatch.scenes.settings import SceneOptions

GROUND = texture(300, 300)
SAR = GROUND[50:250, 50:250].astype(np.uint8)
RGB = np.stack([SAR] * 3)


@pytest.fixture
def sar(tmp_path: Path) -> Path:
    return write(tmp_path / "sar.tif", SAR)


def agreement(first: Path, second: Path, region: Region | None = None, **options: object) -> float:
    """Correlation of both images over a window of the common grid."""
    with open_pair(first, second, SceneOptions(**options)) as pair:  # type: ignore[arg-type]
        window = region or pair.region()
        a, b = pair.sar.read(window), pair.optical.read(window)
        valid = (a.valid & b.valid).numpy()
        assert valid.mean() > 0.5
        return float(np.corrcoef(a.image[0].numpy()[valid], b.image[0].numpy()[valid])[0, 1])


def test_one_grid_is_read_as_it_is(sar: Path, tmp_path: Path) -> None:
    optical = write(tmp_path / "optical.tif", RGB)
    with open_pair(sar, optical) as pair:
        window = Region(10, 20, 64, 48)
        np.testing.assert_allclose(pair.sar.read(window).image[0] * 255, SAR[20:68, 10:74], rtol=1e-6)
        assert pair.sar.view is pair.sar.dataset and pair.optical.view is pair.optical.dataset
        outside = pair.sar.read(Region(-5, 190, 20, 20))
        assert outside.valid.sum() == 15 * 10 and not outside.valid[:, :5].any()


@pytest.mark.parametrize("to", ["sar", "optical"])
def test_another_extent(sar: Path, tmp_path: Path, to: str) -> None:
    part = write(tmp_path / "optical.tif", RGB[:, 30:170, 20:180], transform=TRANSFORM @ Affine.translation(20, 30))
    with open_pair(sar, part, SceneOptions(to=to)) as pair:  # type: ignore[arg-type]
        assert pair.region() == (Region(20, 30, 160, 140) if to == "sar" else Region(0, 0, 160, 140))
    assert agreement(sar, part, to=to) > 0.999


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32632"])
def test_another_reference_system(sar: Path, tmp_path: Path, crs: str) -> None:
    bounds = rasterio.transform.array_bounds(300, 300, TRANSFORM @ Affine.translation(-50, -50))
    transform, width, height = rasterio.warp.calculate_default_transform(UTM, crs, 300, 300, *bounds)
    moved = np.zeros((height, width), np.float32)
    place = {"src_transform": TRANSFORM @ Affine.translation(-50, -50), "src_crs": UTM}
    rasterio.warp.reproject(GROUND, moved, dst_transform=transform, dst_crs=crs, resampling=2, **place)
    optical = write(tmp_path / "optical.tif", np.stack([moved.astype(np.uint8)] * 3), crs=crs, transform=transform)
    assert agreement(sar, optical) > 0.97
    assert agreement(sar, optical, to="optical") > 0.97


def test_px_are_as_large_as_those_of_the_coarser_image(sar: Path, tmp_path: Path) -> None:
    coarse = SAR.reshape(50, 4, 50, 4).mean((1, 3)).astype(np.uint8)
    optical = write(tmp_path / "optical.tif", np.stack([coarse] * 3), transform=TRANSFORM @ Affine.scale(4))
    for to, factor in (("sar", 4), ("optical", 1)):
        with open_pair(sar, optical, SceneOptions(to=to)) as pair:  # type: ignore[arg-type]
            assert pair.factor == factor and (pair.grid.width, pair.grid.height) == (50, 50)
        assert agreement(sar, optical, to=to) > 0.98


def test_a_turned_grid(sar: Path, tmp_path: Path) -> None:
    turned = TRANSFORM @ Affine.translation(100, -40) @ Affine.rotation(45)
    values = np.zeros((200, 200), np.float32)
    place = {"src_transform": TRANSFORM, "src_crs": UTM, "dst_crs": UTM}
    rasterio.warp.reproject(SAR.astype(np.float32), values, dst_transform=turned, resampling=2, **place)
    optical = write(tmp_path / "optical.tif", np.stack([values.astype(np.uint8)] * 3), transform=turned, nodata=0)
    assert agreement(sar, optical, Region(50, 50, 100, 100)) > 0.97


def test_control_points_instead_of_a_transform(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path / "sar.tif", SAR, crs=None, transform=None), "r+") as file:
        corners = [(r, c, *(TRANSFORM @ (c, r))) for r in (0, 200) for c in (0, 200)]
        file.gcps = ([GroundControlPoint(*corner) for corner in corners], CRS.from_string(UTM))
    assert agreement(tmp_path / "sar.tif", write(tmp_path / "optical.tif", RGB)) > 0.97


def test_masks_and_nodata_are_not_valid(sar: Path, tmp_path: Path) -> None:
    values = np.stack([SAR.astype(np.uint16) * 30] * 3)
    values[:, :50] = 0
    with open_pair(sar, write(tmp_path / "a.tif", values)) as pair:
        assert pair.optical.scaling.units == "reflectance"
        assert not pair.optical.read(Region(0, 0, 200, 50)).valid.any()
        assert pair.optical.read(Region(0, 50, 200, 150)).valid.all()
    alpha = np.concatenate([RGB, np.full((1, 200, 200), 255, np.uint8)])
    alpha[3, :, :30] = 0
    with open_pair(sar, write(tmp_path / "b.tif", alpha, photometric="RGB", alpha="yes")) as pair:
        valid = pair.optical.read(Region(0, 0, 200, 200)).valid
        assert not valid[:, :30].any() and valid[:, 30:].all()


def test_bands(sar: Path, tmp_path: Path) -> None:
    stack = np.stack([SAR.astype(np.uint16) * 10 + i for i in range(13)])
    with open_pair(sar, write(tmp_path / "s2.tif", stack)) as pair:
        assert pair.optical.bands == (3, 2, 1)
    with open_pair(sar, write(tmp_path / "grey.tif", SAR)) as pair:
        assert pair.optical.bands == (0, 0, 0)
    with open_pair(write(tmp_path / "rgb.tif", RGB), tmp_path / "grey.tif") as pair:  # a grey image stored as colours
        assert pair.sar.bands == (0,)
    with pytest.raises(PairError, match="optical_bands"):
        open_pair(sar, tmp_path / "s2.tif", SceneOptions(optical_bands=(0, 1, 20))).__enter__()


def test_units_are_those_of_the_scene_not_of_a_window(tmp_path: Path) -> None:
    decibel = (SAR / 10 - 25).astype(np.float32)
    decibel[:60, :60] = 3.0  # a city: taken by itself it would not look like dB
    sar = write(tmp_path / "sar.tif", decibel)
    with open_pair(sar, write(tmp_path / "optical.tif", RGB)) as pair:
        assert pair.sar.scaling.units == "db"
        assert (pair.sar.read(Region(0, 0, 50, 50)).image == 1).all()


def test_images_apart_are_refused(sar: Path, tmp_path: Path) -> None:
    far = write(tmp_path / "optical.tif", RGB, transform=TRANSFORM @ Affine.translation(170, 0))
    with pytest.raises(SceneRefusal, match="30 x 200 px in common"):
        open_pair(sar, far).__enter__()
