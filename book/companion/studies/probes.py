"""What encoders respond to: how far they see, whether they agree, and whether they know where in the image they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.geometry import cell_centres
from sarmatch.model import STRIDE, Descriptors, Encoding, SarOpticalNet


def receptive_field(
    encoder: Callable[[Tensor], Encoding], images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Effective receptive field of the middle cell: how strongly each pixel moves its features (Luo et al. 2016).

    Args:
        encoder: images to features of stride 4.
        images: (B, C, H, W).
        generator: of the random direction in feature space, one an image, along which features are differentiated.

    Returns:
        magnitude of the gradient, mean over images and bands, (H, W), largest value 1.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        features = encoder(images).features
        cell = features[..., features.shape[-2] // 2, features.shape[-1] // 2]
        direction = torch.randn(cell.shape, generator=generator).to(cell)
        (gradient,) = torch.autograd.grad((cell * direction).sum(), images)
    field = gradient.abs().mean(dim=(0, 1))
    return field / field.max()


def field_radius(field: Tensor, share: float = 0.5) -> float:
    """Radius in px around the centre of the middle cell that holds `share` of a field made by `receptive_field`."""
    height, width = field.shape
    centre = cell_centres(height // STRIDE, width // STRIDE, STRIDE)[height // STRIDE // 2, width // STRIDE // 2]
    distance = (cell_centres(height, width, 1) - centre).norm(dim=-1).flatten()
    order = distance.argsort()
    held = field.flatten()[order].double().cumsum(0)
    return float(distance[order][(held >= share * held[-1]).nonzero()[0, 0]])


def mean_reach(
    encoder: Callable[[Tensor], Encoding], images: Tensor, shares: Sequence[float], directions: int = 8
) -> list[float]:
    """`field_radius` of each share, mean over seeded random directions in feature space: one alone scatters widely."""
    fields = [receptive_field(encoder, images, torch.Generator().manual_seed(seed)) for seed in range(directions)]
    return [sum(field_radius(field, share) for field in fields) / directions for share in shares]


def place_similarity(sar: Tensor, optical: Tensor) -> tuple[float, float, float]:
    """Cosine of descriptors of one place in two aligned images, and of places half an image apart on both axes.

    Args:
        sar, optical: descriptors of any length, (B, D, h, w).

    Returns:
        mean cosine at the same place, mean cosine elsewhere, and the share of cells where the former is larger.
    """
    height, width = sar.shape[-2:]
    sar, optical = F.normalize(sar, dim=1), F.normalize(optical, dim=1)
    same = (sar * optical).sum(dim=1)
    elsewhere = (sar * optical.roll((height // 2, width // 2), (-2, -1))).sum(dim=1)
    return same.mean().item(), elsewhere.mean().item(), (same > elsewhere).float().mean().item()


def position_leak(describe: Callable[[Tensor], Descriptors], noise: Tensor) -> Tensor:
    """How far the mean descriptor of each cell lies from that of the middle of the image, over images of white noise.

    Noise looks alike everywhere, so a network that does not know where it is has the same mean descriptor everywhere.

    Args:
        describe: an image (1, C, H, W) to its descriptors, of which the coarse ones are judged.
        noise: independent images (N, C, H, W), N > 1.

    Returns:
        (H/4, W/4), in units of the spread of a single descriptor (root of the mean squared distance to the mean) in
        the middle. Chance gives about 1 / sqrt(N).
    """
    with torch.no_grad():
        descriptors = torch.cat([describe(image[None]).coarse for image in noise])
    height, width = descriptors.shape[-2:]
    middle = descriptors[..., height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    mean = middle.mean(dim=(0, 2, 3), keepdim=True)
    spread = (middle - mean).square().sum(dim=1).mean().sqrt()
    return (descriptors.mean(dim=0) - mean[0]).norm(dim=0) / spread


def without_learned_channels(net: SarOpticalNet) -> SarOpticalNet:
    """A copy of a network whose descriptors keep their oriented gradients only: its learned channels are zero.

    Votes and scales stay as they were learned.

    Raises:
        ValueError: the network has no oriented gradients.
    """
    if not net.config.oriented_gradients:
        raise ValueError("without its learned channels nothing is left of a network with oriented_gradients=False")
    muted = copy.deepcopy(net)
    for layer in (muted.head.out, muted.sar_encoder.fine.out, muted.optical_encoder.fine.out):
        layer.requires_grad_(False).weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    return muted


def border_profile(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a map over cells equally far from the border.

    Args:
        cells: (H/4, W/4).

    Returns:
        distances in px of the cells' centres to the edge of the image, ascending, and the means, both (n,).
    """
    height, width = cells.shape
    rows = torch.minimum(torch.arange(height), torch.arange(height).flip(0))
    columns = torch.minimum(torch.arange(width), torch.arange(width).flip(0))
    ring = torch.minimum(rows[:, None], columns[None, :])
    means = torch.stack([cells[ring == i].mean() for i in range(int(ring.max()) + 1)])
    return torch.arange(len(means)) * STRIDE + STRIDE / 2, means
