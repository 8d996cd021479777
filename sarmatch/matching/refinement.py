"""Refinement of matches to the fraction of a pixel: sub-pixel positions and the fine level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.geometry import cell_centres, inside
from sarmatch.matching.aggregation import band, box_sums
from sarmatch.matching.assignment import CellMatches, Prediction, mutual_matches
from sarmatch.matching.correlation import PIXEL_STEP
from sarmatch.matching.cues import CUES, match_cues
from sarmatch.matching.field import refine_along_field
from sarmatch.matching.position import FINE_RADIUS, local_expectation, window_moments
from sarmatch.model import STRIDE, SarOpticalNet

AT_ONCE = 256  #: Displacements worked off together; it bounds memory.


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
        cues: (N, len(CUES)), see `cues.match_cues`.
    """

    xy_sar: Tensor
    xy_optical: Tensor
    probability: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    covariance: Tensor
    cues: Tensor

    def columns(self) -> dict[str, np.ndarray]:
        """All of it as arrays (N, ...) by name, each of the `CUES` by its own."""
        arrays = {name: values.cpu().numpy() for name, values in self._asdict().items()}
        cues = arrays.pop("cues").T
        return arrays | dict(zip(CUES, cues, strict=True))

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
) -> list[RawMatches]:
    """All mutual matches of each pair of a batch, to the fraction of a pixel.

    Refined in a fine volume with consensus; without, as in the paper, by the expectation over 3x3 cells.

    Args:
        sar_fine, optical_fine: full-resolution descriptors (B, C, H, W).
        refine: False stops at whole cells.
    """
    found = mutual_matches(prediction.forward, prediction.backward, sar_valid, optical_valid)
    rows, columns = prediction.forward.shape[-2:]
    moved = found.displacement.float() * STRIDE
    covariance = moved.new_full((len(moved), 2, 2), torch.nan)
    if refine and use_consensus and net.config.field_rounds:
        step, _ = _expected_step(prediction.forward, found)
        moved, covariance = refine_along_field(net, sar_fine, optical_fine, found, moved + STRIDE * step)
    elif refine and use_consensus:
        longest = STRIDE * (math.isqrt(prediction.forward.shape[1]) // 2)
        step, covariance = refine_displacement(net, sar_fine, optical_fine, found, longest)
        moved = moved + step
    elif refine:
        step, covariance = _expected_step(prediction.forward, found)
        moved, covariance = moved + STRIDE * step, STRIDE**2 * covariance
    xy_sar = cell_centres(rows, columns, STRIDE, moved.device)[found.cell[:, 1], found.cell[:, 0]]
    cues = match_cues(prediction.forward, found, moved, covariance, sar_valid)
    scores = found.probability, *_uncertainties(prediction, found)
    raw = RawMatches(xy_sar, xy_sar + moved, *scores, covariance, cues)
    on_image = inside(raw.xy_optical, (rows * STRIDE, columns * STRIDE))
    counts = torch.bincount(found.pair[on_image], minlength=len(prediction.forward)).tolist()
    each = zip(*(values.split(counts) for values in raw.select(on_image)), strict=True)
    return [RawMatches(*values) for values in each]


def _uncertainties(prediction: Prediction, found: CellMatches) -> tuple[Tensor, Tensor]:
    """Aleatoric and epistemic uncertainty (N,) of matches; NaN where unknown."""
    aleatoric = epistemic = torch.full_like(found.probability, torch.nan)
    (x, y), to = found.cell.unbind(1), found.cell + found.displacement
    if prediction.pair_maps is not None:
        of_sar, of_optical = prediction.pair_maps
        both = of_sar[found.pair, y, x] + of_optical[found.pair, to[:, 1], to[:, 0]]
        aleatoric = both.clamp(0, 1)  # weights sum to one but for rounding
    if prediction.mutual_information is not None:
        epistemic = prediction.mutual_information[found.pair, y, x]
    return aleatoric, epistemic


def _expected_step(log_probability: Tensor, found: CellMatches) -> tuple[Tensor, Tensor]:
    """Correction (N, 2) of matches in cells, expected over the 3x3 steps around each, and its moments (N, 2, 2)."""
    size = math.isqrt(log_probability.shape[1])
    at_cells = log_probability[found.pair, :, found.cell[:, 1], found.cell[:, 0]].unflatten(1, (size, size))
    position = local_expectation(at_cells)
    return position - found.displacement, window_moments(at_cells, position)


def refine_displacement(
    net: SarOpticalNet, sar: Tensor, optical: Tensor, found: CellMatches, longest: int
) -> tuple[Tensor, Tensor]:
    """Sub-pixel correction of coarse matches by the fine level, and its spread.

    Args:
        sar, optical: full-resolution descriptors (B, C, H, W).
        longest: displacement along an axis, px, that no match exceeds.

    Returns:
        (dx, dy) in px, (N, 2) float32, each within `FINE_RADIUS` + 1; covariance (N, 2, 2) px^2, see `window_moments`.
    """
    sides, scales = net.config.consensus_cells, net.fine_log_scales.exp()
    displacement = found.displacement * STRIDE
    logits = window_logits((sar, optical), found.pair, found.cell, displacement, sides, scales, longest)
    position = local_expectation(logits)
    return position, window_moments(logits, position)


# long because of its documented arguments
def window_logits(
    images: tuple[Tensor, Tensor],
    pair: Tensor,
    cells: Tensor,
    displacement: Tensor,
    sides: Sequence[int],
    scales: Tensor,
    longest: int,
    radius: int = FINE_RADIUS,
    cell: int = STRIDE,
) -> Tensor:
    """The entries of `aggregate(fine_volume(...))` of single cells, each around a displacement of its own.

    Cells share displacements: the similarity of all cells at one displacement and its sums over neighbourhoods are
    computed once.

    Args:
        images: full-resolution descriptors of both, (B, C, H, W) of equal size, sides multiples of `cell`.
        pair: (N,) long, the number of each cell's pair in the batch.
        cells: (N, 2) long (x, y).
        displacement: (N, 2) long, px, around which to look.
        sides, scales: as for `aggregate`.
        longest: px, that no displacement exceeds along an axis.
        radius: half-width of the window in px; K = 2 radius + 1.
        cell: side of a cell in px.

    Returns:
        (N, K, K) float32, -inf where no neighbour lies on the optical image.
    """
    height, width = (n // cell for n in images[0].shape[-2:])
    steps = torch.arange(-radius, radius + 1, device=pair.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)  # (K*K, 2) as (dx, dy)
    planes = _Planes(*images, longest + radius, cell)
    shared, group = planes.unique(pair, displacement)
    around = shared[:, None, 1:] + window  # (groups, K*K, 2)
    needed, place = planes.unique(shared[:, :1].expand(-1, len(window)).flatten(), around.flatten(0, 1))
    index = place.view(len(shared), len(window))[group]  # (N, K*K)
    parts = needed.split(AT_ONCE)
    maps = [_map_logits(planes.similarity(part), planes.on_image(part), sides, scales) for part in parts]
    at = (index * height + cells[:, 1:]) * width + cells[:, :1]
    return torch.cat(maps).flatten()[at].unflatten(1, (len(steps), len(steps)))


def _map_logits(similarity: Tensor, on_image: tuple[Tensor, Tensor], sides: Sequence[int], scales: Tensor) -> Tensor:
    """`aggregate` of similarities (U, h, w) whose rows (U, h) and columns (U, w) of cells lie on the optical image."""
    rows, columns = on_image
    similarity = similarity.mul_(rows[:, :, None]).mul_(columns[:, None])
    logits = similarity * scales[0]
    for side, scale in zip(sides, scales[1:], strict=True):
        # The number of neighbours on the image is that of rows times that of columns.
        down, across = (on @ band(on.shape[1], side, on) for on in on_image)
        mean = box_sums(similarity, side).div_(down.clamp(min=1)[:, :, None]).div_(across.clamp(min=1)[:, None])
        logits.addcmul_(mean, scale)
        rows, columns = down, across
    return logits.masked_fill_((rows == 0)[:, :, None] | (columns == 0)[:, None], -torch.inf)


class _Planes:
    """Both images of a batch taken apart into the pixels of a cell, one plane of cells each.

    Any displacement then compares contiguous rows: the planes of a displaced cell are others, moved by whole cells.
    """

    def __init__(self, sar: Tensor, optical: Tensor, longest: int, cell: int) -> None:
        self.cell, self.height, self.width = cell, sar.shape[-2], sar.shape[-1]
        self.margin = -(-longest // cell) * cell
        self.sar = _planes(sar, cell)[:, ::PIXEL_STEP, ::PIXEL_STEP]
        self.optical = _planes(F.pad(optical, (self.margin, self.margin + cell) * 2), cell)
        self.pixels = torch.arange(0, cell, PIXEL_STEP, device=sar.device)

    def unique(self, pair: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct rows (pair, dx, dy) (U, 3), those that read the same planes together, and which each is (N,)."""
        # One number a row: MPS knows no unique rows.
        span = 2 * self.margin // self.cell + 1
        x, y = (displacement + self.margin).unbind(-1)
        key = (pair * self.cell + y % self.cell) * self.cell + x % self.cell
        key, index = (key * span**2 + y // self.cell * span + x // self.cell).unique(return_inverse=True)
        phase, place = key // span**2, key % span**2
        y = place // span * self.cell + phase // self.cell % self.cell
        x = place % span * self.cell + phase % self.cell
        return torch.stack([phase // self.cell**2, x - self.margin, y - self.margin], -1), index

    def similarity(self, needed: Tensor) -> Tensor:
        """Of all cells, (U, h, w), for rows (pair, dx, dy) (U, 3); of no use where a cell is not on the image."""
        _, rows, columns, _, height, width = self.sar.shape
        from_corner = needed[:, 1:] + self.margin
        if needed.device.type != "cpu":
            return self.gathered(needed[:, 0], from_corner)
        # On a CPU copies of the windows would take longer than their products.
        found = self.sar.new_zeros(len(needed), height, width)
        products, total = torch.empty_like(self.sar[0, 0, 0]), torch.empty_like(self.sar[0, 0, 0, 0])
        displacements = list(zip(found, needed[:, 0].tolist(), from_corner.tolist(), strict=True))
        for i, j in product(range(rows), range(columns)):
            for out, pair, (x, y) in displacements:
                down, y_in_cell = divmod(y + i * PIXEL_STEP, self.cell)
                right, x_in_cell = divmod(x + j * PIXEL_STEP, self.cell)
                there = self.optical[pair, y_in_cell, x_in_cell, :, down : down + height, right : right + width]
                out += torch.sum(torch.mul(self.sar[pair, i, j], there, out=products), 0, out=total)
        return found.div_(rows * columns)

    def gathered(self, pair: Tensor, from_corner: Tensor) -> Tensor:
        """`similarity` without a loop, for pairs (U,) and displacements (U, 2) counted from the padded corner."""
        height, width = self.sar.shape[-2:]
        windows = self.optical.unfold(4, height, 1).unfold(5, width, 1).movedim(3, 5)
        y, x = (from_corner[:, axis, None] + self.pixels for axis in (1, 0))  # (U, rows), (U, columns)
        y, x, pair = y[:, :, None], x[:, None], pair[:, None, None]
        there = windows[pair, y % self.cell, x % self.cell, y // self.cell, x // self.cell]
        return (there * self.sar[pair[:, 0, 0]]).mean((1, 2)).sum(1)

    def on_image(self, needed: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows (U, h) and columns (U, w) of cells lie on the optical image at each displacement, float."""
        found = []
        for axis, length in ((2, self.height), (1, self.width)):
            corner = torch.arange(0, length, self.cell, device=needed.device) + needed[:, axis, None]
            # The last pixel compared of a cell must be on the image too.
            found.append(((corner >= 0) & (corner + self.cell - PIXEL_STEP < length)).float())
        return found[0], found[1]


def _planes(image: Tensor, cell: int) -> Tensor:
    """(B, C, H, W) to (B, cell, cell, C, H / cell, W / cell): the pixels (y, x) of all cells."""
    height, width = image.shape[-2:]
    return (
        image.unflatten(2, (height // cell, cell))
        .unflatten(4, (width // cell, cell))
        .permute(0, 3, 5, 1, 2, 4)
        .contiguous()
    )
