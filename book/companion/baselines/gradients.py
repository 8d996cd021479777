"""Oriented gradients of whole images, and the shift between two of them."""

from typing import NamedTuple

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from sarmatch.model.oriented_gradients import correlation_surface, eroded, orientation_channels


class Features(NamedTuple):
    """An image of features (C, H, W), zero where not `usable` (H, W) bool."""

    channels: Tensor
    usable: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.usable.shape[0], self.usable.shape[1]


def oriented_gradients(image: Tensor, sigma_px: float, valid: Tensor | None = None) -> Features:
    """`orientation_channels` of an image (C, H, W), usable away from pixels that are not `valid` and the border."""
    usable = eroded(torch.ones_like(image[0], dtype=torch.bool) if valid is None else valid)
    return Features(orientation_channels(image[None], sigma_px)[0] * usable, usable)


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


def parabola_peak(left: Tensor | np.ndarray, centre: Tensor | np.ndarray, right: Tensor | np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the vertex of the parabola through values at -1, 0, 1; 0 where there is no maximum."""
    left, centre, right = (np.asarray(value, dtype=np.float64) for value in (left, centre, right))
    with np.errstate(invalid="ignore"):  # -inf beside the peak: no neighbour there
        curvature = left - 2 * centre + right
        usable = np.isfinite(curvature) & (curvature < 0)
        offset = 0.5 * (left - right) / np.where(usable, curvature, 1.0)
    return np.where(usable, np.clip(offset, -0.5, 0.5), 0.0)
