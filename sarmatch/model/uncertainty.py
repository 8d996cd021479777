"""Aleatoric uncertainty of each modality and its fusion for a pair (sections 3.2.1 to 3.2.3, figures 4 and 5).

Every branch ends in one map in [0, 1], named after a source of uncertainty that only the losses train it to follow.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarmatch.config import ModelConfig

SAR_SOURCES = ("speckle", "geometry", "backscatter")
OPTICAL_SOURCES = ("atmosphere", "illumination", "season")
SOURCES = SAR_SOURCES + OPTICAL_SOURCES  #: Of sections 3.2.1 and 3.2.2, in the order of every tensor of six.
ORIENTATIONS = (0, 45, 90, 135)  #: Degrees, counter-clockwise from the rows of the image.
STATISTICS_PX = (4, 12, 36)  # sides of the windows of `local_statistics`, odd multiples of a cell
N_STATISTICS = 1 + 2 * len(STATISTICS_PX)
LINE_CELLS = 5  # length of an oriented kernel
WIDE_CELLS = 4  # side of the squares over which atmospheric attention takes means


class Uncertainty(NamedTuple):
    """Aleatoric uncertainty of an image; maps have a cell every 4 px."""

    fused: Tensor  #: U of eqs. 1 and 2, (B, 1, h, w) in [0, 1].
    sources: Tensor  #: The three maps of the modality, (B, 3, h, w) in [0, 1].
    summary: Tensor  #: Mean of the features over the image, (B, C), from which the source weights of a pair come.


class UncertaintyMaps(NamedTuple):
    """All maps of a pair."""

    sources: Tensor  #: In the order of `SOURCES`, (B, 6, h, w) in [0, 1]: the first three on the SAR image's cells.
    weights: Tensor  #: Of the six sources for this pair, (B, 6), sum 1 (section 3.2.3).
    sar: Tensor  #: U of eqs. 1 and 2, (B, 1, h, w).
    optical: Tensor


def local_statistics(image: Tensor, standardised: Tensor) -> Tensor:
    """What shows a nuisance in the image itself: brightness, local contrast and local coefficient of variation.

    Of (B, C, H, W) in [0, 1] and the same with zero mean and unit deviation, both averaged over bands: the mean over a
    cell, and for each of `STATISTICS_PX` the log of the local deviation and of the coefficient of variation; on the
    cells, (B, N_STATISTICS, H/4, W/4), mostly within [-2, 2].
    """
    bright, raw = standardised.float().mean(1, keepdim=True), image.float().mean(1, keepdim=True)
    moments = F.avg_pool2d(torch.cat([bright, bright.square(), raw, raw.square()], 1), STATISTICS_PX[0])
    found = [moments[:, :1]]
    for side in STATISTICS_PX:
        cells = side // STATISTICS_PX[0]
        around = F.avg_pool2d(moments, cells, 1, cells // 2, count_include_pad=False)
        mean, square, level, power = around.chunk(4, 1)
        deviation = (square - mean.square()).clamp(min=1e-3).sqrt()
        variation = (power - level.square()).clamp(min=1e-5).sqrt() / level.clamp(min=1e-2)
        found += [deviation.log() + 1, variation.log() + 1]
    return torch.cat(found, 1)


class SpeckleBranch(nn.Module):
    """Two depthwise convolutions, each with a ReLU (figure 4, left)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.to_map = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.to_map(F.relu(self.second(F.relu(self.first(features))))))


class OrientedConv(nn.Conv2d):
    """A convolution whose kernel lies on a line through its centre, of one of `ORIENTATIONS` in degrees."""

    line: Tensor

    def __init__(self, inputs: int, outputs: int, orientation: int) -> None:
        super().__init__(inputs, outputs, LINE_CELLS, padding=LINE_CELLS // 2)
        self.register_buffer("line", line_mask(orientation), persistent=False)
        with torch.no_grad():  # a line has fewer taps than the square that the initial deviation was drawn for
            self.weight.mul_(LINE_CELLS**0.5)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.line, self.bias)


def line_mask(orientation: int) -> Tensor:
    """(LINE_CELLS, LINE_CELLS) with ones on the line of an orientation in degrees, zeros elsewhere."""
    eye, middle = torch.eye(LINE_CELLS), torch.zeros(LINE_CELLS, LINE_CELLS)
    middle[LINE_CELLS // 2] = 1
    # Rows count downwards, so the anti-diagonal rises to the right.
    return {0: middle, 45: eye.flip(1), 90: middle.T, 135: eye}[orientation].contiguous()


class GeometricBranch(nn.Module):
    """Four parallel convolutions along 0, 45, 90 and 135 degrees, concatenated, ReLU (figure 4, middle)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.oriented = nn.ModuleList(OrientedConv(channels, width, angle) for angle in ORIENTATIONS)
        self.to_map = nn.Conv2d(width * len(ORIENTATIONS), 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        # One convolution for all four: features are read once.
        along = [conv for conv in self.oriented if isinstance(conv, OrientedConv)]
        kernels = torch.cat([conv.weight * conv.line for conv in along])
        biases = torch.cat([conv.bias for conv in along if conv.bias is not None])
        return torch.sigmoid(self.to_map(F.relu(F.conv2d(features, kernels, biases, padding=LINE_CELLS // 2))))


class BackscatterBranch(nn.Module):
    """Attention over channels: conv, ReLU, global mean, two linear layers, multiplied in (figure 4, right)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, channels)
        self.to_map = nn.Conv2d(channels, 1, 1)

    def attention(self, features: Tensor) -> Tensor:
        """(B, C, 1, 1) in [0, 1]."""
        pooled = F.relu(self.conv(features)).mean(dim=(-2, -1))
        return torch.sigmoid(self.out(F.relu(self.hidden(pooled))))[..., None, None]

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.to_map(features * self.attention(features)))


class AtmosphereBranch(nn.Module):
    """Attention over wide areas of the image: conv, ReLU, mean over channels, multiplied in (figure 5, left).

    The paper pools globally and gets a spatial map: only a mean over channels leaves one.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.to_map = nn.Conv2d(channels, 1, 1)

    def attention(self, features: Tensor) -> Tensor:
        """(B, 1, h, w) in [0.5, 1], smooth over squares of `WIDE_CELLS` cells."""
        wide = F.relu(self.conv(F.avg_pool2d(features, WIDE_CELLS))).mean(1, keepdim=True)
        return torch.sigmoid(F.interpolate(wide, features.shape[-2:], mode="bilinear", align_corners=False))

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.to_map(features * self.attention(features)))


class IlluminationBranch(nn.Module):
    """Attention over channels: conv, ReLU, global mean, multiplied in (figure 5, middle)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.to_map = nn.Conv2d(channels, 1, 1)

    def attention(self, features: Tensor) -> Tensor:
        """(B, C, 1, 1) in [0.5, 1]."""
        return torch.sigmoid(F.relu(self.conv(features)).mean(dim=(-2, -1), keepdim=True))

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.to_map(features * self.attention(features)))


class SeasonBranch(nn.Module):
    """Conv, ReLU, multiplication with learned weights (figure 5, right)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.weights = nn.Parameter(torch.ones(1, width, 1, 1))
        self.to_map = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.to_map(F.relu(self.conv(features)) * self.weights))


class UncertaintyModule(nn.Module):
    """Three branches of a modality and their fusion: concatenate, conv, ReLU, conv to one channel, sigmoid.

    Each branch maps features (B, C, h, w) to (B, 1, h, w) in [0, 1]; dropout as in section 3.2.4.
    """

    def __init__(self, branches: Sequence[nn.Module], config: ModelConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(config.uncertainty_dropout)
        self.branches = nn.ModuleList(branches)
        self.fusion_in = nn.Conv2d(len(branches), config.uncertainty_width, 3, padding=1)
        self.fusion_dropout = nn.Dropout2d(config.fusion_dropout)
        self.fusion_out = nn.Conv2d(config.uncertainty_width, 1, 1)

    def forward(self, features: Tensor, statistics: Tensor | None = None) -> Uncertainty:
        """Features (B, C, h, w) and `local_statistics`, the latter where the config has them."""
        dropped = self.dropout(features)
        if statistics is not None:
            dropped = torch.cat([dropped, statistics.to(dropped)], 1)
        sources = torch.cat([branch(dropped) for branch in self.branches], 1)
        hidden = self.fusion_dropout(F.relu(self.fusion_in(sources)))
        return Uncertainty(torch.sigmoid(self.fusion_out(hidden)), sources, features.mean(dim=(-2, -1)))


def _channels(config: ModelConfig) -> int:
    return config.feature_width + (N_STATISTICS if config.uncertainty_statistics else 0)


def sar_uncertainty(config: ModelConfig) -> UncertaintyModule:
    """Speckle, geometry and backscatter (section 3.2.1)."""
    channels, width = _channels(config), config.uncertainty_width
    return UncertaintyModule(
        [SpeckleBranch(channels), GeometricBranch(channels, width), BackscatterBranch(channels, width)], config
    )


def optical_uncertainty(config: ModelConfig) -> UncertaintyModule:
    """Atmosphere, illumination and season (section 3.2.2)."""
    channels, width = _channels(config), config.uncertainty_width
    return UncertaintyModule(
        [AtmosphereBranch(channels, width), IlluminationBranch(channels), SeasonBranch(channels, width)], config
    )


class SourceWeights(nn.Module):
    """Weights of the six sources for a pair, from both images' summaries and mean maps (section 3.2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * config.feature_width + len(SOURCES), config.uncertainty_width)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.out = nn.Linear(config.uncertainty_width, len(SOURCES))

    def forward(self, sar: Uncertainty, optical: Uncertainty) -> Tensor:
        """(B, 6), positive, sum 1."""
        means = [u.sources.mean(dim=(-2, -1)) for u in (sar, optical)]
        pair = torch.cat([sar.summary, optical.summary, *means], 1)
        return self.out(self.dropout(F.relu(self.hidden(pair)))).softmax(1)


class EpistemicHead(nn.Module):
    """One-pass estimate of a match's epistemic uncertainty, the log of the mutual information over Monte Carlo passes.

    Distilled from passes over training pairs; the paper names such an estimate as future work (section 5.5).
    """

    EXTRA = 4  # beside the descriptors of both ends: log-probability and entropy of the row, uncertainty of both ends
    distilled: Tensor  #: 1 once it is trained, 0 before; weights stored without it count as untrained.

    def __init__(self, descriptor_dim: int, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * descriptor_dim + self.EXTRA, width)
        self.middle = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        self.register_buffer("distilled", torch.zeros(()))

    def forward(self, ends: Tensor) -> Tensor:
        """(N, 2 descriptor_dim + EXTRA) to log mutual information in nats, (N,)."""
        return self.out(F.relu(self.middle(F.relu(self.hidden(ends)))))[:, 0]

    @torch.no_grad()
    def absorb(self, mean: Tensor, std: Tensor) -> None:
        """Fold the standardisation of the inputs, of this mean and deviation (inputs,), into the first layer."""
        self.hidden.weight.div_(std)
        self.hidden.bias.sub_(self.hidden.weight @ mean)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "distilled", torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *rest)
