"""Matching loss by hand, by symmetry, and by what it must not reward."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity
from two_processes import run_in_two_processes

from sarmatch.matching.assignment import log_softmax
from sarmatch.matching.correlation import Volume, coarse_volume
from sarmatch.training.losses import (
    attenuated_residual,
    info_nce,
    info_nce_printed,
    matching_loss,
    mismatch_loss,
    rotation_loss,
    row_loss,
    soft_target_nll,
)


def uniform(size: int = 5, cells: int = 1) -> Volume:
    return Volume(torch.zeros(1, size, size, cells, cells), torch.ones(1, size, size, cells, cells, dtype=torch.bool))


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_soft_targets_have_unit_mass(x, y):
    loss, inside = soft_target_nll(log_softmax(uniform()), torch.tensor([[[[x, y]]]]), radius=2)
    assert bool(inside.all())
    assert float(loss) == pytest.approx(math.log(25), rel=1e-4)  # any target of unit mass costs log 25 here


def test_soft_target_splits_bilinearly():
    logits = torch.full((1, 9, 1, 1), -20.0)
    logits[0, 4], logits[0, 5] = -1.0, -3.0  # displacements (0, 0) and (1, 0)
    loss, _ = soft_target_nll(logits, torch.tensor([[[[0.25, 0.0]]]]), radius=1)
    assert float(loss) == pytest.approx(0.75 * 1.0 + 0.25 * 3.0 + math.log(math.exp(-1) + math.exp(-3)), abs=1e-5)


def test_the_gradient_by_hand_is_the_one_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 25, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    truth = 4 * torch.rand(2, 3, 4, 2, generator=generator, dtype=torch.float64) - 2
    truth[0, 0, 0] = torch.tensor([1.0, 2.0])  # on a step and at the border
    assert torch.autograd.gradcheck(lambda x: soft_target_nll(x, truth, 2)[0], logits)
    steps = torch.arange(-2.0, 3.0, dtype=torch.float64)
    across, down = ((1 - (truth[..., axis, None] - steps).abs()).clamp(min=0) for axis in (0, 1))
    target = (down[..., :, None] * across[..., None, :]).flatten(-2)
    expected = -(target * logits.log_softmax(1).movedim(1, -1)).sum(-1)
    assert torch.allclose(soft_target_nll(logits, truth, 2)[0], expected)


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


def embeddings(n: int, seed: int, dim: int = 6):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]


def test_contrast_of_two_pairs_by_hand():
    z = torch.eye(2)
    turned = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    # Cosines: own 0.6 each, the other -0.8 or 0.8.
    row = (math.log(1 + math.exp((-0.8 - 0.6) / 0.5)) + math.log(1 + math.exp((0.8 - 0.6) / 0.5))) / 2
    assert float(info_nce(z, turned, 0.5)) == pytest.approx(row, rel=1e-5)  # the columns mirror the rows here
    assert float(info_nce_printed(z, turned, 0.5)) == pytest.approx(((-0.8 - 0.6) + (0.8 - 0.6)) / 0.5 / 2, rel=1e-5)


@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_contrast_is_the_log_loss_of_a_classification_of_partners(n, seed, temperature):
    z_sar, z_optical = embeddings(n, seed)
    # scikit-learn clips probabilities at the precision of their type: in double that is beyond 2 / temperature.
    cosines = cosine_similarity(z_sar.double(), z_optical.double())
    directions = [log_loss(range(n), softmax(c / temperature, axis=1), labels=range(n)) for c in (cosines, cosines.T)]
    assert float(info_nce(z_sar, z_optical, temperature)) == pytest.approx(np.mean(directions), rel=1e-5, abs=1e-9)


@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(0.05, 2.0))
def test_printed_contrast_is_equation_4(n, seed, temperature):
    z_sar, z_optical = embeddings(n, seed)
    e = np.exp(cosine_similarity(z_sar, z_optical) / temperature)
    terms = [-np.log(e[i, i] / sum(e[i, k] for k in range(n) if k != i)) for i in range(n)]
    assert float(info_nce_printed(z_sar, z_optical, temperature)) == pytest.approx(np.mean(terms), rel=1e-5, abs=1e-9)


def test_printed_contrast_has_no_lower_bound_and_the_standard_one_stops_at_zero():
    z = torch.eye(3)
    printed = [float(info_nce_printed(scale * z, z, 0.07)) for scale in (1, 10, 100)]
    assert printed == pytest.approx([math.log(2) - scale / 0.07 for scale in (1, 10, 100)], rel=1e-5)
    assert 0 <= float(info_nce(100 * z, z, 0.07)) < 1e-6
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(info_nce_printed(opposite, opposite, 0.07)) == pytest.approx(-2 / 0.07)  # least for unit vectors


def test_contrast_is_symmetric_and_ignores_the_order_of_pairs():
    z_sar, z_optical = embeddings(5, 0)
    order = torch.tensor([3, 0, 4, 1, 2])
    loss = info_nce(z_sar, z_optical, 0.1)
    assert torch.allclose(loss, info_nce(z_optical, z_sar, 0.1))
    assert torch.allclose(loss, info_nce(z_sar[order], z_optical[order], 0.1))
    assert not torch.allclose(info_nce_printed(z_sar, z_optical, 0.1), info_nce_printed(z_optical, z_sar, 0.1))


@pytest.mark.parametrize("contrast", [info_nce, info_nce_printed])
def test_unpaired_rows_take_no_part_in_contrast(contrast):
    z_sar, z_optical = embeddings(5, 1)
    mask = torch.tensor([True, False, True, True, False])
    z_sar.requires_grad_()
    loss = contrast(z_sar, z_optical, 0.07, mask)
    assert torch.allclose(loss, contrast(z_sar[mask], z_optical[mask], 0.07))
    assert not torch.allclose(loss, contrast(z_sar, z_optical, 0.07))
    loss.backward()
    assert (z_sar.grad.abs().sum(dim=1) > 0).tolist() == mask.tolist()


@pytest.mark.parametrize("contrast", [info_nce, info_nce_printed])
def test_contrast_without_negatives_is_zero_and_can_be_differentiated(contrast):
    z_sar, z_optical = embeddings(3, 2)
    z_sar.requires_grad_()
    for mask in ([False, False, False], [False, True, False]):
        loss = contrast(z_sar, z_optical, 0.07, torch.tensor(mask))
        loss.backward()
        assert loss.item() == 0.0
    assert not z_sar.grad.any()


def test_contrast_rejects_feature_maps():
    with pytest.raises(ValueError, match=r"must both be \(B, D\)"):
        info_nce(torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 4, 4), 0.07)
    with pytest.raises(ValueError, match=r"\(2, 8\) and \(3, 8\)"):
        info_nce(torch.zeros(2, 8), torch.zeros(3, 8), 0.07)


def test_rotation_loss_averages_the_modalities():
    sar, optical = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    turns_sar, turns_optical = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 2, 3, 2, 2])
    expected = [
        log_loss(turns, softmax(logits.numpy(), axis=1), labels=range(4))
        for logits, turns in ((sar, turns_sar), (optical, turns_optical))
    ]
    assert float(rotation_loss(sar, optical, turns_sar, turns_optical)) == pytest.approx(np.mean(expected), rel=1e-5)
    chance = rotation_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([1, 2]))
    assert float(chance) == pytest.approx(math.log(4))


def test_mismatch_is_the_cross_entropy_of_each_sample():
    generator = torch.Generator().manual_seed(0)
    aleatoric = torch.rand(3, 6, 5, generator=generator)
    correct, mask = (torch.rand(3, 6, 5, generator=generator) > share for share in (0.6, 0.3))
    loss = mismatch_loss(aleatoric, correct, mask)
    for b in range(3):
        wrong = (~correct[b])[mask[b]].numpy()
        assert float(loss[b]) == pytest.approx(log_loss(wrong, aleatoric[b][mask[b]].double().numpy()), rel=1e-4)


def test_doubt_pays_where_matches_are_wrong_and_costs_where_they_are_right():
    aleatoric = torch.full((1, 1, 2), 0.5, requires_grad=True)
    mismatch_loss(aleatoric, torch.tensor([[[True, False]]]), torch.ones(1, 1, 2, dtype=torch.bool)).sum().backward()
    assert aleatoric.grad.flatten().tolist() == pytest.approx([1.0, -1.0])  # half of (1, -1) / (1 - 0.5)


def test_mismatch_of_certainty_gone_wrong_stays_finite():
    everywhere = torch.ones(1, 1, 2, dtype=torch.bool)
    loss = mismatch_loss(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[False, True]]]), everywhere)
    assert float(loss) == pytest.approx(-math.log(1e-4), rel=1e-3)


def test_the_best_scale_of_a_residual_is_its_mean():
    error = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0)) * 40
    everywhere = torch.ones(1, 5, 5, dtype=torch.bool)

    def loss(log_scale: float) -> float:
        return float(attenuated_residual(error, torch.full_like(error, log_scale), everywhere))

    found = minimize_scalar(loss, bounds=(-3, 8), method="bounded")
    assert math.exp(found.x) == pytest.approx(float(error.mean()), rel=1e-2)
    assert found.fun == pytest.approx(1 + math.log(error.mean()), rel=1e-4)


def test_attenuation_by_hand():
    error, log_scale = torch.tensor([[[6.0, 1.0]]]), torch.tensor([[[math.log(3.0), 0.0]]])
    loss = attenuated_residual(error, log_scale, torch.ones(1, 1, 2, dtype=torch.bool))
    assert float(loss) == pytest.approx((6 / 3 + math.log(3) + 1) / 2)


@pytest.mark.parametrize("what", ["mismatch", "residual"])
def test_cells_that_do_not_count_neither_cost_nor_teach(what):
    values = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # none at all in the second sample
    loss = mismatch_loss(values, values > 2, mask) if what == "mismatch" else attenuated_residual(values, values, mask)
    assert loss[1].item() == 0.0
    loss.sum().backward()
    assert (values.grad[~mask] == 0).all()
    assert (values.grad[mask] != 0).all()


GATHER = """
import json, sys
import torch.distributed as dist
from sarmatch.training.losses import info_nce, over_processes

z_sar, z_optical = (torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
paired = torch.tensor([True, True, False, True, True, True])
weights = torch.eye(4).requires_grad_()

def loss(rows, weights):
    ends = over_processes(z_sar[rows] @ weights), over_processes(z_optical[rows] @ weights)
    return info_nce(*ends, 0.5, over_processes(paired[rows]))

mine = torch.arange(3) + 3 * dist.get_rank()
found = loss(mine, weights)
found.backward()
dist.all_reduce(weights.grad)
expected_weights = torch.eye(4).requires_grad_()
expected = info_nce(z_sar @ expected_weights, z_optical @ expected_weights, 0.5, paired)
expected.backward()
torch.testing.assert_close(found, expected)
torch.testing.assert_close(weights.grad / 2, expected_weights.grad)
"""


def test_contrast_goes_over_the_images_of_all_processes(tmp_path: Path) -> None:
    """The loss, and the gradient after the mean over processes, are those of all images in one."""
    run_in_two_processes(GATHER, tmp_path)
