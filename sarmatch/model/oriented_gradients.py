"""Channel features of oriented gradients (CFOG: Ye et al. 2019, doi 10.1109/TGRS.2019.2924684) and their correlation.

The orientation of an edge survives the change of sensor where its brightness does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.config import N_ORIENTATIONS

SAR_SIGMA_PX, OPTICAL_SIGMA_PX = 1.5, 1.0  # smoothing before differentiation; SAR needs more because of speckle
BORDER_PX = 4
"""Extent of most of the smoothing: channels closer to the edge of the image mean little."""


class Features(NamedTuple):
    """An image of features (C, H, W), zero where not `usable` (H, W) bool."""

    channels: Tensor
    usable: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.usable.shape[0], self.usable.shape[1]


def oriented_gradients(image: Tensor, sigma_px: float, valid: Tensor | None = None) -> Features:
    """Orientation channels of an image; each pixel's vector has length at most 1 and mean 0.

    The magnitudes of the gradient along nine orientations over 180 degrees (mean over bands) are smoothed in space
    and across orientations, and their mean is removed.

    Args:
        image: (C, H, W) float.
        sigma_px: standard deviation of the Gaussian smoothing before differentiation, px.
        valid: (H, W) bool, pixels with data; None takes all.

    Returns:
        nine channels, usable away from invalid pixels and from the border.
    """
    usable = eroded(torch.ones_like(image[0], dtype=torch.bool) if valid is None else valid)
    return Features(orientation_channels(image[None], sigma_px)[0] * usable, usable)


@torch.no_grad()
def orientation_channels(images: Tensor, sigma_px: float) -> Tensor:
    """The channels of `oriented_gradients` of a batch (B, C, H, W) up to the edges, (B, 9, H, W) float32."""
    kind = images.device.type
    # Eight bits of bfloat16 are too few for differences of smoothed pixels; the meta device knows no autocast.
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        smooth = gaussian_blur(images.float(), sigma_px)
        along_x = F.pad(smooth[..., 2:] - smooth[..., :-2], (1, 1, 0, 0))
        along_y = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], (0, 0, 1, 1))
        angles = [math.pi * i / N_ORIENTATIONS for i in range(N_ORIENTATIONS)]
        along = [(along_x * math.cos(a) + along_y * math.sin(a)).abs().mean(dim=1) for a in angles]
        channels = gaussian_blur(torch.stack(along, dim=1), 1.5)
        channels = (channels.roll(1, dims=1) + 2 * channels + channels.roll(-1, dims=1)) / 4
        strength = _length(channels).mean(dim=(-2, -1), keepdim=True)
        # With their mean all vectors would point the same way, and correlation would hardly tell right from wrong.
        channels = channels - channels.mean(dim=1, keepdim=True)
        # Gradients much weaker than half the image's mean carry little orientation.
        return channels / (_length(channels) + 0.5 * strength).clamp(min=1e-12)


def _length(channels: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W); on a CPU `norm` over this axis takes 25 times as long."""
    return channels.square().sum(1, keepdim=True).sqrt()


def eroded(valid: Tensor, distance: int = BORDER_PX) -> Tensor:
    """Pixels further than `distance` px along both axes from the border and any invalid pixel, (H, W) or (B, H, W)."""
    invalid, side = F.pad((~valid).float()[None], (distance,) * 4, value=1.0), 2 * distance + 1
    return F.max_pool2d(F.max_pool2d(invalid, (side, 1), stride=1), (1, side), stride=1)[0] == 0


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian smoothing of (..., H, W), edges replicated."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    bands = image.flatten(0, -3)[None]  # as channels of one image: as images of one channel they take six times as long
    n = bands.shape[1]
    row = (kernel / kernel.sum()).expand(n, 1, 1, -1).contiguous()
    out = F.conv2d(F.pad(bands, (radius, radius, 0, 0), mode="replicate"), row, groups=n)
    out = F.conv2d(F.pad(out, (0, 0, radius, radius), mode="replicate"), row.transpose(-1, -2).contiguous(), groups=n)
    return out.view(image.shape)


def shift_scores(a: Features, b: Features, max_shift: int) -> np.ndarray:
    """Mean product of two feature images at every whole-pixel shift, over the part where both are usable.

    Args:
        a, b: pixel p of `a` is compared with pixel p + shift of `b`; their sizes may differ.
        max_shift: largest shift along each axis, px.

    Returns:
        (2 max_shift + 1, 2 max_shift + 1) float, row = dy + max_shift, column = dx + max_shift; -inf where less than a
        quarter of the smaller usable area overlaps.
    """
    size = [
        scipy.fft.next_fast_len(max(n_a, n_b) + max_shift, real=True) for n_a, n_b in zip(a.size, b.size, strict=True)
    ]
    mask_a, mask_b = (features.usable[None].float() for features in (a, b))
    steps = np.arange(-max_shift, max_shift + 1)
    products, overlap = (
        correlation_surface(first, second, size).cpu().numpy()[np.ix_(steps % size[0], steps % size[1])]
        for first, second in ((a.channels, b.channels), (mask_a, mask_b))
    )
    enough = overlap > max(0.25 * min(float(mask_a.sum()), float(mask_b.sum())), 0.5)
    return np.where(enough, products / np.maximum(overlap, 1), -np.inf)


def correlation_surface(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """Cross-correlation at every shift: the sum over channels and p of a(p) b(p + shift).

    From (..., C, H, W) to (..., *size), shift (dy, dx) at row dy and column dx modulo `size`, whose excess over the
    images' sides are the shifts free of wrap-around.
    """
    spectrum = (torch.fft.rfft2(a, s=size).conj() * torch.fft.rfft2(b, s=size)).sum(-3)
    return torch.fft.irfft2(spectrum, s=size)


def parabola_peak(left: Tensor | np.ndarray, centre: Tensor | np.ndarray, right: Tensor | np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the vertex of the parabola through values at -1, 0, 1; 0 where there is no maximum."""
    left, centre, right = (np.asarray(value, dtype=np.float64) for value in (left, centre, right))
    with np.errstate(invalid="ignore"):  # -inf beside the peak: no neighbour there
        curvature = left - 2 * centre + right
        usable = np.isfinite(curvature) & (curvature < 0)
        offset = 0.5 * (left - right) / np.where(usable, curvature, 1.0)
    return np.where(usable, np.clip(offset, -0.5, 0.5), 0.0)
