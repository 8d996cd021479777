"""Mutual information and phase correlation of single templates, computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from companion.baselines import MutualInformationMatcher, PhaseCorrelationMatcher, RiftMatcher
from companion.baselines.gradients import Features
from companion.baselines.local_features import GRID, PATCH_PX, maximum_index_histograms
from companion.baselines.similarities import _PHASE_FLOOR


def features(image: np.ndarray, usable: np.ndarray | None = None) -> Features:
    mask = torch.ones(image.shape, dtype=torch.bool) if usable is None else torch.from_numpy(usable)
    return Features(torch.from_numpy(image.astype(np.float32))[None], mask)


def test_mutual_information_is_that_of_scikit_learn_less_its_bias() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (24, 24)), rng.integers(0, 4, (34, 34))
    b[7:31, 3:27] = np.where(rng.random((24, 24)) < 0.5, (a + 1) % 4, b[7:31, 3:27])  # shown 2 px down, 2 px left
    usable = np.ones((34, 34), bool)
    usable[:, 30:] = False
    scores = MutualInformationMatcher(bins=4)._similarities(features(a), features(b, usable), 5, 3).numpy()
    for row, column, dy, dx in [(2, 2, 2, -2), (0, 0, 0, 0), (5, 5, 1, 3), (3, 4, -4, 1)]:
        y, x = np.mgrid[4 * row - 4 : 4 * row + 8, 4 * column - 4 : 4 * column + 8].reshape(2, -1)
        keep = (y >= 0) & (y < 24) & (x >= 0) & (x < 24)
        y, x = y[keep], x[keep]
        visible = usable[y + dy + 5, x + dx + 5]
        y, x = y[visible], x[visible]
        expected = mutual_info_score(a[y, x], b[y + dy + 5, x + dx + 5]) - 9 / (2 * len(y))
        assert scores[dy + 5, dx + 5, row, column] == pytest.approx(expected, abs=1e-5)
    best = scores[:, :, 3, 3].argmax()
    assert np.unravel_index(best, (11, 11)) == (7, 3)


def test_bins_hold_equally_many_pixels() -> None:
    sar = torch.rand((1, 40, 40), generator=torch.Generator().manual_seed(0)) ** 3
    first, _ = MutualInformationMatcher(bins=5)._features(sar, sar)
    assert np.bincount(first.channels.flatten().int().numpy()).tolist() == [320] * 5


def test_phase_correlation_is_that_of_one_template_and_window_at_a_time() -> None:
    rng = np.random.default_rng(0)
    a, b, radius, side = rng.normal(size=(24, 28)), rng.normal(size=(32, 36)), 4, 3
    scores = PhaseCorrelationMatcher()._similarities(features(a), features(b), radius, side).numpy()
    assert scores.shape == (9, 9, 6, 7)
    taper = np.hanning(14)[1:-1]
    row, column = 2, 3
    part = a[4 * row - 4 : 4 * row + 8, 4 * column - 4 : 4 * column + 8]
    template = np.zeros((20, 20))
    template[:12, :12] = (part - part.mean()) * taper[:, None] * taper
    window = b[4 * row - 4 : 4 * row + 16, 4 * column - 4 : 4 * column + 16]
    cross = np.fft.fft2(window) * np.fft.fft2(template).conj()
    half = np.abs(cross[:, :11])  # the mean amplitude is taken over the half spectrum of a real image
    surface = np.fft.ifft2(cross / (np.abs(cross) + _PHASE_FLOOR * half.mean() + 1e-6)).real
    np.testing.assert_allclose(scores[:, :, row, column], surface[:9, :9], atol=1e-5)


def test_maximum_index_histograms_by_hand() -> None:
    index = np.zeros((200, 200), int)
    index[:, 100:] = 4
    side = PATCH_PX // GRID
    (found,) = maximum_index_histograms(index, np.array([[100.0, 100.0]])).reshape(1, GRID, GRID, 6)
    expected = np.zeros((GRID, GRID, 6))
    expected[:, : GRID // 2, 0] = expected[:, GRID // 2 :, 4] = side**2
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected))
    corner = maximum_index_histograms(index, np.array([[0.0, 0.0]])).reshape(GRID, GRID, 6)
    assert corner[: GRID // 2].max() == corner[:, : GRID // 2].max() == 0 and corner[-1, -1, 0] > 0  # beyond the image


def test_rift_keeps_its_budget_of_corners_and_edge_points() -> None:
    image = torch.rand((160, 160), generator=torch.Generator().manual_seed(0))
    assert 100 < len(RiftMatcher(max_keypoints=300).describe(image).xy) <= 300
