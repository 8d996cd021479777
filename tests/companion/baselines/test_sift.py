"""SIFT: shifts and rotations of one image are found, unrelated images give nearly nothing."""

from __future__ import annotations

import numpy as np
import torch
from patch_net import texture
from torch import Tensor

from companion.baselines import SiftMatcher
from sarmatch.evaluation import metrics
from sarmatch.geometry import rotation_scale, translation, warp


def moved_pair(sar_to_optical: Tensor) -> tuple[Tensor, Tensor]:
    scene = texture(256)
    sar = warp(scene, translation(64, 64), (128, 128))
    optical = warp(scene, translation(64, 64) @ torch.linalg.inv(sar_to_optical), (128, 128))
    return sar, optical.expand(3, -1, -1)


def test_finds_a_known_shift_within_the_search_radius() -> None:
    truth = translation(9, -4)
    matches = SiftMatcher().match(*moved_pair(truth), search_radius=12)
    errors = metrics.match_errors(matches, truth)
    assert len(matches) > 50
    assert metrics.mma(errors, 1.0) > 0.95 and np.median(errors) < 0.2


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


def test_unrelated_images_give_nearly_nothing() -> None:
    related = SiftMatcher(ratio=0.8).match(*moved_pair(translation(0, 0)))
    unrelated = SiftMatcher(ratio=0.8).match(texture(128, seed=1), texture(128, seed=2))
    assert len(unrelated) < 0.05 * len(related)


def test_images_without_keypoints_give_no_matches() -> None:
    flat = torch.full((1, 64, 64), 0.5)
    assert len(SiftMatcher().match(flat, texture(64))) == 0
    assert len(SiftMatcher().match(texture(64), flat, search_radius=10)) == 0
