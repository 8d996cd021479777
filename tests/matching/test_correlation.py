"""Similarity volumes and consensus against naive loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from sarmatch.matching.aggregation import aggregate, consensus
from sarmatch.matching.assignment import best, log_softmax
from sarmatch.matching.correlation import (
    PIXEL_STEP,
    Volume,
    _Shift,
    _SlantedProduct,
    coarse_volume,
    disc,
    displaced,
    fine_volume,
    swap,
)


def descriptors(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_coarse(sar, optical, radius):
    """The definition, entry by entry."""
    height, width = sar.shape[-2:]
    size = 2 * radius + 1
    values = torch.zeros(len(sar), size, size, height, width)
    valid = torch.zeros(size, size, height, width, dtype=torch.bool)
    for i in range(size):
        for j in range(size):
            for y in range(height):
                for x in range(width):
                    to_y, to_x = y + i - radius, x + j - radius
                    if 0 <= to_y < optical.shape[-2] and 0 <= to_x < optical.shape[-1]:
                        values[:, i, j, y, x] = (sar[..., y, x] * optical[..., to_y, to_x]).sum(1)
                        valid[i, j, y, x] = True
    return values, valid


@pytest.mark.parametrize("optical_size", [(5, 6), (7, 4)])
def test_coarse_volume_is_its_definition(optical_size):
    sar, optical = descriptors(2, 3, 5, 6), descriptors(2, 3, *optical_size, seed=1)
    volume = coarse_volume(sar, optical, 2)
    values, valid = naive_coarse(sar, optical, 2)
    assert torch.allclose(volume.values, values, atol=1e-6)
    assert torch.equal(volume.valid[0], valid)


def test_coarse_volume_leaves_out_cells_without_data():
    sar, optical = descriptors(1, 3, 4, 4), descriptors(1, 3, 4, 4, seed=1)
    optical_valid = torch.ones(1, 4, 4, dtype=torch.bool)
    optical_valid[0, 2, 3] = False
    sar_valid = torch.ones(1, 4, 4, dtype=torch.bool)
    sar_valid[0, 0, 0] = False
    volume = coarse_volume(sar, optical, 1, sar_valid=sar_valid, optical_valid=optical_valid)
    assert not volume.valid[..., 0, 0].any()
    assert not volume.valid[0, 1, 1, 2, 3]  # no displacement
    assert not volume.valid[0, 0, 1, 3, 3]  # one up from the cell below
    assert volume.valid[0, 1, 1, 2, 2]
    assert (volume.values[~volume.valid] == 0).all()


@pytest.mark.parametrize("optical_size", [(5, 6), (7, 4)])
def test_displaced_reads_the_map_where_the_volume_compares(optical_size):
    height, width = optical_size
    optical_map = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    seen = displaced(optical_map, (5, 6), 2)
    assert seen.shape == (2, 5, 5, 5, 6)
    for i in range(5):
        for j in range(5):
            for y in range(5):
                for x in range(6):
                    to_y, to_x = y + i - 2, x + j - 2
                    on_grid = 0 <= to_y < height and 0 <= to_x < width
                    expected = optical_map[:, to_y, to_x] if on_grid else torch.zeros(2)
                    assert torch.equal(seen[:, i, j, y, x], expected)


def test_fine_volume_is_its_definition():
    """Two pairs, each around an offset of its own, entry by entry."""
    sar, optical = descriptors(2, 2, 16, 32), descriptors(2, 2, 16, 32, seed=1)
    offset = torch.tensor([[1, -2], [-5, 3]])
    volume = fine_volume(sar, optical, offset, radius=1, cell=4)
    assert volume.values.shape == volume.valid.shape == (2, 3, 3, 4, 8)
    for b, i, j, row, column in itertools.product(range(2), range(3), range(3), range(4), range(8)):
        dx, dy = (offset[b] + torch.tensor([j - 1, i - 1])).tolist()
        pixels = list(itertools.product(range(4 * row, 4 * row + 4, PIXEL_STEP), range(4 * column, 4 * column + 4, 2)))
        valid = all(0 <= y + dy < 16 and 0 <= x + dx < 32 for y, x in pixels)
        assert bool(volume.valid[b, i, j, row, column]) == valid
        products = [(sar[b, :, y, x] * optical[b, :, y + dy, x + dx]).sum() for y, x in pixels if valid]
        expected = float(torch.stack(products).mean()) if valid else 0.0
        assert float(volume.values[b, i, j, row, column]) == pytest.approx(expected, abs=1e-6)


def test_gradients_written_by_hand():
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)

    image, offset = random(2, 2, 4, 5), torch.tensor([[1, -2], [-3, 6]])
    assert gradcheck(lambda x: _Shift.apply(x, offset, 2), (image,))
    view = ((2, 2, 2), (12, 3, 1), (0, 6))  # of the first point and of the second
    assert gradcheck(lambda a, b: _SlantedProduct.apply(a, b, *view), (random(2, 3, 2), random(2, 3, 6)))
    values, weights = random(1, 3, 3, 4, 5), random(1, 3, 3, 4, 5)
    scales, valid = random(3), torch.ones(1, 3, 3, 4, 5, dtype=torch.bool)

    def logits(v: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return aggregate(Volume(v, valid), (3, 5), s, w.exp()).values

    assert gradcheck(logits, (values, weights, scales))


@pytest.mark.parametrize("weighted", [False, True])
def test_aggregate_adds_the_cell_and_its_means_each_times_its_scale(weighted):
    generator = torch.Generator().manual_seed(0)
    values, valid = (
        torch.randn(2, 3, 3, 6, 7, generator=generator),
        torch.rand(1, 3, 3, 6, 7, generator=generator) > 0.8,
    )
    weights = torch.rand(2, 3, 3, 6, 7, generator=generator) if weighted else None
    volume, scales = Volume(values * valid, valid), torch.tensor([0.5, 2.0, 3.0])
    result = aggregate(volume, (3, 5), scales, weights)
    means = [consensus(volume, side, weights) for side in (3, 5)]
    alone = volume.values if weights is None else volume.values * weights
    assert torch.allclose(result.values, 0.5 * alone + 2 * means[0].values + 3 * means[1].values, atol=1e-5)
    assert torch.equal(result.valid, means[1].valid)
    assert not result.valid.all()  # else nothing was tested


@pytest.mark.parametrize("side", [3, 5, 9])
def test_consensus_is_the_weighted_mean_of_valid_neighbours(side):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 3, 3, 6, 7, generator=generator)
    valid = torch.rand(1, 3, 3, 6, 7, generator=generator) > 0.3
    weights = torch.rand(1, 1, 1, 6, 7, generator=generator)
    result = consensus(Volume(values * valid, valid), side, weights)
    half = side // 2
    for y, x in [(0, 0), (3, 4), (5, 6)]:
        window = (..., slice(max(0, y - half), y + half + 1), slice(max(0, x - half), x + half + 1))
        weight = (valid * weights)[window]
        expected = (values[window] * weight).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp(min=1e-3)
        assert torch.allclose(result.values[..., y, x], expected, atol=1e-5)


def test_consensus_of_a_rigid_shift_finds_it_where_single_cells_cannot():
    sar = descriptors(1, 4, 12, 12)
    noise = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(3))
    optical = F.normalize(torch.roll(sar, (1, 2), dims=(2, 3)) + noise, dim=1)
    volume = coarse_volume(sar, optical, 3)
    aggregated = consensus(volume, 9)
    truth = torch.tensor([2, 1])
    inner = (slice(None), slice(2, -3), slice(2, -3))
    alone = (best(log_softmax(volume))[0] == truth).all(-1)[inner].float().mean()
    together = (best(log_softmax(aggregated))[0] == truth).all(-1)[inner].float().mean()
    assert together == 1.0
    assert alone < 0.8


def test_consensus_ignores_neighbours_with_no_weight():
    values = torch.zeros(1, 1, 1, 1, 3)
    values[..., 0], values[..., 2] = 1.0, -1.0
    weights = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 1, 3)
    result = consensus(Volume(values, torch.ones_like(values, dtype=torch.bool)), 3, weights)
    assert result.values[0, 0, 0, 0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_swap_names_each_entry_from_the_other_side():
    sar, optical = descriptors(1, 3, 4, 5), descriptors(1, 3, 4, 5, seed=1)
    forward, backward = coarse_volume(sar, optical, 2), coarse_volume(optical, sar, 2)
    swapped = swap(forward)
    # Seen from the optical cell, displacement delta leads from a SAR cell at -delta: the other volume mirrored.
    assert torch.equal(swapped.valid.expand(1, -1, -1, -1, -1), backward.valid.flip(1, 2))
    assert torch.allclose(swapped.values, backward.values.flip(1, 2), atol=1e-6)


def test_log_softmax_spreads_mass_over_candidates_only():
    volume = coarse_volume(descriptors(1, 3, 6, 6), descriptors(1, 3, 6, 6, seed=1), 2)
    within = disc(2, 1.0)
    probability = log_softmax(volume, within).exp()
    assert torch.allclose(probability.sum(1), torch.ones(1, 6, 6), atol=1e-6)
    assert (probability[:, ~within.flatten()] == 0).all()
    assert probability[0, 7, 0].max() == 0  # one up from the first row leads off the image


def test_best_reads_displacements_as_x_then_y():
    log_probability = torch.full((1, 9, 1, 1), -9.0)
    log_probability[0, 5] = -0.1  # row 1, column 2
    displacement, value = best(log_probability)
    assert displacement[0, 0, 0].tolist() == [1, 0]
    assert float(value) == pytest.approx(-0.1)


def test_disc_is_round():
    assert disc(2, 2.0).sum() == 13
    assert not disc(2, 2.0)[0, 0]
