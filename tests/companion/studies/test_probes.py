"""Probes on networks whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.studies.probes import (
    border_profile,
    field_radius,
    mean_reach,
    place_similarity,
    position_leak,
    receptive_field,
    without_learned_channels,
)
from sarmatch.config import profile
from sarmatch.model import Descriptors, Encoding, SarOpticalNet


class Window(nn.Module):
    """Cells that see the square of `side` pixels around them and nothing else."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, side, stride=4, padding=(side - 4) // 2, bias=False)

    def forward(self, x: Tensor) -> Encoding:
        return Encoding(self.conv(x), x)


def test_receptive_field_is_the_window_of_a_convolution() -> None:
    torch.manual_seed(0)
    field = receptive_field(Window(12), torch.rand(2, 1, 64, 48), torch.Generator().manual_seed(1))
    assert field.shape == (64, 48)
    assert field.max() == 1
    seen = field.nonzero()
    # Cell (8, 6) of stride 4 has its centre at 4 i + 1.5: rows 33.5 -+ 6, columns 25.5 -+ 6.
    assert seen.amin(0).tolist() == [28, 20]
    assert seen.amax(0).tolist() == [39, 31]
    assert len(seen) == 12 * 12


def test_receptive_field_sees_pooling_over_the_whole_image() -> None:
    def encoder(x: Tensor) -> Encoding:
        return Encoding(F.avg_pool2d(x, 4) - x.mean(dim=(-2, -1), keepdim=True), x)

    field = receptive_field(encoder, torch.rand(1, 1, 32, 32), torch.Generator().manual_seed(0))
    assert field[0, 0] == pytest.approx((1 / 1024) / (1 / 16 - 1 / 1024), rel=1e-4)


def test_field_radius_of_a_disc() -> None:
    centre = torch.tensor([33.5, 33.5])  # cell 8 of 16
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((torch.stack([x, y], -1) - centre).norm(dim=-1) <= 20).float()
    assert field_radius(disc, 1.0) == pytest.approx(20, abs=0.5)
    assert field_radius(disc, 0.25) == pytest.approx(10, abs=0.5)


def test_reach_averages_directions_and_says_the_same_again() -> None:
    torch.manual_seed(0)
    encoder, images = Window(12), torch.rand(2, 1, 64, 64)
    fields = [receptive_field(encoder, images, torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]
    by_hand = [sum(field_radius(field, share) for field in fields) / 3 for share in (0.5, 1.0)]
    assert mean_reach(encoder, images, (0.5, 1.0), directions=3) == pytest.approx(by_hand)
    assert by_hand[1] == pytest.approx(math.hypot(5.5, 5.5)), "the corner of the window"
    assert by_hand[0] < by_hand[1]


def test_place_similarity_does_not_ask_for_length_one() -> None:
    sar, optical = torch.rand(1, 4, 4, 4), torch.rand(1, 4, 4, 4)
    assert place_similarity(3 * sar, optical) == pytest.approx(place_similarity(sar, optical))
    assert place_similarity(sar, 2 * sar)[0] == pytest.approx(1)


def test_place_similarity_compares_a_place_with_the_one_half_an_image_away() -> None:
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    cells = torch.stack([left, left, right, right], dim=1).reshape(1, 2, 1, 4).expand(-1, -1, 4, -1)
    assert place_similarity(cells, cells) == pytest.approx((1, 0.6, 1))
    assert place_similarity(cells, cells.flip(-1)) == pytest.approx((0.6, 1, 0))


def described(coarse: Tensor) -> Descriptors:
    return Descriptors(coarse, coarse, None)


def test_a_network_without_padding_does_not_leak_its_position() -> None:
    noise = torch.rand(64, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    leak = position_leak(lambda x: described(F.avg_pool2d(x, 4)), noise)
    assert leak.shape == (16, 16)
    assert float(leak.square().mean().sqrt()) == pytest.approx(1 / math.sqrt(64), rel=0.15)


def test_zero_padding_leaks_at_the_border_only() -> None:
    noise = torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def padded(x: Tensor) -> Descriptors:
        return described(F.avg_pool2d(x, 12, stride=4, padding=4))

    distance, leak = border_profile(position_leak(padded, noise))
    # A cell at the edge averages 96 of 144 pixels of mean 1/2 and deviation 12^-1/2: off by 1/6, 1/6 * 12 * 12^1/2
    # spreads; at corners 5/18.
    assert float(leak[0]) == pytest.approx((56 / 6 + 4 * 5 / 18) / 60 * 12 * math.sqrt(12), rel=0.1)
    assert float(leak[1:].max()) < 1
    assert distance[:3].tolist() == [2, 6, 10]


def test_border_profile_averages_rings() -> None:
    rings = torch.tensor([[0.0, 0, 0, 0], [0, 5, 7, 0], [0, 6, 6, 0], [4, 0, 0, 8]])
    distance, value = border_profile(rings)
    assert distance.tolist() == [2, 6]
    assert value.tolist() == [1, 6]


def test_border_profile_of_a_flat_map() -> None:
    distance, value = border_profile(torch.ones(3, 8))
    assert distance.tolist() == [2, 6]
    assert value.tolist() == [1, 1]


def test_without_learned_channels_only_the_gradients_are_left_and_the_network_stays_as_it_was() -> None:
    net = SarOpticalNet(profile("smoke").model).eval()
    config, image = net.config, torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net.describe_sar(image)
        muted = without_learned_channels(net).describe_sar(image)
        after = net.describe_sar(image)
    for name, learned in (("coarse", config.descriptor_dim), ("fine", config.fine_dim)):
        was, now = getattr(before, name), getattr(muted, name)
        assert now[:, :learned].abs().max() == 0 and torch.equal(now[:, learned:], was[:, learned:])
        assert now[:, learned:].abs().max() > 0 and torch.equal(getattr(after, name), was)
    literal = SarOpticalNet(profile("smoke").replace(model={"oriented_gradients": False}).model)
    with pytest.raises(ValueError, match="nothing is left"):
        without_learned_channels(literal)
