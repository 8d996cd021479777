"""Matches: validation, selection, thinning and files; the affine fit is tested in test_registration.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rasterio import Affine
from rasterio.crs import CRS

from sarmatch.matching.matches import COLUMNS, COVARIANCE_COLUMNS, RADIUS_COLUMN, Matches

UTM = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)  # the central meridian of its zone: 9 degrees east in 32N
HALF_UTM = Affine(20.0, 0.0, 500_000.0, 0.0, -20.0, 5_300_000.0)


def some_matches(n: int = 6, **georeference: Any) -> Matches:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 60, (n, 2))
    return Matches(xy, xy + 1.5, rng.uniform(0, 1, n), rng.uniform(0, 1, n), **georeference)


def one_match(sar: list[float], optical: list[float], confidence: float, **georeference: Any) -> Matches:
    return Matches(np.array([sar]), np.array([optical]), np.array([confidence]), **georeference)


def assert_same(a: Matches, b: Matches) -> None:
    for name in ("xy_sar", "xy_optical", "confidence", "aleatoric", "epistemic", "covariance", "radius"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6)


def test_arrays_become_float32_and_unknown_uncertainty_is_nan() -> None:
    matches = Matches(torch.ones(2, 2), [[0, 1], [2, 3]], torch.tensor([0.0, 1.0]))  # type: ignore[arg-type]
    assert matches.xy_sar.dtype == matches.xy_optical.dtype == matches.confidence.dtype == np.float32
    assert np.isnan(matches.aleatoric).all() and np.isnan(matches.epistemic).all()
    assert len(matches) == 2 and len(Matches.empty()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xy_sar": np.zeros((3, 2))}, r"xy_sar must have shape \(2, 2\)"),
        ({"xy_optical": np.zeros(4)}, "xy_optical must have shape"),
        ({"xy_optical": np.array([[0, 0], [np.nan, 0]])}, "positions contain NaN"),
        ({"confidence": np.array([0.5, 1.5])}, "confidence must lie in"),
        ({"confidence": np.array([0.5, np.nan])}, "confidence must lie in"),
        ({"aleatoric": np.array([0.5, -0.1])}, "aleatoric must not be negative"),
        ({"epistemic": np.zeros(3)}, r"epistemic must have shape \(2,\)"),
        ({"covariance": np.zeros((2, 2))}, r"covariance must have shape \(2, 2, 2\)"),
        ({"covariance": np.full((2, 2, 2), -1.0)}, "variances of covariance must not be negative"),
        ({"covariance": np.tile([[1.0, 0.5], [0.0, 1.0]], (2, 1, 1))}, "covariance must hold symmetric"),
        ({"radius": np.array([1.0, -1.0])}, "radius must not be negative"),
    ],
)
def test_rejects_arrays_that_do_not_belong_together(change: dict[str, np.ndarray], message: str) -> None:
    arrays = {"xy_sar": np.zeros((2, 2)), "xy_optical": np.zeros((2, 2)), "confidence": np.zeros(2)}
    with pytest.raises(ValueError, match=message):
        Matches(**(arrays | change))


def test_select_takes_masks_rows_and_nothing() -> None:
    matches = some_matches(sar_transform=UTM, sar_crs="EPSG:32632")
    assert_same(matches.select(np.arange(6) % 2 == 0), matches.select(np.array([0, 2, 4])))
    assert matches.select(np.array([5, 0])).confidence.tolist() == matches.confidence[[5, 0]].tolist()
    assert matches.select(np.array([1])).sar_crs == "EPSG:32632"


def with_precision(n: int = 6) -> Matches:
    """Matches with covariance and radius, both unknown for the first."""
    factors = np.random.default_rng(1).normal(size=(n, 2, 2))
    covariance, radius = factors @ factors.transpose(0, 2, 1), np.arange(n, dtype=float)
    covariance[0], radius[0] = np.nan, np.nan
    return dataclasses.replace(some_matches(n), covariance=covariance, radius=radius)


def test_covariance_and_radius_follow_their_match() -> None:
    matches = with_precision()
    chosen = matches.select(np.array([4, 1]))
    np.testing.assert_array_equal(chosen.covariance, matches.covariance[[4, 1]])
    np.testing.assert_array_equal(chosen.radius, [4, 1])
    best = int(matches.confidence.argmax())
    np.testing.assert_array_equal(matches.thin(1000).covariance, matches.covariance[[best]])
    kept = matches.above(0.5)
    np.testing.assert_array_equal(kept.radius, matches.radius[matches.confidence > 0.5])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_covariance_and_radius_where_any_is_known(tmp_path: Path, suffix: str) -> None:
    matches, path = with_precision(), tmp_path / f"matches{suffix}"
    frame = matches.to_frame()
    assert list(frame.columns) == [*COLUMNS, *COVARIANCE_COLUMNS, RADIUS_COLUMN]
    assert frame.loc[2, "var_xy"] == matches.covariance[2, 0, 1] == matches.covariance[2, 1, 0]
    assert frame.loc[2, ["var_x", "var_y"]].tolist() == np.diag(matches.covariance[2]).tolist()
    matches.save(path)
    assert_same(matches, Matches.load(path))
    assert list(some_matches().to_frame().columns) == list(COLUMNS)


def test_above_is_strict() -> None:
    matches = Matches(np.zeros((3, 2)), np.zeros((3, 2)), np.array([0.25, 0.5, 0.75]))
    assert matches.above(0.5).confidence.tolist() == [0.75]
    assert len(matches.above(0.9)) == 0


def test_thin_keeps_the_most_confident_of_each_cell_in_order() -> None:
    # The cell of 16 px that begins the image spans -0.5 to 15.5 in coordinates of pixel centres.
    x = np.array([15.6, -0.4, 15.4, 31.4, 7.0])
    confidence = np.array([0.1, 0.2, 0.9, 0.8, 0.9])
    matches = Matches(np.stack([x, np.zeros(5)], 1), np.zeros((5, 2)), confidence)
    thinned = matches.thin(16)
    np.testing.assert_allclose(thinned.xy_sar[:, 0], [15.4, 31.4])  # ties go to the earlier match
    assert len(Matches.empty().thin(16)) == 0
    with pytest.raises(ValueError, match="spacing_px must be positive"):
        matches.thin(0)


def test_map_coordinates_of_the_first_pixel_are_its_centre() -> None:
    matches = one_match([0, 0], [2, 1], 1.0, sar_transform=UTM)
    frame = matches.to_frame()
    assert list(frame.columns) == [*COLUMNS, "map_x_sar", "map_y_sar"]
    assert frame.loc[0, ["map_x_sar", "map_y_sar"]].tolist() == [500_005.0, 5_299_995.0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
def test_files_restore_the_matches(tmp_path: Path, suffix: str) -> None:
    matches = some_matches(sar_transform=UTM, sar_crs="EPSG:32632", optical_transform=HALF_UTM)
    path = tmp_path / f"matches{suffix}"
    matches.save(path)
    loaded = Matches.load(path)
    assert_same(matches, loaded)
    if suffix != ".csv":
        assert loaded.sar_transform == UTM and loaded.sar_crs == "EPSG:32632"
        assert loaded.optical_transform == matches.optical_transform and loaded.optical_crs is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("overlaps", [True, False, np.bool_(False), None])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_keep_the_decision_on_overlap(tmp_path: Path, suffix: str, overlaps: bool | None) -> None:
    path = tmp_path / f"matches{suffix}"
    matches = some_matches(overlaps=overlaps)
    matches.save(path)
    loaded = Matches.load(path)
    assert loaded.overlaps is (None if overlaps is None else bool(overlaps))
    assert_same(matches, loaded)
    assert ("overlaps" in (pd.read_csv if suffix == ".csv" else pd.read_parquet)(path)) == (overlaps is not None)
    assert "overlaps" not in matches.to_frame()


def test_parquet_keeps_the_decision_without_matches(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    Matches.empty(overlaps=False).save(path)
    assert Matches.load(path).overlaps is False
    Matches.empty().save(path)
    assert Matches.load(path).overlaps is None


def test_rows_that_disagree_on_overlap_decide_nothing(tmp_path: Path) -> None:
    path = tmp_path / "matches.csv"
    frames = []
    for overlaps in (True, False, None):
        some_matches(overlaps=overlaps).save(path)
        frames.append(pd.read_csv(path))
    for several in (frames[:2], frames[::2]):
        pd.concat(several).to_csv(path, index=False)
        assert Matches.load(path).overlaps is None


@pytest.mark.parametrize("overlaps", [True, np.bool_(False), None])
def test_geojson_says_beside_its_features_whether_the_images_overlap(tmp_path: Path, overlaps: bool | None) -> None:
    path = tmp_path / "matches.geojson"
    some_matches(2, overlaps=overlaps).save(path)
    content = json.loads(path.read_text())
    assert content["overlaps"] is (None if overlaps is None else bool(overlaps))
    assert all("overlaps" not in feature["properties"] for feature in content["features"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".geojson"])
def test_no_matches_can_be_saved(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    Matches.empty().save(path)
    if suffix == ".geojson":
        assert json.loads(path.read_text())["features"] == []
    else:
        assert len(Matches.load(path)) == 0


def test_geojson_is_in_wgs84_where_the_place_is_known(tmp_path: Path) -> None:
    path = tmp_path / "matches.geojson"
    matches = one_match([-0.5, -0.5], [2, 1], 0.75, sar_transform=UTM, sar_crs="EPSG:32632")
    matches.save(path)
    content = json.loads(path.read_text())
    longitude, latitude = content["features"][0]["geometry"]["coordinates"]
    assert longitude == pytest.approx(9.0, abs=1e-6) and 47.8 < latitude < 47.9
    assert "WGS84" in content["note"]
    properties = content["features"][0]["properties"]
    assert properties["confidence"] == 0.75 and properties["aleatoric"] is None


def test_geojson_takes_the_optical_place_or_pixels_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "matches.geojson"
    crs = CRS.from_epsg(32632).to_wkt()
    one_match([3, 4], [-0.5, -0.5], 0.5, optical_transform=UTM, optical_crs=crs).save(path)
    content = json.loads(path.read_text())
    assert content["features"][0]["geometry"]["coordinates"][0] == pytest.approx(9.0, abs=1e-6)
    assert "optical" in content["note"]
    one_match([3, 4], [0, 0], 0.5).save(path)
    content = json.loads(path.read_text())
    assert content["features"][0]["geometry"]["coordinates"] == [3.0, 4.0]
    assert "pixels" in content["note"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "matches.csv"
    some_matches().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        some_matches(3).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_file_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.txt: matches are saved as .csv, .parquet, .geojson"):
        some_matches().save(tmp_path / "m.txt")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        some_matches().save(tmp_path / "nowhere" / "m.csv")
    with pytest.raises(FileNotFoundError, match=r"no file of matches at .*none\.csv"):
        Matches.load(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"read from \.csv or \.parquet"):
        Matches.load(tmp_path / "m.geojson")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: not a table of matches"):
        Matches.load(tmp_path / "other.csv")
