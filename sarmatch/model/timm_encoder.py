"""Encoders on stock timm backbones behind the same contract, for whoever wants ImageNet features."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor

from sarmatch.config import ModelConfig
from sarmatch.model.bifpn import BiFPN
from sarmatch.model.encoder import DenseEncoder, Prefix
from sarmatch.model.layers import norm_layer
from sarmatch.model.uncertainty import UncertaintyModule

SAR_BACKBONE = "legacy_xception"
OPTICAL_BACKBONE = "tf_efficientnet_b0"


class TimmEncoder(DenseEncoder):
    """A timm backbone's maps at strides 4, 8 and 16 through a BiFPN to F at stride 4.

    Args:
        name: a timm model that offers `features_only`.
        channels: bands of the image; timm adapts pretrained stems to any number.
        uncertainty: the module of the modality, or None.
        sigma_px: smoothing of the image before it is differentiated.
    """

    def __init__(
        self, name: str, channels: int, config: ModelConfig, uncertainty: UncertaintyModule | None, sigma_px: float
    ) -> None:
        backbone: Any = timm.create_model(
            name, pretrained=config.pretrained, features_only=True, out_indices=(0, 1, 2, 3), in_chans=channels
        )
        stem, *widths = backbone.feature_info.channels()
        super().__init__(channels, stem, config, uncertainty, sigma_px)
        self.backbone = backbone
        norm = norm_layer(config.norm)
        self.bifpn = BiFPN(widths, config.bifpn_width, config.bifpn_repeats, norm)
        self.out = ConvNormAct(config.bifpn_width, config.feature_width, 1, norm_layer=norm, apply_act=False)

    def prefix(self, image: Tensor) -> Prefix:
        prepared = self._prepared(image)
        height, width = prepared.shape[-2:]
        # Stock stems pad differently and end a cell short; all maps go onto the grid of the contract.
        maps = (_onto(x, height >> (i + 1), width >> (i + 1)) for i, x in enumerate(self.backbone(prepared)))
        return Prefix(prepared, tuple(maps), self._gradients(prepared))

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        # A stock backbone has no seam behind its stem, so the early dropout acts on the finest level it hands out.
        levels = [self.early_dropout(maps[1]), *maps[2:]]
        features: Tensor = self.out(self.bifpn(levels))
        return features


def _onto(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
