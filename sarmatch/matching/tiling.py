"""Overlapping tiles of an image that is larger than one volume of similarities may be."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np

MULTIPLE = 16  #: Sides of what the encoders take are multiples of this (stride of the coarsest pyramid level).
TILE = 256  #: Largest side that is matched in one volume, px; memory grows with its fourth power.
Tile: TypeAlias = tuple[tuple[slice, slice], tuple[float, float, float, float]]


def tiles(height: int, width: int, margin: float) -> Iterator[Tile]:
    """Windows (rows, columns) of at most `TILE` px that overlap by twice the margin; their cores (x0, y0, x1, y1)."""
    rows, columns = (tile_intervals(n, margin) for n in (height, width))
    for y, y_low, y_high in rows:
        for x, x_low, x_high in columns:
            yield (slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width))), (x_low, y_low, x_high, y_high)


def tile_seed(seed: int, window: int = 0, x: int = 0, y: int = 0) -> tuple[int, int, int, int]:
    """Seed of a tile's dropout masks: the matcher's seed, the window of a larger image, the tile's place in it."""
    return seed, window, x, y


def tile_intervals(length: int, margin: float) -> list[tuple[int, float, float]]:
    """Starts of tiles along one axis, multiples of 16, and the ends of their cores: halfway into each overlap."""
    if length <= TILE:
        return [(0, -1.0, float(length))]
    n = int(np.ceil((length - 2 * margin) / (TILE - 2 * margin)))
    starts = [round((length - TILE) * i / (n - 1) / MULTIPLE) * MULTIPLE for i in range(n)]
    edges = [-1.0, *((a + TILE + b) / 2 for a, b in pairwise(starts)), float(length)]
    return [(start, edges[i], edges[i + 1]) for i, start in enumerate(starts)]
