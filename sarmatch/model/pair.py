"""From two images with masks of valid pixels to their descriptors: the one way into the network."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from sarmatch.geometry import cell_valid, pixel_valid
from sarmatch.model.encoders import DenseEncoder, Encoding, Prefix
from sarmatch.model.layers import STRIDE, fill_invalid
from sarmatch.model.network import Descriptors, SarOpticalNet

PairEncoder: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Descriptors, Descriptors]]
"""SAR and optical image (1, C, H, W) and their valid pixels (1, H, W) to the descriptors of both."""
PairInput: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""SAR and optical image (B, C, H, W) in [0, 1] and their valid pixels (B, H, W) bool; sides are multiples of 16."""


class Encoded(NamedTuple):
    """An image after its encoder and the head; `valid` (B, H/4, W/4) bool are the cells that carry data."""

    prefix: Prefix
    encoding: Encoding
    descriptors: Descriptors
    valid: Tensor


def prepare(image: Tensor, valid: Tensor, whole_cells: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The image with gaps filled, its valid cells (B, H/4, W/4), and the pixels (B, H, W) that have oriented gradients.

    Gradients end at `whole_cells` with missing data, as in matching, or at single pixels, as in training.
    """
    cells = cell_valid(valid, STRIDE)
    return fill_invalid(image, valid), cells, pixel_valid(cells, STRIDE) if whole_cells else valid


def encode_image(
    net: SarOpticalNet, encoder: DenseEncoder, image: Tensor, valid: Tensor, fine: bool = True, whole_cells: bool = True
) -> Encoded:
    """One image through one of the network's encoders, see `encode_pair`."""
    filled, cells, pixels = prepare(image, valid, whole_cells)
    prefix = encoder.prefix(filled).masked(pixels)
    encoding = encoder.finish(prefix) if fine else encoder.coarse(prefix)
    return Encoded(prefix, encoding, net.describe(encoding), cells)


def encode_pair(
    net: SarOpticalNet, images: PairInput, fine: bool = True, whole_cells: bool = True
) -> tuple[Encoded, Encoded]:
    """Both images, SAR first; `fine=False` leaves out full-resolution descriptors, `whole_cells` as in `prepare`."""
    sar, optical, sar_valid, optical_valid = images
    return (
        encode_image(net, net.sar_encoder, sar, sar_valid, fine, whole_cells),
        encode_image(net, net.optical_encoder, optical, optical_valid, fine, whole_cells),
    )
