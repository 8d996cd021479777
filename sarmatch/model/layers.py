"""Shared building blocks of both encoders, put together from `timm.layers`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ConvNormAct, GroupNormAct, SeparableConvNormAct
from torch import Tensor, nn

from sarmatch.config import Norm

NormLayer: TypeAlias = Any
"""A normalisation class followed by an activation, or a partial of one; timm's annotations know only the former."""
STRIDE = 4
"""Of the dense features and descriptors: 64 x 64 cells on a 256 px image."""


def norm_layer(norm: Norm) -> NormLayer:
    """The normalisation followed by an activation that `timm` blocks expect."""
    # Every width is a multiple of the group size.
    return BatchNormAct2d if norm == "batch" else partial(GroupNormAct, group_size=8)


def standardise(image: Tensor) -> Tensor:
    """Zero mean and unit deviation for each band of each image: sensors and stretches differ by gain and offset."""
    # The floor keeps a constant image at zero instead of amplifying its rounding noise.
    deviation, mean = torch.std_mean(image, dim=(-2, -1), keepdim=True, correction=0)
    return (image - mean) / deviation.clamp(min=1e-2)


def fill_invalid(image: Tensor, valid: Tensor) -> Tensor:
    """(B, C, H, W) with pixels that are not `valid` (B, H, W) replaced by the mean of their band."""
    mask = valid[:, None].to(image)
    mean = (image * mask).sum(dim=(-2, -1), keepdim=True) / mask.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return torch.where(valid[:, None], image, mean)


def upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class XceptionBlock(nn.Module):
    """Three separable convolutions with a projected residual connection (section 3.1.1, figure 2).

    Args:
        stride: 1 or 2; as in Xception the reduction is a 3x3 maximum at the end of the block.
        dilation: of the depthwise convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, norm: NormLayer) -> None:
        super().__init__()
        separable = partial(SeparableConvNormAct, kernel_size=3, dilation=dilation, norm_layer=norm)
        self.body = nn.Sequential(
            separable(inputs, outputs),
            separable(outputs, outputs),
            separable(outputs, outputs, apply_act=False),
            nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity(),
        )
        self.skip = ConvNormAct(inputs, outputs, 1, stride=stride, norm_layer=norm, apply_act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class FineBranch(nn.Module):
    """Thin descriptors at full resolution: local contrast from the image and its stem, meaning from the features F."""

    def __init__(self, image: int, stem: int, features: int, width: int, outputs: int, norm: NormLayer) -> None:
        super().__init__()
        self.from_image = ConvNormAct(image, width, 3, norm_layer=norm)
        self.from_stem = ConvNormAct(stem, width, 1, norm_layer=norm)
        self.from_features = ConvNormAct(features, width, 1, norm_layer=norm)
        self.merge_half = ConvNormAct(width, width, 3, norm_layer=norm)
        self.merge_full = ConvNormAct(width, width, 3, norm_layer=norm)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, image: Tensor, stem: Tensor, features: Tensor) -> Tensor:
        half = self.merge_half(self.from_stem(stem) + upsample(self.from_features(features), 2))
        full = self.merge_full(self.from_image(image) + upsample(half, 2))
        return unit_length(self.out(full))


def unit_length(x: Tensor, shortest: float = 1e-12) -> Tensor:
    """Vectors along the channels (B, C, H, W) divided by their length, float32; zero stays zero."""
    # F.normalize's norm over any axis but the last takes 25 times as long on a CPU.
    x = x.float()  # half precision would lose the squares of small numbers
    return x * x.square().sum(1, keepdim=True).clamp(min=shortest**2).rsqrt()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards each part of the module is in the mode it was in."""
    learning = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in learning:
            part.training = True


def check_input(image: Tensor, channels: int, what: str) -> None:
    """ValueError for a wrong rank or number of channels, or sides that are not multiples of 16."""
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"{what}: expected (B, {channels}, H, W), got {tuple(image.shape)}")
    height, width = image.shape[-2:]
    if height % 16 or width % 16:
        raise ValueError(f"{what}: height and width must be multiples of 16, got {height} x {width}; pad it first")
