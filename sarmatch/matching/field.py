"""The fine level along the smoothed field of the coarse matches, for ground that does not move as one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.geometry import cell_centres
from sarmatch.matching.aggregation import box_sums, fine_logits
from sarmatch.matching.assignment import CellMatches
from sarmatch.matching.correlation import PIXEL_STEP, Volume
from sarmatch.matching.position import FINE_RADIUS, local_expectation, window_moments
from sarmatch.model import STRIDE, SarOpticalNet

FIRST_SIDE, SIDE = 15, 11  #: Cells over which the field is smoothed, from whole cells and from fine positions.
RIGID_SIDE, NOISE_PX = (45, 0.7)  #: Ground moves as one where means over so many cells differ by noise only.
TOLERANCE_PX = 3.0  #: A displacement this far from its neighbours' mean has a quarter of its weight in it.
FEWEST = 1e-4  #: Sum of weights below which a neighbourhood says nothing.


def smoothed_field(displacement: Tensor, weight: Tensor, side: int) -> Tensor:
    """The displacement around each cell, (B, h, w, 2) px: a robust mean, drawn to a wider one as far as noise goes.

    With d the root mean square distance of the two means over 25 x 25 cells, the share 1 - (0.7 px / d)^2 of their
    difference is kept, none below zero: over ground that moves as one, the field is as even as the wider mean.

    Args:
        displacement: (B, h, w, 2) px; weight: (B, h, w) >= 0, zero where there is none.
        side: odd side of the neighbourhood in cells.
    """
    near, wide = (_robust_mean(displacement, weight, n) for n in (side, RIGID_SIDE))
    apart = (near - wide).square().sum(-1)
    apart = box_sums(apart, 25) / box_sums(torch.ones_like(apart), 25)
    kept = 1 - NOISE_PX**2 / apart.clamp(min=NOISE_PX**2)
    return wide + kept[..., None] * (near - wide)


def _robust_mean(displacement: Tensor, weight: Tensor, side: int) -> Tensor:
    """Weighted mean over neighbourhoods, weights lowered thrice by (1 + (distance / 3 px)^2)^-2 of the last.

    Where a neighbourhood is empty the mean over all cells stands for it.
    """
    own, values = weight, displacement.movedim(-1, 1)
    overall = (values * weight[:, None]).sum((2, 3), keepdim=True)
    overall = overall / weight.sum((1, 2))[:, None, None, None].clamp(min=FEWEST)
    for _ in range(3):
        total = box_sums(own, side)[:, None]
        mean = torch.where(total > FEWEST, box_sums(values * own[:, None], side) / total.clamp(min=FEWEST), overall)
        own = weight / (1 + (values - mean).square().sum(1) / TOLERANCE_PX**2) ** 2
    return mean.movedim(1, -1)


def residual_volume(sar: Tensor, optical: Tensor, field: Tensor) -> Volume:
    """Mean similarity of each SAR cell's pixels with the optical pixels a displacement of the cell's own away.

    Entry (i, j) is at the displacement `field` + (j, i) - `FINE_RADIUS` px; optical descriptors are interpolated.

    Args:
        sar, optical: full-resolution descriptors (B, C, H, W), sides multiples of 4.
        field: (B, H/4, W/4, 2) px.
    """
    size, reach = 2 * FINE_RADIUS + 1, 2 * FINE_RADIUS + 1 + STRIDE - PIXEL_STEP
    (height, width), rows, columns = sar.shape[-2:], sar.shape[-2] // STRIDE, sar.shape[-1] // STRIDE
    corner = cell_centres(rows, columns, STRIDE, sar.device) - (STRIDE - 1) / 2 + field - FINE_RADIUS
    steps = torch.arange(reach, device=sar.device, dtype=sar.dtype)
    x = (corner[..., 0, None] + steps)[:, :, None].expand(-1, -1, reach, -1, -1)  # (B, rows, reach, columns, reach)
    y = (corner[..., 1, None] + steps).movedim(3, 2)[..., None].expand(-1, -1, -1, -1, reach)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    there = F.grid_sample(optical, grid.flatten(3, 4).flatten(1, 2), padding_mode="border", align_corners=True)
    there = there.unflatten(3, (columns, reach)).unflatten(2, (rows, reach))
    compared = sar.unflatten(3, (columns, STRIDE)).unflatten(2, (rows, STRIDE))[:, :, :, ::PIXEL_STEP, :, ::PIXEL_STEP]
    found = sar.new_zeros(len(sar), rows, size, columns, size)
    for i in range(0, STRIDE, PIXEL_STEP):
        for j in range(0, STRIDE, PIXEL_STEP):
            pixel = compared[:, :, :, i // PIXEL_STEP, :, j // PIXEL_STEP]
            found += (pixel[:, :, :, None, :, None] * there[:, :, :, i : i + size, :, j : j + size]).sum(1)
    last = STRIDE - PIXEL_STEP
    on = [(c >= 0) & (c + last <= n - 1) for c, n in ((y[..., :size, :, 0], height), (x[:, :, 0, :, :size], width))]
    valid = on[0].movedim(2, 1)[:, :, None] & on[1].movedim(3, 1)[:, None]
    return Volume(found.permute(0, 2, 4, 1, 3) / (STRIDE // PIXEL_STEP) ** 2 * valid, valid)


def refine_along_field(
    net: SarOpticalNet, sar: Tensor, optical: Tensor, found: CellMatches, coarse: Tensor
) -> tuple[Tensor, Tensor]:
    """Displacements of coarse matches to the fraction of a pixel, and their spread.

    In each of `field_rounds` rounds the displacements found so far are smoothed to a field, each cell is compared with
    what lies within `FINE_RADIUS` px of its place in the field, and neighbourhoods are aggregated at the same distance
    from the field. A match that disagrees with its neighbours takes the best place near theirs.

    Args:
        sar, optical: full-resolution descriptors (B, C, H, W).
        coarse: displacements of the matches, (N, 2) px.

    Returns:
        displacement (N, 2) px; covariance (N, 2, 2) px^2, see `window_moments`.
    """
    (x, y), size = found.cell.unbind(1), (len(sar), sar.shape[-2] // STRIDE, sar.shape[-1] // STRIDE)
    displacement, weight = coarse.new_zeros(*size, 2), coarse.new_zeros(size)
    displacement[found.pair, y, x], weight[found.pair, y, x] = coarse, found.probability
    for number in range(net.config.field_rounds):
        field = smoothed_field(displacement, weight, SIDE if number else FIRST_SIDE)
        logits = fine_logits(net, residual_volume(sar, optical, field))
        own = logits.values.masked_fill(~logits.valid, -math.inf)[found.pair, :, :, y, x]
        position = local_expectation(own)
        displacement[found.pair, y, x] = field[found.pair, y, x] + position
    return displacement[found.pair, y, x], window_moments(own, position)
