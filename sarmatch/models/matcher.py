"""The whole network: two encoders, one projection head, and the scales of the similarity volumes (figure 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.models.heads import ProjectionHead
from sarmatch.models.layers import Encoding
from sarmatch.models.optical_encoder import OpticalEncoder
from sarmatch.models.sar_encoder import SarEncoder
from sarmatch.models.timm_encoder import OPTICAL_BACKBONE, SAR_BACKBONE, TimmEncoder

INITIAL_SCALE = 1 / 0.07
"""Inverse of the temperature of table 2."""


class Descriptors(NamedTuple):
    """What matching needs of one image.

    Attributes:
        coarse: L2-normalised, (B, descriptor_dim, H/4, W/4).
        fine: L2-normalised, (B, fine_dim, H, W).
        uncertainty: (B, 1, H/4, W/4) in [0, 1], or None.
    """

    coarse: Tensor
    fine: Tensor
    uncertainty: Tensor | None


class SarOpticalNet(nn.Module):
    """Both encoders and all learned numbers of matching.

    Attributes:
        plain_log_scale: log of the scale of the per-cell similarity, starting at 1/0.07.
        coarse_log_scales, fine_log_scales: log of the scale of each voting neighbourhood, the cell alone first. They
            start in proportion to its side, since the noise of a mean falls with the root of the number of votes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.backbone == "paper":
            self.sar_encoder: nn.Module = SarEncoder(config)
            self.optical_encoder: nn.Module = OpticalEncoder(config)
        else:
            self.sar_encoder = TimmEncoder(SAR_BACKBONE, config.sar_channels, config)
            self.optical_encoder = TimmEncoder(OPTICAL_BACKBONE, config.optical_channels, config)
        self.head = ProjectionHead(config.feature_width, config.head_width, config.descriptor_dim)
        sides = (1, *config.consensus_cells)
        scales = torch.tensor([math.log(INITIAL_SCALE * side / len(sides)) for side in sides])
        self.plain_log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.coarse_log_scales = nn.Parameter(scales.clone())
        self.fine_log_scales = nn.Parameter(scales.clone())

    def describe_sar(self, sar: Tensor) -> Descriptors:
        """(B, 1 or 2, H, W) in [0, 1] to descriptors."""
        return self._describe(self.sar_encoder(sar))

    def describe_optical(self, optical: Tensor) -> Descriptors:
        """(B, 3 or 13, H, W) in [0, 1] to descriptors."""
        return self._describe(self.optical_encoder(optical))

    def forward(self, sar: Tensor, optical: Tensor) -> tuple[Descriptors, Descriptors]:
        return self.describe_sar(sar), self.describe_optical(optical)

    def _describe(self, encoding: Encoding) -> Descriptors:
        # In mixed precision the encoders may run in 16 bits, but sums over hundreds of similarities must not.
        return Descriptors(self.head(encoding.features).float(), encoding.fine.float(), encoding.uncertainty)
