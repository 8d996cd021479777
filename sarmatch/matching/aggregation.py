"""Aggregation of cost volumes: reliability weights, local consensus over neighbourhoods, and their combination."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    there = displaced(optical.uncertainty.fused[:, 0], (sar.coarse.shape[-2], sar.coarse.shape[-1]), radius)
    return torch.exp(-net.vote_log_scale.exp() * (sar.uncertainty.fused[:, None] + there))


def consensus(volume: Volume, sides: Sequence[int], reliability: Tensor | None = None) -> list[Volume]:
    """Local consensus: replace each similarity by the mean over the neighbourhood at the same displacement.

    sum over p' in N(p) of w(p', delta) V(p', delta) / sum of w(p', delta), over valid entries only.

    Args:
        sides: odd sides of the neighbourhoods in cells.
        reliability: weights w >= 0, broadcastable to the volume; None weighs all alike.

    Returns:
        one volume a side, valid wherever at least one neighbour counts.
    """
    weights = volume.valid.to(volume.values) if reliability is None else volume.valid * reliability
    weighted = volume.values * weights
    result = []
    for side in sides:
        total = box_sums(weights, side)
        valid = total > NO_WEIGHT
        result.append(Volume(box_sums(weighted, side) / total.clamp(min=NO_WEIGHT) * valid, valid))
    return result


def box_sums(x: Tensor, side: int) -> Tensor:
    """Sums over side x side windows of the last two axes, cut off at the border.

    As products with banded matrices: faster than pooling or integral images on such small grids, and exact.
    """
    rows, columns = (band(n, side, x) for n in x.shape[-2:])
    return rows @ (x @ columns)


def band(n: int, side: int, like: Tensor) -> Tensor:
    """(n, n) matrix of ones within side // 2 of the diagonal."""
    steps = torch.arange(n, device=like.device)
    return ((steps[:, None] - steps[None, :]).abs() <= side // 2).to(like)


def combine(volumes: Sequence[Volume], scales: Tensor) -> Volume:
    """Logits as the sum of volumes times their scales; valid where the last, the widest neighbourhood, is."""
    logits = sum(scale * volume.values for scale, volume in zip(scales, volumes, strict=True))
    assert isinstance(logits, Tensor)
    return Volume(logits, volumes[-1].valid)


def plain_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """Each cell by itself: its similarities weighted by the reliability of both ends, times the learned scale."""
    return Volume(_weighted(volume, reliability).values * net.plain_log_scale.exp(), volume.valid)


def aggregated_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """The cell and its neighbourhoods together, each times its learned scale."""
    volumes = [_weighted(volume, reliability), *consensus(volume, net.config.consensus_cells, reliability)]
    return combine(volumes, net.coarse_log_scales.exp())


def _weighted(volume: Volume, reliability: Tensor | None) -> Volume:
    return volume if reliability is None else Volume(volume.values * reliability, volume.valid)


def fine_logits(net: SarOpticalNet, volume: Volume) -> Volume:
    """Fine similarities and their consensus times the learned scales."""
    return combine([volume, *consensus(volume, net.config.consensus_cells)], net.fine_log_scales.exp())


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
