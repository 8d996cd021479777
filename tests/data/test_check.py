"""Recognising folders, opening them by config, and reporting what is broken."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from data.make_sen12ms import write_sen12ms, write_tif

from sarmatch.config import DataConfig, profile
from sarmatch.data import check_data, open_pairs, recognise


def write_manifest(root: Path, rows: int = 3) -> Path:
    root.mkdir(exist_ok=True)
    lines = ["dataset,id,sar,optical,season,scene"]
    for i in range(rows):
        for name, channels in (("sar", 1), ("optical", 3)):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20, channels), np.uint8)
            cv2.imwrite(str(root / f"{name}{i}.png"), pixels)
        lines.append(f"d,p{i},sar{i}.png,optical{i}.png,fall,{i}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


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
        FileNotFoundError, match=r"no known layout; looked for manifest\.csv.*found \['a', 'b', 'c', 'd'\]"
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


def test_open_pairs_says_what_is_wrong(tmp_path: Path) -> None:
    folder, tree = str(write_manifest(tmp_path / "a")), str(write_sen12ms(tmp_path / "b", patches=1))
    with pytest.raises(ValueError, match="give its folder"):
        open_pairs(DataConfig(source="manifest"))
    with pytest.raises(FileNotFoundError, match="laid out as manifest; set source='manifest'"):
        open_pairs(DataConfig(source="sen12ms", root=folder))
    with pytest.raises(FileNotFoundError, match="laid out as sen12ms; set source='sen12ms'"):
        open_pairs(DataConfig(source="manifest", root=tree))


def test_report_of_a_sound_folder(tmp_path: Path) -> None:
    report = check_data(write_manifest(tmp_path / "a"))
    assert report.ok and report.layout == "manifest" and report.read == 3
    assert report.counts.loc[("d", "fall", ""), "pairs"] == 3 and report.counts.loc[("d", "fall", ""), "scenes"] == 3
    assert "3 pairs, 3 read in full" in str(report) and "no problems" in str(report)
    assert check_data(tmp_path / "a", max_read=2).read == 2


def test_report_of_a_broken_folder(tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "a", rows=4)
    (root / "sar0.png").unlink()
    (root / "sar1.png").write_bytes((root / "sar1.png").read_bytes()[:100])
    cv2.imwrite(str(root / "optical2.png"), np.full((20, 20, 3), 9, np.uint8))
    report = check_data(root)
    assert not report.ok and len(report.problems) == 3
    missing, truncated, constant = report.problems
    assert "p0: sar file" in missing and "p1: SAR image" in truncated and "p2: optical image" in constant
    assert "3 problems" in str(report)


def test_report_of_sen12ms(tmp_path: Path) -> None:
    report = check_data(write_sen12ms(tmp_path, patches=1))
    assert report.ok and report.layout == "sen12ms"
    assert report.counts.loc[("sen12ms", "spring", "croplands"), "pairs"] == 1
