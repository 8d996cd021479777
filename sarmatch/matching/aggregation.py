"""Aggregation of cost volumes: reliability weights, local consensus over neighbourhoods, and their combination."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sarmatch.matching.correlation import Volume, coarse_volume, displaced
from sarmatch.model import STRIDE, Descriptors, SarOpticalNet

NO_WEIGHT = 1e-12  #: Sum of weights taken as none; far below any weight, so uncertainty alone makes no cell invalid.


def pair_maps(net: SarOpticalNet, sar: Descriptors, optical: Descriptors) -> tuple[Tensor, Tensor] | None:
    """Sources of uncertainty weighted for the pair (section 3.2.3): one map (B, h, w) for each image's cells.

    The weights of all six sum to one, so the uncertainty of a match, the sum of the maps at both ends, lies in [0, 1].
    """
    if sar.uncertainty is None or optical.uncertainty is None or net.source_weights is None:
        return None
    weights = net.source_weights(sar.uncertainty, optical.uncertainty)[..., None, None]
    n_sar = sar.uncertainty.sources.shape[1]
    of_sar = (weights[:, :n_sar] * sar.uncertainty.sources).sum(1)
    return of_sar, (weights[:, n_sar:] * optical.uncertainty.sources).sum(1)


def reliability_weights(net: SarOpticalNet, sar: Descriptors, optical: Descriptors, radius: int) -> Tensor | None:
    """exp(-beta (U_sar + U_opt)) of both ends of every entry of a volume, (B, K, K, h, w); None without uncertainty.

    They weight the similarity itself and its share in the neighbourhoods that hold it.
    """
    if sar.uncertainty is None or optical.uncertainty is None:
        return None
    beta = net.vote_log_scale.exp()
    here, there = (torch.exp(-beta * d.uncertainty.fused[:, 0]) for d in (sar, optical) if d.uncertainty is not None)
    return here[:, None, None] * displaced(there, (here.shape[-2], here.shape[-1]), radius)


def consensus(volume: Volume, side: int, reliability: Tensor | None = None) -> Volume:
    """Local consensus: replace each similarity by the mean over the neighbourhood at the same displacement.

    sum over p' in N(p) of w(p', delta) V(p', delta) / sum of w(p', delta), over valid entries only.

    Args:
        side: odd side of the neighbourhood in cells.
        reliability: weights w >= 0, broadcastable to the volume; None weighs all alike.

    Returns:
        a volume that is valid wherever at least one neighbour counts.
    """
    weights = _weights(volume, reliability)
    total = box_sums(weights, side)
    return Volume(box_sums(volume.values * weights, side) / total.clamp(min=NO_WEIGHT), total > NO_WEIGHT)


def aggregate(volume: Volume, sides: Sequence[int], scales: Tensor, reliability: Tensor | None = None) -> Volume:
    """Logits: the weighted similarity of the cell alone and its `consensus` of every side, each times its scale.

    Args:
        sides: odd sides of the neighbourhoods in cells, the widest last; with none the cell stands alone.
        scales: (1 + len(sides),), of the cell alone first.
        reliability: as for `consensus`.

    Returns:
        a volume that is valid where its widest neighbourhood is.
    """
    weights = _weights(volume, reliability)
    logits, valid = _Aggregation.apply(volume.values, weights, scales, tuple(sides))
    return Volume(logits, valid)


def _weights(volume: Volume, reliability: Tensor | None) -> Tensor:
    return volume.valid.to(volume.values) if reliability is None else volume.valid * reliability


class _Aggregation(torch.autograd.Function):
    """The values of `aggregate`. Its gradient is written by hand: volumes are large, and each pass over one counts."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weights: Tensor, scales: Tensor, sides: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        weighted = values * weights
        logits, valid, kept = weighted * scales[0], weights > NO_WEIGHT, []
        for i, (side, scale) in enumerate(zip(sides, scales[1:], strict=True)):
            total, mean = box_sums(weights, side), box_sums(weighted, side)
            if i + 1 == len(sides):
                valid = total > NO_WEIGHT
            logits.addcmul_(mean.div_(total.clamp_(min=NO_WEIGHT)), scale)
            kept += [total, mean] if any(ctx.needs_input_grad) else []
        ctx.save_for_backward(values, weights, scales, *kept)
        ctx.mark_non_differentiable(valid)
        ctx.sides = sides
        return logits, valid

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        values, weights, scales, *kept = ctx.saved_tensors
        to_weighted, to_weights = gradient * scales[0], torch.zeros_like(gradient)
        to_scales = [_dot(gradient, values * weights)]
        for side, scale, total, mean in zip(ctx.sides, scales[1:], kept[::2], kept[1::2], strict=True):
            to_scales.append(_dot(gradient, mean))
            to_sum = (gradient * scale).div_(total)
            to_weighted += box_sums(to_sum, side)
            if ctx.needs_input_grad[1]:
                to_weights -= box_sums(to_sum.mul_(mean), side)
        to_reliability = to_weights.addcmul_(to_weighted, values) if ctx.needs_input_grad[1] else None
        return to_weighted.mul_(weights), to_reliability, torch.stack(to_scales), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def deformable_consensus(volume: Volume, side: int, penalty: Tensor, reliability: Tensor | None = None) -> Tensor:
    """Local consensus over a wide neighbourhood that need not move as one, (B, K, K, h, w); zero where nothing counts.

    The neighbourhood is divided into 3 x 3 boxes. The middle one has its `consensus` at the displacement itself, each
    outer one the best of its consensus at displacements up to one step away on each axis, less the penalty for each
    axis. Boxes count by the sum of their weights. After the deformable parts of Felzenszwalb et al. (2010).

    Args:
        side: of the neighbourhood in cells, three times an odd number.
        penalty: scalar, at least 0, in units of the similarity.
        reliability: as for `consensus`.
    """
    weights, box = _weights(volume, reliability), side // 3
    total = box_sums(weights, box)
    middle = box_sums(volume.values * weights, box) / total.clamp(min=NO_WEIGHT)
    moved = middle.masked_fill(total <= NO_WEIGHT, -1.0)  # the least cosine
    for axis in (1, 2):
        beyond = torch.full_like(moved.narrow(axis, 0, 1), -1.0)
        up = torch.cat([moved.narrow(axis, 1, moved.shape[axis] - 1), beyond], axis)
        down = torch.cat([beyond, moved.narrow(axis, 0, moved.shape[axis] - 1)], axis)
        moved = torch.maximum(moved, torch.maximum(up, down) - penalty)
    sums = _windowed(moved * total, box, _spaced) + (middle - moved) * total
    return sums / _windowed(total, box, _spaced).clamp(min=NO_WEIGHT)


def box_sums(x: Tensor, side: int) -> Tensor:
    """Sums over side x side windows of the last two axes, cut off at the border.

    As products with banded matrices, whose cost does not grow with the side: faster than pooling or integral images on
    such small grids, and exact.
    """
    return _windowed(x, side, band)


def _windowed(x: Tensor, side: int, matrix: Callable[[int, int, Tensor], Tensor]) -> Tensor:
    height, width = x.shape[-2:]
    along_rows = (x.reshape(-1, width) @ matrix(width, side, x)).view(-1, height, width)
    return torch.bmm(matrix(height, side, x).expand(len(along_rows), -1, -1), along_rows).view(x.shape)


def _spaced(n: int, step: int, like: Tensor) -> Tensor:
    """(n, n) matrix of ones on the diagonal and `step` beside it."""
    apart = (torch.arange(n, device=like.device)[:, None] - torch.arange(n, device=like.device)).abs()
    return ((apart == 0) | (apart == step)).to(like)


def band(n: int, side: int, like: Tensor) -> Tensor:
    """(n, n) matrix of ones within side // 2 of the diagonal."""
    steps = torch.arange(n, device=like.device)
    return ((steps[:, None] - steps[None, :]).abs() <= side // 2).to(like)


def plain_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """Each cell by itself: its similarities weighted by the reliability of both ends, times the learned scale."""
    values = volume.values if reliability is None else volume.values * reliability
    return Volume(values * net.plain_log_scale.exp(), volume.valid)


def aggregated_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """The cell and its neighbourhoods together, each times its learned scale."""
    logits = aggregate(volume, net.config.consensus_cells, net.coarse_log_scales.exp(), reliability)
    for i, side in enumerate(net.config.deformable_cells):
        found = deformable_consensus(volume, side, net.deformable_log_penalties[i].exp(), reliability)
        logits = Volume(logits.values.addcmul(found, net.deformable_log_scales[i].exp()), logits.valid)
    return logits


def fine_logits(net: SarOpticalNet, volume: Volume) -> Volume:
    """Fine similarities and their consensus times the learned scales."""
    return aggregate(volume, net.config.consensus_cells, net.fine_log_scales.exp())


def coarse_logits(
    net: SarOpticalNet,
    sar: Descriptors,
    optical: Descriptors,
    search_radius: float,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
) -> Volume:
    """Similarities times their scales over displacements within the search radius (px)."""
    radius = math.ceil(search_radius / STRIDE)
    volume = coarse_volume(sar.coarse, optical.coarse, radius, sar_valid, optical_valid)
    return volume_logits(net, volume, sar, optical, use_consensus)


def volume_logits(
    net: SarOpticalNet, volume: Volume, sar: Descriptors, optical: Descriptors, use_consensus: bool
) -> Volume:
    """The logits of the coarse volume of these descriptors."""
    reliability = reliability_weights(net, sar, optical, volume.radius)
    return (aggregated_logits if use_consensus else plain_logits)(net, volume, reliability)
