"""The fine level along the smoothed field of matches."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarmatch.config import ModelConfig
from sarmatch.demo import match_pair
from sarmatch.matching.assignment import CellMatches
from sarmatch.matching.correlation import cell_grid, fine_volume
from sarmatch.matching.field import SIDE, refine_along_field, residual_volume, smoothed_field
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.matching.position import FINE_RADIUS
from sarmatch.model import STRIDE, SarOpticalNet


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(-9, 9), st.integers(-9, 9))
def test_at_whole_pixels_the_volume_is_that_of_one_displacement(seed: int, dx: int, dy: int) -> None:
    sar, optical = unit(2, 4, 32, 48, seed=seed), unit(2, 4, 32, 48, seed=seed + 1)
    offset = torch.tensor([[dx, dy], [dy, dx]])
    found = residual_volume(sar, optical, offset[:, None, None].expand(-1, 8, 12, -1).float())
    expected = fine_volume(sar, optical, offset, FINE_RADIUS, STRIDE)
    assert torch.equal(found.valid, expected.valid.expand_as(found.valid))
    assert torch.allclose(found.values, expected.values, atol=1e-4)


def test_between_pixels_descriptors_are_interpolated() -> None:
    sar, optical = unit(1, 4, 32, 32), unit(1, 4, 32, 32, seed=1)
    at = [residual_volume(sar, optical, torch.full((1, 8, 8, 2), x)).values for x in (0.0, 0.25, 1.0)]
    inner = (0, slice(2, 7), slice(2, 7), slice(2, 6), slice(2, 6))
    both = at[0][0, 2:7, 2:7, 2:6, 2:6] * 0.75 + at[0][0, 2:7, 3:8, 2:6, 2:6] * 0.25  # along x
    down = at[0][0, 3:8, 2:7, 2:6, 2:6] * 0.75 + at[0][0, 3:8, 3:8, 2:6, 2:6] * 0.25
    assert torch.allclose(at[1][inner], both * 0.75 + down * 0.25, atol=1e-5)


def test_a_field_of_one_displacement_is_found_in_spite_of_wrong_matches() -> None:
    generator = torch.Generator().manual_seed(0)
    displacement = torch.tensor([5.0, -3.0]).expand(1, 30, 30, 2).clone()
    wrong = torch.rand(1, 30, 30, generator=generator) < 0.2
    displacement[wrong] = 60 * torch.rand(int(wrong.sum()), 2, generator=generator) - 30
    weight = (torch.rand(1, 30, 30, generator=generator) > 0.3).float()
    field = smoothed_field(displacement, weight, SIDE)
    assert (field - torch.tensor([5.0, -3.0])).abs().max() < 0.4


def test_a_field_that_bends_is_followed_and_one_that_is_noise_is_not() -> None:
    x = torch.arange(40.0).expand(1, 40, 40)
    bent = torch.stack([6 * torch.sin(x / 8), torch.zeros_like(x)], -1)
    field = smoothed_field(bent, torch.ones(1, 40, 40), 5)
    assert (field - bent)[:, 4:-4, 4:-4].abs().max() < 0.7
    noise = torch.randn(1, 40, 40, 2, generator=torch.Generator().manual_seed(1))
    found = smoothed_field(noise, torch.ones(1, 40, 40), 11)
    assert found.std() < 0.05, "as even as the mean over 45 cells"


def test_places_without_matches_have_the_mean_of_all() -> None:
    displacement, weight = torch.zeros(1, 60, 60, 2), torch.zeros(1, 60, 60)
    displacement[0, 0, 0], weight[0, 0, 0] = torch.tensor([3.0, 1.0]), 0.5
    field = smoothed_field(displacement, weight, SIDE)
    assert torch.allclose(field, torch.tensor([3.0, 1.0]).expand_as(field))
    assert torch.equal(smoothed_field(displacement, 0 * weight, SIDE), torch.zeros(1, 60, 60, 2))


@pytest.fixture(scope="module")
def net() -> SarOpticalNet:
    torch.manual_seed(0)
    model = ModelConfig(uncertainty=False, consensus_cells=(3, 7), field_rounds=3)
    return SarOpticalNet(model).eval()


def test_a_bent_image_is_followed_to_a_fraction_of_a_pixel(net: SarOpticalNet) -> None:
    """SAR descriptors are those of the optical image where a smooth field leads."""
    size, cells = 128, 32
    optical = torch.nn.functional.interpolate(unit(1, 8, 64, 64), size=(size, size), mode="bicubic")
    optical = torch.nn.functional.normalize(optical, dim=1)
    x = torch.arange(size).float()
    field = torch.stack(
        [3 * torch.sin(x / 20).expand(size, size) + 6, 2 * torch.cos(x / 25)[:, None].expand(size, size)]
    )
    grid = (torch.stack(torch.meshgrid(x, x, indexing="xy")) + field).permute(1, 2, 0)[None] * 2 / (size - 1) - 1
    sar = torch.nn.functional.grid_sample(optical, grid, align_corners=True)
    every = cell_grid(cells, cells).flatten(0, 1)
    truth = field[:, 1::4, 1::4].flatten(1).T + 0.0
    whole = (truth / STRIDE).round().long()
    found = CellMatches(torch.zeros(len(every), dtype=torch.long), every, whole, torch.ones(len(every)))
    with torch.no_grad():
        displacement, covariance = refine_along_field(net, sar, optical, found, whole.float() * STRIDE)
    inner = ((every > 2) & (every < cells - 4)).all(1)
    error = (displacement - truth)[inner].norm(dim=1)
    assert error.median() < 0.35 and error.quantile(0.95) < 1.0
    assert (covariance.diagonal(dim1=1, dim2=2) > 0).all()


def test_the_matcher_goes_along_the_field_where_the_network_says_so() -> None:
    alone = load_matcher("s1s2", device="cpu")
    net = copy.deepcopy(alone.net)
    net.config = dataclasses.replace(net.config, field_rounds=3)
    along, before = match_pair(Matcher(net, device="cpu")), match_pair(alone)
    cells = [{tuple(xy) for xy in demo.matches.xy_sar.tolist()} for demo in (along, before)]
    assert len(cells[0] & cells[1]) > 0.95 * len(cells[1]), "the same cells are matched"
    assert np.median(along.errors) < 1 and np.median(along.errors) != np.median(before.errors)


def test_no_matches_give_none(net: SarOpticalNet) -> None:
    none = torch.zeros(0, dtype=torch.long)
    found = CellMatches(none, none.view(0, 1).expand(0, 2), none.view(0, 1).expand(0, 2), torch.zeros(0))
    displacement, covariance = refine_along_field(net, unit(1, 4, 32, 32), unit(1, 4, 32, 32), found, torch.zeros(0, 2))
    assert displacement.shape == (0, 2) and covariance.shape == (0, 2, 2)
