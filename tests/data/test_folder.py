"""Folders described by a CSV."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sarmatch.data import AbsentDatasetError, PairError, manifest

HEADER = "dataset,id,sar,optical,sar_later,season,scene,land_cover,usable"


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
    pairs = manifest(folder)
    assert list(pairs.index["id"]) == ["a0", "a1", "b0"] and pairs.problems == ()
    assert list(pairs.index["scene"]) == ["a/1", "a/2", "b/1"]
    pair = pairs[1]
    assert (pair.id, pair.dataset, pair.scene, pair.season, pair.land_cover) == ("a1", "a", "a/2", "fall", "urban")
    gray = cv2.imread(str(folder / "s1" / "1.png"), cv2.IMREAD_UNCHANGED)
    torch.testing.assert_close(pair.sar[0], torch.from_numpy(gray / 255).float())
    rgb = cv2.imread(str(folder / "s2" / "1.png"))[..., ::-1].transpose(2, 0, 1)
    torch.testing.assert_close(pair.optical, torch.from_numpy(rgb / 255).float())


def test_later_sar(folder: Path) -> None:
    pairs = manifest(folder)
    later = pairs.later_sar(0)
    gray = cv2.imread(str(folder / "s1" / "later.png"), cv2.IMREAD_UNCHANGED)
    assert later is not None and pairs.later_sar(1) is None
    torch.testing.assert_close(later[0], torch.from_numpy(gray / 255).float())


def test_datasets_are_chosen_by_name(folder: Path) -> None:
    assert list(manifest(folder, datasets=("b",)).index["id"]) == ["b0"]
    with pytest.raises(AbsentDatasetError, match=r"\['c'\] do not occur.*\['a', 'b'\]"):
        manifest(folder, datasets=("a", "c"))


def test_band_order(folder: Path) -> None:
    pair = manifest(folder, optical_bands=(2, 1, 0))[0]
    torch.testing.assert_close(pair.optical.flip(0), manifest(folder)[0].optical)


def test_three_columns_suffice(folder: Path) -> None:
    (folder / "list.csv").write_text("id,sar,optical\nx,s1/0.png,s2/0.png\n")
    pairs = manifest(folder, file="list.csv")
    assert pairs[0].id == "x" and pairs.index.loc[0, "scene"] == "" and pairs.later_sar(0) is None


def test_pairs_travel_to_loader_processes(folder: Path) -> None:
    pairs = manifest(folder)
    copy = pickle.loads(pickle.dumps(pairs.read))
    torch.testing.assert_close(copy(pairs.index.iloc[0]).sar, pairs[0].sar)


def test_broken_rows_are_reported_and_left_out(folder: Path) -> None:
    (folder / "s2" / "1.png").unlink()
    (folder / "s1" / "later.png").unlink()
    with (folder / "manifest.csv").open("a") as file:
        file.write("\nb,b0,s1/3.png,s2/3.png,,,1,,1\nb,b9,,s2/3.png,,,1,,1\n")
    pairs = manifest(folder)
    assert list(pairs.index["id"]) == ["a0", "b0"] and pairs.later_sar(0) is None
    text = "\n".join(pairs.problems)
    assert len(pairs.problems) == 4
    assert "row 6: id 'b0' is empty or repeated" in text and "a1: optical file" in text
    assert "b9: sar file" in text and "a0: later SAR file" in text


def test_nothing_left_is_an_error(folder: Path) -> None:
    for path in (folder / "s1").iterdir():
        path.unlink()
    with pytest.raises(PairError, match=r"no usable pair is left; a0: sar file .* b0: sar file"):
        manifest(folder)


def test_wrong_folder_or_table(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        manifest(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"s1/manifest\.csv: no such file; .* columns id, sar, optical"):
        manifest(folder / "s1")
    (folder / "bad.csv").write_text("name,sar\nx,y\n")
    with pytest.raises(PairError, match=r"lacks the columns \['id', 'optical'\]"):
        manifest(folder, file="bad.csv")
    (folder / "empty.csv").write_text("")
    with pytest.raises(PairError, match="not a readable CSV"):
        manifest(folder, file="empty.csv")


def test_real_manifest(data_root: Path) -> None:
    pairs = manifest(data_root)
    assert len(pairs) == 820 and pairs.problems == ()
    assert pairs.index.groupby("dataset").size().to_dict()["ombria"] == 725
    stacks = [i for i, name in enumerate(pairs.index["dataset"]) if name in ("sen12ms-cr", "terramesh")]
    for i in [0, 740, *stacks]:
        pair = pairs[i]
        assert pair.optical.shape[0] == 3 and pair.valid.float().mean() > 0.9
    assert pairs[stacks[0]].crs == "EPSG:32631"
