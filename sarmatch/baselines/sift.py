"""SIFT keypoints and descriptors with ratio test and mutual check (Lowe 2004), the classical yardstick."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from sarmatch.baselines.base import Baseline
from sarmatch.matches import Matches


@dataclass(frozen=True)
class SiftMatcher(Baseline):
    """SIFT through OpenCV, with RootSIFT normalisation (Arandjelovic and Zisserman 2012).

    Attributes:
        max_keypoints: strongest keypoints kept in each image.
        ratio: a match is kept when its descriptor distance is below this share of the second smallest.
        contrast: keypoints weaker than this are dropped; low, because SAR images have little contrast at edges.
    """

    max_keypoints: int = 4000
    ratio: float = 0.9
    contrast: float = 0.01

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Mutual nearest neighbours among the keypoints of both images.

        Args:
            sar: (C, H, W) float in [0, 1]; the first band is used.
            optical: (C, H', W') float in [0, 1]; the mean of its bands is used.
            search_radius: keypoints further apart than this, px, are no candidates.

        Returns:
            matches; confidence is one minus the distance ratio of the ratio test, not a probability.
        """
        xy_sar, descriptors_sar = self._describe(sar[0])
        xy_optical, descriptors_optical = self._describe(optical.mean(dim=0))
        if len(xy_sar) < 2 or len(xy_optical) < 2:
            return Matches.empty()
        # Unit vectors: the squared distance is 2 - 2 cos.
        distance = np.sqrt(np.maximum(2 - 2 * descriptors_sar @ descriptors_optical.T, 0))
        if search_radius is not None:
            apart = np.linalg.norm(xy_sar[:, None] - xy_optical[None], axis=-1)
            distance[apart > search_radius] = np.inf
        rows, columns, ratio = _mutual(distance)
        keep = ratio < self.ratio
        return Matches(xy_sar[rows[keep]], xy_optical[columns[keep]], 1 - ratio[keep])

    def _describe(self, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Keypoint positions (N, 2) and unit-length descriptors (N, 128)."""
        grey = (image.clamp(0, 1) * 255).round().to("cpu").byte().numpy()
        sift = cv2.SIFT.create(nfeatures=self.max_keypoints, contrastThreshold=self.contrast)
        keypoints, descriptors = sift.detectAndCompute(grey, None)
        if descriptors is None:
            return np.zeros((0, 2)), np.zeros((0, 128))
        xy = np.array([keypoint.pt for keypoint in keypoints])
        root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
        return xy, root


def _mutual(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of an (N, M) distance matrix: rows, columns, and nearest over second nearest distance.

    A row with a single candidate has nothing to be confused with: its ratio is 0.
    """
    nearest = distance.argmin(axis=1)
    rows = np.flatnonzero(distance.argmin(axis=0)[nearest] == np.arange(len(distance)))
    rows = rows[np.isfinite(distance[rows, nearest[rows]])]
    best, second = np.partition(distance[rows], 1, axis=1)[:, :2].T
    return rows, nearest[rows], best / np.maximum(second, 1e-12)
