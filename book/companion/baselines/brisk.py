"""BRISK: corners at several scales with binary tests on rings (Leutenegger et al. 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
from torch import Tensor

from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures, opencv_features


@dataclass(frozen=True)
class BriskMatcher(LocalFeatureMatcher):
    """BRISK through OpenCV.

    Attributes:
        threshold: of the corner detector, in 8-bit grey values; a third of OpenCV's, because SAR images have little
            contrast at edges.
    """

    threshold: int = 10
    binary: ClassVar[bool] = True

    def describe(self, image: Tensor) -> LocalFeatures:
        return opencv_features(cv2.xfeatures2d.BRISK.create(thresh=self.threshold), image, self.max_keypoints)
