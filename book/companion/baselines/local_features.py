"""Keypoints in each image by itself, a descriptor for each, mutual nearest neighbours with a ratio test."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion.baselines.base import Baseline, mutual_best
from sarmatch.matching.matches import Matches


class LocalFeatures(NamedTuple):
    """N keypoints of one image: positions (N, 2) as (x, y) px and descriptors (N, D) float."""

    xy: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class LocalFeatureMatcher(Baseline):
    """What all detectors with descriptors share; a new one implements `describe`.

    Attributes:
        max_keypoints: strongest keypoints kept in each image.
        ratio: a match is kept when its descriptor distance is below this share of the second smallest (Lowe 2004); 1
            keeps all mutual neighbours.
    """

    max_keypoints: int = 4000
    ratio: float = 0.9
    binary: ClassVar[bool] = False
    """Whether descriptors are bits, compared by the number in which they differ."""

    @abstractmethod
    def describe(self, image: Tensor) -> LocalFeatures:
        """Keypoints of a grey image (H, W) float in [0, 1], the strongest `max_keypoints`."""

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Mutual nearest neighbours among the keypoints of both images.

        Args:
            sar: (C, H, W) float in [0, 1]; the first band is used.
            optical: (C, H', W') float in [0, 1]; the mean of its bands is used.
            search_radius: keypoints further apart than this, px, are no candidates.

        Returns:
            matches; confidence is one minus the distance ratio of the ratio test, not a probability.
        """
        in_sar, in_optical = self.describe(sar[0]), self.describe(optical.mean(dim=0))
        if len(in_sar.xy) < 2 or len(in_optical.xy) < 2:
            return Matches.empty()
        distance = squared_distances(in_sar.descriptors, in_optical.descriptors)
        if not self.binary:  # of bits, the squared distance is the number in which they differ
            distance = np.sqrt(distance)
        if search_radius is not None:
            distance[squared_distances(in_sar.xy, in_optical.xy) > search_radius**2] = np.inf
        rows, columns, ratio = mutual_neighbours(distance)
        keep = ratio < self.ratio if self.ratio < 1 else np.ones(len(rows), bool)
        return Matches(in_sar.xy[rows[keep]], in_optical.xy[columns[keep]], 1 - ratio[keep])


def opencv_features(detector: Any, image: Tensor, max_keypoints: int) -> LocalFeatures:
    """Keypoints and descriptors of an OpenCV feature on an 8-bit version of a grey image; bits come as 0 and 1."""
    keypoints, descriptors = detector.detectAndCompute(eight_bit(image), None)
    if descriptors is None:
        return LocalFeatures(np.zeros((0, 2)), np.zeros((0, 1)))
    strongest = np.argsort([-keypoint.response for keypoint in keypoints], kind="stable")[:max_keypoints]
    xy = np.array([keypoints[i].pt for i in strongest])
    if descriptors.dtype == np.uint8:
        descriptors = np.unpackbits(descriptors, axis=1)
    return LocalFeatures(xy, descriptors[strongest].astype(np.float32))


def eight_bit(image: Tensor) -> np.ndarray:
    """A float image in [0, 1] as uint8."""
    return (image.clamp(0, 1) * 255).round().to("cpu").byte().numpy()


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) of the rows of (N, D) and (M, D)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def mutual_neighbours(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of an (N, M) distance matrix: rows, columns, and nearest over second nearest distance.

    A row with a single candidate has nothing to be confused with: its ratio is 0.
    """
    rows, columns = (index.numpy() for index in mutual_best(torch.from_numpy(-distance)))
    candidate = np.isfinite(distance[rows, columns])
    rows, columns = rows[candidate], columns[candidate]
    best, second = np.partition(distance[rows], 1, axis=1)[:, :2].T
    return rows, columns, best / np.maximum(second, 1e-12)
