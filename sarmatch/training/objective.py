"""Supervised objective: the losses of a batch of crops with a known relative transform (section 4.2, table 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sarmatch.config import CONFIDENT_PX, TrainingConfig
from sarmatch.data.crops import Sample
from sarmatch.geometry import cell_centres, cell_valid, inside, transform_points
from sarmatch.matching.aggregation import (
    aggregated_logits,
    fine_logits,
    pair_maps,
    plain_logits,
    reliability_weights,
)
from sarmatch.matching.assignment import best, log_softmax
from sarmatch.matching.correlation import cell_grid, coarse_volume, disc, fine_volume, optical_cells
from sarmatch.matching.refinement import FINE_RADIUS
from sarmatch.model import STRIDE, Descriptors, SarOpticalNet, encode_pair
from sarmatch.training.losses import attenuated_residual, matching_loss, mismatch_loss, row_loss

FINE_JITTER = 2
"""The fine window is centred up to this many px off the truth in training, as a coarse match would be."""


class Objective(nn.Module):
    """The network and its losses on a batch, as one module so that data-parallel training sees all parameters."""

    def __init__(self, net: SarOpticalNet, training: TrainingConfig) -> None:
        super().__init__()
        self.net, self.training_config = net, training

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """Scalar losses by name; `loss` is their weighted sum (table 2)."""
        images = batch["sar"], batch["optical"], batch["sar_valid"], batch["optical_valid"]
        sar, optical = encode_pair(self.net, images, whole_cells=False)
        with torch.autocast(batch["sar"].device.type, enabled=False):
            return self._losses(sar.descriptors, optical.descriptors, batch)

    def _losses(self, sar: Descriptors, optical: Descriptors, batch: Sample) -> dict[str, Tensor]:
        forward, backward, sar_mask, optical_mask = true_displacements(batch["A_sar_to_optical"], batch)
        window = self.training_config.window_px / STRIDE
        radius = math.ceil(window)
        sar_valid, optical_valid = (cell_valid(batch[k], STRIDE) for k in ("sar_valid", "optical_valid"))
        volume = coarse_volume(sar.coarse, optical.coarse, radius, sar_valid, optical_valid)
        reliability = reliability_weights(self.net, sar, optical, radius)
        within = disc(radius, window, volume.values.device)
        targets = (forward / STRIDE, backward / STRIDE)
        logits = plain_logits(self.net, volume, reliability)
        losses = {"plain": matching_loss(logits, *targets, sar_mask, optical_mask, within)}
        if self.net.config.consensus_cells:
            logits = aggregated_logits(self.net, volume, reliability)
            # A cell whose counterpart lies off the image still has a true displacement, which its neighbours show.
            losses["consensus"] = matching_loss(logits, *targets, sar_valid, optical_valid, within)
            losses["fine"] = self._fine_loss(sar.fine, optical.fine, forward, sar_mask)
        means = {name: value.mean() for name, value in losses.items()}
        total = self.training_config.matching_weight * torch.stack(list(means.values())).sum()
        if self.net.config.uncertainty:
            # A cell whose counterpart lies beyond the window cannot be right: it says nothing of the images.
            reachable = sar_mask & (forward.norm(dim=-1) <= self.training_config.window_px)
            doubts = self._uncertainty_losses(sar, optical, log_softmax(logits, within), forward, reachable)
            total = total + self.training_config.uncertainty_weight * torch.stack(list(doubts.values())).sum()
            means |= doubts
        return {"loss": total, **means}

    def _uncertainty_losses(
        self, sar: Descriptors, optical: Descriptors, log_row: Tensor, true_px: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """L_unc against the best displacement of each cell, through which nothing flows back.

        Args:
            log_row: row log-probabilities (B, K*K, h, w).
            true_px: true displacement, (B, h, w, 2) px.
            mask: (B, h, w) bool, cells that count.
        """
        maps = pair_maps(self.net, sar, optical)
        assert maps is not None and sar.uncertainty is not None and optical.uncertainty is not None
        displacement, _ = best(log_row.detach())
        error = (displacement * STRIDE - true_px).norm(dim=-1)
        aleatoric = maps[0] + at_ends(maps[1], displacement)
        both = sar.uncertainty.fused[:, 0] + at_ends(optical.uncertainty.fused[:, 0], displacement)
        floor, growth = self.net.residual_log_scales
        return {
            "mismatch": mismatch_loss(aleatoric, error <= CONFIDENT_PX, mask).mean(),
            "residual": attenuated_residual(error, floor + growth.exp() * (both - 1), mask).mean(),
        }

    def _fine_loss(self, sar: Tensor, optical: Tensor, displacement: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of the fine volume around the central displacement of each pair, (B,)."""
        middle = displacement.shape[1] // 2
        central = displacement[:, middle, middle]
        # Pseudo-random but a function of the sample: the same on any number of processes.
        jitter = (central * 1000).long() % (2 * FINE_JITTER + 1) - FINE_JITTER
        offset = central.round().long() + jitter
        volume = fine_volume(sar, optical, offset, FINE_RADIUS, STRIDE)
        residual = displacement - offset[:, None, None]
        return row_loss(fine_logits(self.net, volume), residual, mask)


def at_ends(optical_map: Tensor, displacement: Tensor) -> Tensor:
    """Values of a map on the optical cells (B, h, w) at each SAR cell's displacement (B, h, w, 2), (B, h, w)."""
    height, width = optical_map.shape[-2:]
    there, _ = optical_cells(cell_grid(height, width, optical_map.device), displacement, (height, width))
    return optical_map.flatten(1).gather(1, there.flatten(1)).unflatten(1, (height, width))


def true_displacements(A_sar_to_optical: Tensor, batch: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each cell truly lies in the other image.

    Args:
        A_sar_to_optical: (B, 3, 3) in px.
        batch: images and masks of equal size.

    Returns:
        forward displacement of SAR cells and backward displacement of optical cells as `matching_loss` wants them,
        (B, h, w, 2) in px; masks (B, h, w) of cells with a counterpart inside the other image and with valid data.
    """
    height, width = batch["sar"].shape[-2:]
    grid = cell_centres(height // STRIDE, width // STRIDE, STRIDE, device=A_sar_to_optical.device)
    points = grid.reshape(1, -1, 2).expand(len(A_sar_to_optical), -1, -1)
    there = transform_points(A_sar_to_optical, points).reshape(-1, *grid.shape)
    back = transform_points(torch.linalg.inv(A_sar_to_optical.float()), points).reshape(-1, *grid.shape)
    sar_mask = inside(there, (height, width)) & cell_valid(batch["sar_valid"], STRIDE)
    optical_mask = inside(back, (height, width)) & cell_valid(batch["optical_valid"], STRIDE)
    return there - grid, grid - back, sar_mask, optical_mask
