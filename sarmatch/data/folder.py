"""Opening and checking folders of pairs, of whatever layout."""

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
from pyarrow import ArrowException
from torch import Tensor
from tqdm import tqdm

from sarmatch.config import DataConfig
from sarmatch.data.datasets import DATASETS, recognise
from sarmatch.data.pairs import INDEX_COLUMNS, SPLIT_COLUMN, AbsentDatasetError, Pair, PairError, Pairs
from sarmatch.data.raster import RED_GREEN_BLUE, read_pair, read_sar
from sarmatch.data.synthetic import synthetic_pairs
from sarmatch.io import write_table

INDEX_VERSION = 2  # part of the name of a stored table: another version of its columns makes its own


def open_pairs(config: DataConfig, seed: int = 0) -> Pairs:
    """The pairs that a config names; `seed` is that of generated pairs.

    ValueError without `root` for real data; FileNotFoundError where it is no folder, or not of `source`; else errors as
    of `open_folder`.
    """
    if config.source == "synthetic":
        return synthetic_pairs(config.n_synthetic, config.patch_size, seed, sar_bands=config.sar_bands)
    if config.root is None:
        raise ValueError(f"source={config.source!r} reads real data: give its folder (root, or --data PATH)")
    layout = recognise(config.root)
    if (source := DATASETS[layout].source) != config.source:
        raise FileNotFoundError(
            f"{config.root}: source={config.source!r} expected, but the folder is laid out as {layout}; set "
            f"source={source!r} (profile {'s1s2' if source == 'manifest' else 'sen12ms'!r}) or give another folder"
        )
    return open_folder(config.root, config.datasets, config.sar_bands, config.optical_bands)


def open_folder(
    root: str | Path,
    datasets: Sequence[str] = (),
    sar_bands: Sequence[int] = (0,),
    optical_bands: Sequence[int] = (0, 1, 2),
    rescan: bool = False,
) -> Pairs:
    """The pairs of a folder of any layout in `DATASETS`; those that cannot be read stand in `problems`.

    `root` may also be a manifest: a CSV whose paths count from its own folder. By its column `split`, where it has one,
    goes `splits.split_pairs`. A scene's name counts within its dataset only, so the index holds "dataset/scene".

    Args:
        datasets: which to keep, by the column `dataset`; empty keeps all. A folder that holds one of them alone is
            opened with a warning.
        sar_bands: zero-based: VV (0), or VV and VH (0, 1).
        optical_bands: zero-based. (0, 1, 2) and (3, 2, 1) mean red, green and blue of every file: the latter where it
            is a Sentinel-2 stack of 12 or 13 bands, else the former.
        rescan: list the pairs again, which SEN12MS and its relatives need after a file was overwritten in place.

    Raises:
        FileNotFoundError: as `recognise`.
        AbsentDatasetError: a name in `datasets` does not occur.
        PairError: the table lacks a column, or no usable pair is left.
    """
    table = _stored_table(Path(root), recognise(root), rescan)
    root = Path(root).parent if Path(root).is_file() else Path(root)
    if missing := [name for name in ("id", "sar", "optical") if name not in table]:
        raise PairError(f"{root}: the table of its pairs lacks the columns {missing}; it has {list(table.columns)}")
    optional = {*INDEX_COLUMNS, "sar_later", "usable"}
    table = table.assign(**dict.fromkeys(optional.difference(table.columns), ""))
    held = sorted(table["dataset"].unique())
    if absent := sorted(set(datasets) - set(held)):
        if len(held) > 1 or set(held).isdisjoint(datasets):
            raise AbsentDatasetError(f"datasets: {absent} do not occur in {root}; it has {held}, choose among them")
        warnings.warn(f"{root} holds {held[0]} alone; going on without {', '.join(absent)}", stacklevel=3)
    index, problems = _usable(table[table["dataset"].isin(datasets or held)], root)
    colours = None if tuple(optical_bands) in ((0, 1, 2), RED_GREEN_BLUE) else tuple(optical_bands)
    read = partial(_read, root=root, sar_bands=tuple(sar_bands), optical_bands=colours)
    return Pairs(index, read, partial(_read_later, root=root, sar_bands=tuple(sar_bands)), problems)


def _usable(table: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The index of the rows that can be read, and what is wrong with the others."""
    if "problem" not in table:
        table = _examined(table[table["usable"] != "0"], root)
    bad = table[table["problem"] != ""]
    problems = tuple(bad["id"] + ": " + bad["problem"])
    table = table[table["usable"] != "0"].reset_index(drop=True)
    if table.empty:
        why = "; ".join(problems[:3]) or "all rows have usable = 0, or there are none"
        raise PairError(f"{root}: no usable pair is left; {why} ({len(problems)} problems)")
    qualified = table["dataset"] + "/" + table["scene"]
    table["scene"] = qualified.where((table["dataset"] != "") & (table["scene"] != ""), table["scene"])
    given = table.columns.intersection([SPLIT_COLUMN])
    return table[[*INDEX_COLUMNS, *given, "sar", "optical", "sar_later"]], problems


def _examined(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The table with `problem` and `usable`, by which files exist; a missing later SAR image costs only that image."""

    def missing(column: str, what: str) -> pd.Series:
        return table[column].map(lambda path: f"{what} file {root / path} is missing")

    named = (table[name] for name in ("sar", "optical", "sar_later"))
    sar, optical, later = (np.array([(root / path).is_file() for path in paths], bool) for paths in named)
    unnamed = (table["id"].duplicated() | (table["id"] == "")).to_numpy()
    repeated = "id of row " + (table.index + 2).astype(str) + " is empty or repeated; ids must be unique"
    problem = np.select(
        [unnamed, ~sar, ~optical, ~later & (table["sar_later"] != "").to_numpy()],
        [repeated, missing("sar", "sar"), missing("optical", "optical"), missing("sar_later", "later SAR")],
        "",
    )
    usable = np.where(unnamed | ~sar | ~optical, "0", "1")
    return table.assign(problem=problem, usable=usable, sar_later=table["sar_later"].where(later, ""))


def _stored_table(root: Path, layout: str, rescan: bool) -> pd.DataFrame:
    """The table of a folder; a slow one is stored in `root`, or in the user's cache where that is read-only."""
    known = DATASETS[layout]
    if known.parts is None:
        return known.table(root)
    state = "\n".join(f"{part.relative_to(root)} {part.stat().st_mtime_ns}" for part in known.parts(root))
    digest = hashlib.sha256(f"{INDEX_VERSION}\n{layout}\n{state}".encode()).hexdigest()[:12]
    paths = [place / f"sarmatch-{layout}-{digest}.parquet" for place in (root, Path(pooch.os_cache("sarmatch")))]
    for path in () if rescan else filter(Path.is_file, paths):
        try:
            return pd.read_parquet(path)
        except (ArrowException, OSError) as error:
            warnings.warn(f"index {path} is unreadable ({error}); scanning {root} again", stacklevel=4)
    table = known.table(root)
    for path in paths:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(table, path)
            return table
    warnings.warn(f"no place to store the index of {root}, tried {[str(path) for path in paths]}", stacklevel=4)
    return table


def _read(row: pd.Series, *, root: Path, sar_bands: Sequence[int], optical_bands: Sequence[int] | None) -> Pair:
    labels = {name: row[name] for name in INDEX_COLUMNS[1:]}
    return read_pair(root / row["sar"], root / row["optical"], row["id"], sar_bands, optical_bands, **labels)


def _read_later(row: pd.Series, *, root: Path, sar_bands: Sequence[int]) -> Tensor | None:
    return read_sar(root / row["sar_later"], sar_bands).image if row["sar_later"] else None


def check_data(root: str | Path, max_read: int = 2000) -> tuple[str, tuple[str, ...]]:
    """A report on a folder, and what is missing or broken in it; `max_read` pairs, evenly spaced, are read in full."""
    pairs = open_folder(root, rescan=True)
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(max_read, len(pairs))).round().astype(int))
    broken = []
    for i in tqdm(rows, "read", unit="pair", disable=None):
        try:
            pairs[int(i)]
        except (PairError, OSError) as error:
            broken.append(f"{pairs.index['id'].iloc[i]}: {error}")
    counts = pairs.index.groupby(["dataset", "season", "land_cover"])["scene"].agg(pairs="size", scenes="nunique")
    problems = (*pairs.problems, *broken)
    lines = [f"{root}: {recognise(root)}, {len(pairs)} pairs, {len(rows)} read in full", "", counts.to_string(), ""]
    lines += [f"{len(problems)} problems" if problems else "no problems", *problems[:50]]
    lines += [f"... and {len(problems) - 50} more"] if len(problems) > 50 else []
    return "\n".join(lines), problems
