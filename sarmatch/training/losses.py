"""Training losses, one function an equation."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sarmatch.matching.assignment import candidates
from sarmatch.matching.correlation import MASKED, Volume, swap


def soft_target_nll(logits: Tensor, displacement: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy against a true displacement that lies between the steps of a volume.

    The target puts its mass bilinearly on the four displacements around the true one. The positive is never
    interpolated from a feature map, or a network learns to tell interpolated features from those on the grid.

    Args:
        logits: of the displacements, (B, K*K, H, W), K = 2 radius + 1.
        displacement: true displacement (dx, dy) of each cell in steps, (B, H, W, 2).

    Returns:
        loss of each cell (B, H, W), zero where the truth lies outside the volume, and the mask of those inside.
    """
    inside = (displacement.abs() <= radius).all(-1)
    indices, weights = (torch.stack(parts, 1) for parts in zip(*_corners(displacement, radius), strict=True))
    return _SoftTarget.apply(logits, indices, weights) * inside, inside


class _SoftTarget(torch.autograd.Function):
    """Cross-entropy (B, H, W) of logits (B, K, H, W) against weights (B, 4, H, W) on four of them.

    The gradient is written by hand: softmax less target, in one pass over the volume instead of ten.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        target = (weights * logits.gather(1, indices)).sum(1)
        highest = logits.amax(1, keepdim=True)
        exponentials = (logits - highest).exp_()
        total = exponentials.sum(1, keepdim=True)
        ctx.save_for_backward(exponentials, total, indices, weights)
        return (total.log() + highest)[:, 0] - target

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        exponentials, total, indices, weights = ctx.saved_tensors
        to_logits = exponentials * (gradient[:, None] / total)
        return to_logits.scatter_add_(1, indices, -weights * gradient[:, None]), None, None


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
        forward_displacement: where each SAR cell truly lies in the optical image, minus its own place, in the volume's
            steps, (B, H, W, 2).
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
    loss, inside = soft_target_nll(candidates(logits, within), displacement, logits.radius)
    usable = inside & mask & _target_is_valid(logits.valid, displacement, within)
    count = usable.sum(dim=(1, 2)).clamp(min=1)
    return torch.where(usable, loss, 0.0).sum(dim=(1, 2)) / count


def _target_is_valid(valid: Tensor, displacement: Tensor, within: Tensor | None) -> Tensor:
    """Whether all displacements that carry mass of the target are candidates, (B, H, W)."""
    usable = valid if within is None else valid & within[:, :, None, None]
    flat = usable.flatten(1, 2).expand(len(displacement), -1, -1, -1)
    result = torch.ones(displacement.shape[:-1], dtype=torch.bool, device=displacement.device)
    for index, weight in _corners(displacement, (valid.shape[1] - 1) // 2):
        result = result & (flat.gather(1, index[:, None])[:, 0] | (weight == 0))
    return result


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order; the gradient of a row is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        every = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(every, rows.contiguous())
        ctx.rows = slice(dist.get_rank() * len(rows), (dist.get_rank() + 1) * len(rows))
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[ctx.rows]


def over_processes(rows: Tensor) -> Tensor:
    """(B, ...) of every process of a training together, (processes B, ...); the rows themselves where there is one.

    A loss over them, the same on each process, has after the mean over processes the gradient that one process has.
    """
    alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    return rows if alone else _Gather.apply(rows)


def info_nce(z_sar: Tensor, z_optical: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """L_cont: each image must pick out its partner among all partners of the batch, in both directions.

    Eq. 4 with the positive in the denominator too, which makes it a cross-entropy and so never negative.

    Args:
        z_sar, z_optical: L2-normalised embeddings (B, D); row i of both shows one place, so their products are the
            cosines of eq. 3.
        temperature: tau > 0.
        mask: (B,) bool; rows that are False are neither positives nor negatives. None takes all.

    Returns:
        scalar, zero where fewer than two rows take part.

    Raises:
        ValueError: embeddings of unequal or wrong shape.
    """
    logits, usable = _similarities(z_sar, z_optical, temperature, mask)
    chosen = logits.diagonal()
    return _mean_of_rows((logits.logsumexp(1) + logits.logsumexp(0)) / 2 - chosen, usable)


def info_nce_printed(z_sar: Tensor, z_optical: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Eq. 4 as printed: the denominator sums over the negatives only, from SAR to optical images.

    It is no cross-entropy: its minimum is log(B - 1) - 2 / temperature. Arguments and errors as `info_nce`.
    """
    logits, usable = _similarities(z_sar, z_optical, temperature, mask)
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return _mean_of_rows(logits.masked_fill(positive, MASKED).logsumexp(1) - logits.diagonal(), usable)


def _similarities(z_sar: Tensor, z_optical: Tensor, temperature: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eq. 3 over the temperature, `MASKED` between rows that do not both take part, and which do (B,)."""
    if z_sar.ndim != 2 or z_sar.shape != z_optical.shape:
        raise ValueError(
            f"z_sar and z_optical must both be (B, D), got {tuple(z_sar.shape)} and {tuple(z_optical.shape)}; "
            "pool the features of each image to one embedding first"
        )
    usable = torch.ones(len(z_sar), dtype=torch.bool, device=z_sar.device) if mask is None else mask
    # Masked, not left out: a number of rows that depends on data would have to be waited for on a GPU.
    both = usable[:, None] & usable
    return (z_sar @ z_optical.T / temperature).masked_fill(~both, MASKED), usable


def _mean_of_rows(losses: Tensor, usable: Tensor) -> Tensor:
    """Mean over the rows that take part, zero where fewer than two do."""
    count = usable.sum()
    return torch.where(usable, losses, 0.0).sum() / count.clamp(min=1) * (count > 1)


def rotation_loss(logits_sar: Tensor, logits_optical: Tensor, turns_sar: Tensor, turns_optical: Tensor) -> Tensor:
    """L_rot, eq. 5: cross-entropy of the predicted quarter turns, for SAR and optical images apart and averaged.

    Logits are (B, 4), true numbers of quarter turns (B,) int64 in 0..3; log 4 is chance.
    """
    return (F.cross_entropy(logits_sar, turns_sar) + F.cross_entropy(logits_optical, turns_optical)) / 2


def mismatch_loss(aleatoric: Tensor, correct: Tensor, mask: Tensor) -> Tensor:
    """First part of L_unc: cross-entropy of the fused uncertainty against whether the match is wrong, (B,).

    `aleatoric` (B, H, W) in [0, 1] belongs to each SAR cell's best match, of which `correct` is bool; `mask` is of the
    cells that count.
    """
    loss = F.binary_cross_entropy(aleatoric.clamp(1e-4, 1 - 1e-4), (~correct).to(aleatoric), reduction="none")
    return _masked_mean(loss, mask)


def attenuated_residual(error_px: Tensor, log_scale_px: Tensor, mask: Tensor) -> Tensor:
    """Second part of L_unc: negative log-likelihood of residuals under a Laplace distribution of learned scale, (B,).

    The attenuation of Kendall and Gal (2017), with the absolute instead of the squared residual: a wrong match is off
    by tens of pixels and would dominate a square.
    All arguments are (B, H, W): errors, the log of the expected error, and the bool mask of the cells that count.
    """
    return _masked_mean(error_px * torch.exp(-log_scale_px) + log_scale_px, mask)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true cells of each sample of (B, H, W), zero where there are none."""
    return torch.where(mask, values, 0.0).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
