"""Each branch does what it is named for, by effect; maps and weights keep their ranges (sections 3.2.1 to 3.2.3)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from sarmatch.model import SarOpticalNet
from sarmatch.model.layers import standardise
from sarmatch.model.uncertainty import (
    LINE_CELLS,
    N_STATISTICS,
    OPTICAL_SOURCES,
    ORIENTATIONS,
    SAR_SOURCES,
    SOURCES,
    WIDE_CELLS,
    AtmosphereBranch,
    BackscatterBranch,
    EpistemicHead,
    GeometricBranch,
    IlluminationBranch,
    OrientedConv,
    SeasonBranch,
    SourceWeights,
    SpeckleBranch,
    Uncertainty,
    line_mask,
    local_statistics,
    optical_uncertainty,
    sar_uncertainty,
)
from sarmatch.profiles import profile

SMALL = profile("smoke").model
CHANNELS = 6
BRANCHES = {
    "speckle": lambda: SpeckleBranch(CHANNELS),
    "geometry": lambda: GeometricBranch(CHANNELS, 5),
    "backscatter": lambda: BackscatterBranch(CHANNELS, 5),
    "atmosphere": lambda: AtmosphereBranch(CHANNELS, 5),
    "illumination": lambda: IlluminationBranch(CHANNELS),
    "season": lambda: SeasonBranch(CHANNELS, 5),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def line_image(degrees: int, size: int = 11) -> torch.Tensor:
    """A line of ones through the middle, drawn by its angle from the rows, counter-clockwise as on the screen."""
    angle, middle = math.radians(degrees), size // 2
    image = torch.zeros(1, 1, size, size)
    for step in range(-middle, middle + 1):
        x, y = middle + step * round(math.cos(angle)), middle - step * round(math.sin(angle))
        image[0, 0, y, x] = 1
    return image


@torch.no_grad()
def ones(orientation: int) -> OrientedConv:
    conv = OrientedConv(1, 1, orientation)
    conv.weight.fill_(1.0)
    conv.bias.zero_()
    return conv


@pytest.mark.parametrize("degrees", ORIENTATIONS)
def test_a_line_excites_the_convolution_along_it(degrees):
    responses = {angle: ones(angle)(line_image(degrees)).max().item() for angle in ORIENTATIONS}
    # Along the line all taps see it; across it only the one where they cross.
    assert responses == {angle: LINE_CELLS if angle == degrees else 1 for angle in ORIENTATIONS}


@pytest.mark.parametrize("degrees", ORIENTATIONS)
def test_weights_off_the_line_do_nothing_and_learn_nothing(degrees):
    conv, features = OrientedConv(2, 3, degrees), torch.rand(1, 2, 9, 9)
    off = line_mask(degrees) == 0
    assert int((~off).sum()) == LINE_CELLS
    before = conv(features)
    before.square().sum().backward()
    assert (conv.weight.grad[..., off] == 0).all()
    assert (conv.weight.grad[..., ~off] != 0).all()
    with torch.no_grad():
        conv.weight[..., off] += 10.0
        assert torch.equal(conv(features), before)
        conv.weight[..., ~off] += 1.0
        assert not torch.allclose(conv(features), before)


@torch.no_grad()
def test_oriented_convolutions_start_as_strong_as_square_ones():
    noise = torch.randn(1, 32, 64, 64)
    square = torch.nn.Conv2d(32, 32, LINE_CELLS)(noise).std()
    for angle in ORIENTATIONS:
        assert 0.8 < float(OrientedConv(32, 32, angle)(noise).std() / square) < 1.25


def test_the_geometric_branch_has_one_convolution_an_angle():
    branch = GeometricBranch(CHANNELS, 5)
    for conv, angle in zip(branch.oriented, ORIENTATIONS, strict=True):
        assert torch.equal(conv.line, line_mask(angle))
    # Only a gradient through all four could move every one of them.
    branch(torch.rand(1, CHANNELS, 8, 8)).sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in branch.oriented)


@pytest.mark.parametrize("channel", [0, 3])
def test_speckle_is_looked_for_in_each_channel_alone(channel):
    branch, hidden = SpeckleBranch(CHANNELS), []
    with torch.no_grad():  # alive everywhere, so that a change cannot hide behind a ReLU
        for conv in (branch.first, branch.second):
            conv.weight.abs_()
            conv.bias.fill_(0.1)
    branch.second.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    features = torch.rand(1, CHANNELS, 8, 8)
    other = features.clone()
    other[:, channel] += 0.5
    maps = branch(features), branch(other)
    changed = (hidden[0] != hidden[1]).any(dim=(0, 2, 3))
    assert changed.tolist() == [c == channel for c in range(CHANNELS)]
    assert not torch.allclose(*maps)


@pytest.mark.parametrize(
    ("name", "low", "shape"),
    [
        ("backscatter", 0.0, (2, CHANNELS, 1, 1)),
        ("illumination", 0.5, (2, CHANNELS, 1, 1)),
        ("atmosphere", 0.5, (2, 1, 16, 12)),
    ],
)
def test_attention_follows_its_input_and_keeps_its_range(name, low, shape):
    branch = BRANCHES[name]()
    for scale in (1.0, 50.0):
        one, other = (branch.attention(scale * torch.randn(2, CHANNELS, 16, 12)) for _ in range(2))
        assert one.shape == shape
        assert one.min() >= low
        assert one.max() <= 1
        assert not torch.allclose(one, other, atol=1e-4)
        assert not torch.allclose(one[0], one[1], atol=1e-4)  # of its own image


def test_channels_without_backscatter_attention_do_not_matter():
    branch, off = BackscatterBranch(CHANNELS, 5), [1, 4]
    with torch.no_grad():  # attention that is fixed: shut for two channels, open for the others
        branch.out.weight.zero_()
        branch.out.bias.fill_(200.0)
        branch.out.bias[off] = -200.0
    features = torch.rand(1, CHANNELS, 8, 8)
    for channel in range(CHANNELS):
        other = features.clone()
        other[:, channel] += 3.0
        assert torch.equal(branch(features), branch(other)) == (channel in off)


def test_illumination_attention_sees_the_whole_image_but_no_place():
    branch, features = IlluminationBranch(CHANNELS), torch.randn(1, CHANNELS, 8, 8)
    shuffled = features.flatten(2)[..., torch.randperm(64)].unflatten(2, (8, 8))
    assert torch.allclose(branch.attention(features), branch.attention(shuffled), atol=1e-6)
    with torch.no_grad():
        branch.conv.weight.zero_()
        branch.conv.bias.fill_(-1.0)  # nothing stands out: every channel at one half
        assert torch.allclose(branch(features), torch.sigmoid(branch.to_map(features / 2)), atol=1e-6)


def test_atmospheric_attention_is_wide_yet_of_its_place():
    branch = AtmosphereBranch(CHANNELS, 5)
    with torch.no_grad():
        branch.conv.weight.abs_()
        branch.conv.bias.zero_()
    features = torch.rand(1, CHANNELS, 64, 64)
    spot = features.clone()
    spot[..., 8, 8] += 20.0
    changed = (branch.attention(spot) - branch.attention(features)).abs()[0, 0] > 1e-6
    rows, columns = changed.nonzero().T
    assert int(changed.sum()) >= (3 * WIDE_CELLS) ** 2  # one cell speaks for its square and those beside it
    assert max(int(rows.max()), int(columns.max())) < 8 + 4 * WIDE_CELLS  # and not for the other end of the image
    # Within a square only the mean counts: clouds are wide, texture is not.
    turned = F.avg_pool2d(features, WIDE_CELLS).repeat_interleave(WIDE_CELLS, 2).repeat_interleave(WIDE_CELLS, 3)
    assert torch.allclose(branch.attention(turned), branch.attention(features), atol=1e-5)
    attended = features * branch.attention(features)
    assert torch.allclose(branch(features), torch.sigmoid(branch.to_map(attended)))


def test_season_weights_open_and_shut_their_channels():
    branch, features = SeasonBranch(CHANNELS, 5), torch.rand(1, CHANNELS, 8, 8)
    with torch.no_grad():
        branch.conv.bias.add_(2.0)  # every channel alive
        before = branch(features)
        branch.weights[:, 2] = 0.0
        without = branch(features)
        assert not torch.allclose(without, before)
        branch.conv.bias[2] += 5.0  # the channel that is shut
        assert torch.equal(branch(features), without)
        branch.weights.zero_()
        assert torch.allclose(branch(features), torch.sigmoid(branch.to_map.bias).expand(1, 1, 8, 8))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_every_branch_gives_one_map_between_zero_and_one(name, scale):
    source = BRANCHES[name]()(scale * torch.randn(2, CHANNELS, 16, 12))
    assert source.shape == (2, 1, 16, 12)
    assert source.min() >= 0
    assert source.max() <= 1


def test_maps_come_in_the_order_of_their_names():
    kinds = [type(branch) for branch in (*sar_uncertainty(SMALL).branches, *optical_uncertainty(SMALL).branches)]
    assert kinds == [type(BRANCHES[name]()) for name in SOURCES]
    assert SOURCES == SAR_SOURCES + OPTICAL_SOURCES


@pytest.mark.parametrize("build", [sar_uncertainty, optical_uncertainty])
def test_a_module_fuses_its_three_maps(build):
    module = build(SMALL).eval()
    features = torch.randn(2, SMALL.feature_width, 16, 12)
    fused, sources, summary = module(features)
    assert (fused.shape, sources.shape, summary.shape) == ((2, 1, 16, 12), (2, 3, 16, 12), (2, SMALL.feature_width))
    assert all(m.min() >= 0 and m.max() <= 1 for m in (fused, sources))
    assert torch.equal(summary, features.mean(dim=(-2, -1)))
    for k, branch in enumerate(module.branches):
        assert torch.equal(sources[:, k : k + 1], branch(features))
        hook = branch.register_forward_hook(lambda m, i, output: 1 - output)
        assert not torch.allclose(module(features).fused, fused, atol=1e-5)
        hook.remove()


def drawn(seed: int) -> Uncertainty:
    generator = torch.Generator().manual_seed(seed)
    sources = torch.rand(2, 3, 4, 4, generator=generator)
    return Uncertainty(sources[:, :1], sources, torch.randn(2, SMALL.feature_width, generator=generator))


def test_weights_of_the_sources_sum_to_one_and_follow_the_pair():
    module = SourceWeights(SMALL).eval()
    weights = module(drawn(0), drawn(1))
    assert weights.shape == (2, len(SOURCES))
    assert (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-6)
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)
    assert not torch.allclose(weights, module(drawn(2), drawn(1)), atol=1e-4)  # another SAR image
    assert not torch.allclose(weights, module(drawn(0), drawn(2)), atol=1e-4)  # another optical image
    clearer = drawn(0)._replace(sources=torch.zeros(2, 3, 4, 4))
    assert not torch.allclose(weights, module(clearer, drawn(1)), atol=1e-4)  # the same features, other maps


def test_all_maps_of_a_pair():
    net = SarOpticalNet(SMALL).eval()
    with torch.no_grad():
        sar, optical = torch.rand(2, 1, 64, 48), torch.rand(2, 3, 64, 48)
        maps = net.uncertainty_maps(sar, optical)
        of_sar, of_optical = net.sar_encoder(sar).uncertainty, net.optical_encoder(optical).uncertainty
    assert torch.allclose(maps.sources, torch.cat([of_sar.sources, of_optical.sources], 1))
    assert torch.allclose(maps.weights.sum(1), torch.ones(2))
    assert torch.allclose(maps.sar, of_sar.fused)
    assert torch.allclose(maps.optical, of_optical.fused)


def test_a_network_without_uncertainty_has_no_maps():
    net = SarOpticalNet(profile("smoke").replace(model={"uncertainty": False}).model)
    assert net.sar_encoder(torch.rand(1, 1, 32, 32)).uncertainty is None
    assert not any("uncertainty" in name or "source_weights" in name for name, _ in net.named_modules())
    with pytest.raises(ValueError, match="uncertainty=False"):
        net.uncertainty_maps(torch.rand(1, 1, 32, 32), torch.rand(1, 3, 32, 32))


def test_the_one_pass_estimate_takes_one_row_a_match():
    head = EpistemicHead(8)
    ends = torch.randn(5, 2 * 8 + EpistemicHead.EXTRA)
    assert head(ends).shape == (5,)
    assert torch.allclose(head(ends)[2], head(ends[2:3])[0], atol=1e-6)


def test_local_statistics_show_brightness_contrast_and_speckle():
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.1 * torch.rand(1, 1, 64, 64, generator=generator)
    image[..., 32:] *= 0.2 + 1.6 * torch.rand(1, 1, 64, 32, generator=generator)  # speckle on the right
    image[..., :32, :] += 0.3  # a bright veil on top, which takes variation away
    found = local_statistics(image, standardise(image))
    assert found.shape == (1, N_STATISTICS, 16, 16)
    brightness, variation = found[0, 0], found[0, 2::2]
    assert brightness[:6].min() > brightness[10:].max() - 1
    for at_one_scale in variation:
        assert at_one_scale[:, 10:].mean() > at_one_scale[:, :6].mean() + 0.5
        assert at_one_scale[10:].mean() > at_one_scale[:6].mean() + 0.2
    moved = local_statistics(image.roll((8, 12), (2, 3)), standardise(image).roll((8, 12), (2, 3)))
    inner = (..., slice(8, 12), slice(9, 12))
    assert torch.allclose(moved[inner], found.roll((2, 3), (2, 3))[inner], atol=1e-4)
    constant = local_statistics(torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 3, 32, 32))
    assert constant.isfinite().all()


def test_a_network_with_local_statistics_reads_them():
    config = dataclasses.replace(SMALL, uncertainty_statistics=True)
    torch.manual_seed(0)
    encoder = SarOpticalNet(config).eval().sar_encoder
    prefix = encoder.prefix(torch.rand(1, 1, 64, 64))
    maps = encoder.coarse(prefix).uncertainty
    assert prefix.statistics.shape == (1, N_STATISTICS, 16, 16)
    changed = encoder.coarse(prefix._replace(statistics=prefix.statistics + 1)).uncertainty
    assert not torch.allclose(maps.sources, changed.sources)
    assert torch.equal(maps.summary, changed.summary)
    assert encoder.prefix(torch.rand(3, 1, 64, 64)).first(2).statistics.shape[0] == 2
