"""Keypoints in each image by itself, a descriptor for each, mutual nearest neighbours with a ratio test."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor

from companion.baselines.base import Baseline, ratio_matches
from companion.baselines.phase_congruency import N_ORIENTATIONS, phase_congruency
from sarmatch.matching.matches import Matches

PATCH_PX = 96  # described around each of RIFT's keypoints
GRID = 6  # cells along each side of a patch


class LocalFeatures(NamedTuple):
    """N keypoints of one image."""

    xy: np.ndarray  #: (N, 2) px.
    descriptors: np.ndarray  #: (N, D) float.


@dataclass(frozen=True)
class LocalFeatureMatcher(Baseline):
    """What all detectors with descriptors share."""

    max_keypoints: int = 4000  #: Strongest keypoints kept in each image.
    ratio: float = 0.9  #: Largest share of the second smallest descriptor distance (Lowe 2004); 1 keeps all neighbours.
    binary: ClassVar[bool] = False  # descriptors are bits, compared by the number in which they differ

    @abstractmethod
    def describe(self, image: Tensor) -> LocalFeatures:
        """The strongest `max_keypoints` of a grey image (H, W) float in [0, 1]."""

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Match the first SAR band with the mean optical band; confidence is one minus the ratio of the ratio test."""
        in_sar, in_optical = self.describe(sar[0]), self.describe(optical.mean(dim=0))
        if len(in_sar.xy) < 2 or len(in_optical.xy) < 2:
            return Matches.empty()
        squared = partial(euclidean_distances, squared=True)
        distance = squared(*(x.descriptors.astype(np.float64) for x in (in_sar, in_optical)))
        if not self.binary:  # of bits, the squared distance is the number in which they differ
            distance = np.sqrt(distance)
        if search_radius is not None:
            distance[squared(in_sar.xy, in_optical.xy) > search_radius**2] = np.inf
        rows, columns, ratio = (found.numpy() for found in ratio_matches(torch.from_numpy(distance)))
        keep = (ratio < self.ratio) | (self.ratio >= 1)
        return Matches(in_sar.xy[rows[keep]], in_optical.xy[columns[keep]], 1 - ratio[keep])


def _strongest(keypoints: Sequence[Any], n: int) -> np.ndarray:
    """Indices of the n keypoints of OpenCV with the largest response."""
    return np.argsort([-keypoint.response for keypoint in keypoints], kind="stable")[:n]


class OpenCvMatcher(LocalFeatureMatcher):
    """Features of OpenCV. Default thresholds lie below its own, because SAR images have little contrast at edges."""

    @abstractmethod
    def detector(self) -> Any:
        """The object of OpenCV that detects and describes."""

    def describe(self, image: Tensor) -> LocalFeatures:
        eight_bit = (image.clamp(0, 1) * 255).round().to("cpu").byte().numpy()
        keypoints, descriptors = self.detector().detectAndCompute(eight_bit, None)
        if descriptors is None:
            return LocalFeatures(np.zeros((0, 2)), np.zeros((0, 1)))
        strongest = _strongest(keypoints, self.max_keypoints)
        xy = np.array([keypoints[i].pt for i in strongest])
        if self.binary:
            descriptors = np.unpackbits(descriptors, axis=1)
        return LocalFeatures(xy, descriptors[strongest].astype(np.float32))


@dataclass(frozen=True)
class SiftMatcher(OpenCvMatcher):
    """SIFT (Lowe 2004, ref. 16), the classical yardstick; ref. 10 in table 1."""

    contrast: float = 0.01  #: Keypoints weaker than this are dropped.
    root: bool = True  #: Descriptors are compared by the Hellinger kernel (RootSIFT, Arandjelovic and Zisserman 2012).

    def detector(self) -> Any:
        return cv2.SIFT.create(nfeatures=self.max_keypoints, contrastThreshold=self.contrast)

    def describe(self, image: Tensor) -> LocalFeatures:
        xy, descriptors = super().describe(image)
        if self.root:
            descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
        return LocalFeatures(xy, descriptors)


@dataclass(frozen=True)
class OrbMatcher(OpenCvMatcher):
    """ORB: corners at several scales with rotated binary tests (Rublee et al. 2011); threshold in 8-bit grey values."""

    fast_threshold: int = 5
    binary: ClassVar[bool] = True

    def detector(self) -> Any:
        return cv2.ORB.create(nfeatures=self.max_keypoints, fastThreshold=self.fast_threshold)


def contributed(name: str, **options: float) -> Any:
    """A detector that OpenCV 4 has at its top level, OpenCV 5 among the contributed modules."""
    for module in (cv2, getattr(cv2, "xfeatures2d", None)):
        if create := getattr(module, f"{name}_create", None):
            return create(**options)
    raise ModuleNotFoundError(f"this OpenCV has no {name}: pip install opencv-contrib-python-headless")


@dataclass(frozen=True)
class AkazeMatcher(OpenCvMatcher):
    """AKAZE: a nonlinear scale space, which smooths speckle but not edges (Alcantarilla et al. 2013)."""

    threshold: float = 1e-4
    binary: ClassVar[bool] = True

    def detector(self) -> Any:
        return contributed("AKAZE", threshold=self.threshold)


@dataclass(frozen=True)
class BriskMatcher(OpenCvMatcher):
    """BRISK: corners at several scales, binary tests on rings (Leutenegger et al. 2011); threshold in grey values."""

    threshold: int = 10
    binary: ClassVar[bool] = True

    def detector(self) -> Any:
        return contributed("BRISK", thresh=self.threshold)


@dataclass(frozen=True)
class RiftMatcher(LocalFeatureMatcher):
    """RIFT (ref. 13): corners and edge points of phase congruency, described by which orientation is strongest.

    Without its search over rotations: images are co-oriented here. Half of the keypoints are FAST corners of the
    smallest moment, half of the largest. As in the original there is no ratio test.
    """

    ratio: float = 1.0

    def describe(self, image: Tensor) -> LocalFeatures:
        found = phase_congruency(image.to("cpu").double().numpy())
        corners = _fast(found.corners, self.max_keypoints // 2)
        edges = _fast(found.edges, self.max_keypoints - len(corners))
        xy = np.unique(np.concatenate([corners, edges]), axis=0)
        return LocalFeatures(xy, maximum_index_histograms(found.amplitude.argmax(axis=0), xy))


def maximum_index_histograms(index: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Histograms of an index map (H, W) in GRID x GRID cells around keypoints (N, 2) px, each of unit length."""
    half = PATCH_PX // 2
    one_hot = (index[..., None] == np.arange(N_ORIENTATIONS)).astype(np.float64)
    padded = np.pad(one_hot, ((half, half + 1), (half, half + 1), (0, 0)))
    integral = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
    edges = np.arange(GRID + 1) * (PATCH_PX // GRID)
    column, row = np.rint(xy).astype(int).T  # of the padded image, where a patch begins
    x, y = column[:, None, None] + edges, row[:, None, None] + edges[:, None]
    sums = np.diff(np.diff(integral[y, x], axis=1), axis=2).reshape(len(xy), GRID * GRID * N_ORIENTATIONS)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _fast(response: np.ndarray, n: int) -> np.ndarray:
    """The strongest n FAST corners of a map, (n, 2) float."""
    span = float(response.max() - response.min())
    if span <= 0:
        return np.zeros((0, 2))
    scaled = np.rint((response - response.min()) / span * 255).astype(np.uint8)
    keypoints = cv2.FastFeatureDetector.create(threshold=1).detect(scaled, None)
    return np.array([keypoints[i].pt for i in _strongest(keypoints, n)]).reshape(-1, 2)
