"""Assignment of cells: dual softmax over displacements and mutual nearest neighbours (section 3.3, figure 1)."""

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
    return candidates(volume, within).log_softmax(1)


def candidates(volume: Volume, within: Tensor | None = None) -> Tensor:
    """Logits of the displacements of each cell, (B, K*K, H, W), `MASKED` where invalid or not `within`."""
    valid = volume.valid if within is None else volume.valid & within[:, :, None, None]
    return volume.values.masked_fill(~valid, MASKED).flatten(1, 2)


def best(log_probability: Tensor) -> tuple[Tensor, Tensor]:
    """Argmax displacement of each cell: (B, H, W, 2) long (dx, dy) in steps, and its log-probability (B, H, W).

    Logits do as well, of which the latter is then one.
    """
    value, index = log_probability.max(1)
    size = round(log_probability.shape[1] ** 0.5)
    radius = (size - 1) // 2
    return torch.stack([index % size - radius, index // size - radius], dim=-1), value


class CellMatches(NamedTuple):
    """N matches of whole cells in a batch of pairs: number of the pair (N,) long, SAR cell and displacement (N, 2) long
    (x, y) in cells, dual-softmax probability (N,)."""

    pair: Tensor
    cell: Tensor
    displacement: Tensor
    probability: Tensor


def mutual_matches(
    forward: Tensor, backward: Tensor, sar_valid: Tensor | None = None, optical_valid: Tensor | None = None
) -> CellMatches:
    """Cells whose best displacement leads to an optical cell whose best displacement leads back.

    A cell whose best displacement leads off the optical image has no match. What is above the selection of matches
    waits for nothing on a GPU; the number of matches is the first that does.

    Args:
        forward, backward: log-probabilities (B, K*K, H, W) of the row and of the column softmax.
        sar_valid, optical_valid: (B, H, W) bool, cells that may be matched; None takes all.
    """
    displacement, log_row = best(forward)
    displacement_back, log_column = best(backward)
    height, width = log_row.shape[-2:]
    cells = cell_grid(height, width, forward.device)
    there, mutual = optical_cells(cells, displacement, (height, width))
    there = there.flatten(1)
    back = displacement_back.flatten(1, 2).gather(1, there[..., None].expand(-1, -1, 2)).view_as(displacement)
    mutual &= (back == displacement).all(-1)
    if sar_valid is not None:
        mutual &= sar_valid
    if optical_valid is not None:
        mutual &= optical_valid.flatten(1).expand(len(there), -1).gather(1, there).view_as(mutual)
    probability = (log_row + log_column.flatten(1).gather(1, there).view_as(log_row)).exp()
    pair, y, x = mutual.nonzero(as_tuple=True)
    return CellMatches(pair, torch.stack([x, y], -1), displacement[pair, y, x], probability[pair, y, x])
