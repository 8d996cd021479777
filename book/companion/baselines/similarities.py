"""Template matching by other similarities than that of oriented gradients."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.baselines.gradients import Features
from companion.baselines.phase_congruency import phase_congruency
from companion.baselines.template import STRIDE, TemplateMatcher, grid_size
from sarmatch.matching.aggregation import band
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, eroded, gaussian_blur

_PHASE_FLOOR = 0.1  # of the mean amplitude; frequencies below weigh less


@dataclass(frozen=True)
class GreyTemplateMatcher(TemplateMatcher):
    """Normalised correlation of grey values less their local mean."""

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        both = zip(grey_features(sar, optical), (sar, optical), strict=True)
        # Structures wider than 8 px are brightness.
        a, b = (found._replace(channels=found.channels - gaussian_blur(image, 8.0)) for found, image in both)
        return a, b


@dataclass(frozen=True)
class EdgeOrientationMatcher(TemplateMatcher):
    """Amplitudes of log-Gabor filters at six orientations, each pixel's of unit length (the idea of ref. 15).

    Stands for MOEFC, whose code is not published; its own filters and its removal of outliers are not rebuilt.
    """

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        return _orientations(sar[0]), _orientations(optical.mean(dim=0))


def _orientations(image: Tensor) -> Features:
    amplitude = torch.from_numpy(phase_congruency(image.double().numpy()).amplitude.astype(np.float32))
    centred = amplitude - amplitude.mean(dim=0)  # what all orientations share has no direction
    strength = centred.norm(dim=0)
    usable = eroded(torch.ones_like(image, dtype=torch.bool))
    # Weak edges weigh little; 1e-6 stands for rounding in an image without any.
    return Features(centred / (strength + strength.mean() / 2 + 1e-6) * (strength > 1e-6) * usable, usable)


@dataclass(frozen=True)
class PhaseCorrelationMatcher(TemplateMatcher):
    """Phase correlation of the smoothed grey values under a tapered template (Kuglin and Hines 1975)."""

    def _features(self, sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
        a, b = grey_features(sar, optical)  # centred, so that what lies outside, zero, is the mean
        return a._replace(channels=a.channels - a.channels.mean()), b._replace(channels=b.channels - b.channels.mean())

    def _similarities(self, a: Features, window: Features, radius: int, side: int) -> Tensor:
        (rows, columns), px, steps = grid_size(a), side * STRIDE, 2 * radius + 1
        size = (px + 2 * radius, px + 2 * radius)
        around = side // 2 * STRIDE
        first = F.pad(a.channels[0, : rows * STRIDE, : columns * STRIDE], (around,) * 4)
        height, width = rows * STRIDE + 2 * radius, columns * STRIDE + 2 * radius
        second = F.pad(window.channels[0, :height, :width], (around,) * 4)
        taper = torch.hann_window(px + 2, periodic=False)[1:-1]
        weights = taper[:, None] * taper
        out = first.new_empty((rows, steps, steps, columns))
        for row in range(rows):  # of keypoints; all at once would take gigabytes
            top = row * STRIDE
            templates = first[top : top + px].unfold(1, px, STRIDE).transpose(0, 1)  # (w, px, px)
            windows = second[top : top + size[0]].unfold(1, size[1], STRIDE).transpose(0, 1)
            templates = (templates - templates.mean(dim=(1, 2), keepdim=True)) * weights
            cross = torch.fft.rfft2(windows) * torch.fft.rfft2(templates, s=size).conj()
            strength = cross.abs()
            floor = _PHASE_FLOOR * strength.mean(dim=(1, 2), keepdim=True) + 1e-6  # phases of nothing are noise
            surface = torch.fft.irfft2(cross / (strength + floor), s=size)
            out[row] = surface[:, :steps, :steps].permute(1, 2, 0)
        return out.permute(1, 2, 0, 3)


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


def grey_features(sar: Tensor, optical: Tensor) -> tuple[Features, Features]:
    """The first SAR band and the mean optical band, smoothed as for gradients, for similarities of grey values."""
    smooth = gaussian_blur(sar[:1], SAR_SIGMA_PX), gaussian_blur(optical.mean(dim=0, keepdim=True), OPTICAL_SIGMA_PX)
    first, second = (Features(image, torch.ones_like(image[0], dtype=torch.bool)) for image in smooth)
    return first, second
