"""From descriptors of two images to mutual matches with sub-pixel positions and a confidence (section 3.3, figure 1).

Coarse: similarities over displacements of whole cells within the search radius, local consensus, dual softmax, mutual
nearest neighbours. Fine: the same on thin full-resolution descriptors within a few pixels of the coarse match.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sarmatch.geometry import cell_centres, inside
from sarmatch.matching.correlation import (
    Volume,
    best,
    cell_grid,
    coarse_volume,
    combine,
    consensus,
    disc,
    displaced,
    log_softmax,
    optical_cells,
    swap,
)
from sarmatch.matching.refinement import fine_consensus
from sarmatch.model import STRIDE, Descriptors, SarOpticalNet

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
    aleatoric, epistemic = torch.full_like(probability, torch.nan), torch.full_like(probability, torch.nan)
    if prediction.pair_maps is not None:
        of_sar, of_optical = (of_image.flatten() for of_image in prediction.pair_maps)
        aleatoric = (of_sar[here] + of_optical[there]).clamp(0, 1)  # weights sum to one but for rounding
    if prediction.mutual_information is not None:
        epistemic = prediction.mutual_information.flatten()[here]
    raw = RawMatches(xy_sar, xy_sar + moved, probability, aleatoric, epistemic, covariance)
    return select(raw, inside(raw.xy_optical, (rows * STRIDE, columns * STRIDE)))


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


def reliability_weights(net: SarOpticalNet, sar: Descriptors, optical: Descriptors, radius: int) -> Tensor | None:
    """exp(-beta (U_sar + U_opt)) of both ends of every entry of a volume, (B, K, K, h, w); None without uncertainty.

    Ends that look uncertain weigh less, in the similarity itself and as neighbours.
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
    return volume_logits(net, volume, sar, optical, use_consensus)


def volume_logits(
    net: SarOpticalNet, volume: Volume, sar: Descriptors, optical: Descriptors, use_consensus: bool
) -> Volume:
    """The logits of a volume of similarities of these descriptors."""
    reliability = reliability_weights(net, sar, optical, volume.radius)
    return (aggregated_logits if use_consensus else plain_logits)(net, volume, reliability)


def plain_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """Each cell by itself: its similarities weighted by the reliability of both ends, times the learned scale."""
    return Volume(_weighted(volume, reliability).values * net.plain_log_scale.exp(), volume.valid)


def aggregated_logits(net: SarOpticalNet, volume: Volume, reliability: Tensor | None) -> Volume:
    """The cell and its neighbourhoods together, each times its learned scale."""
    volumes = [_weighted(volume, reliability), *consensus(volume, net.config.consensus_cells, reliability)]
    return combine(volumes, net.coarse_log_scales.exp())


def _weighted(volume: Volume, reliability: Tensor | None) -> Volume:
    return volume if reliability is None else Volume(volume.values * reliability, volume.valid)


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
    cells = cell_grid(height, width, forward.device)
    there, on_image = optical_cells(cells, displacement, (height, width))
    mutual = on_image & (displacement_back.flatten(0, 1)[there] == displacement).all(-1)
    confidence = (log_row + log_column.flatten()[there]).exp()
    return cells[mutual], displacement[mutual], confidence[mutual]


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
