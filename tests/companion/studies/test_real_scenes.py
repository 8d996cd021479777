"""Real GeoTIFFs, where they are at hand: one place registers whatever the grid, two places are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from scene_files import write

from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pipeline import match_scenes, register
from sarmatch.scenes.settings import SceneOptions


@pytest.fixture
def folder(data_root: Path) -> Path:
    return data_root / "terramesh"


def in_degrees(path: Path, target: Path) -> Path:
    """An image warped to EPSG:4326."""
    with rasterio.open(path) as file:
        crs, size = "EPSG:4326", (file.width, file.height)
        transform, width, height = rasterio.warp.calculate_default_transform(file.crs, crs, *size, *file.bounds)
        values = np.zeros((file.count, height, width), file.dtypes[0])
        place = {"src_transform": file.transform, "src_crs": file.crs, "dst_transform": transform, "dst_crs": crs}
        rasterio.warp.reproject(file.read(), values, resampling=rasterio.warp.Resampling.bilinear, **place)
    return write(target, values, crs=crs, transform=transform)


@pytest.mark.parametrize("to", ["sar", "optical"])
def test_one_place_in_two_reference_systems(to: str, folder: Path, tmp_path: Path) -> None:
    name = "433D_629L_3_1.tif"
    optical = in_degrees(folder / "S2L2A" / name, tmp_path / "optical.tif")
    options = SceneOptions(to=to)  # type: ignore[arg-type]
    done = register(folder / "S1RTC" / name, optical, tmp_path / "out.tif", options=options, progress=False)
    assert done.agreement.share > 0.9 and done.metres_per_px == pytest.approx(10, abs=0.6)
    displacement = done.transform(np.array([[100.0, 100.0]])) - [100, 100]
    assert np.linalg.norm(displacement) < 3 and done.ce90_px < 2
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.count == (12 if to == "sar" else 2) and file.dtypes[0] == ("int16" if to == "sar" else "float64")


def test_a_mirrored_image_is_refused(folder: Path, tmp_path: Path) -> None:
    with rasterio.open(folder / "S2RGB" / "38D_378R_2_3.tif") as file:
        mirrored = write(tmp_path / "mirrored.tif", file.read()[:, ::-1], crs=file.crs, transform=file.transform)
    with pytest.raises(SceneRefusal, match=r"of their matches agree|are needed"):
        match_scenes(folder / "S1RTC" / "38D_378R_2_3.tif", mirrored, progress=False)
