"""Template matching: shifts of one image are found, unrelated images give chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patch_net import texture
from torch import Tensor

from companion.baselines import TemplateMatcher, template
from companion.baselines.gradients import Features
from sarmatch.evaluation import metrics
from sarmatch.geometry import translation, warp
from sarmatch.model.oriented_gradients import gaussian_blur


def shifted_pair(dx: float, dy: float, size: tuple[int, int] = (64, 80)) -> tuple[Tensor, Tensor]:
    """SAR pixel p shows what optical pixel p + (dx, dy) shows; the optical image is the SAR image's negative."""
    scene = texture(128)
    sar = warp(scene, translation(20, 24), size)
    optical = 1 - warp(scene, translation(20 - dx, 24 - dy), size)
    return sar, optical.expand(3, -1, -1)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (5, -3), (-7.5, 2.25)])
def test_finds_a_known_shift_to_a_fraction_of_a_pixel(dx: float, dy: float) -> None:
    sar, optical = shifted_pair(dx, dy)
    matches = TemplateMatcher(template_px=29).match(sar, optical, search_radius=10)
    errors = metrics.match_errors(matches, translation(dx, dy))
    assert len(matches) > 100
    assert metrics.mma(errors, 1.0) > 0.97
    assert np.median(errors) < 0.2
    assert matches.confidence.mean() > 0.3


def test_keypoints_are_the_stride_4_grid_and_all_stay_without_the_mutual_check() -> None:
    sar, optical = texture(64, seed=1), texture(64, seed=2)
    matches = TemplateMatcher(template_px=29, mutual=False).match(sar, optical, search_radius=8)
    assert set(np.unique((matches.xy_sar - 1.5) % 4)) == {0.0}
    assert len(np.unique(matches.xy_sar, axis=0)) == len(matches)
    mutual = TemplateMatcher(template_px=29).match(sar, optical, search_radius=8)
    assert len(mutual) < 0.8 * len(matches) <= 0.8 * 16 * 16
    places = np.floor((mutual.xy_optical + 0.5) / 4)
    assert len(np.unique(places, axis=0)) > 0.95 * len(mutual)  # refinement may cross into the next cell


def test_search_radius_bounds_displacements_and_what_can_be_found() -> None:
    sar, optical = shifted_pair(9, 0)
    for radius in (6.0, 6.5):
        matches = TemplateMatcher(template_px=29).match(sar, optical, search_radius=radius)
        moved = np.linalg.norm(matches.xy_optical - matches.xy_sar, axis=1)
        assert moved.max() <= radius + 0.71  # half a pixel of refinement on each axis
        assert metrics.mma(metrics.match_errors(matches, translation(9, 0)), 2.0) < 0.1


def test_without_a_radius_the_whole_image_predicts_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_UNKNOWN_RADIUS", 6)
    sar, optical = shifted_pair(18, -15)
    matches = TemplateMatcher(template_px=29).match(sar, optical)
    in_sight = matches.select((matches.xy_sar[:, 0] < 54) & (matches.xy_sar[:, 1] > 22))
    assert len(in_sight) > 50
    assert metrics.mma(metrics.match_errors(in_sight, translation(18, -15)), 1.0) > 0.98


def test_unrelated_images_match_at_chance() -> None:
    sar, optical = texture(96, seed=1), texture(96, seed=2)
    matches = TemplateMatcher(template_px=29, mutual=False).match(sar, optical, search_radius=12)
    assert len(matches) > 300
    chance = 9 / (np.pi * 12**2)  # 3 x 3 of the displacements searched lie within 1.5 px
    assert metrics.mma(metrics.match_errors(matches, np.eye(3)), 1.5) < 4 * chance
    related = TemplateMatcher(template_px=29, mutual=False).match(sar, 1 - sar, search_radius=12)
    assert np.median(matches.confidence) < 0.5 * np.median(related.confidence)


def test_images_of_different_sizes_and_matches_inside_them() -> None:
    sar, optical = shifted_pair(4, 6)
    small = optical[:, :50, :61]
    matches = TemplateMatcher(template_px=29).match(sar, small, search_radius=10)
    x, y = matches.xy_sar.T
    in_sight = matches.select((x < 44) & (y < 36))  # most of the template is on the image
    assert len(in_sight) > 50
    assert metrics.mma(metrics.match_errors(in_sight, translation(4, 6)), 1.0) > 0.98
    assert matches.xy_optical.min() >= -0.5 and (matches.xy_optical <= (60.5, 49.5)).all()


def test_strips_give_the_same_matches_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sar, optical = shifted_pair(5, -3)
    whole = TemplateMatcher(template_px=29).match(sar, optical, search_radius=6)
    monkeypatch.setattr(template, "_MAX_ENTRIES", 13 * 13 * 20 * 3)  # three rows of keypoints at a time
    strips = TemplateMatcher(template_px=29).match(sar, optical, search_radius=6)
    np.testing.assert_allclose(strips.xy_optical, whole.xy_optical, atol=1e-4)
    np.testing.assert_allclose(strips.confidence, whole.confidence, atol=1e-4)


def test_scores_are_the_normalised_correlation_of_the_pixels_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_PIXEL_STEP", 1)  # exact instead of every second pixel
    rng = np.random.default_rng(0)
    a, b = (gaussian_blur(torch.from_numpy(rng.normal(size=(3, 32, 32)).astype(np.float32)), 2.0) for _ in range(2))
    usable = torch.zeros(32, 32, dtype=torch.bool)
    usable[3:30, 2:31] = True
    everywhere = torch.ones(32, 32, dtype=torch.bool)
    window = template._framed(Features(b, everywhere), (32, 32), (0, 0), 5)
    masked = Features(a * usable, usable)
    scores = TemplateMatcher()._similarities(masked, window, 5, 3)
    scores = scores.masked_fill(~template._possible(masked, window, 5.0, 3, 0.5), -np.inf)
    for row, column, dy, dx in [(3, 4, 2, -3), (0, 2, 1, 1), (5, 6, 3, 4)]:
        y, x = np.mgrid[4 * row - 4 : 4 * row + 8, 4 * column - 4 : 4 * column + 8].reshape(2, -1)
        keep = (y >= 3) & (y < 30) & (x >= 2) & (x < 31) & (y + dy < 32) & (x + dx < 32)
        template_a, part_b = a[:, y[keep], x[keep]], b[:, (y + dy)[keep], (x + dx)[keep]]
        expected = (template_a * part_b).sum() / (template_a.norm() * part_b.norm())
        assert scores[dy + 5, dx + 5, row, column] == pytest.approx(float(expected), abs=1e-4)
    assert torch.isneginf(scores[0, 0]).all()  # 7 px away
    assert torch.isfinite(scores[5, 0, :, 3:]).all() and torch.isneginf(scores[5, 10, :, 7]).all()
