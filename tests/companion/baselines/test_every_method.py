"""The same textbook cases for every baseline: a known shift is found, unrelated images give next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patch_net import texture
from torch import Tensor

from companion.baselines import (
    AkazeMatcher,
    Baseline,
    BriskMatcher,
    EdgeOrientationMatcher,
    MutualInformationMatcher,
    OrbMatcher,
    PhaseCorrelationMatcher,
    RiftMatcher,
    SiftMatcher,
    TemplateMatcher,
)
from sarmatch.evaluation import metrics
from sarmatch.geometry import translation, warp

LOCAL = [SiftMatcher(), SiftMatcher(root=False), OrbMatcher(), AkazeMatcher(), BriskMatcher(), RiftMatcher()]
DENSE = [
    TemplateMatcher(template_px=29),
    MutualInformationMatcher(template_px=29),
    PhaseCorrelationMatcher(template_px=45),
    EdgeOrientationMatcher(template_px=29),
]
DX, DY = 6, -3


def pair(dx: float, dy: float, side: int = 128) -> tuple[Tensor, Tensor]:
    scene = texture(side + 64)
    size = (side, side)
    return warp(scene, translation(32, 32), size), warp(scene, translation(32 - dx, 32 - dy), size).expand(3, -1, -1)


def named(matchers: list[Baseline]) -> list[object]:
    return [pytest.param(matcher, id=str(matcher)) for matcher in matchers]


@pytest.mark.parametrize("matcher", named([*LOCAL, *DENSE]))
def test_a_known_shift_of_one_image_is_found(matcher: Baseline) -> None:
    matches = matcher.match(*pair(DX, DY), search_radius=10)
    errors = metrics.match_errors(matches, translation(DX, DY))
    assert len(matches) > 60
    assert metrics.mma(errors, 1.0) > 0.85
    assert np.linalg.norm(matches.xy_optical - matches.xy_sar, axis=1).max() <= 10.71  # sub-pixel steps on both axes


@pytest.mark.parametrize("matcher", named([*LOCAL, *DENSE]))
def test_matches_of_unrelated_images_are_right_by_chance_alone(matcher: Baseline) -> None:
    matches = matcher.match(texture(128, seed=1), texture(128, seed=2).expand(3, -1, -1), search_radius=10)
    errors = metrics.match_errors(matches, translation(DX, DY))
    assert metrics.mma(errors, 1.0) < 0.1  # 1 % of the area searched


@pytest.mark.parametrize("matcher", named([*LOCAL, *DENSE]))
def test_confidence_tells_a_shifted_image_from_another_one(matcher: Baseline) -> None:
    related = matcher.match(*pair(DX, DY), search_radius=10)
    unrelated = matcher.match(texture(128, seed=1), texture(128, seed=2).expand(3, -1, -1), search_radius=10)
    assert related.confidence.mean() > (unrelated.confidence.mean() if len(unrelated) else 0) + 0.03


@pytest.mark.parametrize("matcher", named([RiftMatcher(), *(m for m in DENSE if m != DENSE[2])]))
def test_contrast_may_be_inverted(matcher: Baseline) -> None:
    sar, optical = pair(DX, DY)
    matches = matcher.match(sar, 1 - optical, search_radius=10)
    assert metrics.mma(metrics.match_errors(matches, translation(DX, DY)), 1.0) > 0.85


@pytest.mark.parametrize("matcher", named([*LOCAL, *DENSE]))
def test_without_a_search_radius_the_whole_image_is_searched(matcher: Baseline) -> None:
    matches = matcher.match(*pair(20, 9), search_radius=None)
    assert metrics.mma(metrics.match_errors(matches, translation(20, 9)), 1.0) > 0.75


@pytest.mark.parametrize("matcher", named([*LOCAL, *DENSE]))
def test_images_without_structure_give_no_matches(matcher: Baseline) -> None:
    flat = torch.full((1, 64, 64), 0.5)
    assert len(matcher.match(flat, flat, search_radius=8)) == 0


@pytest.mark.parametrize("matcher", named(LOCAL))  # type: ignore[arg-type]
def test_keypoint_budget_is_kept(matcher: Baseline) -> None:
    assert len(type(matcher)(max_keypoints=40).describe(texture(128)[0]).xy) <= 40  # type: ignore[attr-defined,call-arg]
