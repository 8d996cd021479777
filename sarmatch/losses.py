"""Training losses, one function an equation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sarmatch.volumes import Volume, log_softmax, swap


def soft_target_nll(log_probability: Tensor, displacement: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy against a true displacement that lies between the steps of a volume.

    The target is bilinear: it puts its mass on the four displacements around the true one. The positive is never
    interpolated from a feature map, or a network learns to tell interpolated features from those on the grid.

    Args:
        log_probability: (B, K*K, H, W), K = 2 radius + 1.
        displacement: true displacement (dx, dy) of each cell in steps, (B, H, W, 2).

    Returns:
        loss of each cell (B, H, W), zero where the true displacement lies outside the volume, and the mask (B, H, W)
        of those inside.
    """
    inside = (displacement.abs() <= radius).all(-1)
    loss = torch.zeros_like(displacement[..., 0])
    for index, weight in _corners(displacement, radius):
        loss = loss - weight * log_probability.gather(1, index[:, None])[:, 0]
    return loss * inside, inside


def _corners(displacement: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four displacements around a true one: flat index and bilinear weight, each (B, H, W)."""
    position = (displacement + radius).clamp(0, 2 * radius)
    low = position.floor().clamp(max=2 * radius - 1)
    fraction = position - low
    for dy in (0, 1):
        for dx in (0, 1):
            weight_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
            weight_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
            index = (low[..., 1] + dy) * (2 * radius + 1) + low[..., 0] + dx
            yield index.long(), weight_x * weight_y


def matching_loss(
    logits: Volume,
    forward_displacement: Tensor,
    backward_displacement: Tensor,
    sar_mask: Tensor,
    optical_mask: Tensor,
    within: Tensor | None = None,
) -> Tensor:
    """L_mat: cross-entropy of the row and of the column softmax against the true position, the mean of both.

    Args:
        logits: similarities times their scale, (B, K, K, H, W).
        forward_displacement: where each SAR cell truly lies in the optical image, minus its own place, in the
            volume's steps, (B, H, W, 2).
        backward_displacement: for each optical cell, its own place minus where it truly lies in the SAR image.
        sar_mask, optical_mask: (B, H, W) bool, the cells that have a true counterpart.
        within: (K, K) bool, the candidate displacements; cells whose truth lies beyond do not count.

    Returns:
        loss of each pair, (B,); a pair without a single usable cell gives zero.
    """
    row = row_loss(logits, forward_displacement, sar_mask, within)
    column = row_loss(swap(logits), backward_displacement, optical_mask, within)
    return (row + column) / 2


def row_loss(logits: Volume, displacement: Tensor, mask: Tensor, within: Tensor | None = None) -> Tensor:
    """One direction of `matching_loss`, (B,)."""
    radius = logits.radius
    loss, inside = soft_target_nll(log_softmax(logits, within), displacement, radius)
    usable = inside & mask & _target_is_valid(logits.valid, displacement, within)
    count = usable.sum(dim=(1, 2)).clamp(min=1)
    return torch.where(usable, loss, 0.0).sum(dim=(1, 2)) / count


def _target_is_valid(valid: Tensor, displacement: Tensor, within: Tensor | None) -> Tensor:
    """Whether all displacements that carry mass of the target are candidates, (B, H, W)."""
    candidates = valid if within is None else valid & within[:, :, None, None]
    flat = candidates.flatten(1, 2).expand(len(displacement), -1, -1, -1)
    result = torch.ones(displacement.shape[:-1], dtype=torch.bool, device=displacement.device)
    for index, weight in _corners(displacement, (valid.shape[1] - 1) // 2):
        result = result & (flat.gather(1, index[:, None])[:, 0] | (weight == 0))
    return result
