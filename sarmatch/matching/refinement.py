"""The fine volume with its consensus, at single cells: what sub-pixel refinement reads of it.

`fine_volume` and `consensus` compute whole grids of cells, which training needs. Matches need one cell each, at
displacements that many of them share: a map of cell means a displacement and its sums over each neighbourhood give the
same numbers in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.matching.correlation import PIXEL_STEP, band, box_sums

AT_ONCE = 64
"""Coarse displacements worked off together; it bounds the memory of the maps."""


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
        rows = ((group >= first) & (group < first + len(chosen))).nonzero()[:, 0]
        index = place.view(len(chosen), -1)[group[rows] - first]  # (n, K*K)
        rows_seen, columns_seen = maps.on_image(needed)
        similarity = maps.similarity(needed).mul_(rows_seen[:, :, None]).mul_(columns_seen[:, None, :])
        for i, side in enumerate(sides):
            mean, votes = _box_means(similarity, (rows_seen, columns_seen), side, index, cells[rows])
            values[i, rows], valid[i, rows] = mean.unflatten(1, (size, size)), (votes > 0).unflatten(1, (size, size))
    return values, valid


class _CellMaps:
    """Mean similarity of every cell at whole-pixel displacements, of one pair.

    Both images are taken apart into the pixels of a cell, one plane of cells each, so that any displacement compares
    contiguous rows: the planes of a displaced cell are others, moved by whole cells. Every `PIXEL_STEP`-th pixel of a
    SAR cell is compared.
    """

    def __init__(self, sar: Tensor, optical: Tensor, reach: int, cell: int) -> None:
        self.cell, self.height, self.width = cell, sar.shape[-2], sar.shape[-1]
        self.margin = -(-reach // cell) * cell
        self.sar = _planes(sar[0], cell)[::PIXEL_STEP, ::PIXEL_STEP]
        self.padded = _planes(F.pad(optical[0], (self.margin, self.margin + cell) * 2), cell)

    def similarity(self, needed: Tensor) -> Tensor:
        """Of all cells at displacements (U, 2), (U, h, w); of no use where a cell is not on the image."""
        rows, columns, _, height, width = self.sar.shape
        found = self.sar.new_zeros(len(needed), height, width)
        products, total = torch.empty_like(self.sar[0, 0]), torch.empty_like(found[:1])[0]  # fresh pages are dear
        for out, (x, y) in zip(found, (needed + self.margin).tolist(), strict=True):
            for i, j in product(range(rows), range(columns)):
                down, y_in_cell = divmod(y + i * PIXEL_STEP, self.cell)
                right, x_in_cell = divmod(x + j * PIXEL_STEP, self.cell)
                seen = self.padded[y_in_cell, x_in_cell, :, down : down + height, right : right + width]
                out += torch.sum(torch.mul(self.sar[i, j], seen, out=products), 0, out=total)
        return found.div_(rows * columns)

    def on_image(self, needed: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows (U, h) and columns (U, w) of cells lie on the optical image at each displacement, float."""
        found = []
        for axis, length in ((1, self.height), (0, self.width)):
            corner = torch.arange(0, length, self.cell, device=needed.device) + needed[:, axis, None]
            # The last pixel compared of a cell must be on the image too.
            found.append(((corner >= 0) & (corner + self.cell - PIXEL_STEP < length)).float())
        return found[0], found[1]


def _planes(image: Tensor, cell: int) -> Tensor:
    """(C, H, W) to (cell, cell, C, H / cell, W / cell): the pixels (y, x) of all cells."""
    return F.pixel_unshuffle(image, cell).unflatten(0, (len(image), cell, cell)).movedim(0, 2).contiguous()


def _box_means(
    similarity: Tensor, on_image: tuple[Tensor, Tensor], side: int, index: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Means over `side` x `side` cells around each of `cells` (n, 2), as far as they lie on the optical image.

    Args:
        similarity: of the displacements, (U, h, w), zero where a cell is not on the image.
        on_image: their rows (U, h) and columns (U, w) that are.
        index: displacements that each cell asks for, (n, K*K).

    Returns:
        (n, K*K) each: the mean, zero where no cell lies on the image, and how many do.
    """
    height, width = similarity.shape[1:]
    x, y = cells[:, :1], cells[:, 1:]
    total = similarity if side == 1 else box_sums(similarity, side)
    # How many are seen is a product: of how many rows and how many columns of the neighbourhood are.
    rows, columns = (seen @ band(seen.shape[1], side, seen) for seen in on_image)
    votes = rows.flatten()[index * height + y] * columns.flatten()[index * width + x]
    return total.flatten()[(index * height + y) * width + x] / votes.clamp(min=1), votes
