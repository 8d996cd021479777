"""Loader throughput against bare rasterio reads of the same bands of the same files.

    python -m companion.benchmarks.loader PATH [--pairs 60] [--rounds 9]

PATH is any folder that `sarmatch data check` recognises. Of each pair and way the shortest CPU time of `rounds` counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
import tyro
from rasterio.errors import NotGeoreferencedWarning

from companion.timing import interleave
from sarmatch.data import Pairs, open_folder
from sarmatch.data.raster import RED_GREEN_BLUE

TARGET = 0.7  # of the throughput of bare reads


def main(root: tyro.conf.Positional[Path], pairs: int = 60, rounds: int = 9) -> None:
    """Print pairs a CPU second of the loader and of bare reads, by dataset."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    whole = open_folder(root)
    for name in sorted(whole.index["dataset"].unique()):
        rows = np.flatnonzero(whole.index["dataset"] == name)
        part = whole.subset(rows[np.linspace(0, len(rows) - 1, min(pairs, len(rows))).astype(int)])
        bare, loader = compare(part, root, rounds)
        speeds = f"bare {1 / bare:.1f} pairs/s, loader {1 / loader:.1f} pairs/s, ratio {bare / loader:.2f}"
        print(f"{name}, {len(part)} pairs: {speeds}, at least {TARGET} is wanted")


def compare(pairs: Pairs, root: Path, rounds: int) -> tuple[float, float]:
    """Mean CPU seconds a pair, bare and through the loader."""
    shortest = []
    for i in range(len(pairs)):
        runs: dict[str, Callable[[], object]] = {
            "bare": partial(read_bare, pairs.index.iloc[i], root),
            "loader": partial(pairs.__getitem__, i),
        }
        shortest.append([min(seconds) for seconds in interleave(runs, rounds).values()])
    bare, loader = np.mean(shortest, axis=0)
    return float(bare), float(loader)


def read_bare(row: pd.Series, root: Path) -> None:
    """Open both files and decode VV and the three colours."""
    with rasterio.open(root / row["sar"]) as dataset:
        dataset.read([1])
    with rasterio.open(root / row["optical"]) as dataset:
        dataset.read([band + 1 for band in (RED_GREEN_BLUE if dataset.count in (12, 13) else (0, 1, 2))])


if __name__ == "__main__":
    tyro.cli(main)
