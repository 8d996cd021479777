"""Encoders on stock timm backbones behind the same contract, for whoever wants ImageNet features."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.models.bifpn import BiFPN
from sarmatch.models.layers import Encoding, FineBranch, check_input, norm_layer, standardise

SAR_BACKBONE = "legacy_xception"
OPTICAL_BACKBONE = "tf_efficientnet_b0"


class TimmEncoder(nn.Module):
    """A timm backbone's maps at strides 4, 8 and 16 through a BiFPN to F at stride 4.

    Args:
        name: a timm model that offers `features_only`.
        channels: bands of the image; timm adapts pretrained stems to any number.
    """

    def __init__(self, name: str, channels: int, config: ModelConfig) -> None:
        super().__init__()
        norm = norm_layer(config.norm)
        self.channels = channels
        self.backbone: Any = timm.create_model(
            name, pretrained=config.pretrained, features_only=True, out_indices=(0, 1, 2, 3), in_chans=channels
        )
        stem, *widths = self.backbone.feature_info.channels()  # type: ignore[operator, union-attr]
        self.early_dropout = nn.Dropout2d(config.early_dropout)
        self.bifpn = BiFPN(widths, config.bifpn_width, config.bifpn_repeats, norm)
        self.out = ConvNormAct(config.bifpn_width, config.feature_width, 1, norm_layer=norm, apply_act=False)
        self.fine = FineBranch(channels, stem, config.feature_width, config.fine_width, config.fine_dim, norm)

    def forward(self, x: Tensor) -> Encoding:
        """(B, C, H, W) in [0, 1], H and W multiples of 16, to an `Encoding`."""
        check_input(x, self.channels, "image")
        image = standardise(x)
        height, width = image.shape[-2:]
        # Stock stems pad differently and end a cell short; all maps go onto the grid of the contract.
        stem, *levels = (_onto(x, height >> (i + 1), width >> (i + 1)) for i, x in enumerate(self.backbone(image)))
        # A stock backbone has no seam behind its stem, so the early dropout acts on the finest level it hands out.
        levels[0] = self.early_dropout(levels[0])
        features = self.out(self.bifpn(levels))
        return Encoding(features, self.fine(image, stem, features))


def _onto(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
