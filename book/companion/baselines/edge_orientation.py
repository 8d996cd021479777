"""Template matching on edges along several orientations, found by filters of several widths (the idea of ref. 15)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.baselines.gradients import Features
from companion.baselines.phase_congruency import phase_congruency
from companion.baselines.template import TemplateMatcher
from sarmatch.model.oriented_gradients import eroded


@dataclass(frozen=True)
class EdgeOrientationMatcher(TemplateMatcher):
    """Amplitudes of log-Gabor filters at six orientations, each pixel's of unit length, correlated over the template.

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
