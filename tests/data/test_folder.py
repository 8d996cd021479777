"""Folders described by a CSV, opened by config, and what is reported of broken ones."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from data.make_sen12ms import write_sen12ms, write_tif

from sarmatch.config import DataConfig
from sarmatch.data import AbsentDatasetError, PairError, check_data, open_folder, open_pairs, recognise
from sarmatch.data.datasets import DATASETS, Dataset
from sarmatch.profiles import profile

HEADER = "dataset,id,sar,optical,sar_later,season,scene,land_cover,usable"


def write_manifest(root: Path, rows: int = 3) -> Path:
    for i in range(rows):
        write_image(root / f"sar{i}.png", i, 1)
        write_image(root / f"optical{i}.png", i, 3)
    lines = [f"d,p{i},sar{i}.png,optical{i}.png,fall,{i}" for i in range(rows)]
    (root / "manifest.csv").write_text("\n".join(["dataset,id,sar,optical,season,scene", *lines]))
    return root


def write_image(path: Path, seed: int, channels: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, channels), np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two datasets with a scene of the same name, one unusable row, one later SAR image."""
    for i in range(4):
        write_image(tmp_path / "s1" / f"{i}.png", i, 1)
        write_image(tmp_path / "s2" / f"{i}.png", 10 + i, 3)
    write_image(tmp_path / "s1" / "later.png", 20, 1)
    rows = [
        "a,a0,s1/0.png,s2/0.png,s1/later.png,,1,,1",
        "a,a1,s1/1.png,s2/1.png,,fall,2,urban,1",
        "b,b0,s1/2.png,s2/2.png,,,1,,1",
        "b,b1,s1/3.png,s2/3.png,,,1,,0",
    ]
    (tmp_path / "manifest.csv").write_text("\n".join([HEADER, *rows]))
    return tmp_path


def test_index_and_pairs(folder: Path) -> None:
    pairs = open_folder(folder)
    assert list(pairs.index["id"]) == ["a0", "a1", "b0"] and pairs.problems == ()
    assert list(pairs.index["scene"]) == ["a/1", "a/2", "b/1"]
    pair = pairs[1]
    assert (pair.id, pair.dataset, pair.scene, pair.season, pair.land_cover) == ("a1", "a", "a/2", "fall", "urban")
    gray = cv2.imread(str(folder / "s1" / "1.png"), cv2.IMREAD_UNCHANGED)
    torch.testing.assert_close(pair.sar[0], torch.from_numpy(gray / 255).float())
    rgb = cv2.imread(str(folder / "s2" / "1.png"))[..., ::-1].transpose(2, 0, 1)
    torch.testing.assert_close(pair.optical, torch.from_numpy(rgb / 255).float())


def test_later_sar(folder: Path) -> None:
    pairs = open_folder(folder)
    later = pairs.later_sar(0)
    gray = cv2.imread(str(folder / "s1" / "later.png"), cv2.IMREAD_UNCHANGED)
    assert later is not None and pairs.later_sar(1) is None
    torch.testing.assert_close(later[0], torch.from_numpy(gray / 255).float())


def test_datasets_are_chosen_by_name(folder: Path) -> None:
    assert list(open_folder(folder, datasets=("b",)).index["id"]) == ["b0"]
    with pytest.raises(AbsentDatasetError, match=r"\['c'\] do not occur.*\['a', 'b'\]"):
        open_folder(folder, datasets=("a", "c"))


def test_band_order(folder: Path) -> None:
    pair = open_folder(folder, optical_bands=(2, 1, 0))[0]
    torch.testing.assert_close(pair.optical.flip(0), open_folder(folder)[0].optical)


def test_three_columns_suffice(folder: Path) -> None:
    (folder / "manifest.csv").write_text("id,sar,optical\nx,s1/0.png,s2/0.png\n")
    pairs = open_folder(folder)
    assert pairs[0].id == "x" and pairs.index.loc[0, "scene"] == "" and pairs.later_sar(0) is None


def test_pairs_travel_to_loader_processes(folder: Path) -> None:
    pairs = open_folder(folder)
    copy = pickle.loads(pickle.dumps(pairs.read))
    torch.testing.assert_close(copy(pairs.index.iloc[0]).sar, pairs[0].sar)


def test_broken_rows_are_reported_and_left_out(folder: Path) -> None:
    (folder / "s2" / "1.png").unlink()
    (folder / "s1" / "later.png").unlink()
    with (folder / "manifest.csv").open("a") as file:
        file.write("\nb,b0,s1/3.png,s2/3.png,,,1,,1\nb,b9,,s2/3.png,,,1,,1\n")
    pairs = open_folder(folder)
    assert list(pairs.index["id"]) == ["a0", "b0"] and pairs.later_sar(0) is None
    text = "\n".join(pairs.problems)
    assert len(pairs.problems) == 4
    assert "b0: id of row 6 is empty or repeated" in text and "a1: optical file" in text
    assert "b9: sar file" in text and "a0: later SAR file" in text


def test_nothing_left_is_an_error(folder: Path) -> None:
    for path in (folder / "s1").iterdir():
        path.unlink()
    with pytest.raises(PairError, match=r"no usable pair is left; a0: sar file .* b0: sar file"):
        open_folder(folder)


def test_wrong_table(folder: Path) -> None:
    (folder / "manifest.csv").write_text("name,sar\nx,y\n")
    with pytest.raises(PairError, match=r"lacks the columns \['id', 'optical'\]"):
        open_folder(folder)
    (folder / "manifest.csv").write_text("")
    with pytest.raises(PairError, match=r"manifest\.csv: not a readable CSV"):
        open_folder(folder)


def test_a_folder_of_one_dataset_is_opened_by_a_profile_that_names_others(folder: Path) -> None:
    (folder / "manifest.csv").write_text("id,sar,optical,dataset\nx,s1/0.png,s2/0.png,b\n")
    with pytest.warns(UserWarning, match="holds b alone; going on without a"):
        assert len(open_folder(folder, datasets=("a", "b"))) == 1
    with pytest.raises(AbsentDatasetError, match=r"\['a'\] do not occur in .*; it has \['b'\]"):
        open_folder(folder, datasets=("a",))


def test_real_manifest(data_root: Path) -> None:
    pairs = open_folder(data_root)
    assert len(pairs) == 820 and pairs.problems == ()
    assert pairs.index.groupby("dataset").size().to_dict()["ombria"] == 725
    stacks = [i for i, name in enumerate(pairs.index["dataset"]) if name in ("sen12ms-cr", "terramesh")]
    for i in [0, 740, *stacks]:
        pair = pairs[i]
        assert pair.optical.shape[0] == 3 and pair.valid.float().mean() > 0.9
    assert pairs[stacks[0]].crs == "EPSG:32631"


def test_recognise(tmp_path: Path) -> None:
    assert recognise(write_manifest(tmp_path / "a")) == "manifest"
    assert recognise(write_sen12ms(tmp_path / "b", patches=1)) == "sen12ms"
    values = np.zeros((2, 8, 8), np.float32)
    write_tif(tmp_path / "c" / "ROIs1158_spring_s1" / "s1_1" / "ROIs1158_spring_s1_1_p1.tif", values)
    assert recognise(tmp_path / "c") == "sen12ms-cr"
    png = tmp_path / "d" / "ROIs1158_spring" / "s1_0" / "ROIs1158_spring_s1_0_p5.png"
    png.parent.mkdir(parents=True)
    png.touch()
    assert recognise(tmp_path / "d") == "sen1-2"
    with pytest.raises(
        FileNotFoundError, match=r"(?s)no known layout; found \['a', 'b', 'c', 'd'\], looked for.*manifest\.csv"
    ):
        recognise(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        recognise(tmp_path / "nowhere")


def test_open_pairs_follows_the_config(tmp_path: Path) -> None:
    folder = str(write_manifest(tmp_path / "a"))
    assert open_pairs(DataConfig(root=folder))[1].id == "p1"
    tree = str(write_sen12ms(tmp_path / "b", patches=1))
    pairs = open_pairs(profile("sen12ms", tree).data)
    assert len(pairs) == 4 and pairs[0].optical.shape == (3, 256, 256)
    smoke = profile("smoke").data
    assert open_pairs(smoke, seed=1).fingerprint() == open_pairs(smoke, seed=1).fingerprint()
    assert open_pairs(smoke, seed=1).fingerprint() != open_pairs(smoke, seed=2).fingerprint()
    assert open_pairs(smoke)[0].size == (smoke.patch_size, smoke.patch_size)


def test_a_dataset_is_one_function_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        write_image(tmp_path / "radar" / f"{i}.png", i, 1)
        write_image(tmp_path / "colour" / f"{i}.png", i, 3)

    def two_folders(root: Path) -> pd.DataFrame:
        names = [path.name for path in sorted((root / "radar").iterdir())]
        rows = [{"id": name, "sar": f"radar/{name}", "optical": f"colour/{name}", "scene": name} for name in names]
        return pd.DataFrame(rows).assign(dataset="two")

    entry = Dataset("radar/0.png", lambda root: (root / "radar").is_dir(), two_folders)
    monkeypatch.setitem(DATASETS, "two", entry)
    pairs = open_pairs(DataConfig(root=str(tmp_path), datasets=("two",)))
    assert list(pairs.index["scene"]) == ["two/0.png", "two/1.png"] and pairs[1].optical.shape == (3, 24, 20)
    assert check_data(tmp_path)[1] == ()


def test_open_pairs_says_what_is_wrong(tmp_path: Path) -> None:
    folder, tree = str(write_manifest(tmp_path / "a")), str(write_sen12ms(tmp_path / "b", patches=1))
    with pytest.raises(ValueError, match="give its folder"):
        open_pairs(DataConfig(source="manifest"))
    with pytest.raises(FileNotFoundError, match="laid out as manifest; set source='manifest'"):
        open_pairs(DataConfig(source="sen12ms", root=folder))
    with pytest.raises(FileNotFoundError, match="laid out as sen12ms; set source='sen12ms'"):
        open_pairs(DataConfig(source="manifest", root=tree))


def test_report_of_a_sound_folder(tmp_path: Path) -> None:
    report, problems = check_data(write_manifest(tmp_path))
    assert problems == () and report.endswith("no problems")
    assert f"{tmp_path}: manifest, 3 pairs, 3 read in full" in report and re.search(r"d +fall +3 +3\n", report)
    assert "3 pairs, 2 read in full" in check_data(tmp_path, max_read=2)[0]


def test_report_of_a_broken_folder(tmp_path: Path) -> None:
    root = write_manifest(tmp_path, rows=4)
    (root / "sar0.png").unlink()
    (root / "sar1.png").write_bytes((root / "sar1.png").read_bytes()[:100])
    cv2.imwrite(str(root / "optical2.png"), np.full((20, 20, 3), 9, np.uint8))
    report, (missing, truncated, constant) = check_data(root)
    assert "p0: sar file" in missing and "p1: SAR image" in truncated and "p2: optical image" in constant
    assert "3 problems" in report and constant in report


def test_report_of_sen12ms(tmp_path: Path) -> None:
    report, problems = check_data(write_sen12ms(tmp_path, patches=1))
    assert (
        problems == () and ": sen12ms, 4 pairs" in report and re.search(r"sen12ms +spring +croplands +1 +1\n", report)
    )


def test_a_manifest_of_any_name_is_opened_by_its_file_and_keeps_its_split(folder: Path) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.assign(split=["train", "test", "train", "test"]).to_csv(folder / "second.csv", index=False)
    pairs = open_folder(folder / "second.csv")
    assert list(pairs.index["split"]) == ["train", "test", "train"]
    assert pairs[0].id == "a0"
    assert pairs.later_sar(0) is not None
    assert "split" not in open_folder(folder).index
    assert recognise(folder / "second.csv") == "manifest"
    with pytest.raises(FileNotFoundError, match="neither a folder nor a manifest"):
        open_folder(folder / "s1" / "0.png")
    with pytest.raises(FileNotFoundError, match="no such folder or manifest"):
        open_folder(folder / "third.csv")
