"""OMBRIA's own layout: the pairs of the manifest, without the manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from sarmatch.config import DataConfig
from sarmatch.data import AbsentDatasetError, PairError, check_data, open_folder, open_pairs, recognise, split_pairs
from sarmatch.data.datasets import SCENES
from sarmatch.profiles import profile

TABLE = pd.read_csv(SCENES, dtype=str, keep_default_na=False)
CHOSEN = [0, 1, 650, 740, 694]
"""The last is not usable."""
FILES = ["sar", "optical", "sar_later"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five pairs of the original layout, from training, tests and 2021."""
    for number, row in enumerate(TABLE.iloc[CHOSEN].itertuples()):
        for column, channels in zip(FILES, (1, 3, 1), strict=True):
            path = tmp_path / "tree" / getattr(row, column)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, channels]).integers(0, 256, (32, 32, channels), np.uint8)
            assert cv2.imwrite(str(path), pixels)
    return tmp_path / "tree"


def test_table_lists_files_of_the_registry_once() -> None:
    checksums = {line.split()[0] for line in SCENES.with_name("ombria.txt").read_text().splitlines()}
    listed = TABLE[FILES].stack()
    assert listed.is_unique and set(listed) <= checksums
    assert len(TABLE) == 746 and TABLE["id"].is_unique
    assert TABLE["usable"].value_counts().to_dict() == {"1": 725, "0": 21}
    assert TABLE["scene"].nunique() == 41 and not (TABLE["scene"] == "").any()


def test_pairs_of_a_part(tree: Path) -> None:
    pairs = open_folder(tree)
    usable = TABLE.iloc[CHOSEN[:-1]]
    assert list(pairs.index["id"]) == list(usable["id"])
    assert list(pairs.index["scene"]) == [f"ombria/{scene}" for scene in usable["scene"]]
    assert set(pairs.index["dataset"]) == {"ombria"} and len(pairs.problems) == 725 - 4
    pair, later = pairs[1], pairs.later_sar(1)
    gray = cv2.imread(str(tree / usable.iloc[1]["sar"]), cv2.IMREAD_UNCHANGED)
    torch.testing.assert_close(pair.sar[0], torch.from_numpy(gray / 255).float())
    gray = cv2.imread(str(tree / usable.iloc[1]["sar_later"]), cv2.IMREAD_UNCHANGED)
    assert later is not None
    torch.testing.assert_close(later[0], torch.from_numpy(gray / 255).float())
    assert pair.optical.shape == (3, 32, 32)


def test_missing_files_are_named(tree: Path) -> None:
    (tree / TABLE.loc[0, "optical"]).unlink()
    (tree / TABLE.loc[1, "sar_later"]).unlink()
    pairs = open_folder(tree)
    assert TABLE.loc[0, "id"] not in set(pairs.index["id"]) and pairs.later_sar(0) is None
    text = "\n".join(pairs.problems)
    assert f"{TABLE.loc[0, 'id']}: optical file {tree / TABLE.loc[0, 'optical']} is missing" in text
    assert f"{TABLE.loc[1, 'id']}: later SAR file" in text


def test_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)no known layout.*sarmatch data get ombria"):
        open_folder(tmp_path)
    (tmp_path / "OmbriaS1").mkdir()
    with pytest.raises(PairError, match="no usable pair is left; ombria_train_0001: sar file"):
        open_folder(tmp_path)


def test_folder_is_recognised_and_checked(tree: Path) -> None:
    assert recognise(tree) == "ombria"
    report, problems = check_data(tree)
    assert f"{tree}: ombria, 4 pairs, 4 read in full" in report and len(problems) == 725 - 4
    (tree / "manifest.csv").write_text("id,sar,optical\n")
    assert recognise(tree) == "manifest"


def test_open_pairs_goes_on_without_the_other_data_sets(tree: Path) -> None:
    expected = open_folder(tree).fingerprint()
    with pytest.warns(UserWarning, match="holds ombria alone; going on without sen1-2, sen12ms") as caught:
        assert open_pairs(profile("s1s2", str(tree)).data).fingerprint() == expected
    assert len(caught) == 1 and caught[0].filename == __file__
    assert open_pairs(DataConfig(root=str(tree), datasets=("ombria",))).fingerprint() == expected
    with pytest.raises(AbsentDatasetError, match=r"\['sen1-2'\] do not occur in .*; it has \['ombria'\]"):
        open_folder(tree, datasets=("sen1-2",))
    with pytest.raises(FileNotFoundError, match="laid out as ombria; set source='manifest'"):
        open_pairs(DataConfig(source="sen12ms", root=str(tree)))


def test_same_pairs_as_the_manifest(data_root: Path, tmp_path: Path) -> None:
    """On links with the original names to the real files: same list, same split, same fingerprint."""
    described = pd.read_csv(data_root / "manifest.csv", dtype=str, keep_default_na=False).query("dataset == 'ombria'")
    assert described[["id", "scene", "usable"]].reset_index(drop=True).equals(TABLE[["id", "scene", "usable"]])
    for (_, ours), (_, theirs) in zip(described[FILES].iterrows(), TABLE[FILES].iterrows(), strict=True):
        for column in FILES:
            link = tmp_path / theirs[column]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data_root / ours[column])
    pairs, reference = open_folder(tmp_path), open_folder(data_root, datasets=("ombria",))
    assert pairs.problems == () and len(pairs) == 725
    assert pairs.fingerprint() == reference.fingerprint()
    with pytest.warns(UserWarning, match="holds ombria alone"):
        alone = split_pairs(open_pairs(profile("s1s2", str(tmp_path)).data), DataConfig())
    mixed = split_pairs(open_pairs(profile("s1s2", str(data_root)).data), DataConfig())
    for part in ("train", "validation", "test"):
        index = getattr(mixed, part).index
        assert list(getattr(alone, part).index["id"]) == list(index["id"][index["dataset"] == "ombria"])
    for i in (0, 724):
        assert torch.equal(pairs[i].sar, reference[i].sar) and torch.equal(pairs[i].optical, reference[i].optical)


def test_real_files_have_the_checksums_of_their_original_names(data_root: Path) -> None:
    lines = SCENES.with_name("ombria.txt").read_text().splitlines()[1:]
    checksums = dict(line.split() for line in lines)
    described = pd.read_csv(data_root / "manifest.csv", dtype=str).query("dataset == 'ombria'").set_index("id")
    for row in TABLE.iloc[:: len(TABLE) // 12].itertuples():
        for column in FILES:
            content = (data_root / described.loc[row.id, column]).read_bytes()
            assert checksums[getattr(row, column)] == f"sha256:{hashlib.sha256(content).hexdigest()}", row.id
