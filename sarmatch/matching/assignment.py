"""Assignment of cells: dual softmax over displacements and mutual nearest neighbours (section 3.3, figure 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sarmatch.matching.aggregation import coarse_logits, pair_maps
from sarmatch.matching.correlation import MASKED, Volume, cell_grid, disc, optical_cells, swap
from sarmatch.model import STRIDE, Descriptors, SarOpticalNet


class Prediction(NamedTuple):
    """The coarse level of B pairs, before matches are picked.

    Attributes:
        forward, backward: log-probabilities (B, K*K, h, w) of the row and of the column softmax.
        pair_maps: weighted sources of uncertainty of each image, (B, h, w) each, or None.
        variance: over passes, of the probability of each cell's best displacement, (B, h, w); None without passes.
        mutual_information: between displacement and weights, nats, (B, h, w); None without passes.
    """

    forward: Tensor
    backward: Tensor
    pair_maps: tuple[Tensor, Tensor] | None = None
    variance: Tensor | None = None
    mutual_information: Tensor | None = None


@torch.no_grad()
def predict(
    net: SarOpticalNet,
    sar: Descriptors,
    optical: Descriptors,
    search_radius: float,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
) -> Prediction:
    """The coarse level of a batch of pairs of equal size, each by itself.

    Args:
        search_radius: greatest distance of a match from its predicted position, px.
        sar_valid, optical_valid: (B, h, w) bool, cells that carry data; None takes all.
        use_consensus: False gives the paper-literal matcher, each cell by itself.
    """
    logits = coarse_logits(net, sar, optical, search_radius, sar_valid, optical_valid, use_consensus)
    return Prediction(*dual_log_softmax(logits, search_radius), pair_maps(net, sar, optical))


def dual_log_softmax(logits: Volume, search_radius: float) -> tuple[Tensor, Tensor]:
    """Row and column log-probabilities, (B, K*K, h, w) each, over displacements up to the search radius (px)."""
    within = disc(logits.radius, search_radius / STRIDE, logits.values.device)
    return log_softmax(logits, within), log_softmax(swap(logits), within)


def log_softmax(volume: Volume, within: Tensor | None = None) -> Tensor:
    """Log-probability of each displacement of a cell, (B, K*K, H, W); invalid entries get no mass.

    Args:
        within: (K, K) bool, the displacements that are candidates at all.
    """
    valid = volume.valid if within is None else volume.valid & within[:, :, None, None]
    return volume.values.masked_fill(~valid, MASKED).flatten(1, 2).log_softmax(1)


def best(log_probability: Tensor) -> tuple[Tensor, Tensor]:
    """Argmax displacement of each cell: (B, H, W, 2) long (dx, dy) in steps, and its log-probability (B, H, W)."""
    value, index = log_probability.max(1)
    size = round(log_probability.shape[1] ** 0.5)
    radius = (size - 1) // 2
    return torch.stack([index % size - radius, index // size - radius], dim=-1), value


def mutual_matches(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells whose best displacement leads to an optical cell whose best displacement leads back.

    A cell whose best displacement leads off the optical image has no match.

    Args:
        forward, backward: log-probabilities (1, K*K, H, W) of the row and of the column softmax.

    Returns:
        SAR cells (N, 2) long (x, y), displacements (N, 2) long in cells, dual-softmax probability (N,).
    """
    displacement, log_row = (t[0] for t in best(forward))
    displacement_back, log_column = (t[0] for t in best(backward))
    height, width = log_row.shape
    cells = cell_grid(height, width, forward.device)
    there, on_image = optical_cells(cells, displacement, (height, width))
    mutual = on_image & (displacement_back.flatten(0, 1)[there] == displacement).all(-1)
    probability = (log_row + log_column.flatten()[there]).exp()
    return cells[mutual], displacement[mutual], probability[mutual]
