"""A file is either the old one or the new one, never half of it."""

import os
import stat

import pandas as pd
import pytest

from sarmatch.io import TABLES, atomic_path, check_output, write_table


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


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("table.txt", ValueError, r"table\.txt: records are saved as \.csv, \.parquet; got suffix '\.txt'"),
        ("no/table.csv", FileNotFoundError, "make it first"),
        ("folder.csv", ValueError, "it is a folder; name a file"),
    ],
)
def test_an_output_that_cannot_be_written_names_the_remedy(tmp_path, name, error, message):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(error, match=message):
        check_output(tmp_path / name, "records", TABLES)


@pytest.mark.parametrize("name", ["table.csv", "table.CSV", "table.parquet"])
def test_tables_are_written_by_their_suffix(tmp_path, name):
    table = pd.DataFrame({"a": [1, 2]})
    write_table(table, tmp_path / name)
    read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
    pd.testing.assert_frame_equal(read(tmp_path / name), table)
