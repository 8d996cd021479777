"""Bidirectional feature pyramid of EfficientDet (reference 25 of the paper; section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, SeparableConvNormAct
from torch import Tensor, nn

from sarmatch.models.layers import NormLayer

TOP_DOWN_AND_BOTTOM_UP: tuple[tuple[int, tuple[int, ...]], ...] = (
    # (level of the new node, earlier nodes it fuses); nodes 0, 1, 2 are the inputs at strides 4, 8 and 16
    (1, (1, 2)),  # 3: down
    (0, (0, 3)),  # 4: down, the output at stride 4
    (1, (1, 3, 4)),  # 5: up, with a skip from the input of its level
    (2, (2, 5)),  # 6: up
)
OUTPUT_NODES = (4, 5, 6)


class Fusion(nn.Module):
    """Fast normalised fusion: a weighted mean with learned weights >= 0, then a separable convolution."""

    def __init__(self, width: int, n_inputs: int, norm: NormLayer) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(n_inputs))
        self.conv = SeparableConvNormAct(width, width, 3, norm_layer=norm, act_layer=nn.SiLU)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        return self.conv(F.silu(sum(w * x for w, x in zip(weights, inputs, strict=True))))


class BiFPNLayer(nn.Module):
    """One pass down and up over three levels of equal width, each half the size of the one before."""

    def __init__(self, width: int, norm: NormLayer) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(Fusion(width, len(inputs), norm) for _, inputs in TOP_DOWN_AND_BOTTOM_UP)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        nodes = list(levels)
        for (level, inputs), fusion in zip(TOP_DOWN_AND_BOTTOM_UP, self.fusions, strict=True):
            size = levels[level].shape[-2:]
            nodes.append(fusion([_resize(nodes[i], size) for i in inputs]))
        return [nodes[i] for i in OUTPUT_NODES]


class BiFPN(nn.Module):
    """Levels of any widths to one width, then `repeats` BiFPN layers.

    Args:
        inputs: channels of the three levels, finest first.
        width: channels of all outputs.
    """

    def __init__(self, inputs: Sequence[int], width: int, repeats: int, norm: NormLayer) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNormAct(c, width, 1, norm_layer=norm, apply_act=False) for c in inputs)
        self.layers = nn.ModuleList(BiFPNLayer(width, norm) for _ in range(repeats))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Three maps (B, c_i, H_i, W_i), finest first, to three maps (B, width, H_i, W_i)."""
        nodes = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        for layer in self.layers:
            nodes = layer(nodes)
        return nodes


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    if x.shape[-1] < size[-1]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_max_pool2d(x, size)
