"""Oriented-gradient channels and their correlation: what SAR and optical images share without any learning.

The orientation of an edge survives the change of sensor where its brightness does not. Channel features of oriented
gradients (CFOG: Ye et al. 2019, doi 10.1109/TGRS.2019.2924684) keep, for every pixel, how much gradient there is along
each of a few orientations. The template baseline and the estimate of the ground truth's noise are built on them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

N_ORIENTATIONS = 9
SAR_SIGMA_PX = 1.5
"""Smoothing of SAR images before differentiation; more than optical ones need, because of speckle."""
OPTICAL_SIGMA_PX = 1.0
_CHANNEL_SIGMA_PX = 1.5
_FLOOR = 0.5  # gradients much weaker than half the image's mean say little about orientation


def oriented_gradients(image: Tensor, sigma_px: float, valid: Tensor | None = None) -> Tensor:
    """Orientation channels of an image, (9, H, W) float32; each pixel's vector has length at most 1 and mean 0.

    The magnitudes of the gradient along nine orientations over 180 degrees (mean over bands) are smoothed in space
    and across orientations. Removing their mean leaves the direction of the structure: without that step all vectors
    point the same way and correlation hardly tells right from wrong.

    Args:
        image: (C, H, W) float.
        sigma_px: standard deviation of the Gaussian smoothing before differentiation, px.
        valid: (H, W) bool; channels are zero where it is False.
    """
    smooth = gaussian_blur(image.float(), sigma_px)
    along_x = F.pad(smooth[:, :, 2:] - smooth[:, :, :-2], (1, 1, 0, 0))
    along_y = F.pad(smooth[:, 2:, :] - smooth[:, :-2, :], (0, 0, 1, 1))
    angles = torch.arange(N_ORIENTATIONS, device=image.device) * (math.pi / N_ORIENTATIONS)
    cos, sin = angles.cos().view(-1, 1, 1, 1), angles.sin().view(-1, 1, 1, 1)
    channels = gaussian_blur((along_x * cos + along_y * sin).abs().mean(dim=1), _CHANNEL_SIGMA_PX)
    channels = (channels.roll(1, dims=0) + 2 * channels + channels.roll(-1, dims=0)) / 4
    strength = channels.norm(dim=0).mean()
    channels = channels - channels.mean(dim=0)
    channels = channels / (channels.norm(dim=0) + _FLOOR * strength).clamp(min=1e-12)
    return channels if valid is None else channels * valid


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian smoothing of (C, H, W), edges replicated."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    out = F.conv2d(F.pad(image[:, None], (radius, radius, 0, 0), mode="replicate"), kernel)
    out = F.conv2d(F.pad(out, (0, 0, radius, radius), mode="replicate"), kernel.transpose(-1, -2))
    return out[:, 0]


def shift_scores(
    a: Tensor, b: Tensor, max_shift: int, a_valid: Tensor | None = None, b_valid: Tensor | None = None
) -> np.ndarray:
    """Mean product of two feature images at every whole-pixel shift, over the part where both have data.

    Args:
        a, b: (C, H, W) and (C, H', W') features; pixel p of `a` is compared with pixel p + shift of `b`.
        max_shift: largest shift along each axis, px.
        a_valid, b_valid: (H, W) and (H', W') bool; None takes all pixels.

    Returns:
        (2 max_shift + 1, 2 max_shift + 1) float64, row = dy + max_shift, column = dx + max_shift; -inf where less than
        a quarter of the smaller image overlaps.
    """
    mask_a, mask_b = _mask(a, a_valid), _mask(b, b_valid)
    size = [
        scipy.fft.next_fast_len(max(n_a, n_b) + max_shift, real=True)
        for n_a, n_b in zip(a.shape[1:], b.shape[1:], strict=True)
    ]
    products = _cross_correlation(a.cpu().numpy() * mask_a, b.cpu().numpy() * mask_b, size, max_shift)
    overlap = _cross_correlation(mask_a[None], mask_b[None], size, max_shift)
    enough = overlap > 0.25 * min(mask_a.sum(), mask_b.sum())
    return np.where(enough, products / np.maximum(overlap, 1), -np.inf)


def _mask(features: Tensor, valid: Tensor | None) -> np.ndarray:
    shape = tuple(features.shape[1:])
    return np.ones(shape, np.float32) if valid is None else valid.cpu().numpy().astype(np.float32)


def _cross_correlation(a: np.ndarray, b: np.ndarray, size: list[int], max_shift: int) -> np.ndarray:
    """Sum over channels and p of a(p) b(p + shift); `size` leaves room so that no shift wraps around."""
    product = (scipy.fft.rfft2(a, size).conj() * scipy.fft.rfft2(b, size)).sum(axis=0)
    surface = scipy.fft.irfft2(product, size)
    steps = np.arange(-max_shift, max_shift + 1)
    return surface[np.ix_(steps % size[0], steps % size[1])]


def parabola_peak(left: Tensor | np.ndarray, centre: Tensor | np.ndarray, right: Tensor | np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the vertex of the parabola through values at -1, 0, 1; 0 where there is no maximum."""
    left, centre, right = (np.asarray(value, dtype=np.float64) for value in (left, centre, right))
    with np.errstate(invalid="ignore"):  # -inf beside the peak: no neighbour there
        curvature = left - 2 * centre + right
        usable = np.isfinite(curvature) & (curvature < 0)
        offset = 0.5 * (left - right) / np.where(usable, curvature, 1.0)
    return np.where(usable, np.clip(offset, -0.5, 0.5), 0.0)
