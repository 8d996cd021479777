"""Template matching by mutual information: any dependence between grey values counts, not only a linear one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.baselines.gradients import Features
from companion.baselines.template import STRIDE, TemplateMatcher, grey_features, grid_size
from sarmatch.matching.aggregation import band


@dataclass(frozen=True)
class MutualInformationMatcher(TemplateMatcher):
    """Mutual information of grey values under the template (Viola and Wells 1997), less what chance would give."""

    bins: int = 8  #: Of equal count, of the smoothed grey values of each image.

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        a, b = grey_features(sar, optical)
        binned = [equal_bins(image.channels, self.bins) for image in (a, b)]
        return a._replace(channels=binned[0]), b._replace(channels=binned[1])

    def _similarities(self, a: Features, window: Features, radius: int, side: int) -> Tensor:
        (rows, columns), steps, bins = grid_size(a), 2 * radius + 1, self.bins
        height, width = rows * STRIDE, columns * STRIDE
        cell = (np.arange(height)[:, None] // STRIDE * columns + np.arange(width) // STRIDE) * (bins**2 + 1)
        first = a.channels[0, :height, :width].numpy().astype(np.int64) * bins
        second = window.channels[0].numpy().astype(np.int64)
        usable = window.usable.numpy()
        above, beside = (band(n, side, a.channels).numpy() for n in (rows, columns))
        out = np.full((steps, steps, rows, columns), -math.inf, dtype=np.float32)
        for dy, dx in np.ndindex(steps, steps):
            if math.hypot(dy - radius, dx - radius) < radius + 1:
                part = (slice(dy, dy + height), slice(dx, dx + width))
                joint = np.where(usable[part], first + second[part], bins**2)  # pixels without data have their own bin
                counts = np.bincount((cell + joint).ravel(), minlength=rows * columns * (bins**2 + 1))
                cells = counts.astype(np.float32).reshape(rows, columns, bins**2 + 1)[..., : bins**2]
                stacked = (above @ cells.reshape(rows, -1)).reshape(rows, columns, bins**2)
                out[dy, dx] = mutual_information(beside @ stacked)
        return torch.from_numpy(out)


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """Mutual information in nats of joint counts (..., B * B), less its expectation under independence.

    That is (B - 1)^2 / 2 n for n pixels; else the fewest pixels would fit best.
    """
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
