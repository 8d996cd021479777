"""ORB: corners at several scales with rotated binary tests (Rublee et al. 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
from torch import Tensor

from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures, opencv_features


@dataclass(frozen=True)
class OrbMatcher(LocalFeatureMatcher):
    """ORB through OpenCV.

    Attributes:
        fast_threshold: in 8-bit grey values; low, because SAR images have little contrast at edges.
    """

    fast_threshold: int = 5
    binary: ClassVar[bool] = True

    def describe(self, image: Tensor) -> LocalFeatures:
        detector = cv2.ORB.create(nfeatures=self.max_keypoints, fastThreshold=self.fast_threshold)
        return opencv_features(detector, image, self.max_keypoints)
