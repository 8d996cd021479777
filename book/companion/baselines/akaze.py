"""AKAZE: features in a nonlinear scale space, which smooths speckle but not edges (Alcantarilla et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
from torch import Tensor

from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures, opencv_features


@dataclass(frozen=True)
class AkazeMatcher(LocalFeatureMatcher):
    """AKAZE with its binary descriptors through OpenCV.

    Attributes:
        threshold: of the detector's response; a tenth of OpenCV's, because SAR images have little contrast at edges.
    """

    threshold: float = 1e-4
    binary: ClassVar[bool] = True

    def describe(self, image: Tensor) -> LocalFeatures:
        return opencv_features(cv2.xfeatures2d.AKAZE.create(threshold=self.threshold), image, self.max_keypoints)
