"""SIFT keypoints and descriptors (Lowe 2004, ref. 16), the classical yardstick; ref. 10 in table 1."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures, opencv_features


@dataclass(frozen=True)
class SiftMatcher(LocalFeatureMatcher):
    """SIFT through OpenCV.

    Attributes:
        contrast: keypoints weaker than this are dropped; low, because SAR images have little contrast at edges.
        root: RootSIFT, descriptors compared by the Hellinger kernel (Arandjelovic and Zisserman 2012).
    """

    contrast: float = 0.01
    root: bool = True

    def describe(self, image: Tensor) -> LocalFeatures:
        detector = cv2.SIFT.create(nfeatures=self.max_keypoints, contrastThreshold=self.contrast)
        xy, descriptors = opencv_features(detector, image, self.max_keypoints)
        if self.root:
            descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
        return LocalFeatures(xy, descriptors)
