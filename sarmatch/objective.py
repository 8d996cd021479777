"""Supervised objective: the losses of a batch of crops with a known relative transform (section 4.2, table 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sarmatch.data.transforms import Sample
from sarmatch.geometry import cell_centres, cell_valid, inside, transform_points
from sarmatch.losses import matching_loss, row_loss
from sarmatch.matching import FINE_RADIUS, fine_logits
from sarmatch.models import STRIDE, Descriptors, SarOpticalNet, fill_invalid
from sarmatch.volumes import Volume, coarse_volume, combine, consensus, disc, fine_volume

FINE_JITTER = 2
"""The fine window is centred up to this many px off the truth in training, as a coarse match would be."""


class Objective(nn.Module):
    """The network and its losses on a batch, as one module so that data-parallel training sees all parameters."""

    def __init__(self, net: SarOpticalNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Sample, window_px: float) -> dict[str, Tensor]:
        """Scalar losses by name; `loss` is their sum.

        Args:
            window_px: half-width of the candidate window of the coarse loss.
        """
        sar, optical = self.net(
            fill_invalid(batch["sar"], batch["sar_valid"]), fill_invalid(batch["optical"], batch["optical_valid"])
        )
        with torch.autocast(sar.coarse.device.type, enabled=False):
            return self._losses(sar, optical, batch, window_px)

    def _losses(self, sar: Descriptors, optical: Descriptors, batch: Sample, window_px: float) -> dict[str, Tensor]:
        forward, backward, sar_mask, optical_mask = true_displacements(batch["A_sar_to_optical"], batch)
        radius = math.ceil(window_px / STRIDE)
        sar_valid, optical_valid = (cell_valid(batch[k], STRIDE) for k in ("sar_valid", "optical_valid"))
        volume = coarse_volume(sar.coarse, optical.coarse, radius, sar_valid, optical_valid)
        within = disc(radius, window_px / STRIDE, volume.values.device)
        plain = Volume(volume.values * self.net.plain_log_scale.exp(), volume.valid)
        targets = (forward / STRIDE, backward / STRIDE)
        losses = {"plain": matching_loss(plain, *targets, sar_mask, optical_mask, within)}
        if self.net.config.consensus_cells:
            volumes = [volume, *consensus(volume, self.net.config.consensus_cells)]
            logits = combine(volumes, self.net.coarse_log_scales.exp())
            # A cell whose counterpart lies off the image still has a true displacement: its neighbours vote for it.
            losses["consensus"] = matching_loss(logits, *targets, sar_valid, optical_valid, within)
            losses["fine"] = self._fine_loss(sar.fine, optical.fine, forward, sar_mask)
        means = {name: value.mean() for name, value in losses.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}

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
