"""Positions to the fraction of a step, and their spread, from windows of logits."""

import torch
from torch import Tensor

FINE_RADIUS = 4  #: Half-width of the fine window, px: a cell's own width, so a match one cell off can be mended.


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
    """Second moments of the softmax of a whole window about a position.

    The whole window, since a ridge or a second peak a few steps away makes a position uncertain; about the position
    that is reported, not the mean of the window, so that their distance counts.

    Args:
        logits: (N, K, K) with -inf where invalid.
        position: (N, 2) displacement (dx, dy) from the centre of the window, in steps.

    Returns:
        (N, 2, 2) in steps^2, positive semi-definite; NaN where nothing is valid. The spread *given that the true
        position lies in the window*.
    """
    radius = (logits.shape[1] - 1) // 2
    weights = logits.flatten(1).softmax(1).unflatten(1, logits.shape[1:])
    steps = torch.arange(-radius, radius + 1, device=logits.device, dtype=logits.dtype)
    dx, dy = (steps - position[:, axis, None] for axis in (0, 1))
    var_x = (weights.sum(1) * dx**2).sum(1)
    var_y = (weights.sum(2) * dy**2).sum(1)
    var_xy = torch.einsum("nyx,nx,ny->n", weights, dx, dy)
    return torch.stack([var_x, var_xy, var_xy, var_y], -1).unflatten(1, (2, 2))
