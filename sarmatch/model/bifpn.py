"""Bidirectional feature pyramid of EfficientDet (reference 25 of the paper; section 3.1.2)."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, SeparableConvNormAct
from torch import Tensor, nn

from sarmatch.model.layers import NormLayer

Topology: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
"""For each new node its level and the earlier nodes it fuses; nodes 0, 1, 2 are the inputs at strides 4, 8 and 16."""
TOP_DOWN: Topology = ((1, (1, 2)), (0, (0, 3)))  # nodes 3 and 4; 4 is the finest output
BOTTOM_UP: Topology = ((1, (1, 3, 4)), (2, (2, 5)))  # nodes 5 and 6, with a skip from the input of their level
OUTPUTS = (4, 5, 6)


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
    """One pass over three levels of equal width, each half the size of the one before."""

    def __init__(self, width: int, topology: Topology, norm: NormLayer) -> None:
        super().__init__()
        self.topology = topology
        self.fusions = nn.ModuleList(Fusion(width, len(inputs), norm) for _, inputs in topology)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The outputs that the topology makes, finest first."""
        nodes = list(levels)
        for (level, inputs), fusion in zip(self.topology, self.fusions, strict=True):
            size = levels[level].shape[-2:]
            nodes.append(fusion([_resize(nodes[i], size) for i in inputs]))
        return [nodes[i] for i in OUTPUTS if i < len(nodes)]


class BiFPN(nn.Module):
    """Levels of any widths to one width, then `repeats` (at least 2) BiFPN layers, to the finest level.

    Only the finest level is used, so the last layer ends there: its way back up would feed nothing.
    """

    def __init__(self, inputs: Sequence[int], width: int, repeats: int, norm: NormLayer) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNormAct(c, width, 1, norm_layer=norm, apply_act=False) for c in inputs)
        topologies = [TOP_DOWN + BOTTOM_UP] * (repeats - 1) + [TOP_DOWN]
        self.layers = nn.ModuleList(BiFPNLayer(width, topology, norm) for topology in topologies)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Three maps (B, c_i, H_i, W_i), finest first, to (B, width, H_0, W_0)."""
        nodes = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        for layer in self.layers:
            nodes = layer(nodes)
        return nodes[0]


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    if x.shape[-1] < size[-1]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_max_pool2d(x, size)
