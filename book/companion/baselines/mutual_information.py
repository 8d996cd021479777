"""Template matching by mutual information: any dependence between grey values counts, not only a linear one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.baselines.template import STRIDE, TemplateMatcher, grid_size
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, Features, gaussian_blur


@dataclass(frozen=True)
class MutualInformationMatcher(TemplateMatcher):
    """Mutual information of grey values under the template (Viola and Wells 1997), less what chance would give.

    Grey values are cut into bins of equal count over each image, SAR's after smoothing. What independent values have by
    chance, (bins - 1)^2 / 2 n nats for n pixels, is subtracted: else the fewest pixels would fit best.

    Attributes:
        bins: of grey values of each image.
    """

    bins: int = 8

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        smooth = (
            gaussian_blur(sar[:1], SAR_SIGMA_PX),
            gaussian_blur(optical.mean(dim=0, keepdim=True), OPTICAL_SIGMA_PX),
        )
        binned = (equal_bins(image, self.bins) for image in smooth)
        first, second = (Features(image, torch.ones_like(image[0], dtype=torch.bool)) for image in binned)
        return first, second

    def _similarities(self, a: Features, window: Features, radius: int, side: int) -> Tensor:
        (rows, columns), steps, bins = grid_size(a), 2 * radius + 1, self.bins
        height, width = rows * STRIDE, columns * STRIDE
        cell = (np.arange(height)[:, None] // STRIDE * columns + np.arange(width) // STRIDE) * (bins**2 + 1)
        first = a.channels[0, :height, :width].numpy().astype(np.int64) * bins
        second = window.channels[0].numpy().astype(np.int64)
        seen = window.usable.numpy()
        above, beside = _neighbours(rows, side), _neighbours(columns, side)
        out = np.full((steps, steps, rows, columns), -math.inf, dtype=np.float32)
        for dy, dx in np.ndindex(steps, steps):
            if math.hypot(dy - radius, dx - radius) < radius + 1:
                part = (slice(dy, dy + height), slice(dx, dx + width))
                joint = np.where(seen[part], first + second[part], bins**2)  # what is not seen has a bin of its own
                counts = np.bincount((cell + joint).ravel(), minlength=rows * columns * (bins**2 + 1))
                cells = counts.astype(np.float32).reshape(rows, columns, bins**2 + 1)[..., : bins**2]
                stacked = (above @ cells.reshape(rows, -1)).reshape(rows, columns, bins**2)
                out[dy, dx] = mutual_information(beside @ stacked)
        return torch.from_numpy(out)


def _neighbours(n: int, side: int) -> np.ndarray:
    """Which of n cells in a row lie under the template of each, (n, n) of 0 and 1."""
    cells = np.arange(n)
    return (np.abs(cells[:, None] - cells) <= side // 2).astype(np.float32)


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """Mutual information in nats of joint counts (..., B * B), less its expectation under independence."""
    bins = math.isqrt(counts.shape[-1])
    of_first = np.repeat(np.eye(bins, dtype=np.float32), bins, axis=0)  # (B * B, B): products are faster than sums
    of_second = np.tile(np.eye(bins, dtype=np.float32), (bins, 1))
    marginals = _n_log_n(counts @ of_first) + _n_log_n(counts @ of_second)
    n = counts.sum(axis=-1)
    total = _n_log_n(n[..., None])
    return (_n_log_n(counts) - marginals + total - (bins - 1) ** 2 / 2) / np.maximum(n, 1)


def _n_log_n(counts: np.ndarray) -> np.ndarray:
    """Sum of n log n over the last axis."""
    return np.einsum("...i,...i", counts, np.log(np.maximum(counts, 1)))


def equal_bins(image: Tensor, bins: int) -> Tensor:
    """Bins 0 to B - 1 of equal count, as float."""
    borders = np.quantile(image.numpy(), np.arange(1, bins) / bins)
    return torch.from_numpy(np.searchsorted(borders, image.numpy(), side="right").astype(np.float32))
