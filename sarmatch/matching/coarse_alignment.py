"""Coarse global alignment: descriptors correlated over all shifts, for a few rotations and scales of one image."""

import math
from itertools import product

import torch
from torch import Tensor

from sarmatch.geometry import Search, rotation_scale, translation, warp
from sarmatch.model import STRIDE, DenseEncoder, PairInput, SarOpticalNet, encode_image
from sarmatch.model.oriented_gradients import correlation_surface

ROTATION_STEP_DEG = 7.5
SCALE_STEP = 1.1
MIN_OVERLAP = 0.25  #: Shifts that leave less of the SAR image on the optical one are not considered.
BATCH = 8


def hypotheses(max_rotation_deg: float, scale_range: tuple[float, float]) -> list[tuple[float, float]]:
    """Rotations (degrees) and scales to try, evenly spaced and including the middle."""
    n = math.ceil(max_rotation_deg / ROTATION_STEP_DEG)
    angles = [0.0] if n == 0 else [max_rotation_deg * i / n for i in range(-n, n + 1)]
    low, high = (math.log(s) for s in scale_range)
    n = math.ceil((high - low) / 2 / math.log(SCALE_STEP) - 1e-9)
    middle = (low + high) / 2
    scales = [middle] if n == 0 else [middle + (high - low) / 2 * i / n for i in range(-n, n + 1)]
    return [(angle, math.exp(scale)) for angle, scale in product(angles, scales)]


@torch.no_grad()
def global_prior(net: SarOpticalNet, images: PairInput, search: Search) -> Tensor:
    """Map from SAR to optical pixels, (3, 3) float64: rotation, scale and shift under which the images agree best.

    Args:
        images: of one size, B = 1.
        search: what the relative rotation and scale may be; its radius is the greatest shift of the image centre on
            each axis, None allows any that leaves `MIN_OVERLAP`.
    """
    sar, optical, sar_valid, optical_valid = images
    height, width = sar.shape[-2:]
    centre = ((width - 1) / 2, (height - 1) / 2)
    candidates = hypotheses(search.max_rotation_deg, search.scale_range)
    maps = torch.stack([rotation_scale(angle, scale, centre) for angle, scale in candidates])
    described = _described(net, net.sar_encoder, sar, sar_valid)
    best, best_score = torch.eye(3, dtype=torch.float64), -math.inf
    for chunk in maps.split(BATCH):
        turned = warp(optical.expand(len(chunk), -1, -1, -1), chunk, (height, width))
        mask = optical_valid[:, None].float().expand(len(chunk), -1, -1, -1)
        valid = warp(mask, chunk, (height, width))[:, 0] > 0.999
        scores, shifts = correlate(described, _described(net, net.optical_encoder, turned, valid), search.radius)
        i = int(scores.argmax())
        if float(scores[i]) > best_score:
            dx, dy = (float(v) * STRIDE for v in shifts[i])
            best, best_score = chunk[i] @ translation(dx, dy), float(scores[i])
    return best


def _described(net: SarOpticalNet, encoder: DenseEncoder, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Coarse descriptors less their mean over the image, zero where invalid, and the float mask (B, 1, h, w)."""
    encoded = encode_image(net, encoder, image, valid, fine=False, whole_cells=False)
    descriptors, mask = encoded.descriptors.coarse, encoded.valid[:, None].float()
    total = mask.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (descriptors * mask).sum(dim=(-2, -1), keepdim=True) / total
    return (descriptors - mean) * mask, mask


def correlate(
    sar: tuple[Tensor, Tensor], optical: tuple[Tensor, Tensor], max_shift_px: float | None
) -> tuple[Tensor, Tensor]:
    """Best shift of each optical map against one SAR map.

    Args:
        sar: centred descriptors (1, C, h, w) and mask (1, 1, h, w).
        optical: the same for B images.

    Returns:
        score (B,): sum of products over the square root of the overlap; shift (B, 2) long (dx, dy) in cells.
    """
    products, overlap = cross_correlation(sar, optical)
    size = (products.shape[-2], products.shape[-1])
    enough = overlap >= MIN_OVERLAP * sar[1].sum()
    if max_shift_px is not None:
        enough &= within_shift(size, max_shift_px, sar[0].device)
    score = (products / overlap.clamp(min=1).sqrt()).masked_fill(~enough, -torch.inf)
    value, index = score.flatten(1).max(1)
    return value, shift_of(index, size)


@torch.no_grad()
def describe_pair(
    net: SarOpticalNet, sar: tuple[Tensor, Tensor], optical: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Centred descriptors and masks of cells, as `cross_correlation` takes them, of two images with masks of px."""
    return _described(net, net.sar_encoder, *sar), _described(net, net.optical_encoder, *optical)


def cross_correlation(sar: tuple[Tensor, Tensor], optical: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Over all shifts: sum of products of descriptors, and the number of cells that overlap, (B, 2 h, 2 w) each."""
    height, width = sar[0].shape[-2:]
    size = (2 * height, 2 * width)
    products, overlap = (correlation_surface(a, b, size) for a, b in zip(sar, optical, strict=True))
    return products, overlap.round()


def within_shift(size: tuple[int, int], max_shift_px: float, device: torch.device | str | None = None) -> Tensor:
    """Which entries of a cross-correlation of this size are shifts up to a distance on each axis, (2 h, 2 w) bool."""
    most = math.ceil(max_shift_px / STRIDE)
    dy, dx = (torch.fft.fftfreq(n, 1 / n, device=device).round().abs() <= most for n in size)
    return dy[:, None] & dx[None, :]


def shift_of(index: Tensor, size: tuple[int, int]) -> Tensor:
    """Shifts (..., 2) long (dx, dy) in cells of flat indices into a cross-correlation of this size."""
    dy, dx = (torch.fft.fftfreq(n, 1 / n, device=index.device).round().long() for n in size)
    return torch.stack([dx[index % size[1]], dy[index // size[1]]], -1)
