"""RIFT: corners and edge points of phase congruency, described by which orientation is strongest (ref. 13)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures
from companion.baselines.phase_congruency import N_ORIENTATIONS, phase_congruency

PATCH_PX = 96
GRID = 6
"""Cells along each side of a patch."""


@dataclass(frozen=True)
class RiftMatcher(LocalFeatureMatcher):
    """RIFT without its search over rotations: images are co-oriented here.

    Half of the keypoints are FAST corners of the smallest moment, half of the largest (its edge points). Patches that
    reach over the border are described by what lies within. As in the original there is no ratio test; robust
    estimation is left to what comes after.
    """

    ratio: float = 1.0

    def describe(self, image: Tensor) -> LocalFeatures:
        found = phase_congruency(image.to("cpu").double().numpy())
        half = self.max_keypoints // 2
        corners = _fast(found.corners, half)
        edges = _fast(found.edges, self.max_keypoints - len(corners))
        xy = np.unique(np.concatenate([corners, edges]), axis=0)
        return LocalFeatures(xy, maximum_index_histograms(found.amplitude.argmax(axis=0), xy))


def maximum_index_histograms(index: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Histograms of the strongest orientation in GRID x GRID cells around each keypoint, of unit length.

    Args:
        index: (H, W) int, the maximum index map.
        xy: (N, 2) px.

    Returns:
        (N, GRID * GRID * N_ORIENTATIONS) float.
    """
    side = PATCH_PX // GRID
    one_hot = (index[..., None] == np.arange(N_ORIENTATIONS)).astype(np.float64)
    reach = PATCH_PX // 2
    padded = np.pad(one_hot, ((reach, reach + 1), (reach, reach + 1), (0, 0)))
    integral = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    edges = np.arange(GRID + 1) * side
    column, row = np.rint(xy).astype(int).T  # of the padded image, where a patch begins
    x, y = column[:, None, None] + edges, row[:, None, None] + edges[:, None]
    corners = integral[y, x]  # (N, GRID + 1, GRID + 1, N_ORIENTATIONS)
    sums = np.diff(np.diff(corners, axis=1), axis=2).reshape(len(xy), GRID * GRID * N_ORIENTATIONS)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _fast(response: np.ndarray, n: int) -> np.ndarray:
    """The strongest n FAST corners of a map, (n, 2) float."""
    span = float(response.max() - response.min())
    if span <= 0:
        return np.zeros((0, 2))
    scaled = np.rint((response - response.min()) / span * 255).astype(np.uint8)
    keypoints = cv2.FastFeatureDetector.create(threshold=1).detect(scaled, None)
    strongest = sorted(keypoints, key=lambda keypoint: -keypoint.response)[:n]
    return np.array([keypoint.pt for keypoint in strongest]).reshape(-1, 2)
