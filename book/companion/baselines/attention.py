"""Cells attend to the other image before they are compared: co-attention, and a transformer."""

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from companion.baselines.learned import CosineNet, PeerSize, cosines, log_scale
from sarmatch.data.crops import Sample

HEADS = 4  # of the transformer
ROUNDS = 2  # of its attention within each image and then across


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
    """CAM-Net with CAMM (Chen et al. 2023, ref. 3): pseudo-siamese features, one co-attention module for both images.

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


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number of tokens and not with its square (Katharopoulos et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.merge = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Queries from (B, N, C), keys and values from (B, M, C), to (B, N, C)."""
        query, key = (
            (F.elu(layer(t)) + 1).unflatten(2, (HEADS, -1)) for layer, t in ((self.query, x), (self.key, source))
        )
        value = self.value(source).unflatten(2, (HEADS, -1)) / source.shape[1]
        summary = torch.einsum("bmhc,bmhd->bhcd", key, value)
        total = torch.einsum("bnhc,bhc->bnh", query, key.mean(dim=1)).clamp(min=1e-6)
        message: Tensor = self.merge((torch.einsum("bnhc,bhcd->bnhd", query, summary) / total[..., None]).flatten(2))
        return message


class EncoderLayer(nn.Module):
    """A message from the other tokens, then a small network over it and the token, as in LoFTR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = LinearAttention(width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        message = self.first_norm(self.attention(x, source))
        added: Tensor = x + self.second_norm(self.mlp(torch.cat([x, message], dim=2)))
        return added


class TransformerNet(CosineNet):
    """Attention within and across the images, then dual softmax (LoFTR, ref. 24; stands for ref. 30).

    Adapted: one branch for each modality, cells of 4 px in place of 8, and the expectation over 3 x 3 cells in place of
    LoFTR's second transformer on fine windows.
    """

    def __init__(self, config: PeerSize) -> None:
        super().__init__(config, scale=1 / 0.1)  # a temperature of 0.1 as in LoFTR
        self.within, self.across = (nn.ModuleList(EncoderLayer(config.width) for _ in range(ROUNDS)) for _ in range(2))
        self.position = nn.Parameter(torch.tensor(0.1))  # a weight of 1 gave fewer right matches of shifted textures

    def describe(self, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors (B, width, h, w) of both images."""
        maps = self.sar_branch(sar), self.optical_branch(optical)
        sizes = [m.shape[-2:] for m in maps]
        a, b = ((m + self.position * position_code(m)).flatten(2).transpose(1, 2) for m in maps)
        for within, across in zip(self.within, self.across, strict=True):
            a, b = within(a, a), within(b, b)
            a, b = across(a, b), across(b, a)
        first, second = (t.transpose(1, 2).unflatten(2, size) for t, size in zip((a, b), sizes, strict=True))
        return first, second


def position_code(features: Tensor) -> Tensor:
    """Sines and cosines of a cell's column and row, (C, h, w), C of `features` (B, C, h, w) a multiple of 4."""
    channels, height, width = features.shape[1:]
    code = build_sincos2d_pos_embed([width, height], channels, interleave_sin_cos=True, device=features.device)
    turned: Tensor = code.unflatten(0, (width, height)).permute(2, 1, 0)
    return turned
