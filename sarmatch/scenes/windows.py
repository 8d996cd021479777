"""A pair of scenes matched window by window: memory is bounded by one window, never by the scenes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.geometry import Search
from sarmatch.io import atomic_path, digest
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.matching.matches import Matches
from sarmatch.matching.tiling import MULTIPLE, TILE, tile_intervals
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import ScenePair, open_pair
from sarmatch.scenes.settings import MatchSettings

RADIUS = SEARCH_RADIUS_PX  #: Within a window: what confidences and the decision on overlap are calibrated for.
MAX_TILES = 100_000
_SEAM = RADIUS / 2  # how far beyond its core a window's matches compete with those of its neighbours, px


@dataclass(frozen=True)
class Tile:
    """One window of the common grid."""

    number: int
    region: Region  # read of the reference
    core: tuple[float, float, float, float]  # (x0, y0, x1, y1) px, where it lies deeper than its neighbours
    neighbours: tuple[int, ...] = ()  # numbers of the tiles that overlap it


def plan_tiles(region: Region, spacing: float | None = None) -> list[Tile]:
    """Windows that cover a region, overlapping by twice `RADIUS`; or windows spread evenly, one a `spacing` px."""
    if spacing is not None and not spacing > 0:
        raise ValueError(f"spacing must be positive, px, or None for windows that cover everything; got {spacing}")
    dense = spacing is None or spacing <= TILE - 2 * RADIUS
    columns, rows = (tile_intervals(n, RADIUS) if dense else _spread(n, spacing or 0) for n in region[2:])
    if (n := len(columns) * len(rows)) > MAX_TILES:
        raise ValueError(f"{n} windows are more than {MAX_TILES}; give a larger spacing, or cut the images")
    numbers = np.pad(np.arange(len(rows) * len(columns)).reshape(len(rows), -1), 1, constant_values=-1)
    tiles: list[Tile] = []
    for (j, (y, top, bottom)), (i, (x, left, right)) in product(enumerate(rows), enumerate(columns)):
        window = Region(region.x + x, region.y + y, min(TILE, region.width), min(TILE, region.height))
        core = (region.x + left, region.y + top, region.x + right, region.y + bottom)
        around = numbers[j : j + 3, i : i + 3].ravel().tolist() if dense else []
        tiles.append(Tile(len(tiles), window, core, tuple(n for n in around if n not in (-1, len(tiles)))))
    return tiles


def _spread(length: int, spacing: float) -> list[tuple[int, float, float]]:
    n = max(1, int(np.ceil(length / spacing)))
    centres = (np.arange(n) + 0.5) * length / n
    starts = np.clip(np.round((centres - TILE / 2) / MULTIPLE) * MULTIPLE, 0, max(length - TILE, 0)).astype(int)
    return [(int(s), float(s) - 1, float(s) + TILE) for s in dict.fromkeys(starts.tolist())]


def match_windows(pair: ScenePair, matcher: Matcher, tiles: Sequence[Tile], task: Task) -> list[Matches]:
    """Of each window the matches in its core and a little beyond, px of the common grid.

    Windows that hold data go through the network together.
    """
    regions = [pair.ordered(tile.region, tile.region.moved(*task.shift)) for tile in tiles]
    images = [(pair.sar.read(of_sar), pair.optical.read(of_optical)) for of_sar, of_optical in regions]
    held = [k for k, both in enumerate(images) if all(bool(raster.valid.any()) for raster in both)]
    matched = matcher.match_batch([images[k] for k in held], Search(task.radius), [tiles[k].number for k in held])
    results = [Matches.empty() for _ in tiles]
    for k, found in zip(held, matched, strict=True):
        of_sar, of_optical = (np.array(region[:2]) for region in regions[k])
        moved = dataclasses.replace(found, xy_sar=found.xy_sar + of_sar, xy_optical=found.xy_optical + of_optical)
        at = moved.xy_sar if pair.to == "sar" else moved.xy_sar - task.shift
        low, high = np.array(tiles[k].core[:2]) - _SEAM, np.array(tiles[k].core[2:]) + _SEAM
        results[k] = moved.select(np.all((at >= low) & (at < high), axis=1))
    return results


def _match_and_store(
    pair: ScenePair, matcher: Matcher, store: TileStore, tiles: Sequence[Tile], task: Task
) -> Iterator[int]:
    """Match windows as many at once as the device takes; the number of each batch once it is stored."""
    for batch in (tiles[i : i + matcher.at_once] for i in range(0, len(tiles), matcher.at_once)):
        for tile, matches in zip(batch, match_windows(pair, matcher, batch, task), strict=True):
            store.save(tile, matches)
        yield len(batch)


class TileStore:
    """Finished windows, one file each, in a folder that an interrupted computation goes on from."""

    def __init__(self, folder: Path, tiles: Sequence[Tile]) -> None:
        self.folder, self.tiles = folder, list(tiles)
        folder.mkdir(parents=True, exist_ok=True)
        self._load = lru_cache(maxsize=2 * int(len(self.tiles) ** 0.5) + 64)(self._read)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def save(self, tile: Tile, matches: Matches) -> None:
        with atomic_path(self.path(tile.number)) as partial:
            np.savez(partial, **_arrays(matches))

    def _read(self, number: int) -> Matches:
        try:
            with np.load(self.path(number)) as content:
                return Matches(**content)
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{self.path(number)}: not a finished window ({error}); remove {self.folder}") from error

    def __iter__(self) -> Iterator[Matches]:
        """The matches of each window without those that a neighbour's more confident ones replace."""
        for tile in self.tiles:
            yield _best_of_seam(self._load(tile.number), [self._load(number) for number in tile.neighbours])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _best_of_seam(own: Matches, others: Sequence[Matches]) -> Matches:
    """Matches of a window that no neighbour found at the same SAR cell with more confidence."""
    found = np.concatenate([np.empty((0, 3)), *(np.column_stack([o.xy_sar, o.confidence]) for o in others)])
    best = pd.DataFrame(found, columns=["x", "y", "confidence"]).groupby(["x", "y"])["confidence"].max()
    rivals = best.reindex(pd.MultiIndex.from_arrays(own.xy_sar.T)).to_numpy()
    return own.select(~(own.confidence < rivals))  # of equals both stay; without a rival there is NaN


def _arrays(matches: Matches) -> dict[str, Any]:
    return {name: value for name, value in vars(matches).items() if isinstance(value, np.ndarray)}


def concatenated(parts: Sequence[Matches]) -> Matches:
    """The matches of several windows as one."""
    arrays = [_arrays(part) for part in (*parts, Matches.empty())]
    joined: dict[str, Any] = {name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]}
    return Matches(**joined)


@dataclass(frozen=True)
class Task:
    """All that a process needs to match some windows of a pair: names of files, settings, and where to look."""

    sar: str
    optical: str
    settings: MatchSettings
    shift: tuple[int, int] = (0, 0)  #: Displacement of the moving image, px of the common grid.
    radius: float = RADIUS  #: How far from it matches may lie.

    def key(self, matcher: Matcher, region: Region, spacing: float | None) -> str:
        """Digits that differ between computations whose windows must not be mixed."""
        files = [
            (name, os.stat(name).st_size, os.stat(name).st_mtime_ns) if os.path.exists(name) else name
            for name in (self.sar, self.optical)
        ]
        # A name or path may stand for other weights the next time: a training goes on, a run is trained afresh.
        # Matchers of the same weights, which may have other settings, differ by their place in memory.
        how = [self.settings.options, str(self.settings.weights), self.settings.matcher, matcher.net]
        return digest([files, how, self.shift, self.radius, region, spacing])


def match_tiles(pair: ScenePair, matcher: Matcher, store: TileStore, task: Task) -> None:
    """Match all windows that the store lacks; several workers load pair and weights again from what `task` names."""
    missing = [tile for tile in store.tiles if not store.path(tile.number).is_file()]
    workers = task.settings.workers
    counted = {"total": len(store.tiles), "initial": len(store.tiles) - len(missing), "unit": "window"}
    with tqdm(desc="windows", disable=None if task.settings.progress else True, **counted) as bar:
        if workers == 1 or len(missing) < 2:
            for done in _match_and_store(pair, matcher, store, missing, task):
                bar.update(done)
            return
        with processes(workers) as pool:
            chunks = [missing[i :: workers * 4] for i in range(min(workers * 4, len(missing)))]
            for job in as_completed([pool.submit(_match_some, task, store.folder, chunk) for chunk in chunks]):
                bar.update(job.result())


def processes(workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each: as many threads as cores in each would wait for one another."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))


def _match_some(task: Task, folder: Path, tiles: Sequence[Tile]) -> int:
    """Match and store windows in a process of its own; how many."""
    settings, store = task.settings, TileStore(folder, tiles)
    matcher = load_matcher(str(settings.weights), **dict(settings.matcher))
    with open_pair(task.sar, task.optical, settings.options, matcher.net.config) as pair:
        return sum(_match_and_store(pair, matcher, store, tiles, task))
