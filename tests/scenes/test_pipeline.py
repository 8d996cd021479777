"""Two files to matches and a registered raster, with a network without weights on images of one texture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from patch_net import PatchNet
from rasterio import Affine
from scene_files import TRANSFORM, texture, write, write_pair

from sarmatch import cli
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.scenes import pipeline, windows
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pipeline import match_scenes, register
from sarmatch.scenes.settings import MatchSettings, SceneOptions

SHIFT = (37, -22)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(PatchNet(), "cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """240 px; the optical one shows at p + SHIFT what SAR shows at p."""
    return write_pair(tmp_path_factory.mktemp("pair"), (240, 240), SHIFT)


@pytest.fixture(scope="module")
def settings(matcher: Matcher) -> MatchSettings:
    return MatchSettings(matcher, progress=False)


def overlap(path: Path, other: Path) -> tuple[float, float]:
    """Share of px with data, and mean difference there, of a registered image and its reference."""
    with rasterio.open(path) as done, rasterio.open(other) as reference:
        assert done.transform == reference.transform and done.crs == reference.crs
        seen = done.dataset_mask() > 0
        difference = np.abs(done.read(1).astype(float) - reference.read(1))[seen]
    return float(seen.mean()), float(difference.mean())


@pytest.mark.parametrize("to", ["sar", "optical"])
def test_either_image_is_moved_onto_the_other(
    to: str, images: tuple[Path, Path], settings: MatchSettings, tmp_path: Path
) -> None:
    options = SceneOptions(to=to)  # type: ignore[arg-type]
    files = {"report": tmp_path / "report.html", "error_map": tmp_path / "error.tif"}
    done = register(*images, tmp_path / "out.tif", "shift", gcps=True, settings=settings, options=options, **files)
    moved = done.transform(np.zeros((1, 2)))[0]
    np.testing.assert_allclose(moved, SHIFT if to == "sar" else np.negative(SHIFT), atol=0.1)
    assert done.metres_per_px == pytest.approx(10, rel=0.01) and done.ce90_px < 0.5
    share, difference = overlap(tmp_path / "out.tif", images[to == "optical"])
    assert 0.7 < share < 0.85 and difference < 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["error.tif", "out.points", "out.tif", "report.html"]
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page and "data:image/png" in page and "CE90" in page and "flicker" in page


def test_another_grid_gives_the_same_ground(images: tuple[Path, Path], settings: MatchSettings, tmp_path: Path) -> None:
    with rasterio.open(images[1]) as file:
        values = file.read()
    fine = np.kron(values, np.ones((1, 2, 2), np.uint8))  # 5 m px
    optical = write(tmp_path / "fine.tif", fine, transform=TRANSFORM @ Affine.scale(0.5))
    matches = match_scenes(images[0], optical, settings=settings)
    displacement = (matches.xy_optical + 0.5) / 2 - (matches.xy_sar + 0.5)
    assert matches.overlaps and len(matches) > 500
    np.testing.assert_allclose(np.median(displacement, axis=0), SHIFT, atol=0.3)
    moved = matches.map_coordinates()
    assert np.median(moved["map_x_optical"] - moved["map_x_sar"]) == pytest.approx(370, abs=3)


def test_without_a_georeference_the_whole_image_is_searched(
    images: tuple[Path, Path], settings: MatchSettings, tmp_path: Path
) -> None:
    ground = texture(360, 360, 4).astype(np.uint8)
    sar = write(tmp_path / "sar.png", ground[90:270, 90:270], driver="PNG", crs=None, transform=None)
    optical = write(tmp_path / "optical.png", np.stack([ground] * 3), driver="PNG", crs=None, transform=None)
    matches = match_scenes(sar, optical, settings=settings)
    np.testing.assert_allclose(np.median(matches.xy_optical - matches.xy_sar, axis=0), [90, 90], atol=0.3)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "geojson", "gpkg"])
def test_files_of_matches(suffix: str, images: tuple[Path, Path], settings: MatchSettings, tmp_path: Path) -> None:
    if suffix == "gpkg":
        pyogrio = pytest.importorskip("pyogrio")
    path = tmp_path / f"matches.{suffix}"
    thinned = match_scenes(*images, path, settings=settings, spacing=300)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == "geojson":
        content = json.loads(path.read_text())
        assert content["overlaps"] is True and len(content["features"]) > 5 * len(thinned)
    elif suffix == "gpkg":
        info = pyogrio.read_info(path)
        assert info["features"] > 5 * len(thinned) and info["crs"] == "EPSG:32631" and info["geometry_type"] == "Point"
    else:
        matches = Matches.load(path)
        assert len(matches) > 5 * len(thinned) and matches.overlaps is True
        np.testing.assert_allclose(np.median(matches.xy_optical - matches.xy_sar, axis=0), SHIFT, atol=0.1)


def test_unrelated_images_are_refused(images: tuple[Path, Path], settings: MatchSettings, tmp_path: Path) -> None:
    other = write(tmp_path / "other.tif", np.stack([texture(240, 240, 9).astype(np.uint8)] * 3))
    (tmp_path / "out.tif").write_text("before")
    with pytest.raises(SceneRefusal, match="do both images show the same ground"):
        register(images[0], other, tmp_path / "out.tif", settings=settings)
    with pytest.raises(SceneRefusal):
        match_scenes(images[0], other, tmp_path / "matches.csv", settings=settings)
    assert (tmp_path / "out.tif").read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    forced = match_scenes(images[0], other, tmp_path / "matches.csv", force=True, settings=settings)
    assert forced.overlaps is False and not pd.read_csv(tmp_path / "matches.csv")["overlaps"].any()


def test_an_interrupted_registration_goes_on(
    settings: MatchSettings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_pair(tmp_path_factory.mktemp("large"), (200, 420))
    done: list[int] = []
    original = windows.match_windows

    def interrupted(*arguments: Any) -> list[Matches]:
        if len(done) == 1:
            done.append(-1)
            raise KeyboardInterrupt
        done.extend(tile.number for tile in arguments[2])
        return original(*arguments)

    monkeypatch.setattr(windows, "match_windows", interrupted)
    command: dict[str, Any] = {"settings": settings, "search_radius": 32.0}  # two windows
    with pytest.raises(KeyboardInterrupt):
        register(*images, tmp_path / "out.tif", **command)
    assert not (tmp_path / "out.tif").exists() and len(list(tmp_path.iterdir())) == 1
    register(*images, tmp_path / "out.tif", **command)
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]
    assert done.count(0) == 1


def test_windows_that_overlap_count_their_matches_once(matcher: Matcher, tmp_path: Path) -> None:
    images = write_pair(tmp_path, (200, 300))
    spread = register(*images, tmp_path / "out.tif", "shift", weights=matcher, search_radius=32.0, progress=False)
    cells = np.floor((spread.matches.xy_sar + 0.5) / 16)
    assert spread.agreement.n_windows == 2 and len(np.unique(cells, axis=0)) == len(cells) <= 13 * 19


def test_the_command_line_registers(
    images: tuple[Path, Path], matcher: Matcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pipeline, "load_matcher", lambda *_, **__: matcher)
    command = ["register", *map(str, images), "-o", str(tmp_path / "out.tif"), "--model", "shift"]
    assert cli.main(command) == 0
    assert "CE90" in capsys.readouterr().out and overlap(tmp_path / "out.tif", images[0])[1] < 1


def test_settings_that_contradict_are_an_error(matcher: Matcher) -> None:
    with pytest.raises(ValueError, match="workers"):
        MatchSettings(matcher, workers=2)
    with pytest.raises(ValueError, match="search_radius"):
        MatchSettings(search_radius=-1)
    with pytest.raises(ValueError, match="to must be"):
        SceneOptions(to="north")  # type: ignore[arg-type]
