"""From two images with masks of valid pixels to their descriptors: the one way into the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from sarmatch.geometry import cell_valid, pixel_valid
from sarmatch.models.encoder import DenseEncoder, Encoding, Prefix
from sarmatch.models.layers import STRIDE, fill_invalid
from sarmatch.models.matcher import Descriptors, SarOpticalNet

PairEncoder: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Descriptors, Descriptors]]
"""SAR and optical image (1, C, H, W) and their valid pixels (1, H, W) to the descriptors of both."""


class Prepared(NamedTuple):
    """An image (B, C, H, W) without gaps, its valid cells (B, H/4, W/4), and pixels (B, H, W) that have gradients."""

    image: Tensor
    valid: Tensor
    pixels: Tensor


class Encoded(NamedTuple):
    """An image after its encoder and the head; `valid` (B, H/4, W/4) bool are the cells that carry data."""

    prefix: Prefix
    encoding: Encoding
    descriptors: Descriptors
    valid: Tensor


def prepare(image: Tensor, valid: Tensor, whole_cells: bool = True) -> Prepared:
    """Fill pixels without data and find the cells that carry data.

    Args:
        image: (B, C, H, W) in [0, 1], sides multiples of 16.
        valid: (B, H, W) bool.
        whole_cells: take oriented gradients as unknown in whole cells beside missing data, as matching does; False goes
            by single pixels, as training does.
    """
    cells = cell_valid(valid, STRIDE)
    return Prepared(fill_invalid(image, valid), cells, pixel_valid(cells, STRIDE) if whole_cells else valid)


def encode_image(
    net: SarOpticalNet,
    encoder: DenseEncoder,
    image: Tensor,
    valid: Tensor,
    fine: bool = True,
    whole_cells: bool = True,
) -> Encoded:
    """One image through one of the network's encoders; arguments as for `encode_pair`."""
    ready = prepare(image, valid, whole_cells)
    prefix = encoder.prefix(ready.image).masked(ready.pixels)
    encoding = encoder.finish(prefix) if fine else encoder.coarse(prefix)
    return Encoded(prefix, encoding, net.describe(encoding), ready.valid)


def encode_pair(
    net: SarOpticalNet,
    sar: Tensor,
    optical: Tensor,
    sar_valid: Tensor,
    optical_valid: Tensor,
    fine: bool = True,
    whole_cells: bool = True,
) -> tuple[Encoded, Encoded]:
    """Both images, SAR first, in the mode the network is in.

    Args:
        sar, optical: (B, C, H, W) in [0, 1], sides multiples of 16.
        sar_valid, optical_valid: (B, H, W) bool, pixels that carry data.
        fine: False leaves out the full-resolution descriptors, which have no part in the choice of a cell.
        whole_cells: as for `prepare`.
    """
    return (
        encode_image(net, net.sar_encoder, sar, sar_valid, fine, whole_cells),
        encode_image(net, net.optical_encoder, optical, optical_valid, fine, whole_cells),
    )
