"""Template matching by phase correlation: all frequencies weigh alike (Kuglin and Hines 1975)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.baselines.gradients import Features
from companion.baselines.template import STRIDE, TemplateMatcher, grey_features, grid_size

_FLOOR = 0.1  # of the mean amplitude; frequencies below weigh less


@dataclass(frozen=True)
class PhaseCorrelationMatcher(TemplateMatcher):
    """Phase correlation of the smoothed grey values under a tapered template, keypoint by keypoint."""

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
            floor = _FLOOR * strength.mean(dim=(1, 2), keepdim=True) + 1e-6  # the phase of nearly nothing is noise
            surface = torch.fft.irfft2(cross / (strength + floor), s=size)
            out[row] = surface[:, :steps, :steps].permute(1, 2, 0)
        return out.permute(1, 2, 0, 3)
