"""The optical encoder of section 3.1.2 and figure 3: an EfficientDet-like backbone with a BiFPN."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import ConvNormAct
from timm.layers import SqueezeExcite as _SqueezeExcite
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.model.bifpn import BiFPN
from sarmatch.model.encoder import DenseEncoder, Prefix
from sarmatch.model.layers import NormLayer, norm_layer
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX
from sarmatch.model.uncertainty import optical_uncertainty

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


class OpticalEncoder(DenseEncoder):
    """7x7 stem of stride 2, three layers at strides 4, 8 and 16, BiFPN over them, F at stride 4 (eq. 2).

    At full width 64 -> 128 -> 256 -> 512; the paper names three layers and four widths: the first is the stem's.
    """

    def __init__(self, config: ModelConfig) -> None:
        norm = norm_layer(config.norm)
        stem, *widths = config.optical_widths
        uncertainty = optical_uncertainty(config) if config.uncertainty else None
        super().__init__(config.optical_channels, stem, config, uncertainty, OPTICAL_SIGMA_PX)
        self.stem = ConvNormAct(config.optical_channels, stem, 7, stride=2, norm_layer=norm, act_layer=nn.SiLU)
        self.layers = nn.ModuleList(
            mbconv_layer(inputs, outputs, norm)
            for inputs, outputs in zip(config.optical_widths[:-1], widths, strict=True)
        )
        self.bifpn = BiFPN(widths, config.bifpn_width, config.bifpn_repeats, norm)
        self.out = ConvNormAct(config.bifpn_width, config.feature_width, 1, norm_layer=norm, apply_act=False)

    def prefix(self, image: Tensor) -> Prefix:
        prepared = self._prepared(image)
        return Prefix(prepared, (self.stem(prepared),), self._gradients(prepared))

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = self.early_dropout(maps[0])
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x)
        features: Tensor = self.out(self.bifpn(levels))
        return features
