"""Any folder of pairs described by a CSV: one row a pair, paths relative to the folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from torch import Tensor

from sarmatch.data.pairs import INDEX_COLUMNS, AbsentDatasetError, PairError, Pairs
from sarmatch.data.raster import read_row, read_sar

REQUIRED_COLUMNS = ("id", "sar", "optical")
OPTIONAL_COLUMNS = ("dataset", "scene", "season", "land_cover", "sar_later", "usable")


def manifest(
    root: str | Path,
    *,
    file: str = "manifest.csv",
    datasets: Sequence[str] = (),
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] = (0, 1, 2),
) -> Pairs:
    """Pairs of a folder that a CSV describes; rows with missing files or a repeated id are left out, as `problems`.

    The CSV needs the columns `id`, `sar` and `optical` (paths relative to `root`); it may have `dataset`, `scene`,
    `season`, `land_cover`, `sar_later` (a later SAR image of the same place) and `usable` (0 leaves the row out).
    A scene's name counts within its dataset only, so the index holds "dataset/scene".

    Args:
        datasets: keep only these values of the column `dataset`; empty keeps all.
        optical_bands: zero-based bands in red, green, blue order. The default (0, 1, 2) means red, green and blue of
            every file, which a Sentinel-2 stack of 12 or 13 bands has in (3, 2, 1): so mixed folders work.

    Raises:
        FileNotFoundError: no such folder, or no CSV in it.
        AbsentDatasetError: a name in `datasets` does not occur.
        PairError: the CSV lacks a column, or no usable pair is left.
    """
    root = Path(root)
    table = _read_table(root, file)
    return pairs_of_table(table, root, root / file, datasets, sar_bands=sar_bands, optical_bands=optical_bands)


def pairs_of_table(
    table: pd.DataFrame,
    root: Path,
    source: Path,
    datasets: Sequence[str] = (),
    *,
    sar_bands: Sequence[int],
    optical_bands: Sequence[int],
) -> Pairs:
    """Pairs of a table of strings with all columns of a manifest; errors, as those of `manifest`, name `source`."""
    table = table[table["usable"] != "0"]
    if unknown := set(datasets) - set(table["dataset"]):
        known = sorted(set(table["dataset"]))
        raise AbsentDatasetError(f"datasets: {sorted(unknown)} do not occur in {source}; it has {known}")
    if datasets:
        table = table[table["dataset"].isin(datasets)]
    table, problems = _leave_out_broken(table, root)
    if table.empty:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        why = "; ".join(problems[:3]) + more if problems else "all rows have usable = 0, or there are none"
        raise PairError(f"{source}: no usable pair is left; {why}")
    qualified = table["dataset"] + "/" + table["scene"]
    table["scene"] = qualified.where((table["dataset"] != "") & (table["scene"] != ""), table["scene"])
    index = table[[*INDEX_COLUMNS, "sar", "optical", "sar_later"]].reset_index(drop=True)
    optical = None if tuple(optical_bands) == (0, 1, 2) else tuple(optical_bands)
    read = partial(read_row, root=root, sar_bands=tuple(sar_bands), optical_bands=optical)
    return Pairs(index, read, partial(_read_later, root=root, sar_bands=tuple(sar_bands)), tuple(problems))


def _read_table(root: Path, file: str) -> pd.DataFrame:
    """The CSV as strings, with every known column; unknown values are empty."""
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root}: no such folder; give the folder that holds {file}")
    path = root / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; a folder of pairs needs this CSV with the columns {', '.join(REQUIRED_COLUMNS)}"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise PairError(f"{path}: not a readable CSV ({error}); expected UTF-8 text, one row a pair") from error
    if missing := [name for name in REQUIRED_COLUMNS if name not in table]:
        raise PairError(f"{path}: lacks the columns {missing}; it has {list(table.columns)}")
    return table.assign(**{name: "" for name in OPTIONAL_COLUMNS if name not in table})


def _leave_out_broken(table: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows whose files exist, and why the others do not count; a missing later SAR image costs only that image."""
    exists = {path: bool(path) and (root / path).is_file() for path in table[["sar", "optical", "sar_later"]].stack()}
    keep = ~table["id"].duplicated() & (table["id"] != "")
    problems = [
        f"row {row.Index + 2}: id {row.id!r} is empty or repeated; ids must be unique"
        for row in table[~keep].itertuples()
    ]
    for column in ("sar", "optical"):
        present = table[column].map(exists).astype(bool)
        for row in table[keep & ~present].itertuples():
            problems.append(f"{row.id}: {column} file {root / getattr(row, column)} is missing")
        keep &= present
    table = table[keep].copy()
    lost = (table["sar_later"] != "") & ~table["sar_later"].map(exists).astype(bool)
    problems += [f"{row.id}: later SAR file {root / row.sar_later} is missing" for row in table[lost].itertuples()]
    table.loc[lost, "sar_later"] = ""
    return table, problems


def _read_later(row: pd.Series, *, root: Path, sar_bands: tuple[int, ...]) -> Tensor | None:
    return read_sar(root / row["sar_later"], sar_bands).image if row["sar_later"] else None
