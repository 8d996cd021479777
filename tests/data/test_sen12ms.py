"""SEN12MS, SEN12MS-CR and SEN1-2 trees: index, labels, broken files, storage of the index."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from data.make_sen12ms import make_patch, write_sen12ms, write_tif

from sarmatch.data import PairError, folder, open_folder, scale_optical, scale_sar, split_by_scene
from sarmatch.data.sen12ms import dominant_land_cover


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_sen12ms(tmp_path / "sen12ms")


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch):
    """Call it to make every later scan fail."""

    def forbid() -> None:
        known = folder.DATASETS["sen12ms"]
        fail = known._replace(table=lambda root: pytest.fail("the stored index was not used"))
        monkeypatch.setitem(folder.DATASETS, "sen12ms", fail)

    return forbid


def file(tree: Path, layer: str, patch: int = 30) -> Path:
    return tree / "ROIs1158_spring" / f"{layer}_1" / f"ROIs1158_spring_{layer}_1_p{patch}.tif"


def test_index(tree: Path) -> None:
    pairs = open_folder(tree)
    assert pairs.problems == () and len(pairs) == 8
    assert list(pairs.index["id"][:2]) == ["ROIs1158_spring_1_p30", "ROIs1158_spring_1_p31"]
    by_scene = pairs.index.drop_duplicates("scene").set_index("scene")
    assert list(by_scene.index) == [f"sen12ms/{name}" for name in ("spring_1", "spring_8", "summer_3", "summer_5")]
    assert list(by_scene["season"]) == ["spring", "spring", "summer", "summer"]
    assert list(by_scene["land_cover"]) == ["croplands", "forest", "urban", "water"]
    assert len(split_by_scene(pairs).test) == 2


def test_pair(tree: Path) -> None:
    arrays = make_patch(0, 12)
    pair = open_folder(tree, sar_bands=(0, 1))[0]
    torch.testing.assert_close(pair.sar, scale_sar(arrays["s1"], (0, 1))[0])
    torch.testing.assert_close(pair.optical, scale_optical(arrays["s2"][[3, 2, 1]])[0])
    assert pair.crs == "EPSG:32632" and pair.transform.a == 10 and pair.land_cover == "croplands"
    assert open_folder(tree, optical_bands=range(13))[0].optical.shape == (13, 256, 256)


def test_broken_and_unpaired_files_are_reported_and_left_out(tree: Path) -> None:
    file(tree, "s1", 30).write_bytes(file(tree, "s1", 30).read_bytes()[:100_000])
    file(tree, "s2", 31).unlink()
    ok = make_patch(1, 12)
    wrong = {
        "s2_8/ROIs1158_spring_s2_8_p30": ok["s2"].astype(np.float32),
        "s1_8/ROIs1158_spring_s1_8_p31": ok["s1"][:1],
    }
    for name, values in wrong.items():
        write_tif(tree / "ROIs1158_spring" / f"{name}.tif", values)
    write_tif(tree / "ROIs1868_summer" / "s2_3" / "ROIs1868_summer_s2_3_p30.tif", ok["s2"][:, :128])
    (tree / "ROIs1868_summer" / "lc_3" / "ROIs1868_summer_lc_3_p31.tif").unlink()
    (tree / "ROIs1868_summer" / "s1_3" / "notes.txt").write_text("not a patch")
    pairs = open_folder(tree)
    assert list(pairs.index["id"]) == ["ROIs1868_summer_3_p31", "ROIs1868_summer_5_p30", "ROIs1868_summer_5_p31"]
    assert list(pairs.index["land_cover"]) == ["", "water", "water"]
    problems = dict(text.split(": ", 1) for text in pairs.problems)
    assert "corrupt or truncated" in problems["ROIs1158_spring_1_p30"]
    assert problems["ROIs1158_spring_1_p31"] == "has no s2 file"
    assert "expected 13 bands of uint16 and 256x256 px, found 13 of float32" in problems["ROIs1158_spring_8_p30"]
    assert "expected 2 bands of float32 and 256x256 px, found 1 of" in problems["ROIs1158_spring_8_p31"]
    assert "and 256x128" in problems["ROIs1868_summer_3_p30"]
    assert problems["ROIs1868_summer_3_p31"] == "has no lc file"


def test_without_land_cover_at_all(tmp_path: Path) -> None:
    pairs = open_folder(write_sen12ms(tmp_path, patches=1, layers="s1 s2"))
    assert pairs.problems == () and set(pairs.index["land_cover"]) == {""}


def test_index_is_stored_and_found_again(tree: Path, no_scan) -> None:
    file(tree, "s2", 31).unlink()
    first = open_folder(tree)
    assert len(list(tree.glob("*.parquet"))) == 1 and not list(tree.glob(".*partial*"))
    no_scan()
    again = open_folder(tree)
    assert again.index.equals(first.index) and again.problems == first.problems != ()


def test_a_changed_folder_is_scanned_again(tree: Path, tmp_path: Path) -> None:
    assert len(open_folder(tree)) == 8
    file(tree, "s2", 31).unlink()
    assert len(open_folder(tree)) == 7
    three_bands = write_tif(tmp_path / "three.tif", make_patch(0, 12)["s2"][:3])
    file(tree, "s2", 30).write_bytes(three_bands.read_bytes())  # overwritten in place: only a rescan sees it
    assert len(open_folder(tree)) == 7 and len(open_folder(tree, rescan=True)) == 6


def test_read_only_root_uses_the_cache(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_scan) -> None:
    write = folder.write_table

    def refuse_root(table: pd.DataFrame, path: Path) -> None:
        if path.parent == tree:
            raise PermissionError(path)
        write(table, path)

    monkeypatch.setattr(folder, "write_table", refuse_root)
    monkeypatch.setattr(folder.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    open_folder(tree)
    assert not list(tree.glob("*.parquet")) and len(list((tmp_path / "cache" / "sarmatch").glob("*.parquet"))) == 1
    no_scan()
    assert len(open_folder(tree)) == 8


def test_unreadable_index_is_replaced(tree: Path) -> None:
    open_folder(tree)
    next(tree.glob("*.parquet")).write_bytes(b"PAR1 half a file")
    with pytest.warns(UserWarning, match="unreadable"):
        assert len(open_folder(tree)) == 8
    assert len(open_folder(tree)) == 8


def test_half_a_tree(tmp_path: Path) -> None:
    tree = write_sen12ms(tmp_path, patches=1, layers="s1")
    with pytest.raises(PairError, match=r"no usable pair is left; .*has no s2 file"):
        open_folder(tree)


def test_sen12ms_cr(tmp_path: Path) -> None:
    clear, veiled = make_patch(0, 12), make_patch(1, 12)
    for layer, values in (("s1", clear["s1"]), ("s2", clear["s2"]), ("s2_cloudy", veiled["s2"])):
        name = f"ROIs1970_fall_{layer}_7_p2.tif"
        write_tif(tmp_path / f"ROIs1970_fall_{layer}" / f"{layer}_7" / name, values)
    pairs = open_folder(tmp_path)
    assert list(pairs.index["scene"]) == ["sen12ms-cr/fall_7"]
    torch.testing.assert_close(pairs[0].optical, scale_optical(clear["s2"][[3, 2, 1]])[0])


def test_sen12(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for layer, channels in (("s1", 1), ("s2", 3)):
        folder = tmp_path / "ROIs2017_winter" / f"{layer}_0"
        folder.mkdir(parents=True)
        for patch in (5, 12):
            pixels = rng.integers(0, 256, (256, 256, channels), np.uint8)
            cv2.imwrite(str(folder / f"ROIs2017_winter_{layer}_0_p{patch}.png"), pixels)
    broken = tmp_path / "ROIs2017_winter" / "s2_0" / "ROIs2017_winter_s2_0_p12.png"
    broken.write_bytes(broken.read_bytes()[:50_000])
    pairs = open_folder(tmp_path)
    assert list(pairs.index["id"]) == ["ROIs2017_winter_0_p5"] and pairs.index.loc[0, "scene"] == "sen1-2/winter_0"
    assert len(pairs.problems) == 1 and "p12.png is corrupt" in pairs.problems[0]
    assert pairs[0].sar.shape == (1, 256, 256) and pairs[0].optical.shape == (3, 256, 256)


def test_dominant_land_cover() -> None:
    assert dominant_land_cover(np.array([[1, 2, 3], [12, 12, 17]])) == "forest"  # three kinds of forest together
    assert dominant_land_cover(np.array([12, 14, 13])) == "croplands"
    assert dominant_land_cover(np.array([0, 255, 255, 16], np.uint8)) == "barren"
    assert dominant_land_cover(np.array([0, 255])) == ""
    names = [dominant_land_cover(np.array([igbp])) for igbp in (5, 7, 9, 10, 11, 12, 13, 15, 16, 17)]
    assert names == [
        "forest", "shrubland", "savanna", "grassland", "wetlands", "croplands", "urban", "snow/ice", "barren", "water",
    ]  # fmt: skip
