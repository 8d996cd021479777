"""How far the co-registration of a pair is off, estimated without any network (design point 11).

Public pairs are taken for perfectly aligned, and terrain, layover and different orbits make that untrue by a pixel or
two. This bounds what any matcher can reach within 1 px, so it is measured and shown beside every result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from sarmatch.data.pairs import Pair, Pairs
from sarmatch.model.oriented_gradients import (
    OPTICAL_SIGMA_PX,
    SAR_SIGMA_PX,
    oriented_gradients,
    parabola_peak,
    shift_scores,
)

MAX_SHIFT_PX = 8
"""Largest shift along each axis that is looked for."""
RELIABLE_QUALITY = 4.0
"""Of 284 pairs made of images of two different places (OMBRIA, SEN1-2, SEN12MS) none reached a quality of 3.2."""
_BACKGROUND_PX = 40  # shifts up to this far show how high the scores of wrong shifts are
_PEAK_HALF_WIDTH = 6


@dataclass(frozen=True)
class ResidualShift:
    """One shift for a whole pair: what stands at p in the SAR image stands at p + (dx, dy) in the optical one.

    Attributes:
        dx, dy: px, sub-pixel.
        quality: height of the correlation peak above the mean over much larger, wrong shifts, in their standard
            deviations; 0 where the best shift is the largest one allowed, so that the true one may lie beyond.
    """

    dx: float
    dy: float
    quality: float

    @property
    def length(self) -> float:
        """Length of the shift, px."""
        return float(np.hypot(self.dx, self.dy))

    @property
    def reliable(self) -> bool:
        """Whether the peak stands out more than pairs of unrelated images would let it."""
        return self.quality >= RELIABLE_QUALITY


def residual_shift(pair: Pair, max_shift: int = MAX_SHIFT_PX) -> ResidualShift:
    """Shift at which the oriented-gradient channels of both images correlate best, to sub-pixel precision.

    Args:
        pair: pixels outside `pair.valid` do not count.
        max_shift: largest shift along each axis, px.
    """
    if max_shift > _BACKGROUND_PX // 2:
        raise ValueError(f"max_shift must be at most {_BACKGROUND_PX // 2}, got {max_shift}; register such pairs first")
    sar = oriented_gradients(pair.sar, SAR_SIGMA_PX, pair.valid)
    optical = oriented_gradients(pair.optical, OPTICAL_SIGMA_PX, pair.valid)
    return peak_shift(shift_scores(sar, optical, _BACKGROUND_PX), max_shift)


def peak_shift(scores: np.ndarray, max_shift: int) -> ResidualShift:
    """The highest place within `max_shift` of a (2 R + 1, 2 R + 1) surface of scores, refined by parabolas.

    Args:
        scores: rows dy and columns dx from -R to R px; -inf where unknown.
    """
    radius = len(scores) // 2
    near = slice(radius - max_shift, radius + max_shift + 1)
    dy, dx = (int(i) - max_shift for i in np.unravel_index(np.argmax(scores[near, near]), (2 * max_shift + 1,) * 2))
    row, column = dy + radius, dx + radius
    if not np.isfinite(scores[row, column]) or max(abs(dx), abs(dy)) == max_shift:
        return ResidualShift(float(dx), float(dy), 0.0)
    rows, columns = np.indices(scores.shape)
    elsewhere = np.maximum(abs(rows - row), abs(columns - column)) > _PEAK_HALF_WIDTH
    others = scores[elsewhere & np.isfinite(scores)]
    height, spread = float(scores[row, column] - others.mean()), float(others.std())
    return ResidualShift(
        dx + float(parabola_peak(*scores[row, column - 1 : column + 2])),
        dy + float(parabola_peak(*scores[row - 1 : row + 2, column])),
        height / spread if spread > 0 else 0.0,
    )


def windows(pair: Pair, size: tuple[int, int], per_axis: int) -> Iterator[tuple[tuple[float, float], Pair]]:
    """Overlapping windows, spread evenly from corner to corner: the centre (x, y) px of each, and the pair within it.

    Args:
        size: (height, width) of a window, px.
        per_axis: windows along each axis; fewer where they would coincide.
    """
    height, width = size
    tops, lefts = (
        np.unique(np.linspace(0, whole - part, per_axis).astype(int))
        for whole, part in zip(pair.size, size, strict=True)
    )
    for top in tops:
        for left in lefts:
            cut = (..., slice(top, top + height), slice(left, left + width))
            images = {name: getattr(pair, name)[cut] for name in ("sar", "optical", "valid")}
            centre = (float(left) + (width - 1) / 2, float(top) + (height - 1) / 2)
            yield centre, dataclasses.replace(pair, **images, transform=None)


def residual_shift_table(pairs: Pairs, max_shift: int = MAX_SHIFT_PX) -> pd.DataFrame:
    """`residual_shift` of every pair: `id`, `dataset`, `scene`, `dx`, `dy`, `length`, `quality`, `reliable`."""
    rows = []
    for i in tqdm(range(len(pairs)), desc="residual shift", disable=None):
        pair = pairs[i]
        shift = residual_shift(pair, max_shift)
        names = {"id": pair.id, "dataset": pair.dataset, "scene": pair.scene}
        values = {"dx": shift.dx, "dy": shift.dy, "length": shift.length}
        rows.append(names | values | {"quality": shift.quality, "reliable": shift.reliable})
    columns = ["id", "dataset", "scene", "dx", "dy", "length", "quality", "reliable"]
    return pd.DataFrame(rows, columns=columns)


def summarise_shifts(table: pd.DataFrame, within_px: Sequence[float] = (1.0, 2.3), by: str = "dataset") -> pd.DataFrame:
    """Per group of a `residual_shift_table`: pairs, share that is reliable, and over those the median length (px), the
    mean shift and the share within each of `within_px`."""
    rows = {}
    for name, group in table.groupby(by):
        reliable = group[group["reliable"]]
        rows[name] = {
            "n_pairs": len(group),
            "reliable": group["reliable"].mean(),
            "median_px": reliable["length"].median(),
            "mean_dx": reliable["dx"].mean(),
            "mean_dy": reliable["dy"].mean(),
            **{f"within_{limit:g}px": (reliable["length"] <= limit).mean() for limit in within_px},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)
