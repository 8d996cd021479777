"""The SAR encoder of section 3.1.1 and figure 2: a modified Xception whose features stay dense."""

from __future__ import annotations

from timm.layers import ConvNormAct
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.model.encoder import DenseEncoder, Prefix
from sarmatch.model.layers import XceptionBlock, norm_layer
from sarmatch.model.oriented_gradients import SAR_SIGMA_PX
from sarmatch.model.uncertainty import sar_uncertainty


class SarEncoder(DenseEncoder):
    """Stem of stride 2, then four Xception blocks, 32 -> 64 -> 128 -> 256 -> 512 at full width (eq. 1).

    The paper names four blocks and five widths: the first width is the stem's. Only the first block reduces, the
    others widen their view by dilation, so that F has a cell every 4 px: 1298 matches on a 256 px pair, as reported,
    need a grid of at least 37 cells a side.
    """

    def __init__(self, config: ModelConfig) -> None:
        norm = norm_layer(config.norm)
        stem, *widths = config.sar_widths
        uncertainty = sar_uncertainty(config) if config.uncertainty else None
        super().__init__(config.sar_channels, stem, config, uncertainty, SAR_SIGMA_PX)
        self.stem = ConvNormAct(config.sar_channels, stem, 3, stride=2, norm_layer=norm)
        self.blocks = nn.ModuleList()
        for i, (width, dilation) in enumerate(zip(widths, config.sar_dilations, strict=True)):
            inputs = config.sar_widths[i]
            self.blocks.append(XceptionBlock(inputs, width, 2 if i == 0 else 1, dilation, norm))
        self.out = ConvNormAct(widths[-1], config.feature_width, 1, norm_layer=norm, apply_act=False)

    def prefix(self, image: Tensor) -> Prefix:
        prepared = self._prepared(image)
        return Prefix(prepared, (self.stem(prepared),), self._gradients(prepared))

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = self.early_dropout(maps[0])
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.out(x)
        return features
