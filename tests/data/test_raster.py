"""Reading and scaling rasters, and every bad input a user can give."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from data.make_sen12ms import write_tif
from rasterio import Affine

from sarmatch.data import PairError, read_optical, read_pair, read_sar, scale_optical, scale_sar


def noise(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def sar_db(size: int = 32) -> np.ndarray:
    return noise(0, 2, size, size, low=-30, high=2).astype(np.float32)


def reflectance(size: int = 32) -> np.ndarray:
    return noise(1, 13, size, size, low=1, high=5000).astype(np.uint16)


def test_db_is_clipped_and_scaled_by_band() -> None:
    values = np.array([[[-25.0, -12.5, 0.0, 7.0, -40.0]], [[-32.5, -18.75, -5.0, 0.0, -40.0]]])
    image, valid = scale_sar(values, bands=(0, 1))
    assert image.dtype == torch.float32 and bool(valid.all())
    torch.testing.assert_close(image, torch.tensor([[[0, 0.5, 1, 1, 0]], [[0, 0.5, 1, 1, 0]]], dtype=torch.float32))
    only_vh, _ = scale_sar(values[1:], bands=(1,))
    torch.testing.assert_close(only_vh, image[1:])


def test_reflectance_follows_the_tone_curve() -> None:
    values = np.array([[[1000, 3000, 10000, 20000]]] * 3, np.uint16)
    image, _ = scale_optical(values)
    expected = torch.tensor([0.1 * 1.3 / 0.4, 0.65, 1.0, 1.0])
    for band in image:
        torch.testing.assert_close(band[0], expected)
    torch.testing.assert_close(scale_optical(values.astype(np.float64))[0], image)


@pytest.mark.parametrize("scale", [scale_sar, scale_optical])
def test_8_bits_and_unit_range(scale) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    image, _ = scale(values)
    torch.testing.assert_close(image, torch.arange(256).reshape(1, 16, 16) / 255)
    assert float(image.max()) == 1
    unit = values.astype(np.float64) / 255
    torch.testing.assert_close(scale(unit)[0], image)


@pytest.mark.parametrize("scale", [scale_sar, scale_optical])
def test_result_does_not_alias_the_input(scale) -> None:
    values = noise(0, 3, 4, 4).astype(np.float32)
    image, _ = scale(values)
    image.zero_()
    assert values.min() > 0


def test_nan_infinity_and_zero_reflectance_become_invalid_and_zero() -> None:
    values = sar_db(4)
    values[0, 0, 0], values[1, 2, 3] = np.nan, -np.inf
    image, valid = scale_sar(values, (0, 1))
    assert (~valid).nonzero().tolist() == [[0, 0], [2, 3]]
    assert image[:, ~valid].tolist() == [[0, 0], [0, 0]]
    stack = reflectance(4)
    stack[:, 1, 1] = 0
    stack[0, 2, 2] = 0  # one dark band is no gap
    assert (~scale_optical(stack)[1]).nonzero().tolist() == [[1, 1]]


def test_bands_transform_and_crs_of_a_file(tmp_path: Path) -> None:
    stack, transform = reflectance(), Affine(10, 0, 500_000, 0, -10, 100)
    path = write_tif(tmp_path / "s2.tif", stack, transform, "EPSG:32633")
    raster = read_optical(path)
    torch.testing.assert_close(raster.image, scale_optical(stack[[3, 2, 1]])[0])
    assert raster.crs == "EPSG:32633" and raster.transform == transform
    torch.testing.assert_close(read_optical(path, (7,)).image, scale_optical(stack[[7]])[0])
    with rasterio.open(path) as dataset:
        torch.testing.assert_close(read_optical(dataset).image, raster.image)


def test_png_has_no_georeference_and_warns_nothing(tmp_path: Path) -> None:
    pixels = (noise(0, 8, 9, 3) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), pixels[..., ::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raster = read_optical(tmp_path / "rgb.png")
    assert raster.transform is None and raster.crs is None
    torch.testing.assert_close(raster.image, torch.from_numpy(pixels.transpose(2, 0, 1) / 255).float())


def test_nodata_value_and_alpha_band_become_invalid(tmp_path: Path) -> None:
    values = sar_db()
    values[:, 3, 4] = -9999
    raster = read_sar(write_tif(tmp_path / "s1.tif", values, nodata=-9999), (0, 1))
    assert (~raster.valid).nonzero().tolist() == [[3, 4]]
    rgba = (noise(0, 4, 8, 8) * 250 + 5).astype(np.uint8)
    rgba[3, 5, 6] = 0
    path = write_tif(tmp_path / "rgba.tif", rgba, photometric="RGB", alpha="yes")
    assert (~read_optical(path).valid).nonzero().tolist() == [[5, 6]]


def test_pair_on_one_grid(tmp_path: Path) -> None:
    values = sar_db()
    values[:, 0, 0] = np.nan
    sar = write_tif(tmp_path / "s1.tif", values)
    optical = write_tif(tmp_path / "s2.tif", reflectance())
    pair = read_pair(sar, optical, "p", (0, 1), season="fall")
    assert pair.sar.shape == (2, 32, 32) and pair.optical.shape == (3, 32, 32)
    assert (pair.id, pair.season, pair.crs) == ("p", "fall", "EPSG:32632") and pair.transform is not None
    assert (~pair.valid).nonzero().tolist() == [[0, 0]]


def test_missing_file(tmp_path: Path) -> None:
    sar = write_tif(tmp_path / "s1.tif", sar_db())
    with pytest.raises(FileNotFoundError, match=r"s2\.tif: no such file"):
        read_pair(sar, tmp_path / "s2.tif", "p")


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_truncated_tiff(tmp_path: Path, compress: str) -> None:
    path = write_tif(tmp_path / "s1.tif", sar_db(128), compress=compress)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PairError, match=r"s1\.tif: truncated or not a raster"):
        read_sar(path)


@pytest.mark.parametrize("size", [16, 256, 600])
def test_truncated_png(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s1.png"
    cv2.imwrite(str(path), (noise(0, size, size, 1) * 255).astype(np.uint8))
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(PairError, match=r"s1\.png: truncated or not a raster"):
            read_sar(path)


def test_not_a_raster(tmp_path: Path) -> None:
    (tmp_path / "s1.tif").write_text("<html>404</html>")
    with pytest.raises(PairError, match="not a raster"):
        read_sar(tmp_path / "s1.tif")


def test_wrong_band_count(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"expected the bands \(0, 1\).* the file has 1"):
        read_sar(write_tif(tmp_path / "vv.tif", sar_db()[:1]), (0, 1))
    with pytest.raises(PairError, match=r"expected the bands \(0, 1, 2\).* the file has 2"):
        read_optical(write_tif(tmp_path / "two.tif", reflectance()[:2]))


def test_wrong_dtype_and_range(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"digital\.tif: expected 8 bits, dB .*, got uint16.*calibrate it to dB"):
        read_sar(write_tif(tmp_path / "digital.tif", reflectance()[:1]))
    with pytest.raises(PairError, match=r"linear.*10 log10"):
        read_sar(write_tif(tmp_path / "linear.tif", 10 ** (sar_db() / 10)))
    with pytest.raises(PairError, match="the order is SAR, then optical"):
        read_optical(write_tif(tmp_path / "db.tif", sar_db()), (0, 1))
    with pytest.raises(PairError, match=r"neither in \[0, 1\] nor reflectance x 10000"):
        scale_optical(noise(0, 3, 4, 4, high=50))


@pytest.mark.parametrize("fill", [np.nan, -9999.0])
def test_all_nodata(tmp_path: Path, fill: float) -> None:
    path = write_tif(tmp_path / "empty.tif", np.full((1, 16, 16), fill, np.float32), nodata=fill)
    with pytest.raises(PairError, match=r"empty\.tif: no valid pixel"):
        read_sar(path)


def test_constant_image(tmp_path: Path) -> None:
    values = np.full((3, 16, 16), 700, np.uint16)
    values[:, 0, 0] = 0  # nodata does not make it less constant
    with pytest.raises(PairError, match=r"flat\.tif: constant \(700\)"):
        read_optical(write_tif(tmp_path / "flat.tif", values))


def test_partners_of_different_size_crs_or_grid(tmp_path: Path) -> None:
    sar = write_tif(tmp_path / "s1.tif", sar_db(32))
    smaller = write_tif(tmp_path / "small.tif", reflectance(24))
    with pytest.raises(PairError, match=r"s1\.tif and .*small\.tif.*\(32, 32\) and \(24, 24\)"):
        read_pair(sar, smaller, "p")
    elsewhere = write_tif(tmp_path / "zone33.tif", reflectance(32), crs="EPSG:32633")
    with pytest.raises(PairError, match="EPSG:32632 and EPSG:32633"):
        read_pair(sar, elsewhere, "p")
    shifted = write_tif(tmp_path / "shifted.tif", reflectance(32), Affine(10, 0, 300_030, 0, -10, 5_399_960))
    with pytest.raises(PairError, match=r"grids differ by up to 5\.0 px"):
        read_pair(sar, shifted, "p")


def test_partners_without_common_valid_pixels(tmp_path: Path) -> None:
    values, stack = sar_db(8), reflectance(8)
    values[:, :4] = np.nan
    stack[:, 4:] = 0
    with pytest.raises(PairError, match="no valid pixel in common"):
        read_pair(write_tif(tmp_path / "s1.tif", values), write_tif(tmp_path / "s2.tif", stack), "p")
