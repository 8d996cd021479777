"""The optical encoder of section 3.1.2 and figure 3: an EfficientDet-like backbone with a BiFPN."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import ConvNormAct
from timm.layers import SqueezeExcite as _SqueezeExcite
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.models.bifpn import BiFPN
from sarmatch.models.layers import Encoding, FineBranch, NormLayer, check_input, norm_layer, standardise

EXPANSION = 4
BLOCKS_PER_LAYER = 2


def mbconv_layer(inputs: int, outputs: int, norm: NormLayer) -> nn.Sequential:
    """A feature extraction layer of EfficientNet: inverted residuals with squeeze-and-excitation, stride 2 first."""
    squeeze_excite: Any = partial(_SqueezeExcite, rd_ratio=0.25 / EXPANSION)
    block = partial(
        InvertedResidual,
        exp_ratio=EXPANSION,
        norm_layer=norm,
        act_layer=nn.SiLU,
        se_layer=squeeze_excite,
    )
    rest = [block(outputs, outputs) for _ in range(BLOCKS_PER_LAYER - 1)]
    return nn.Sequential(block(inputs, outputs, stride=2), *rest)


class OpticalEncoder(nn.Module):
    """7x7 stem of stride 2, three layers at strides 4, 8 and 16, BiFPN over them, F at stride 4 (eq. 2).

    At full width 64 -> 128 -> 256 -> 512; the paper names three layers and four widths: the first is the stem's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm = norm_layer(config.norm)
        stem, *widths = config.optical_widths
        self.channels = config.optical_channels
        self.stem = ConvNormAct(config.optical_channels, stem, 7, stride=2, norm_layer=norm, act_layer=nn.SiLU)
        self.early_dropout = nn.Dropout2d(config.early_dropout)
        self.layers = nn.ModuleList(
            mbconv_layer(inputs, outputs, norm)
            for inputs, outputs in zip(config.optical_widths[:-1], widths, strict=True)
        )
        self.bifpn = BiFPN(widths, config.bifpn_width, config.bifpn_repeats, norm)
        self.out = ConvNormAct(config.bifpn_width, config.feature_width, 1, norm_layer=norm, apply_act=False)
        self.fine = FineBranch(
            config.optical_channels, stem, config.feature_width, config.fine_width, config.fine_dim, norm
        )

    def forward(self, optical: Tensor) -> Encoding:
        """(B, 3 or 13, H, W) in [0, 1], H and W multiples of 16, to an `Encoding`."""
        check_input(optical, self.channels, "optical image")
        image = standardise(optical)
        stem = self.stem(image)
        x = self.early_dropout(stem)
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x)
        features = self.out(self.bifpn(levels))
        return Encoding(features, self.fine(image, stem, features))
