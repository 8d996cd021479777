"""Descriptors that attend to the other image before they are compared (Chen et al. 2023, ref. 3: CAM-Net with CAMM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.baselines.learned import CosineNet, PeerSize, cosines, log_scale
from sarmatch.data.crops import Sample


class CoAttention(nn.Module):
    """Each cell takes over the features of the cells of the other image that resemble it, weighted by a softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.mix = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.log_scale = log_scale(1 / 0.1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Maps (B, C, h, w) and (B, C, h', w') to (B, C, h, w)."""
        weights = (cosines(self.query(x), self.key(other)) * self.log_scale.exp()).softmax(dim=2)  # (B, N, M)
        message = (other.flatten(2) @ weights.transpose(1, 2)).unflatten(2, x.shape[-2:])
        mixed: Tensor = x + self.mix(torch.cat([x, message], dim=1))
        return mixed


class CoAttentionNet(CosineNet):
    """Pseudo-siamese features, one co-attention module that both images share, mutual nearest neighbours.

    Adapted: dense cells in place of a keypoint detector, for an equal budget. Trained on the descriptors before and
    after co-attention.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.attention = CoAttention(config.width)

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Descriptors (B, width, h, w) of both images after co-attention, then those before."""
        a, b = self.sar_branch(sar), self.optical_branch(optical)
        return self.attention(a, b), self.attention(b, a), a, b

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        after, before = (self.contrast(self.volume(batch, *ends), batch) for ends in (described[:2], described[2:]))
        return {"loss": (after + before) / 2, "after": after, "before": before}
