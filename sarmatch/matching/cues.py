"""What betrays a failing match: the shape of its softmax, and whether its neighbours were matched and move alike."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.config import CONFIDENT_PX
from sarmatch.matching.aggregation import box_sums
from sarmatch.matching.assignment import CellMatches

CUES = ("entropy", "margin", "spread", "roughness_5", "roughness_25", "matched_25", "agreeing_9")
"""By column of `match_cues`, all at least 0:

- entropy: of the row softmax, nats;
- margin: log-probability of the best displacement less that of the best one not beside it, at most `LARGEST_MARGIN`;
- spread: root of the trace of the raw covariance of the position, px; 0 where it was not refined;
- roughness_5, roughness_25: distance of the displacement from its mean over the other matches within 5 x 5 and 25 x 25
  cells, px; `UNKNOWN_PX` without any;
- matched_25: share of the cells within 25 x 25 that are matched;
- agreeing_9: share of the cells within 9 x 9 that are matched with a displacement at most 3 px away from this one.
"""
LARGEST_MARGIN = 30.0  # nats; there is none where no other displacement is possible
UNKNOWN_PX = 16.0


def match_cues(
    forward: Tensor, found: CellMatches, displacement: Tensor, covariance: Tensor, valid: Tensor | None = None
) -> Tensor:
    """`CUES` of the N matches of a batch, (N, 7).

    Args:
        forward: log-probabilities (B, K*K, h, w) of the row softmax.
        displacement: of the refined matches, (N, 2) px.
        covariance: of their positions, (N, 2, 2) px^2.
        valid: (B, h, w) bool, cells that carry data; None takes all.
    """
    x, y = found.cell.unbind(1)
    row = forward[found.pair, :, y, x]
    known = torch.ones_like(forward[:, 0]) if valid is None else valid.to(forward)
    field = forward.new_zeros(len(forward), 3, *forward.shape[-2:])  # matched or not, and the displacement
    field[found.pair, :, y, x] = torch.cat([torch.ones_like(displacement[:, :1]), displacement], 1)
    of_5, of_25 = (_means_around(field, found, side) for side in (5, 25))
    cells = (box_sums(known, 25)[found.pair, y, x] - 1).clamp(min=1)
    spread = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0).sqrt().nan_to_num(0.0)
    roughness = [_distance(displacement, means, n) for means, n in (of_5, of_25)]
    entropy = -(row.exp() * row).sum(1)
    cues = [entropy, _margin(row, found.displacement), spread, *roughness, (of_25[1] / cells).clamp(max=1)]
    return torch.stack([*cues, _agreeing(field, found, displacement, 9)], 1).clamp(min=0)


def _margin(row: Tensor, displacement: Tensor) -> Tensor:
    side = math.isqrt(row.shape[1])
    steps = torch.arange(side, device=row.device) - side // 2
    beside = [(steps - displacement[:, axis, None]).abs() <= 1 for axis in (1, 0)]  # (N, K) of dy and of dx
    others = row.unflatten(1, (side, side)).masked_fill(beside[0][:, :, None] & beside[1][:, None], -torch.inf)
    return (row.amax(1) - others.flatten(1).amax(1)).clamp(max=LARGEST_MARGIN)


def _means_around(field: Tensor, found: CellMatches, side: int) -> tuple[Tensor, Tensor]:
    """Mean displacement (N, 2) of the other matches within side x side cells of each, and their number (N,)."""
    x, y = found.cell.unbind(1)
    others = (box_sums(field, side) - field)[found.pair, :, y, x]
    n = others[:, 0].round()
    return others[:, 1:] / n[:, None].clamp(min=1), n


def _distance(displacement: Tensor, means: Tensor, n: Tensor) -> Tensor:
    return torch.where(n > 0, (displacement - means).norm(dim=1), UNKNOWN_PX)


def _agreeing(field: Tensor, found: CellMatches, displacement: Tensor, side: int) -> Tensor:
    """Share of the side x side cells around each match, itself among them, that are matched alike."""
    reach = side // 2
    windows = F.pad(field, (reach,) * 4).unfold(2, side, 1).unfold(3, side, 1)  # a view (B, 3, h, w, side, side)
    x, y = found.cell.unbind(1)
    around = windows[found.pair, :, y, x].flatten(2)
    near = (around[:, 1:] - displacement[..., None]).square().sum(1) <= CONFIDENT_PX**2
    return (near & (around[:, 0] > 0)).float().mean(1)
