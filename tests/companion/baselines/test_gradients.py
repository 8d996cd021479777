"""Oriented gradients and their correlation against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from companion.baselines.gradients import Features, oriented_gradients, parabola_peak, shift_scores
from sarmatch.config import N_ORIENTATIONS
from sarmatch.model.oriented_gradients import gaussian_blur


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_blur(torch.rand((1, height, width), generator=generator), 2.0)
    return (noise - noise.min()) / (noise.max() - noise.min())


def everywhere(channels: Tensor) -> Features:
    return Features(channels, torch.ones(channels.shape[1:], dtype=torch.bool))


def test_channels_have_mean_zero_and_length_at_most_one() -> None:
    channels = oriented_gradients(texture(40, 50), 1.0).channels
    assert channels.shape == (N_ORIENTATIONS, 40, 50)
    assert channels.norm(dim=0).max() <= 1
    torch.testing.assert_close(channels.mean(dim=0), torch.zeros(40, 50), atol=1e-6, rtol=0)


def test_channels_follow_the_direction_of_an_edge_whatever_its_sign_and_height() -> None:
    ramp = torch.linspace(0, 1, 40)
    along_x, along_y = ramp.expand(1, 40, 40), ramp[:, None].expand(1, 40, 40)
    at = (slice(None), 20, 20)
    assert oriented_gradients(along_x, 1.0).channels[at].argmax() == 0
    assert oriented_gradients(along_y, 1.0).channels[at].argmax() in (4, 5)  # 90 degrees lies between 80 and 100
    same = [oriented_gradients(image, 1.0).channels[at] for image in (along_x, 1 - along_x, 0.1 * along_x + 0.3)]
    torch.testing.assert_close(same[1], same[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(same[2], same[0], atol=1e-4, rtol=0)


def test_a_constant_image_and_invalid_pixels_have_no_features() -> None:
    assert (oriented_gradients(torch.full((3, 20, 20), 0.4), 1.0).channels == 0).all()
    valid = torch.ones(40, 40, dtype=torch.bool)
    valid[:, :10] = False
    channels, usable = oriented_gradients(texture(40, 40), 1.0, valid)
    assert ((channels != 0).any(dim=0) == usable).all()
    assert usable[4:-4, 14:-4].all() and usable.sum() == 32 * 22  # four px away from the border and from no data


def test_blur_keeps_constants_and_spreads_an_impulse_as_a_gaussian() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((2, 9, 9), 0.7), 1.3), torch.full((2, 9, 9), 0.7))
    impulse = torch.zeros(1, 21, 21)
    impulse[0, 10, 10] = 1
    blurred = gaussian_blur(impulse, 1.5)[0]
    assert blurred[10, 11] / blurred[10, 10] == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-4)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)


def test_shift_scores_equal_the_sum_written_out() -> None:
    rng = np.random.default_rng(0)
    usable = torch.from_numpy(rng.random((9, 11)) > 0.2)
    a = Features(torch.from_numpy(rng.normal(size=(2, 9, 11)).astype(np.float32)) * usable, usable)
    b = everywhere(torch.from_numpy(rng.normal(size=(2, 9, 8)).astype(np.float32)))
    scores = shift_scores(a, b, 3)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            products = [
                float((a.channels[:, y, x] * b.channels[:, y + dy, x + dx]).sum())
                for y in range(9)
                for x in range(11)
                if usable[y, x] and 0 <= y + dy < 9 and 0 <= x + dx < 8
            ]
            assert scores[dy + 3, dx + 3] == pytest.approx(np.mean(products), abs=1e-4)


def test_shift_scores_are_unknown_where_little_overlaps() -> None:
    a = everywhere(torch.ones(1, 8, 8))
    scores = shift_scores(a, a, 7)
    assert scores[7, 7] == pytest.approx(1) and np.isneginf(scores[0, 0])
    assert np.isfinite(scores[7, 12]) and np.isneginf(scores[7, 13])  # 3 of 8 columns overlap, then 2 of 8
    nothing = Features(a.channels * 0, a.usable & False)
    assert np.isneginf(shift_scores(a, nothing, 7)).all()


def test_parabola_finds_the_vertex_and_refuses_where_there_is_none() -> None:
    x = np.array([-1.0, 0.0, 1.0])
    for vertex in (-0.4, 0.0, 0.3):
        assert parabola_peak(*(5 - 2 * (x - vertex) ** 2)) == pytest.approx(vertex)
    assert parabola_peak(np.array(1.0), np.array(1.0), np.array(1.0)) == 0
    assert parabola_peak(np.array(-np.inf), np.array(1.0), np.array(0.5)) == 0
    assert parabola_peak(np.array(0.0), np.array(1.0), np.array(1.9)) == 0.5  # clipped


def test_bands_are_smoothed_each_by_itself() -> None:
    image = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    together = gaussian_blur(image, 1.5)
    for i in range(2):
        for j in range(3):
            expected = scipy.ndimage.gaussian_filter(image[i, j].numpy(), 1.5, mode="nearest", radius=5)
            np.testing.assert_allclose(together[i, j].numpy(), expected, atol=1e-6)
