"""Refinement of matches to the fraction of a pixel: sub-pixel positions and the fine level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.geometry import cell_centres, inside
from sarmatch.matching.aggregation import band, box_sums
from sarmatch.matching.assignment import Prediction, mutual_matches
from sarmatch.matching.correlation import PIXEL_STEP, optical_cells
from sarmatch.model import STRIDE, SarOpticalNet

FINE_RADIUS = 4  #: Half-width of the fine window, px: a cell's own width, so a match one cell off can be mended.
AT_ONCE = 64  #: Coarse displacements worked off together; it bounds memory.


class RawMatches(NamedTuple):
    """Tensors of N matches.

    Attributes:
        xy_sar, xy_optical: (N, 2) px.
        probability: (N,) dual-softmax probability, of passes the product of the mean row and the mean column; not
            calibrated.
        aleatoric: (N,) in [0, 1], the fused uncertainty of both ends; NaN where the network has no such modules.
        epistemic: (N,) mutual information in nats; NaN without Monte Carlo passes.
        covariance: (N, 2, 2) px^2, spread of the optical position, see `window_moments`; not calibrated, NaN where the
            position was not refined.
    """

    xy_sar: Tensor
    xy_optical: Tensor
    probability: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    covariance: Tensor

    def select(self, rows: Tensor) -> RawMatches:
        """The matches where a mask (N,) is true."""
        return RawMatches(*(values[rows] for values in self))


@torch.no_grad()
def pick_matches(
    net: SarOpticalNet,
    prediction: Prediction,
    sar_fine: Tensor,
    optical_fine: Tensor,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
    refine: bool = True,
) -> RawMatches:
    """All mutual matches of one pair, to the fraction of a pixel.

    Refined in a fine volume with consensus; without, as in the paper, by the expectation over 3x3 cells.

    Args:
        sar_fine, optical_fine: full-resolution descriptors (1, C, H, W).
        refine: False stops at whole cells.
    """
    cells, displacement, probability = mutual_matches(prediction.forward, prediction.backward)
    rows, columns = prediction.forward.shape[-2:]
    here, there = cells[:, 1] * columns + cells[:, 0], optical_cells(cells, displacement, (rows, columns))[0]
    keep = torch.ones_like(here, dtype=torch.bool)
    for valid, index in ((sar_valid, here), (optical_valid, there)):
        keep = keep if valid is None else keep & valid.flatten()[index]
    cells, displacement, probability, here, there = (x[keep] for x in (cells, displacement, probability, here, there))
    moved = displacement.float() * STRIDE
    covariance = moved.new_full((len(moved), 2, 2), torch.nan)
    if refine and use_consensus:
        step, covariance = refine_displacement(net, sar_fine, optical_fine, cells, displacement)
        moved = moved + step
    elif refine:
        step, covariance = _expected_step(prediction.forward, cells, displacement)
        moved, covariance = moved + STRIDE * step, STRIDE**2 * covariance
    xy_sar = cell_centres(rows, columns, STRIDE, moved.device).flatten(0, 1)[here]
    uncertainties = _uncertainties(prediction, here, there)
    raw = RawMatches(xy_sar, xy_sar + moved, probability, *uncertainties, covariance)
    return raw.select(inside(raw.xy_optical, (rows * STRIDE, columns * STRIDE)))


def _uncertainties(prediction: Prediction, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Aleatoric and epistemic uncertainty (N,) of matches between flat cells; NaN where unknown."""
    aleatoric = epistemic = prediction.forward.new_full(here.shape, torch.nan)
    if prediction.pair_maps is not None:
        of_sar, of_optical = (of_image.flatten() for of_image in prediction.pair_maps)
        aleatoric = (of_sar[here] + of_optical[there]).clamp(0, 1)  # weights sum to one but for rounding
    if prediction.mutual_information is not None:
        epistemic = prediction.mutual_information.flatten()[here]
    return aleatoric, epistemic


def _expected_step(log_probability: Tensor, cells: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Correction (N, 2) of matches in cells, expected over the 3x3 steps around each, and its moments (N, 2, 2)."""
    size = math.isqrt(log_probability.shape[1])
    at_cells = log_probability[0, :, cells[:, 1], cells[:, 0]].T.unflatten(1, (size, size))
    position = local_expectation(at_cells)
    return position - displacement, window_moments(at_cells, position)


def refine_displacement(
    net: SarOpticalNet, sar: Tensor, optical: Tensor, cells: Tensor, displacement: Tensor
) -> tuple[Tensor, Tensor]:
    """Sub-pixel correction of coarse matches by the fine level, and its spread.

    Args:
        sar, optical: full-resolution descriptors (1, C, H, W).
        cells, displacement: (N, 2) long (x, y), in cells.

    Returns:
        (dx, dy) in px, (N, 2) float32, each within `FINE_RADIUS` + 1; covariance (N, 2, 2) px^2, see `window_moments`.
    """
    sides = (1, *net.config.consensus_cells)
    values, valid = fine_consensus(sar, optical, cells, displacement * STRIDE, FINE_RADIUS, sides, STRIDE)
    logits = torch.einsum("s,snij->nij", net.fine_log_scales.exp(), values).masked_fill(~valid[-1], -torch.inf)
    position = local_expectation(logits)
    return position, window_moments(logits, position)


def local_expectation(logits: Tensor) -> Tensor:
    """Sub-step position of the maximum: the expectation over its 3x3 neighbourhood.

    Args:
        logits: (N, K, K) with -inf where invalid.

    Returns:
        (N, 2) displacement (dx, dy) from the centre of the window, in steps; zero where nothing is valid.
    """
    n, size = logits.shape[:2]
    index = logits.flatten(1).argmax(1)
    y, x = index // size, index % size
    steps = torch.arange(-1, 2, device=logits.device)
    rows = (y[:, None] + steps).clamp(0, size - 1)
    columns = (x[:, None] + steps).clamp(0, size - 1)
    patch = logits[torch.arange(n, device=logits.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    weights = patch.flatten(1).softmax(1).unflatten(1, (3, 3)).nan_to_num(0.0)
    radius = (size - 1) // 2
    position_x = (weights.sum(1) * (columns - radius)).sum(1)
    position_y = (weights.sum(2) * (rows - radius)).sum(1)
    return torch.stack([position_x, position_y], -1)


def window_moments(logits: Tensor, position: Tensor) -> Tensor:
    """Second moments of the softmax of a whole window about a position.

    The whole window, since a ridge or a second peak a few steps away makes a position uncertain; about the position
    that is reported, not the mean of the window, so that their distance counts.

    Args:
        logits: (N, K, K) with -inf where invalid.
        position: (N, 2) displacement (dx, dy) from the centre of the window, in steps.

    Returns:
        (N, 2, 2) in steps^2, positive semi-definite; NaN where nothing is valid. The spread *given that the true
        position lies in the window*.
    """
    radius = (logits.shape[1] - 1) // 2
    weights = logits.flatten(1).softmax(1).unflatten(1, logits.shape[1:])
    steps = torch.arange(-radius, radius + 1, device=logits.device, dtype=logits.dtype)
    dx, dy = (steps - position[:, axis, None] for axis in (0, 1))
    var_x = (weights.sum(1) * dx**2).sum(1)
    var_y = (weights.sum(2) * dy**2).sum(1)
    var_xy = torch.einsum("nyx,nx,ny->n", weights, dx, dy)
    return torch.stack([var_x, var_xy, var_xy, var_y], -1).unflatten(1, (2, 2))


# long because one loop shares the maps of a displacement among all cells that ask for it
def fine_consensus(
    sar: Tensor, optical: Tensor, cells: Tensor, displacement: Tensor, radius: int, sides: Sequence[int], cell: int
) -> tuple[Tensor, Tensor]:
    """The entries of `consensus(fine_volume(...))` of single cells, each around a displacement of its own.

    Many matches share displacements: one map of cell means each, and its sums over each neighbourhood, give the same
    numbers in a fraction of the time.

    Args:
        sar, optical: full-resolution descriptors (1, C, H, W) of equal size, a multiple of `cell`.
        cells: (N, 2) long (x, y).
        displacement: (N, 2) long, px, around which to look.
        radius: half-width of the window in px; K = 2 radius + 1.
        sides: odd sides of the neighbourhoods in cells; 1 is the cell alone.
        cell: side of a cell in px.

    Returns:
        values (len(sides), N, K, K) float32, zero where not valid; valid (len(sides), N, K, K) bool.
    """
    if sar.device.type == "mps":  # which lacks `unique` along an axis
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
        on_rows, on_columns = maps.on_image(needed)
        similarity = maps.similarity(needed).mul_(on_rows[:, :, None]).mul_(on_columns[:, None, :])
        for i, side in enumerate(sides):
            mean, count = _box_means(similarity, (on_rows, on_columns), side, index, cells[rows])
            values[i, rows], valid[i, rows] = mean.unflatten(1, (size, size)), (count > 0).unflatten(1, (size, size))
    return values, valid


class _CellMaps:
    """Mean similarity of every cell at whole-pixel displacements, of one pair.

    Both images are taken apart into the pixels of a cell, one plane of cells each, so that any displacement compares
    contiguous rows: the planes of a displaced cell are others, moved by whole cells.
    """

    def __init__(self, sar: Tensor, optical: Tensor, longest: int, cell: int) -> None:
        self.cell, self.height, self.width = cell, sar.shape[-2], sar.shape[-1]
        self.margin = -(-longest // cell) * cell
        self.sar = _planes(sar[0], cell)[::PIXEL_STEP, ::PIXEL_STEP]
        self.padded = _planes(F.pad(optical[0], (self.margin, self.margin + cell) * 2), cell)

    def similarity(self, needed: Tensor) -> Tensor:
        """Of all cells at displacements (U, 2), (U, h, w); of no use where a cell is not on the image."""
        rows, columns, _, height, width = self.sar.shape
        found = self.sar.new_zeros(len(needed), height, width)
        products, total = torch.empty_like(self.sar[0, 0]), torch.empty_like(found[:1])[0]  # reused: pages are slow
        for out, (x, y) in zip(found, (needed + self.margin).tolist(), strict=True):
            for i, j in product(range(rows), range(columns)):
                down, y_in_cell = divmod(y + i * PIXEL_STEP, self.cell)
                right, x_in_cell = divmod(x + j * PIXEL_STEP, self.cell)
                there = self.padded[y_in_cell, x_in_cell, :, down : down + height, right : right + width]
                out += torch.sum(torch.mul(self.sar[i, j], there, out=products), 0, out=total)
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
    # The number on the image is that of rows times that of columns.
    rows, columns = (on @ band(on.shape[1], side, on) for on in on_image)
    count = rows.flatten()[index * height + y] * columns.flatten()[index * width + x]
    return total.flatten()[(index * height + y) * width + x] / count.clamp(min=1), count
