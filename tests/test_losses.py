"""Matching loss by hand, by symmetry, and by what it must not reward."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sarmatch.losses import matching_loss, row_loss, soft_target_nll
from sarmatch.volumes import Volume, coarse_volume, log_softmax


def uniform(size: int = 5, cells: int = 1) -> Volume:
    return Volume(torch.zeros(1, size, size, cells, cells), torch.ones(1, size, size, cells, cells, dtype=torch.bool))


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_soft_targets_have_unit_mass(x, y):
    loss, inside = soft_target_nll(log_softmax(uniform()), torch.tensor([[[[x, y]]]]), radius=2)
    assert bool(inside.all())
    assert float(loss) == pytest.approx(math.log(25), rel=1e-4)  # any target of unit mass costs log 25 here


def test_soft_target_splits_bilinearly():
    log_probability = torch.full((1, 9, 1, 1), -20.0)
    log_probability[0, 4], log_probability[0, 5] = -1.0, -3.0  # displacements (0, 0) and (1, 0)
    loss, _ = soft_target_nll(log_probability, torch.tensor([[[[0.25, 0.0]]]]), radius=1)
    assert float(loss) == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)


def test_a_truth_outside_the_volume_costs_nothing_and_is_marked():
    loss, inside = soft_target_nll(log_softmax(uniform()), torch.tensor([[[[2.5, 0.0]]]]), radius=2)
    assert float(loss) == 0.0
    assert not bool(inside.any())


def known_shift(shift: tuple[int, int], cells: int = 8):
    sar = F.normalize(torch.randn(1, 64, cells, cells, generator=torch.Generator().manual_seed(0)), dim=1)
    optical = torch.roll(sar, (shift[1], shift[0]), dims=(2, 3))
    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    there = (x + shift[0] < cells) & (x + shift[0] >= 0) & (y + shift[1] < cells) & (y + shift[1] >= 0)
    back = (x - shift[0] < cells) & (x - shift[0] >= 0) & (y - shift[1] < cells) & (y - shift[1] >= 0)
    displacement = torch.tensor(shift, dtype=torch.float32).expand(1, cells, cells, 2)
    volume = coarse_volume(sar, optical, 3)
    return Volume(volume.values * 50, volume.valid), displacement, there[None], back[None]


def test_the_true_displacement_costs_next_to_nothing_and_a_wrong_one_much():
    logits, displacement, there, back = known_shift((1, -2))
    assert float(matching_loss(logits, displacement, displacement, there, back)) < 1e-3
    assert float(matching_loss(logits, displacement + 1, displacement + 1, there, back)) > 5


def test_the_loss_is_symmetric_in_the_two_images():
    generator = torch.Generator().manual_seed(1)
    sar, optical = (F.normalize(torch.randn(1, 8, 6, 6, generator=generator), dim=1) for _ in range(2))
    forward = torch.full((1, 6, 6, 2), 0.3)
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    one = matching_loss(coarse_volume(sar, optical, 2), forward, forward, mask, mask)
    other = matching_loss(coarse_volume(optical, sar, 2), -forward, -forward, mask, mask)
    assert torch.allclose(one, other, atol=1e-5)


def test_masked_cells_do_not_count():
    logits, displacement, there, _ = known_shift((1, 0))
    wrong = displacement.clone()
    wrong[0, 3, 3] += 1
    masked = there.clone()
    masked[0, 3, 3] = False
    assert float(row_loss(logits, wrong, there)) > 0.1
    assert float(row_loss(logits, wrong, masked)) < 1e-3


def test_a_truth_that_is_no_candidate_does_not_count():
    logits, displacement, there, _ = known_shift((2, 0))
    within = torch.zeros(7, 7, dtype=torch.bool)
    within[3, 3] = True
    assert float(row_loss(logits, displacement, there, within)) == 0.0


def test_a_pair_without_usable_cells_gives_zero_not_nan():
    logits, displacement, _, _ = known_shift((0, 0))
    nowhere = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert matching_loss(logits, displacement, displacement, nowhere, nowhere).tolist() == [0.0]


def test_gradients_raise_the_true_similarity():
    logits, displacement, there, _ = known_shift((0, 0))
    values = torch.zeros_like(logits.values, requires_grad=True)
    row_loss(Volume(values, logits.valid), displacement, there).sum().backward()
    assert values.grad is not None
    assert (values.grad[0, 3, 3] < 0).all()  # no displacement is the truth everywhere
    assert (values.grad[0, 0, 0][logits.valid[0, 0, 0]] > 0).all()
