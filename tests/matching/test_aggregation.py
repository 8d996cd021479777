"""Deformable neighbourhoods; the other forms of aggregation are tested with the volumes, in `test_correlation.py`."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from sarmatch.config import ModelConfig
from sarmatch.matching.aggregation import aggregated_logits, box_sums, consensus, deformable_consensus
from sarmatch.matching.correlation import Volume
from sarmatch.model import SarOpticalNet


def random_volume(size: int = 11, steps: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Volume:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, steps, steps, size, size, generator=generator, dtype=dtype) * 2 - 1
    valid = torch.rand(values.shape, generator=generator) > 0.1
    return Volume(values * valid, valid)


def by_definition(volume: Volume, weights: torch.Tensor, side: int, penalty: float) -> torch.Tensor:
    """Cell by cell and box by box, as the docstring says it."""
    _, steps, _, height, width = volume.values.shape
    box, found = side // 3, torch.zeros_like(volume.values)

    def sums(i: int, j: int, y: int, x: int) -> tuple[float, float]:
        half = box // 2
        rows, columns = slice(max(y - half, 0), y + half + 1), slice(max(x - half, 0), x + half + 1)
        w, v = weights[0, i, j, rows, columns], volume.values[0, i, j, rows, columns]
        return float(w.sum()), float((w * v).sum())

    def mean(i: int, j: int, y: int, x: int) -> float:
        if not (0 <= i < steps and 0 <= j < steps):
            return -1.0
        weight, total = sums(i, j, y, x)
        return total / weight if weight > 1e-12 else -1.0

    for i, j, y, x in product(range(steps), range(steps), range(height), range(width)):
        over = under = 0.0
        for dy, dx in product((-box, 0, box), (-box, 0, box)):
            if not (0 <= y + dy < height and 0 <= x + dx < width):
                continue
            at = y + dy, x + dx
            weight, _ = sums(i, j, *at)
            if dy or dx:
                ways = product((-1, 0, 1), (-1, 0, 1))
                best = max(mean(i + a, j + b, *at) - penalty * (abs(a) + abs(b)) for a, b in ways)
            else:
                best = mean(i, j, *at) if weight > 1e-12 else 0.0
            over, under = over + weight * best, under + weight
        found[0, i, j, y, x] = over / under if under > 1e-12 else 0.0
    return found


@pytest.mark.parametrize(("side", "penalty"), [(3, 0.0), (9, 0.05)])
def test_boxes_move_by_a_step_at_their_price(side, penalty):
    volume = random_volume(size=8, steps=3)
    reliability = torch.rand(volume.values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_definition(volume, volume.valid * reliability, side, penalty)
    found = deformable_consensus(volume, side, torch.tensor(penalty, dtype=torch.float64), reliability)
    assert torch.allclose(found, expected, atol=1e-9)


def test_at_a_high_price_the_neighbourhood_is_rigid():
    volume = random_volume()
    volume = Volume(volume.values, torch.ones_like(volume.valid))
    found = deformable_consensus(volume, 9, torch.tensor(9.0, dtype=torch.float64))
    inner = (..., slice(4, 7), slice(4, 7))  # where all of it lies on the image
    assert torch.allclose(found[inner], consensus(volume, 9).values[inner])


def test_a_neighbourhood_that_is_bent_agrees_as_one_that_is_not():
    """A peak that moves by a step a box is as clear as one that stays, which a rigid mean halves and more."""
    steps, size = 7, 27
    rigid, bent = torch.zeros(2, 1, steps, steps, size, size)
    rigid[0, 3, 3] = 1.0
    for x in range(size):
        bent[0, 3, 3 + round((x - 13) / 9), :, x] = 1.0
    every = torch.ones(1, steps, steps, size, size, dtype=torch.bool)
    middle = (0, 3, 3, 13, 13)
    free = torch.tensor(0.01)
    assert deformable_consensus(Volume(rigid, every), 27, free)[middle] == pytest.approx(1.0, abs=1e-6)
    assert deformable_consensus(Volume(bent, every), 27, free)[middle] == pytest.approx(1 - 6 / 9 * 0.01, abs=1e-6)
    assert consensus(Volume(bent, every), 27).values[middle] == pytest.approx(1 / 3, abs=0.02)


def test_nothing_that_counts_gives_zero():
    volume = random_volume()
    nothing = Volume(volume.values, torch.zeros_like(volume.valid))
    found = deformable_consensus(nothing, 9, torch.tensor(0.01, dtype=torch.float64))
    assert torch.equal(found, torch.zeros_like(found))


def test_its_gradient_is_that_of_differences():
    volume = random_volume(size=6, steps=3)
    penalty = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    values = volume.values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, p: deformable_consensus(Volume(v, volume.valid), 9, p), (values, penalty), fast_mode=True
    )


def test_the_network_adds_it_to_its_logits_at_the_learned_scale():
    net = SarOpticalNet(ModelConfig(uncertainty=False, consensus_cells=(3,), deformable_cells=(9, 15)))
    without = SarOpticalNet(ModelConfig(uncertainty=False, consensus_cells=(3,)))
    without.load_state_dict(net.state_dict(), strict=False)
    volume = random_volume(dtype=torch.float32)
    expected = aggregated_logits(without, volume, None).values
    for side, scale, penalty in zip((9, 15), net.deformable_log_scales, net.deformable_log_penalties, strict=True):
        expected = expected + scale.exp() * deformable_consensus(volume, side, penalty.exp())
    assert torch.allclose(aggregated_logits(net, volume, None).values, expected, atol=1e-4)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_box_sums_are_sums_over_windows(side):
    x = random_volume().values
    ones = torch.ones(1, 1, side, side, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x.flatten(0, 2)[:, None], ones, padding=side // 2)[:, 0].view(x.shape)
    assert torch.allclose(box_sums(x, side), expected)
