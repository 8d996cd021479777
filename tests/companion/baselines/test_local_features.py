"""Local features: neighbours and bits by hand; SIFT finds shifts and rotations of one image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patch_net import texture
from torch import Tensor

from companion.baselines import AkazeMatcher, BriskMatcher, OrbMatcher, SiftMatcher, local_features
from companion.baselines.local_features import LocalFeatureMatcher, LocalFeatures
from sarmatch.evaluation import metrics
from sarmatch.geometry import rotation_scale, translation, warp


class Given(LocalFeatureMatcher):
    """Reads keypoint and descriptor from pixel values, so that a test can set what is described."""

    def describe(self, image: torch.Tensor) -> LocalFeatures:
        row, column = np.nonzero(image.numpy())
        return LocalFeatures(np.stack([column, row], axis=1).astype(float), image.numpy()[row, column][:, None])


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


def moved_pair(sar_to_optical: Tensor) -> tuple[Tensor, Tensor]:
    scene = texture(256)
    sar = warp(scene, translation(64, 64), (128, 128))
    optical = warp(scene, translation(64, 64) @ torch.linalg.inv(sar_to_optical), (128, 128))
    return sar, optical.expand(3, -1, -1)


def test_finds_a_rotation_without_a_search_radius() -> None:
    truth = rotation_scale(35, 1.1, (63.5, 63.5))
    matches = SiftMatcher().match(*moved_pair(truth))
    assert len(matches) > 30
    assert metrics.mma(metrics.match_errors(matches, truth), 2.0) > 0.9
    assert metrics.corner_error(matches.affine().matrix, truth, (128, 128)) < 1


def test_search_radius_is_honoured() -> None:
    matches = SiftMatcher(ratio=1.0).match(*moved_pair(translation(20, 0)), search_radius=8)
    assert len(matches) > 0
    assert np.linalg.norm(matches.xy_optical - matches.xy_sar, axis=1).max() <= 8.001


def test_images_without_keypoints_give_no_matches() -> None:
    flat = torch.full((1, 64, 64), 0.5)
    assert len(SiftMatcher().match(flat, texture(64))) == 0
    assert len(SiftMatcher().match(texture(64), flat, search_radius=10)) == 0


def test_detectors_are_found_at_either_place_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(AKAZE_create=lambda threshold: threshold, BRISK_create=lambda thresh: thresh)
    for opencv in (made, SimpleNamespace(xfeatures2d=made)):
        monkeypatch.setattr(local_features, "cv2", opencv)
        assert (AkazeMatcher(threshold=0.5).detector(), BriskMatcher(threshold=7).detector()) == (0.5, 7)
    monkeypatch.setattr(local_features, "cv2", SimpleNamespace())
    with pytest.raises(ModuleNotFoundError, match="no BRISK: pip install opencv-contrib-python-headless"):
        BriskMatcher().detector()
