"""From descriptors of two images to mutual matches with sub-pixel positions and a confidence (section 3.3, figure 1).

Coarse: similarities over displacements of whole cells within the search radius, local consensus, dual softmax, mutual
nearest neighbours. Fine: the same on thin full-resolution descriptors within a few pixels of the coarse match.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sarmatch.fine_points import fine_consensus
from sarmatch.geometry import cell_centres, inside
from sarmatch.models import STRIDE, Descriptors, SarOpticalNet
from sarmatch.volumes import (
    Volume,
    best,
    coarse_volume,
    combine,
    consensus,
    disc,
    displaced,
    log_softmax,
    swap,
)

FINE_RADIUS = 4
"""Half-width of the fine window, px: a cell's own width, so that a match one cell off can still be mended."""


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


class Prediction(NamedTuple):
    """What the coarse level says of one pair (B = 1), before matches are picked.

    Attributes:
        forward, backward: log-probabilities (1, K*K, h, w) of the row and of the column softmax.
        pair_maps: weighted sources of uncertainty of each image, (1, h, w) each, or None.
        variance: over passes, of the probability of each cell's best displacement, (1, h, w); None without passes.
        mutual_information: between displacement and weights, nats, (1, h, w); None without passes.
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
    within = disc(logits.radius, search_radius / STRIDE, logits.values.device)
    return Prediction(log_softmax(logits, within), log_softmax(swap(logits), within), pair_maps(net, sar, optical))


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

    With consensus, each match is refined in a fine volume; without, as in the paper, by the expectation over the 3x3
    cells around it.

    Args:
        sar_fine, optical_fine: full-resolution descriptors (1, C, H, W).
        refine: False stops at whole cells.
    """
    cells, displacement, probability = mutual_matches(prediction.forward, prediction.backward)
    if optical_valid is not None or sar_valid is not None:
        keep = _on_data(cells, displacement, sar_valid, optical_valid)
        cells, displacement, probability = cells[keep], displacement[keep], probability[keep]
    moved = displacement.float() * STRIDE
    covariance = moved.new_full((len(moved), 2, 2), torch.nan)
    if refine and use_consensus:
        step, covariance = refine_displacement(net, sar_fine, optical_fine, cells, displacement)
        moved = moved + step
    elif refine:
        step, covariance = _expected_step(prediction.forward, cells, displacement)
        moved, covariance = moved + STRIDE * step, STRIDE**2 * covariance
    height, width = optical_fine.shape[-2:]
    centres = cell_centres(height // STRIDE, width // STRIDE, STRIDE, moved.device)
    xy_sar = centres[cells[:, 1], cells[:, 0]]
    aleatoric, epistemic = torch.full_like(probability, torch.nan), torch.full_like(probability, torch.nan)
    if prediction.pair_maps is not None:
        of_sar, of_optical = prediction.pair_maps
        to = cells + displacement
        both = of_sar[0, cells[:, 1], cells[:, 0]] + of_optical[0, to[:, 1], to[:, 0]]
        aleatoric = both.clamp(0, 1)  # weights sum to one but for rounding
    if prediction.mutual_information is not None:
        epistemic = prediction.mutual_information[0, cells[:, 1], cells[:, 0]]
    raw = RawMatches(xy_sar, xy_sar + moved, probability, aleatoric, epistemic, covariance)
    return select(raw, inside(raw.xy_optical, (height, width)))


def select(raw: RawMatches, rows: Tensor) -> RawMatches:
    """The matches where a mask (N,) is true."""
    return RawMatches(*(values[rows] for values in raw))


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


def vote_weights(net: SarOpticalNet, sar: Descriptors, optical: Descriptors, radius: int) -> Tensor | None:
    """exp(-beta (U_sar + U_opt)) of both ends of every entry of a volume, (B, K, K, h, w); None without uncertainty.

    Ends that look uncertain weigh less: in the similarity itself, and as neighbours that vote (design point 4).
    """
    if sar.uncertainty is None or optical.uncertainty is None:
        return None
    there = displaced(optical.uncertainty.fused[:, 0], (sar.coarse.shape[-2], sar.coarse.shape[-1]), radius)
    return torch.exp(-net.vote_log_scale.exp() * (sar.uncertainty.fused[:, None] + there))


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
    votes = vote_weights(net, sar, optical, radius)
    return voted_logits(net, volume, votes) if use_consensus else plain_logits(net, volume, votes)


def plain_logits(net: SarOpticalNet, volume: Volume, votes: Tensor | None) -> Volume:
    """Each cell by itself: its similarities weighted by the confidence of both ends, times the learned scale."""
    return Volume(_weighted(volume, votes).values * net.plain_log_scale.exp(), volume.valid)


def voted_logits(net: SarOpticalNet, volume: Volume, votes: Tensor | None) -> Volume:
    """The cell and its neighbourhoods together, each times its learned scale."""
    volumes = [_weighted(volume, votes), *consensus(volume, net.config.consensus_cells, votes)]
    return combine(volumes, net.coarse_log_scales.exp())


def _weighted(volume: Volume, votes: Tensor | None) -> Volume:
    return volume if votes is None else Volume(volume.values * votes, volume.valid)


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


def _expected_step(log_probability: Tensor, cells: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Correction of matches to a fraction of a cell and its spread: expectation over the 3x3 steps around each.

    Returns:
        (N, 2) in cells; second moments (N, 2, 2) in cells^2 over all displacements.
    """
    size = math.isqrt(log_probability.shape[1])
    at_cells = log_probability[0, :, cells[:, 1], cells[:, 0]].T.unflatten(1, (size, size))
    position = local_expectation(at_cells)
    return position - displacement, window_moments(at_cells, position)


def refine_displacement(
    net: SarOpticalNet, sar: Tensor, optical: Tensor, cells: Tensor, displacement: Tensor
) -> tuple[Tensor, Tensor]:
    """Sub-pixel correction of coarse matches by the fine level, and how well its surface fixes it.

    Args:
        sar, optical: full-resolution descriptors (1, C, H, W).
        cells: (N, 2) long (x, y).
        displacement: (N, 2) long, in cells.

    Returns:
        (dx, dy) in px, (N, 2) float32, each within `FINE_RADIUS` + 1; covariance (N, 2, 2) px^2, see `window_moments`.
    """
    sides = (1, *net.config.consensus_cells)
    values, valid = fine_consensus(sar, optical, cells, displacement * STRIDE, FINE_RADIUS, sides, STRIDE)
    logits = torch.einsum("s,snij->nij", net.fine_log_scales.exp(), values).masked_fill(~valid[-1], -torch.inf)
    position = local_expectation(logits)
    return position, window_moments(logits, position)


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


def window_moments(logits: Tensor, position: Tensor) -> Tensor:
    """Spread of the softmax of a whole window about a position: its second moments.

    The window, not the 3x3 steps of which the position is made: a ridge or a second peak a few steps away is what makes
    a position doubtful. About the position that is reported, not the mean of the window, so that their distance counts.

    Args:
        logits: (N, K, K) with -inf where invalid.
        position: (N, 2) displacement (dx, dy) from the centre of the window, in steps.

    Returns:
        (N, 2, 2) in steps^2, symmetric, no eigenvalue negative; NaN where nothing is valid. It means the spread of the
        answer *given that the right one lies in the window*.
    """
    radius = (logits.shape[1] - 1) // 2
    weights = logits.flatten(1).softmax(1).unflatten(1, logits.shape[1:])
    steps = torch.arange(-radius, radius + 1, device=logits.device, dtype=logits.dtype)
    dx, dy = (steps - position[:, axis, None] for axis in (0, 1))
    var_x = (weights.sum(1) * dx**2).sum(1)
    var_y = (weights.sum(2) * dy**2).sum(1)
    var_xy = torch.einsum("nyx,nx,ny->n", weights, dx, dy)
    return torch.stack([var_x, var_xy, var_xy, var_y], -1).unflatten(1, (2, 2))
