"""What both encoders share: features, fine descriptors, uncertainty, and the seam at which Monte Carlo passes part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.model.layers import STRIDE, FineBranch, check_input, norm_layer, standardise
from sarmatch.model.oriented_gradients import BORDER_PX, eroded, orientation_channels
from sarmatch.model.uncertainty import Uncertainty, UncertaintyModule


class Encoding(NamedTuple):
    """What an encoder says of an image (B, C, H, W).

    Attributes:
        features: F of eqs. 1 and 2, (B, feature_width, H/4, W/4).
        fine: full-resolution descriptors (B, D, H, W): `fine_dim` learned channels of length one and, where the encoder
            has them, the oriented gradients.
        uncertainty: U of eqs. 1 and 2 and what it is made of, or None where the encoder has no such module.
        gradients: oriented gradients on the cells, (B, 9, H/4, W/4), or None.
    """

    features: Tensor
    fine: Tensor
    uncertainty: Uncertainty | None = None
    gradients: Tensor | None = None


class Prefix(NamedTuple):
    """All that comes before the first dropout: the standardised image, the first maps, the stem's first, and the
    oriented gradients (B, 9, H, W), or None."""

    image: Tensor
    maps: tuple[Tensor, ...]
    gradients: Tensor | None = None

    def masked(self, valid: Tensor | None) -> Prefix:
        """Without gradients next to pixels that carry no data (B, H, W) bool, whose edge both images may share."""
        if valid is None or self.gradients is None:
            return self
        return self._replace(gradients=self.gradients * eroded(valid)[:, None])

    def expand(self, n: int) -> Prefix:
        """One image's prefix, seen n times."""
        return Prefix(*(_expanded(part, n) for part in self))


def _expanded(part: Any, n: int) -> Any:
    if isinstance(part, tuple):
        return tuple(_expanded(x, n) for x in part)
    return None if part is None else part.expand(n, -1, -1, -1)


class DenseEncoder(nn.Module, ABC):
    """Base of the encoders: `prefix` and `trunk` are each encoder's own, the rest is common.

    Args:
        channels: bands of the image.
        stem: channels of the stem.
        uncertainty: the module of the modality, or None.
        sigma_px: smoothing of the image before it is differentiated.

    Attributes:
        gradient_log_scales: log of what the oriented gradients are multiplied with beside the learned descriptors of
            length one, on the cells and at full resolution; None where the encoder goes without them.
    """

    def __init__(
        self, channels: int, stem: int, config: ModelConfig, uncertainty: UncertaintyModule | None, sigma_px: float
    ) -> None:
        super().__init__()
        self.channels, self.sigma_px = channels, sigma_px
        self.gradient_log_scales = nn.Parameter(torch.full((2,), 0.5)) if config.oriented_gradients else None
        self.early_dropout = nn.Dropout2d(config.early_dropout)
        norm = norm_layer(config.norm)
        self.fine = FineBranch(channels, stem, config.feature_width, config.fine_width, config.fine_dim, norm)
        self.uncertainty = uncertainty

    @abstractmethod
    def prefix(self, image: Tensor) -> Prefix:
        """The part that is the same in every Monte Carlo pass."""

    @abstractmethod
    def trunk(self, maps: tuple[Tensor, ...]) -> Tensor:
        """From the maps of a prefix to F, through the early dropout."""

    def encode(self, image: Tensor) -> Tensor:
        """F alone: (B, C, H, W) in [0, 1], H and W multiples of 16, to (B, feature_width, H/4, W/4)."""
        return self.trunk(self.prefix(image).maps)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Encoding:
        """(B, C, H, W) in [0, 1], H and W multiples of 16, to an `Encoding`; `valid` (B, H, W) bool tells which pixels
        carry data, None that all do."""
        return self.finish(self.prefix(image).masked(valid))

    def finish(self, prefix: Prefix) -> Encoding:
        """What follows the prefix."""
        encoding = self.coarse(prefix)
        return encoding._replace(fine=self.full_resolution(prefix, encoding.features))

    def coarse(self, prefix: Prefix) -> Encoding:
        """What follows a prefix without the fine level, which has no part in the choice of a cell."""
        features = self.trunk(prefix.maps)
        uncertainty = self.uncertainty(features) if self.uncertainty else None
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
