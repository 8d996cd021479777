"""Descriptors that attend to the other image before they are compared (Chen et al. 2023, ref. 3: CAM-Net with CAMM)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.baselines.learned import PeerSize, ScoringNet, Truth, all_pairs, contrast, learned_volume, log_scale
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
        query, key = (F.normalize(m, dim=1).flatten(2) for m in (self.query(x), self.key(other)))
        weights = (query.transpose(1, 2) @ key * self.log_scale.exp()).softmax(dim=2)  # (B, N, M)
        message = (other.flatten(2) @ weights.transpose(1, 2)).unflatten(2, x.shape[-2:])
        mixed: Tensor = x + self.mix(torch.cat([x, message], dim=1))
        return mixed


class CoAttentionNet(ScoringNet):
    """Pseudo-siamese features, one co-attention module that both images share, mutual nearest neighbours.

    Adapted: dense cells in place of a keypoint detector, for an equal budget. Trained by cross-entropy over a window as
    ours is, on the descriptors before and after co-attention.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config)
        self.attention = CoAttention(config.width)
        self.log_scale = log_scale(1 / 0.1)

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Descriptors (B, width, h, w) of both images after co-attention, then those before."""
        a, b = self.sar_branch(sar), self.optical_branch(optical)
        return self.attention(a, b), self.attention(b, a), a, b

    def losses(self, batch: Sample, *described: Tensor) -> dict[str, Tensor]:
        a, b, plain_a, plain_b = described
        truth = Truth.of(batch)
        after = contrast(learned_volume(a, b, batch, self.config), self.log_scale, truth)
        before = contrast(learned_volume(plain_a, plain_b, batch, self.config), self.log_scale, truth)
        return {"loss": (after + before) / 2, "after": after, "before": before}

    def scores(self, sar: Tensor, optical: Tensor, candidates: Tensor) -> Tensor:
        a, b, _, _ = self.describe(sar, optical)
        return all_pairs(a, b) * self.log_scale.exp()
