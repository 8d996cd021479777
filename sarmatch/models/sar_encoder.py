"""The SAR encoder of section 3.1.1 and figure 2: a modified Xception whose features stay dense."""

from __future__ import annotations

from timm.layers import ConvNormAct
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.models.layers import Encoding, FineBranch, XceptionBlock, check_input, norm_layer, standardise


class SarEncoder(nn.Module):
    """Stem of stride 2, then four Xception blocks, 32 -> 64 -> 128 -> 256 -> 512 at full width (eq. 1).

    The paper names four blocks and five widths: the first width is the stem's. Only the first block reduces, the
    others widen their view by dilation, so that F has a cell every 4 px: 1298 matches on a 256 px pair, as reported,
    need a grid of at least 37 cells a side.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm = norm_layer(config.norm)
        stem, *widths = config.sar_widths
        self.channels = config.sar_channels
        self.stem = ConvNormAct(config.sar_channels, stem, 3, stride=2, norm_layer=norm)
        self.early_dropout = nn.Dropout2d(config.early_dropout)
        self.blocks = nn.ModuleList()
        for i, (width, dilation) in enumerate(zip(widths, config.sar_dilations, strict=True)):
            inputs = config.sar_widths[i]
            self.blocks.append(XceptionBlock(inputs, width, 2 if i == 0 else 1, dilation, norm))
        self.out = ConvNormAct(widths[-1], config.feature_width, 1, norm_layer=norm, apply_act=False)
        self.fine = FineBranch(
            config.sar_channels, stem, config.feature_width, config.fine_width, config.fine_dim, norm
        )

    def forward(self, sar: Tensor) -> Encoding:
        """(B, 1 or 2, H, W) in [0, 1], H and W multiples of 16, to an `Encoding`."""
        check_input(sar, self.channels, "SAR image")
        image = standardise(sar)
        stem = self.stem(image)
        x = self.early_dropout(stem)
        for block in self.blocks:
            x = block(x)
        features = self.out(x)
        return Encoding(features, self.fine(image, stem, features))
