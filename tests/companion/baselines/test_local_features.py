"""Mutual neighbours, distances and binary descriptors by hand."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist

from companion.baselines import LocalFeatureMatcher, LocalFeatures, OrbMatcher
from companion.baselines.local_features import mutual_neighbours, squared_distances


class Given(LocalFeatureMatcher):
    """Reads keypoint and descriptor from pixel values, so that a test can say what is described."""

    def describe(self, image: torch.Tensor) -> LocalFeatures:
        row, column = np.nonzero(image.numpy())
        return LocalFeatures(np.stack([column, row], axis=1).astype(float), image.numpy()[row, column][:, None])


def test_mutual_neighbours_by_hand() -> None:
    distance = np.array([[1.0, 4.0, np.inf], [2.0, 3.0, np.inf], [np.inf, np.inf, np.inf]])
    rows, columns, ratio = mutual_neighbours(distance)
    assert (rows.tolist(), columns.tolist(), ratio.tolist()) == ([0], [0], [0.25])


def test_squared_distances_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    np.testing.assert_allclose(squared_distances(a, b), cdist(a, b, "sqeuclidean"), atol=1e-12)
    bits = rng.integers(0, 2, (2, 6, 32))
    np.testing.assert_allclose(squared_distances(*bits), cdist(*bits, "hamming") * 32)


def test_ratio_test_and_search_radius_by_hand() -> None:
    sar, optical = torch.zeros(1, 20, 20), torch.zeros(1, 20, 20)
    sar[0, 2, 3], sar[0, 10, 10] = 0.5, 0.9
    optical[0, 2, 5], optical[0, 10, 13], optical[0, 19, 19] = 0.6, 0.8, 0.9
    found = Given(ratio=1.0).match(sar, optical, search_radius=4)
    assert found.xy_sar.tolist() == [[3, 2], [10, 10]] and found.xy_optical.tolist() == [[5, 2], [13, 10]]
    # Without a radius the second keypoint's value is found, exactly, in the far corner.
    anywhere = Given(ratio=1.0).match(sar, optical)
    assert anywhere.xy_optical.tolist() == [[5, 2], [19, 19]]
    np.testing.assert_allclose(anywhere.confidence, [1 - 0.1 / 0.3, 1], atol=1e-5)
    assert Given(ratio=0.3).match(sar, optical).xy_sar.tolist() == [[10, 10]]


def test_bits_are_unpacked() -> None:
    image = torch.rand((128, 128), generator=torch.Generator().manual_seed(0))
    found = OrbMatcher(max_keypoints=50).describe(image)
    assert found.descriptors.shape == (len(found.xy), 256)
    assert set(np.unique(found.descriptors)) == {0.0, 1.0}
