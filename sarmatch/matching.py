"""From descriptors of two images to mutual matches with sub-pixel positions and a confidence (section 3.3, figure 1).

Coarse: similarities over displacements of whole cells within the search radius, local consensus, dual softmax, mutual
nearest neighbours. Fine: the same on thin full-resolution descriptors within a few pixels of the coarse match.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sarmatch.geometry import cell_centres, inside
from sarmatch.models import STRIDE, Descriptors, SarOpticalNet
from sarmatch.volumes import FineMaps, Volume, best, coarse_volume, combine, consensus, disc, log_softmax, swap

FINE_RADIUS = 4
"""Half-width of the fine window, px: a cell's own width, so that a match one cell off can still be mended."""


@dataclass(frozen=True)
class RawMatches:
    """Tensors of N matches: `xy_sar`, `xy_optical` (N, 2) px; `confidence` (N,), dual-softmax probability."""

    xy_sar: Tensor
    xy_optical: Tensor
    confidence: Tensor


@torch.no_grad()
def match_descriptors(
    net: SarOpticalNet,
    sar: Descriptors,
    optical: Descriptors,
    search_radius: float,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
    refine: bool = True,
) -> RawMatches:
    """All mutual matches of one pair.

    With consensus, each match is refined in a fine volume; without, as in the paper, by the expectation over the 3x3
    cells around it.

    Args:
        sar, optical: descriptors of one image each (B = 1), of equal size.
        search_radius: greatest distance of a match from its predicted position, px.
        sar_valid, optical_valid: (1, H/4, W/4) bool, cells that carry data; None takes all.
        use_consensus: False gives the paper-literal matcher, each cell by itself.
        refine: False stops at whole cells.
    """
    use_consensus = use_consensus and bool(net.config.consensus_cells)
    logits = coarse_logits(net, sar, optical, search_radius, sar_valid, optical_valid, use_consensus)
    within = disc(logits.radius, search_radius / STRIDE, logits.values.device)
    forward, backward = log_softmax(logits, within), log_softmax(swap(logits), within)
    cells, displacement, confidence = mutual_matches(forward, backward)
    if optical_valid is not None or sar_valid is not None:
        keep = _on_data(cells, displacement, sar_valid, optical_valid)
        cells, displacement, confidence = cells[keep], displacement[keep], confidence[keep]
    moved = displacement.float() * STRIDE
    if refine and use_consensus:
        moved = moved + refine_displacement(net, sar, optical, cells, displacement)
    elif refine:
        moved = moved + STRIDE * _expected_step(logits, within, cells, displacement)
    centres = cell_centres(sar.coarse.shape[-2], sar.coarse.shape[-1], STRIDE, moved.device)
    xy_sar = centres[cells[:, 1], cells[:, 0]]
    xy_optical = xy_sar + moved
    height, width = optical.fine.shape[-2:]
    keep = inside(xy_optical, (height, width))
    return RawMatches(xy_sar[keep], xy_optical[keep], confidence[keep])


def coarse_logits(
    net: SarOpticalNet,
    sar: Descriptors,
    optical: Descriptors,
    search_radius: float,
    sar_valid: Tensor | None = None,
    optical_valid: Tensor | None = None,
    use_consensus: bool = True,
) -> Volume:
    """Similarities times their scales over displacements within the search radius."""
    radius = math.ceil(search_radius / STRIDE)
    volume = coarse_volume(sar.coarse, optical.coarse, radius, sar_valid, optical_valid)
    if not use_consensus:
        return Volume(volume.values * net.plain_log_scale.exp(), volume.valid)
    volumes = [volume, *consensus(volume, net.config.consensus_cells)]
    return combine(volumes, net.coarse_log_scales.exp())


def mutual_matches(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells whose best displacement leads to an optical cell whose best displacement leads back.

    A cell whose best displacement leads off the optical image has no match: its neighbours say that its counterpart
    lies outside.

    Args:
        forward, backward: log-probabilities (1, K*K, H, W) of the row and of the column softmax.

    Returns:
        SAR cells (N, 2) long (x, y), displacements (N, 2) long in cells, dual-softmax probability (N,).
    """
    displacement, log_row = (t[0] for t in best(forward))
    displacement_back, log_column = (t[0] for t in best(backward))
    height, width = log_row.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=forward.device) for n in (height, width)), indexing="ij")
    x_to, y_to = x + displacement[..., 0], y + displacement[..., 1]
    on_image = (x_to >= 0) & (x_to < width) & (y_to >= 0) & (y_to < height)
    x_to, y_to = x_to.clamp(0, width - 1), y_to.clamp(0, height - 1)
    mutual = on_image & (displacement_back[y_to, x_to] == displacement).all(-1)
    confidence = (log_row + log_column[y_to, x_to]).exp()
    return torch.stack([x, y], -1)[mutual], displacement[mutual], confidence[mutual]


def _on_data(
    cells: Tensor,
    displacement: Tensor,
    sar_valid: Tensor | None,
    optical_valid: Tensor | None,
) -> Tensor:
    """Which matches join two cells that carry data, (N,) bool."""
    keep = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    if sar_valid is not None:
        keep &= sar_valid[0, cells[:, 1], cells[:, 0]]
    if optical_valid is not None:
        height, width = optical_valid.shape[-2:]
        to = cells + displacement
        on_image = ((to >= 0) & (to < torch.tensor([width, height], device=to.device))).all(-1)
        keep &= on_image & optical_valid[0, to[:, 1].clamp(0, height - 1), to[:, 0].clamp(0, width - 1)]
    return keep


def _expected_step(logits: Volume, within: Tensor, cells: Tensor, displacement: Tensor) -> Tensor:
    """Correction of matches to a fraction of a cell, (N, 2) in cells: expectation over the 3x3 steps around each."""
    candidates = logits.valid & within[:, :, None, None]
    values = logits.values.masked_fill(~candidates, -torch.inf)
    at_cells = values[0, ..., cells[:, 1], cells[:, 0]].permute(2, 0, 1)
    return local_expectation(at_cells) - displacement


def refine_displacement(
    net: SarOpticalNet, sar: Descriptors, optical: Descriptors, cells: Tensor, displacement: Tensor
) -> Tensor:
    """Sub-pixel correction (dx, dy) in px of coarse matches, (N, 2) float32, each within `FINE_RADIUS` + 1.

    Args:
        cells: (N, 2) long (x, y).
        displacement: (N, 2) long, in cells.
    """
    correction = torch.zeros(len(cells), 2, device=sar.fine.device)
    if not len(cells):
        return correction
    reach = int(displacement.abs().max()) * STRIDE + FINE_RADIUS
    maps = FineMaps(sar.fine, optical.fine, reach, STRIDE)
    for shared in displacement.unique(dim=0):
        rows = (displacement == shared).all(-1).nonzero()[:, 0]
        dx, dy = (int(v) * STRIDE for v in shared)
        logits = fine_logits(net, maps.volume((dx, dy), FINE_RADIUS))
        at_cells = logits.values[..., cells[rows, 1], cells[rows, 0]]
        valid = logits.valid[..., cells[rows, 1], cells[rows, 0]]
        correction[rows] = local_expectation(at_cells[0].masked_fill(~valid[0], -torch.inf).permute(2, 0, 1))
    return correction


def fine_logits(net: SarOpticalNet, volume: Volume) -> Volume:
    """Fine similarities and their consensus times the learned scales."""
    volumes = [volume, *consensus(volume, net.config.consensus_cells)]
    return combine(volumes, net.fine_log_scales.exp())


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
