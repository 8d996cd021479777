"""Wiring and counts, against modules small enough to be counted by hand and against the paper's widths."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.studies.encoders import (
    CONTAINERS,
    border_profile,
    compare,
    count,
    field_radius,
    mean_field_radius,
    on_meta,
    parts,
    place_similarity,
    position_leak,
    receptive_field,
    source,
    trace,
    without_learned_channels,
)
from sarmatch.config import ModelConfig
from sarmatch.model import Descriptors, Encoding, SarOpticalNet
from sarmatch.model.bifpn import TOP_DOWN, BiFPN, BiFPNLayer
from sarmatch.model.layers import XceptionBlock
from sarmatch.profiles import profile

SMALL = profile("smoke").model


class Result(NamedTuple):
    """A named tuple with an output that is not there."""

    last: Tensor
    nothing: Tensor | None = None


class Tiny(nn.Module):
    """Two convolutions in a list, a skip connection, dropout, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 5, padding=4, dilation=2, bias=False)]
        )
        self.dropout = nn.Dropout2d(0.5)
        self.join = nn.Conv2d(4, 3, 1)
        self.scale = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor) -> Result:
        first = self.convs[0](x)
        second = self.dropout(self.convs[1](first))
        return Result(self.join(F.relu(first + second) * self.scale[0]))


@pytest.fixture(scope="module")
def full() -> nn.Module:
    return on_meta(ModelConfig())


def image(channels: int, size: int = 256) -> Tensor:
    return torch.empty(1, channels, size, size, device="meta")


def test_parts_look_into_lists_only() -> None:
    assert list(parts(Tiny())) == ["convs.0", "convs.1", "dropout", "join"]
    assert list(parts(Tiny(), ())) == ["convs", "dropout", "join"]


def test_trace_finds_what_feeds_what_through_sums() -> None:
    steps = trace(Tiny(), torch.rand(1, 2, 8, 8))
    assert {step.name: step.sources for step in steps} == {
        "input": (),
        "convs.0": ("input",),
        "convs.1": ("convs.0",),
        "dropout": ("convs.1",),
        "join": ("convs.0", "dropout"),
        "Result.last": ("join",),
    }
    assert [step.shape for step in steps] == [(1, 2, 8, 8), *[(1, 4, 4, 4)] * 3, *[(1, 3, 4, 4)] * 2]
    assert [step.stride for step in steps] == [1, 2, 2, 2, 2, 2]
    assert [step.kernel for step in steps] == [0, 3, 5, 0, 1, 0]
    assert [step.dilation for step in steps] == [1, 1, 2, 1, 1, 1]
    assert [step.parameters for step in steps] == [0, 76, 400, 0, 15, 0]


def test_trace_leaves_out_what_hands_on_its_input() -> None:
    steps = {step.name: step for step in trace(Tiny().eval(), torch.rand(1, 2, 8, 8))}
    assert "dropout" not in steps
    assert steps["join"].sources == ("convs.0", "convs.1")


def test_trace_leaves_the_module_as_it_was() -> None:
    tiny = Tiny()
    picture = torch.rand(1, 2, 8, 8)
    trace(tiny, picture)
    assert not any(module._forward_hooks for module in tiny.modules())
    assert not picture.requires_grad
    assert all(p.grad is None for p in tiny.parameters())


def test_trace_counts_strides_from_the_image() -> None:
    assert [step.stride for step in trace(nn.Sequential(nn.MaxPool2d(2)), torch.rand(1, 1, 8, 8), stride=4)] == [
        4,
        8,
        8,
    ]


def test_counts_are_those_made_by_hand() -> None:
    # A convolution costs 2 x inputs x outputs x window x output cells, here on 4 x 4 cells; the bias adds parameters.
    table = count(Tiny().eval(), [torch.rand(1, 2, 8, 8)])
    by_hand = {
        "convs.0": (2 * 4 * 9 + 4, 2 * 2 * 4 * 9 * 16),
        "convs.1": (4 * 4 * 25, 2 * 4 * 4 * 25 * 16),
        "join": (4 * 3 + 3, 2 * 4 * 3 * 16),
        "own": (7, 0),
    }
    by_hand["total"] = tuple(map(sum, zip(*by_hand.values(), strict=True)))
    assert dict(zip(table.index, table.itertuples(index=False, name=None), strict=True)) == by_hand


def test_counts_of_the_sar_encoder_at_full_width(full: nn.Module) -> None:
    table = count(full.sar_encoder, [image(1)])
    # Stem: 3 x 3 from 1 to 32 on 128 x 128 cells; group norm has a weight and a bias for each channel.
    assert tuple(table.loc["stem"]) == (9 * 32 + 2 * 32, 2 * 9 * 32 * 128**2)
    # Last block, 256 to 512 on 64 x 64 cells: three depthwise and pointwise convolutions and a 1 x 1 skip.
    depthwise, pointwise = 9 * (256 + 512 + 512), 256 * 512 + 512 * 512 + 512 * 512
    convolutions = depthwise + pointwise + 256 * 512
    assert tuple(table.loc["blocks.3"]) == (convolutions + 4 * 2 * 512, 2 * convolutions * 64**2)
    assert tuple(table.loc["out"]) == (512 * 512 + 2 * 512, 2 * 512 * 512 * 64**2)
    # Uncertainty: three branches and their fusion, each ending in a map. Depthwise windows of 3; lines kept in squares
    # of 5; attention over channels by two linear layers, which run once an image.
    speckle, geometry, backscatter = 2 * 9 * 512 + 512, 4 * 25 * 512 * 32 + 4 * 32, 9 * 512 * 32 + 512
    fusion, attention = 9 * 3 * 32 + 32, 32 * 32 + 32 * 512
    weights = speckle + geometry + backscatter + fusion
    biases = (2 * 512 + 1) + (4 * 32 + 1) + (32 + 32 + 512 + 1) + (32 + 1)
    assert tuple(table.loc["uncertainty"]) == (weights + attention + biases, 2 * weights * 64**2 + 2 * attention)
    assert table.loc["total"].equals(table.iloc[:-1].sum().rename("total"))


def test_counts_of_the_optical_uncertainty_at_full_width(full: nn.Module) -> None:
    row = count(full.optical_encoder, [image(3)]).loc["uncertainty"]
    # Atmosphere works on squares of 4 x 4 cells, illumination by a 1 x 1 and season by a 3 x 3 convolution.
    wide, rest = 9 * 512 * 32, 512 + (512 * 512 + 512) + (9 * 512 * 32 + 32) + (9 * 3 * 32 + 32)
    biases = (32 + 1) + (512 + 1) + (32 + 1) + (32 + 1)
    season_weights = 32
    assert tuple(row) == (wide + rest + biases + season_weights, 2 * wide * 16**2 + 2 * rest * 64**2)


def test_trace_finds_the_four_blocks_of_the_paper(full: nn.Module) -> None:
    steps = trace(full.sar_encoder, image(1))
    blocks = [step for step in steps if step.kind == "XceptionBlock"]
    assert [block.shape[1] for block in blocks] == [64, 128, 256, 512]
    assert [block.stride for block in blocks] == [4, 4, 4, 4]
    assert [block.dilation for block in blocks] == [1, 1, 2, 4]
    assert [block.sources for block in blocks] == [("early_dropout",), ("blocks.0",), ("blocks.1",), ("blocks.2",)]
    stem = next(step for step in steps if step.name == "stem")
    assert (stem.shape[1], stem.stride, stem.sources) == (32, 2, ("input",))
    outputs = {step.name: step for step in steps if step.kind == "output"}
    assert {name: step.sources for name, step in outputs.items()} == {
        "Encoding.features": ("out",),
        "Encoding.fine": ("fine",),
        "Encoding.uncertainty": ("uncertainty",),
    }
    module = next(step for step in steps if step.name == "uncertainty")
    assert (module.kind, module.sources, module.shape) == ("UncertaintyModule", ("out",), (1, 1, 64, 64))
    assert outputs["Encoding.features"].shape == (1, 512, 64, 64)


def test_trace_finds_three_layers_and_the_pyramid(full: nn.Module) -> None:
    steps = {step.name: step for step in trace(full.optical_encoder, image(3))}
    assert (steps["stem"].kernel, steps["stem"].shape[1]) == (7, 64)
    layers = [steps[f"layers.{i}"] for i in range(3)]
    assert [(layer.shape[1], layer.stride) for layer in layers] == [(128, 4), (256, 8), (512, 16)]
    assert {layer.kind for layer in layers} == {"2 × InvertedResidual"}
    assert steps["bifpn"].sources == ("layers.0", "layers.1", "layers.2")


def test_trace_reads_the_topology_of_the_pyramid_from_the_graph() -> None:
    encoder = on_meta(SMALL).optical_encoder
    steps = {step.name: step for step in trace(encoder, image(3, 64), (*CONTAINERS, BiFPN, BiFPNLayer))}
    nodes = [f"bifpn.lateral.{i}" for i in range(3)]
    for i, (level, inputs) in enumerate(TOP_DOWN):
        node = steps[f"bifpn.layers.0.fusions.{i}"]
        assert set(node.sources) == {nodes[j] for j in inputs}
        assert node.stride == (4, 8, 16)[level]
        nodes.append(node.name)


def test_trace_shows_the_inside_of_a_block(full: nn.Module) -> None:
    steps = {step.name: step for step in trace(full.sar_encoder.blocks[0], image(32, 128), (nn.Sequential,), 2)}
    assert steps["output"].sources == ("body.3", "skip")
    assert (steps["body.3"].kind, steps["body.3"].kernel, steps["body.3"].stride) == ("MaxPool2d", 3, 4)
    assert steps["skip"].sources == steps["body.0"].sources == ("input",)


def test_compare_sets_networks_side_by_side() -> None:
    variants = {"small": SMALL, "stock": dataclasses.replace(SMALL, backbone="lite0")}
    table = compare(variants, 64)
    names = list(table["part"])
    assert list(table)[1:] == [f"{n}, {what}" for n in variants for what in ("M parameters", "GFLOP")]
    assert names[-1] == "total"
    for encoder in ("sar.", "optical."):
        rows = [i for i, name in enumerate(names) if name.startswith(encoder)]
        assert rows == list(range(rows[0], rows[-1] + 1))
    table = table.set_index("part")
    assert table.loc["sar.blocks.0", "stock, GFLOP"] != table.loc["sar.blocks.0", "stock, GFLOP"]  # NaN
    net = on_meta(SMALL)
    assert table.loc["total", "small, M parameters"] * 1e6 == pytest.approx(sum(p.numel() for p in net.parameters()))
    # Scales of similarity (per cell; coarse and fine, one a neighbourhood), beta of the votes, two of the residual, and
    # those of the gradients of either image, coarse and fine.
    own = 1 + 2 * (1 + len(SMALL.consensus_cells)) + 1 + 2 + 4
    assert table.loc["own", "small, M parameters"] * 1e6 == pytest.approx(own)


def test_source_is_the_code_that_runs() -> None:
    shown = source(XceptionBlock.forward, SMALL.__class__).data
    assert shown.startswith(
        "```python\n# XceptionBlock.forward\ndef forward(self, x: Tensor) -> Tensor:\n    return F.relu("
    )
    assert "\n\n@dataclass(frozen=True)\nclass ModelConfig:" in shown
    assert shown.endswith("\n```")


def test_an_output_of_several_tensors_is_one_part_at_the_stride_of_its_first() -> None:
    net = on_meta(ModelConfig())
    parts = trace(net.sar_encoder, torch.empty(1, net.config.sar_channels, 64, 64, device="meta"))
    names = [part.name for part in parts]
    assert len(names) == len(set(names)) and min(part.stride for part in parts) == 1
    (uncertainty,) = [part for part in parts if part.name == "Encoding.uncertainty"]
    assert uncertainty.shape[1:] == (1, 16, 16) and uncertainty.stride == 4


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
    assert mean_field_radius(encoder, images, (0.5, 1.0), directions=3) == pytest.approx(by_hand)
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
