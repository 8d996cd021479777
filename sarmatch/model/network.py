"""The whole network: two encoders, one projection head, and the scales of the similarity volumes (figure 1)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.model.encoders import DenseEncoder, Encoding, LiteEncoder, OpticalEncoder, SarEncoder
from sarmatch.model.layers import unit_length
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX
from sarmatch.model.uncertainty import (
    EpistemicHead,
    SourceWeights,
    Uncertainty,
    UncertaintyMaps,
    optical_uncertainty,
    sar_uncertainty,
)

INITIAL_SCALE = 1 / 0.07  # inverse of the temperature of table 2


class ProjectionHead(nn.Module):
    """Two-layer MLP with 512 and 128 units and a ReLU between, the same for both modalities (section 3.3.1).

    Written as 1x1 convolutions, it serves every cell of F, or the globally pooled F for one embedding an image.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, hidden, 1)
        self.out = nn.Conv2d(hidden, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, inputs, H, W) to L2-normalised descriptors (B, outputs, H, W)."""
        return unit_length(self.out(F.relu(self.hidden(features))))

    def embed(self, features: Tensor) -> Tensor:
        """Features (B, inputs, H, W) to one L2-normalised embedding an image, (B, outputs)."""
        return self.forward(features.mean(dim=(-2, -1), keepdim=True))[..., 0, 0]


class Descriptors(NamedTuple):
    """What matching needs of one image.

    Attributes:
        coarse: (B, D, H/4, W/4): `descriptor_dim` learned channels of length one, then the oriented gradients if the
            network has them.
        fine: the same at full resolution, (B, D', H, W).
        uncertainty: maps on the cells, or None.
    """

    coarse: Tensor
    fine: Tensor
    uncertainty: Uncertainty | None


class SarOpticalNet(nn.Module):
    """Both encoders and all learned numbers of matching.

    Attributes:
        plain_log_scale: log of the scale of the per-cell similarity, starting at 1/0.07.
        coarse_log_scales, fine_log_scales: log of the scale of each aggregation window, the cell alone first. They
            start in proportion to its side, since the noise of a mean falls with the root of the number of cells.
        deformable_log_scales, deformable_log_penalties: log of the scale and of the penalty of each deformable window.
        vote_log_scale: log of beta, the weight of uncertainty in the reliability weights.
        residual_log_scales: log of the expected residual in px where the uncertainty of both ends sums to one, and log
            of how fast it grows with that sum; only the loss reads them.
        source_weights: the fusion of section 3.2.3, or None without uncertainty.
        epistemic_head: one-pass estimate of the epistemic uncertainty; untrained until it was distilled.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.backbone == "paper":
            self.sar_encoder: DenseEncoder = SarEncoder(config)
            self.optical_encoder: DenseEncoder = OpticalEncoder(config)
        else:
            first, second = (
                (sar_uncertainty(config), optical_uncertainty(config)) if config.uncertainty else (None, None)
            )
            self.sar_encoder = LiteEncoder(config.sar_channels, config, first, SAR_SIGMA_PX)
            self.optical_encoder = LiteEncoder(config.optical_channels, config, second, OPTICAL_SIGMA_PX)
        self.fusion_dropout = nn.Dropout2d(config.fusion_dropout)
        self.head = ProjectionHead(config.feature_width, config.head_width, config.descriptor_dim)
        sides = (1, *config.consensus_cells)
        scales = torch.tensor([math.log(INITIAL_SCALE * side / len(sides)) for side in sides])
        self.plain_log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.coarse_log_scales = nn.Parameter(scales.clone())
        self.fine_log_scales = nn.Parameter(scales.clone())
        if config.deformable_cells:
            self.deformable_log_scales = nn.Parameter(torch.full((len(config.deformable_cells),), math.log(30.0)))
            self.deformable_log_penalties = nn.Parameter(torch.full((len(config.deformable_cells),), math.log(0.005)))
        self.source_weights = SourceWeights(config) if config.uncertainty else None
        if config.uncertainty:
            self.vote_log_scale = nn.Parameter(torch.tensor(0.0))
            self.residual_log_scales = nn.Parameter(torch.tensor([math.log(10.0), math.log(3.0)]))
        # Fitted after training, see sarmatch.training.distillation.
        self.epistemic_head = EpistemicHead(config.coarse_dim).requires_grad_(False)

    def describe_sar(self, sar: Tensor, valid: Tensor | None = None) -> Descriptors:
        """(B, 1 or 2, H, W) in [0, 1] to descriptors; `valid` (B, H, W) bool, None takes all pixels."""
        return self.describe(self.sar_encoder(sar, valid))

    def describe_optical(self, optical: Tensor, valid: Tensor | None = None) -> Descriptors:
        """(B, 3 or 13, H, W) in [0, 1] to descriptors; `valid` as above."""
        return self.describe(self.optical_encoder(optical, valid))

    def forward(
        self, sar: Tensor, optical: Tensor, sar_valid: Tensor | None = None, optical_valid: Tensor | None = None
    ) -> tuple[Descriptors, Descriptors]:
        return self.describe_sar(sar, sar_valid), self.describe_optical(optical, optical_valid)

    def uncertainty_maps(self, sar: Tensor, optical: Tensor) -> UncertaintyMaps:
        """All maps of pairs of images; ValueError where the network has no uncertainty modules."""
        first, second = (self.describe_sar(sar).uncertainty, self.describe_optical(optical).uncertainty)
        if first is None or second is None or self.source_weights is None:
            raise ValueError("this network was built with uncertainty=False; it has no uncertainty maps")
        sources = torch.cat([first.sources, second.sources], 1)
        return UncertaintyMaps(sources, self.source_weights(first, second), first.fused, second.fused)

    def describe(self, encoding: Encoding) -> Descriptors:
        """From an encoder's output to descriptors in the space that both modalities share."""
        # In mixed precision the encoders may run in 16 bits, but sums over hundreds of similarities must not.
        coarse = self.head(self.fusion_dropout(encoding.features)).float()
        if encoding.gradients is not None:
            coarse = torch.cat([coarse, encoding.gradients], 1)
        uncertainty = encoding.uncertainty and Uncertainty(*(t.float() for t in encoding.uncertainty))
        return Descriptors(coarse, encoding.fine.float(), uncertainty)
