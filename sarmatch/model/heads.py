"""Projection head of section 3.3.1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sarmatch.model.layers import unit_length


class ProjectionHead(nn.Module):
    """Two-layer MLP with 512 and 128 units and a ReLU between, the same for both modalities (section 3.3.1).

    Written as 1x1 convolutions, it serves twice with the same weights: on every cell of F for the dense descriptors
    of matching and of contrastive pretraining, or on the globally pooled F for one embedding an image.
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
