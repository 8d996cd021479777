"""The fine volume with its consensus, at single cells: what sub-pixel refinement reads of it.

`fine_volume` and `consensus` compute whole grids of cells, which training needs. Matches need one cell each, at
displacements that many of them share: a map of cell means a displacement, its integral image, and four corners of that
for each neighbourhood give the same numbers in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.volumes import PIXEL_STEP

AT_ONCE = 64
"""Coarse displacements worked off together; it bounds the memory of the integral images."""


def fine_consensus(
    sar: Tensor, optical: Tensor, cells: Tensor, displacement: Tensor, radius: int, sides: Sequence[int], cell: int
) -> tuple[Tensor, Tensor]:
    """Mean fine similarity over neighbourhoods of cells, around a displacement for each.

    Args:
        sar, optical: full-resolution descriptors (1, C, H, W) of equal size, a multiple of `cell`.
        cells: (N, 2) long (x, y).
        displacement: (N, 2) long, px, around which to look.
        radius: half-width of the window in px; K = 2 radius + 1.
        sides: odd sides of the neighbourhoods in cells; 1 is the cell alone.
        cell: side of a cell in px.

    Returns:
        values (len(sides), N, K, K) float32, the entries of `consensus(fine_volume(...))`, zero where not valid, and
        valid (len(sides), N, K, K) bool.
    """
    if sar.device.type == "mps":  # which has no double precision
        found = fine_consensus(sar.cpu(), optical.cpu(), cells.cpu(), displacement.cpu(), radius, sides, cell)
        return found[0].to(sar.device), found[1].to(sar.device)
    size = 2 * radius + 1
    values = torch.zeros(len(sides), len(cells), size, size, device=sar.device)
    valid = torch.zeros_like(values, dtype=torch.bool)
    shared, group = displacement.unique(dim=0, return_inverse=True)
    steps = torch.arange(-radius, radius + 1, device=sar.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)  # (K*K, 2) as (dx, dy)
    maps = _CellMaps(sar, optical, int(displacement.abs().max()) + radius if len(cells) else 0, cell)
    for first in range(0, len(shared), AT_ONCE):
        chosen = shared[first : first + AT_ONCE]
        needed, place = (chosen[:, None] + window).flatten(0, 1).unique(dim=0, return_inverse=True)
        integrals = maps.integrals(needed)
        rows = ((group >= first) & (group < first + len(chosen))).nonzero()[:, 0]
        index = place.view(len(chosen), -1)[group[rows] - first]  # (n, K*K)
        for i, side in enumerate(sides):
            mean, any_vote = maps.box_means(integrals, needed, index, cells[rows], side)
            values[i, rows], valid[i, rows] = mean.unflatten(1, (size, size)), any_vote.unflatten(1, (size, size))
    return values, valid


class _CellMaps:
    """Mean similarity of every cell at whole-pixel displacements, of one pair.

    The compared pixels of a cell, every `PIXEL_STEP`-th one, are laid out as channels, so that a map is one product of
    contiguous slices.
    """

    def __init__(self, sar: Tensor, optical: Tensor, reach: int, cell: int) -> None:
        self.cell, self.height, self.width = cell, sar.shape[-2], sar.shape[-1]
        self.pixels = (cell // PIXEL_STEP) ** 2
        self.margin = -(-reach // cell) * cell
        self.sar = self._as_cells(sar[0])
        self.padded = F.pad(optical[0], (self.margin, self.margin + cell) * 2)
        self.phases: dict[tuple[int, int], Tensor] = {}

    def _as_cells(self, image: Tensor) -> Tensor:
        """(C, H, W) to (C * pixels, H / cell, W / cell)."""
        return F.pixel_unshuffle(image[None, :, ::PIXEL_STEP, ::PIXEL_STEP], self.cell // PIXEL_STEP)[0]

    def _map(self, dx: int, dy: int) -> Tensor:
        x, y = dx + self.margin, dy + self.margin
        key = x % self.cell, y % self.cell
        if key not in self.phases:
            last = [n - self.cell + phase for n, phase in zip(self.padded.shape[:0:-1], key, strict=True)]
            self.phases[key] = self._as_cells(self.padded[:, key[1] : last[1], key[0] : last[0]]).contiguous()
        x, y, (h, w) = x // self.cell, y // self.cell, self.sar.shape[-2:]
        return (self.sar * self.phases[key][:, y : y + h, x : x + w]).sum(0) / self.pixels

    def integrals(self, needed: Tensor) -> Tensor:
        """Integral images of the maps at displacements (U, 2), (U, h + 1, w + 1) double: sums must cancel exactly."""
        maps = torch.stack([self._map(dx, dy) for dx, dy in needed.tolist()]).double()
        return F.pad(maps.cumsum(1).cumsum(2), (1, 0, 1, 0))

    def box_means(
        self, integrals: Tensor, needed: Tensor, index: Tensor, cells: Tensor, side: int
    ) -> tuple[Tensor, Tensor]:
        """Means over `side` x `side` cells around each of `cells` (n, 2), as far as they lie on the optical image.

        Args:
            index: rows of `needed` and `integrals` that each cell asks for, (n, K*K).

        Returns:
            (n, K*K) float32, zero where no cell lies on the image, and where some do, bool.
        """
        ends = []
        for axis, length in ((0, self.width), (1, self.height)):
            moved, n = needed[:, axis], length // self.cell
            first = (-moved).clamp(min=0).add(self.cell - 1).div(self.cell, rounding_mode="floor")
            # The last pixel compared of a cell must be on the image too.
            last = (length - 1 - (self.cell - PIXEL_STEP) - moved).div(self.cell, rounding_mode="floor") + 1
            first, last = first.clamp(0, n)[index], last.clamp(0, n)[index]
            low = (cells[:, axis] - side // 2)[:, None].maximum(first)
            ends.append((low, (cells[:, axis] + side // 2 + 1)[:, None].minimum(last).maximum(low)))
        (x0, x1), (y0, y1) = ends
        row, flat = self.width // self.cell + 1, integrals.flatten()
        at = index * integrals[0].numel()
        total = (
            flat[at + y1 * row + x1] - flat[at + y0 * row + x1] - flat[at + y1 * row + x0] + flat[at + y0 * row + x0]
        )
        count = (x1 - x0) * (y1 - y0)
        return (total / count.clamp(min=1)).float() * (count > 0), count > 0
