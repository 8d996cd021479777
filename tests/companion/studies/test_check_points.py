"""Check points: a known local shift is told twice, and places where the two disagree are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scene_files import texture
from torch import Tensor

from companion.studies import check_points as module
from companion.studies.check_points import AGREE_PX, CheckPoints, check_points, information_shift
from companion.studies.groundtruth import RELIABLE_QUALITY, ResidualShift
from sarmatch.data.pairs import Pair


def ground(side: int, seed: int) -> Tensor:
    return torch.from_numpy(texture(side, side, seed)) / 255


def pair_of(sar: Tensor, optical: Tensor) -> Pair:
    valid = torch.ones(sar.shape, dtype=torch.bool)
    return Pair(sar[None], optical.expand(3, -1, -1), valid, "pair", scene="scene")


@pytest.mark.parametrize("reversed_grey", [False, True])
def test_mutual_information_finds_a_shift_whatever_the_grey_values(reversed_grey: bool) -> None:
    scene = ground(240, 0)
    sar, optical = scene[20:220, 20:220], scene[23:223, 15:215]
    optical = (1 - optical) ** 2 if reversed_grey else optical
    found = information_shift(sar[None], optical[None], 10)
    assert (found.dx, found.dy) == pytest.approx((5, -3), abs=0.3)


def test_mutual_information_needs_a_margin() -> None:
    with pytest.raises(ValueError, match="at least 64 px for shifts of 16 px, got 60 x 60"):
        information_shift(torch.rand(1, 60, 60), torch.rand(3, 60, 60), 16)


def test_every_part_of_a_pair_has_its_own_shift() -> None:
    scene = ground(620, 1)
    sar = scene[20:596, 20:596]
    optical = torch.cat([scene[20:596, 16:304], scene[20:596, 314:602]], dim=1)  # +4 px at the left, -6 at the right
    found = check_points(pair_of(sar, optical))
    assert found.n_blocks == 25
    shift = found.xy_optical - found.xy_sar
    left, right = found.xy_sar[:, 0] < 140, found.xy_sar[:, 0] > 430
    assert left.sum() >= 4 and right.sum() >= 4
    np.testing.assert_allclose(shift[left], np.tile([4, 0], (left.sum(), 1)), atol=0.5)
    np.testing.assert_allclose(shift[right], np.tile([-6, 0], (right.sum(), 1)), atol=0.5)


def test_images_of_two_places_have_no_check_points() -> None:
    found = check_points(pair_of(ground(300, 2), ground(300, 3)))
    assert len(found.xy_sar) == 0 and found.xy_optical.shape == (0, 2)
    assert found.nearest(np.zeros((4, 2))).size == 0


def test_a_block_counts_only_where_both_estimates_agree_and_the_gradients_stand_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = ground(300, 4)
    pair = pair_of(scene[20:276, 20:276], scene[20:276, 16:272])
    assert len(check_points(pair).xy_sar) == 1
    for name, told in (
        ("information_shift", ResidualShift(4.0 + 2 * AGREE_PX, 0.0, 9.0)),  # clear, and elsewhere
        ("residual_shift", ResidualShift(4.0, 0.0, 0.5 * RELIABLE_QUALITY)),  # the same place, by chance
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, told=told: told)
            assert len(check_points(pair).xy_sar) == 0


def test_the_nearest_check_point() -> None:
    points = CheckPoints(np.array([[0.0, 0], [10, 0], [5, 9]]), np.zeros((3, 2)), 25)
    np.testing.assert_array_equal(points.nearest(np.array([[9.0, 1], [0, 1], [4, 8]])), [1, 0, 2])


def test_chance_agreement_is_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(-16, 17, (2, 400_000, 2))
    share = (np.linalg.norm(first - second, axis=1) <= AGREE_PX).mean()
    assert 1 / share == pytest.approx(87, rel=0.1)
