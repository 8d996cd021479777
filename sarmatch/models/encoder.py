"""What both encoders share: features, fine descriptors, uncertainty, and the seam at which Monte Carlo passes part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from sarmatch.config import ModelConfig
from sarmatch.models.layers import FineBranch, check_input, norm_layer, standardise
from sarmatch.models.uncertainty import Uncertainty, UncertaintyModule


class Encoding(NamedTuple):
    """What an encoder says of an image (B, C, H, W).

    Attributes:
        features: F of eqs. 1 and 2, (B, feature_width, H/4, W/4).
        fine: L2-normalised full-resolution descriptors, (B, fine_dim, H, W).
        uncertainty: U of eqs. 1 and 2 and what it is made of, or None where the encoder has no such module.
    """

    features: Tensor
    fine: Tensor
    uncertainty: Uncertainty | None = None


class Prefix(NamedTuple):
    """All that comes before the first dropout: the standardised image and the first maps, the stem's first."""

    image: Tensor
    maps: tuple[Tensor, ...]


class DenseEncoder(nn.Module, ABC):
    """Base of the encoders: `prefix` and `trunk` are each encoder's own, the rest is common.

    Args:
        channels: bands of the image.
        stem: channels of the stem.
        uncertainty: the module of the modality, or None.
    """

    def __init__(self, channels: int, stem: int, config: ModelConfig, uncertainty: UncertaintyModule | None) -> None:
        super().__init__()
        self.channels = channels
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

    def forward(self, image: Tensor) -> Encoding:
        """(B, C, H, W) in [0, 1], H and W multiples of 16, to an `Encoding`."""
        return self.finish(self.prefix(image))

    def finish(self, prefix: Prefix) -> Encoding:
        """What follows the prefix."""
        features = self.trunk(prefix.maps)
        uncertainty = self.uncertainty(features) if self.uncertainty else None
        return Encoding(features, self.fine(prefix.image, prefix.maps[0], features), uncertainty)

    def coarse(self, maps: tuple[Tensor, ...]) -> Encoding:
        """What follows the maps of a prefix, without the fine level, which has no part in the choice of a cell."""
        features = self.trunk(maps)
        return Encoding(features, features[:, :0], self.uncertainty(features) if self.uncertainty else None)

    def _prepared(self, image: Tensor) -> Tensor:
        check_input(image, self.channels, f"image for {type(self).__name__}")
        return standardise(image)
