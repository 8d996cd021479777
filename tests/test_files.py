"""A file is either the old one or the new one, never half of it."""

import os
import stat

import pytest

from sarmatch.files import atomic_path


def test_the_new_file_replaces_the_old_one_at_the_end(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert partial.suffix == ".csv"
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_private_file_becomes_an_ordinary_one(tmp_path):
    with atomic_path(tmp_path / "model.bin") as partial:
        partial.touch(mode=0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model.bin").stat().st_mode) == 0o666 & ~mask


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"), atomic_path(tmp_path / "no" / "table.csv"):
        pass
