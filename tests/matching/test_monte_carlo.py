"""Dropout where and when it should be, and moments over passes against passes made one by one."""

import copy
import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from sarmatch.config import ModelConfig
from sarmatch.matching import monte_carlo as montecarlo
from sarmatch.matching.assignment import predict
from sarmatch.matching.monte_carlo import active_dropout, pass_generator, predict_monte_carlo
from sarmatch.model import Descriptors, SarOpticalNet
from sarmatch.profiles import profile

SMALL = profile("smoke").model
RADIUS = 16.0
NO_DROPOUT = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}


def build(**changes) -> SarOpticalNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SarOpticalNet(dataclasses.replace(SMALL, **changes)).eval()
    with torch.no_grad():  # weights that have seen nothing hardly tell one cell from another
        net.plain_log_scale.fill_(math.log(40.0))
    return net


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, 64, 64, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)


@torch.no_grad()
def monte_carlo(net, passes, seed=0, use_consensus=True, **masks):
    sar, optical = images()
    prefixes = net.sar_encoder.prefix(sar), net.optical_encoder.prefix(optical)
    return predict_monte_carlo(net, *prefixes, RADIUS, passes, use_consensus=use_consensus, seeds=[seed], **masks)


@torch.no_grad()
def one_by_one(net, passes, seed=0, use_consensus=True, **masks):
    """Single passes through the whole network, kept apart."""
    singles = []
    for number in range(passes):
        with active_dropout(net, [pass_generator(seed, number)]):
            singles.append(predict(net, *net(*images()), RADIUS, use_consensus=use_consensus, **masks))
    return singles


def entropy(probability):
    return torch.special.entr(probability.double()).sum(1)


@pytest.mark.parametrize("backbone", ["paper", "lite0"])
def test_dropout_stands_at_the_three_places_of_the_paper_with_its_rates(backbone):
    with torch.device("meta"):
        net = SarOpticalNet(ModelConfig(backbone=backbone))
    rates = {name: m.p for name, m in net.named_modules() if "drop" in type(m).__name__.lower()}
    encoders = ("sar_encoder", "optical_encoder")
    assert rates == (
        {f"{encoder}.early_dropout": 0.10 for encoder in encoders}
        | {f"{encoder}.uncertainty.dropout": 0.20 for encoder in encoders}
        | {f"{encoder}.uncertainty.fusion_dropout": 0.15 for encoder in encoders}
        | {"fusion_dropout": 0.15, "source_weights.dropout": 0.15}
    )
    assert all(isinstance(m, montecarlo.DROPOUTS) for m in net.modules() if "drop" in type(m).__name__.lower())


@torch.no_grad()
def everything(net) -> dict[str, torch.Tensor]:
    sar, optical = images()
    first, second = net.sar_encoder(sar), net.optical_encoder(optical)
    maps = (first.uncertainty, second.uncertainty)
    said = {"weights": net.source_weights(*maps)}
    for name, encoding in (("sar", first), ("optical", second)):
        said[f"{name} features"], said[f"{name} coarse"] = encoding.features, net.describe(encoding).coarse
        said[f"{name} sources"], said[f"{name} fused"] = encoding.uncertainty.sources, encoding.uncertainty.fused
    return said


@pytest.mark.parametrize(
    ("place", "changes", "stays"),
    [
        ("early_dropout", {"features", "sources", "fused", "coarse", "weights"}, set()),
        ("uncertainty_dropout", {"sources", "fused", "weights"}, {"features", "coarse"}),
        ("fusion_dropout", {"fused", "coarse", "weights"}, {"features", "sources"}),
    ],
)
def test_each_dropout_acts_on_what_follows_it_and_only_when_active(place, changes, stays):
    net = build(**(NO_DROPOUT | {place: 0.5}))
    for training in (False, True):
        net.train(training)
        quiet = everything(net)
        with active_dropout(net, [pass_generator(0, 0)]):
            one, other = everything(net), everything(net)
        for before, after, active in ((one, other, True), (quiet, everything(net), training)):
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            assert {name.split()[-1] for name in moved} == (changes if active else set())
            # In both modalities alike: what changes in one does not stay in the other.
            assert {name.split()[-1] for name in set(before) - moved} == (stays if active else changes | stays)


def test_dropout_takes_whole_channels_at_its_rate():
    net = build(early_dropout=0.1, uncertainty_dropout=0.2)
    with active_dropout(net, [pass_generator(0, n) for n in range(100)]):
        for dropout, rate in ((net.sar_encoder.early_dropout, 0.1), (net.sar_encoder.uncertainty.dropout, 0.2)):
            out = dropout(torch.ones(100, 100, 2, 2)).flatten(2)
            assert (out == out[..., :1]).all()
            assert float((out == 0).float().mean()) == pytest.approx(rate, abs=0.012)  # four standard errors
            assert float(out.max()) == pytest.approx(1 / (1 - rate))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_random_state_are_as_before(fails):
    net = build(norm="batch")
    net.optical_encoder.train()
    net.sar_encoder.early_dropout.train()
    modes = {name: m.training for name, m in net.named_modules()}
    state, generators = torch.get_rng_state(), [pass_generator(7, 0)]
    with pytest.raises(KeyError) if fails else nullcontext(), active_dropout(net, generators):
        inside = {name: m.training for name, m in net.named_modules()}
        net(*images())
        if fails:
            raise KeyError("on the way")
    assert not any(inside.values())
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_passes_do_not_move_batch_statistics():
    net = build(norm="batch")
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert any("running_mean" in name for name in before)
    monte_carlo(net, 3)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("use_consensus", [True, False])
@pytest.mark.parametrize("uncertainty", [True, False])
def test_without_dropout_all_passes_agree_with_the_single_one(use_consensus, uncertainty):
    net = build(**NO_DROPOUT, uncertainty=uncertainty)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, 3:6, 8:] = False
    masks = {"sar_valid": valid, "optical_valid": valid.flip(2)}
    with torch.no_grad():
        single = predict(net, *net(*images()), RADIUS, use_consensus=use_consensus, **masks)
    many = monte_carlo(net, 7, use_consensus=use_consensus, **masks)
    assert torch.allclose(many.forward.exp(), single.forward.exp(), rtol=1e-4, atol=1e-7)
    assert torch.allclose(many.backward.exp(), single.backward.exp(), rtol=1e-4, atol=1e-7)
    assert many.variance.max() < 1e-6
    assert many.mutual_information.max() < 1e-4
    assert (many.pair_maps is None) == (not uncertainty)
    for a, b in zip(many.pair_maps or (), single.pair_maps or (), strict=True):
        assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("use_consensus", [True, False])
@pytest.mark.parametrize("uncertainty", [True, False])
def test_moments_are_those_of_single_passes(monkeypatch, use_consensus, uncertainty):
    monkeypatch.setattr(montecarlo, "PASSES_AT_ONCE", 4)  # 6 passes are a batch and a remainder
    net = build(early_dropout=0.3, uncertainty=uncertainty)
    many = monte_carlo(net, 6, seed=3, use_consensus=use_consensus)
    singles = one_by_one(net, 6, seed=3, use_consensus=use_consensus)
    rows = torch.cat([s.forward for s in singles]).exp()
    columns = torch.cat([s.backward for s in singles]).exp()
    mean = rows.mean(0, keepdim=True)
    assert torch.allclose(many.forward.exp(), mean, rtol=1e-4, atol=1e-7)
    assert torch.allclose(many.backward.exp(), columns.mean(0, keepdim=True), rtol=1e-4, atol=1e-7)
    of_best = rows.gather(1, mean.argmax(1, keepdim=True).expand(6, -1, -1, -1))[:, 0]
    assert torch.allclose(many.variance[0], of_best.var(0, correction=0), rtol=1e-2, atol=1e-6)
    information = entropy(mean) - entropy(rows).mean(0)
    assert torch.allclose(many.mutual_information.double(), information, rtol=1e-2, atol=1e-4)
    assert many.mutual_information.max() > 1e-2  # dropout does matter here
    for k, of_image in enumerate(many.pair_maps or ()):
        assert torch.allclose(of_image, torch.stack([s.pair_maps[k] for s in singles]).mean(0), rtol=1e-4)


def test_a_remainder_counts_like_whole_batches(monkeypatch):
    monkeypatch.setattr(montecarlo, "PASSES_AT_ONCE", 5)
    net, described = build(early_dropout=0.3, uncertainty=False), []
    describe = net.describe

    def record(encoding):
        described.append(describe(encoding))
        return described[-1]

    net.describe = record
    many = monte_carlo(net, 7)
    sar, optical = (torch.cat([d.coarse for d in described[k::2]]) for k in (0, 1))
    assert len(sar) == len(optical) == 7
    assert len({float(d.sum()) for d in sar}) == 7  # masks of its own for each
    rows = [
        predict(net, Descriptors(a[None], None, None), Descriptors(b[None], None, None), RADIUS).forward.exp()
        for a, b in zip(sar, optical, strict=True)
    ]
    assert torch.allclose(many.forward.exp(), torch.cat(rows).mean(0, keepdim=True), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_passes_at_once_do_not_matter(monkeypatch, at_once):
    net = build()
    expected = monte_carlo(net, 5)
    monkeypatch.setattr(montecarlo, "PASSES_AT_ONCE", at_once)
    found = monte_carlo(net, 5)
    assert torch.allclose(found.forward.exp(), expected.forward.exp(), rtol=1e-4, atol=1e-7)
    assert torch.allclose(found.backward.exp(), expected.backward.exp(), rtol=1e-4, atol=1e-7)


def test_masks_are_the_same_on_every_device(monkeypatch):
    """On a device that computes nothing, what is drawn for the masks can still be watched."""
    rand, drawn = torch.rand, {"cpu": [], "meta": []}
    net, generators = build(), range(3)
    for device, found in drawn.items():
        images = torch.zeros(3, 1, 64, 64, device=device), torch.zeros(3, 3, 64, 64, device=device)

        def watched(*shape, found=found, **options):
            found.append(rand(*shape, **options))
            return found[-1]

        with monkeypatch.context() as patch, torch.no_grad():
            moved = copy.deepcopy(net).to(device)
            patch.setattr(torch, "rand", watched)
            with active_dropout(moved, [pass_generator(5, n) for n in generators]):
                moved(*images)
    assert len(drawn["cpu"]) == 3 * 8  # six dropouts, that of the descriptors once for each image
    assert all(t.device.type == "cpu" for t in drawn["meta"])
    assert all(torch.equal(a, b) for a, b in zip(drawn["cpu"], drawn["meta"], strict=True))


def test_a_batch_has_a_generator_for_each_of_its_passes():
    net = build()
    with pytest.raises(ValueError, match="a batch of 2"), active_dropout(net, [pass_generator(0, 0)]):
        net.fusion_dropout(torch.ones(2, 4, 3, 3))


def test_global_random_numbers_do_not_matter():
    net = build()
    torch.manual_seed(1)
    first = monte_carlo(net, 2)
    torch.manual_seed(2)
    assert torch.equal(first.forward, monte_carlo(net, 2).forward)


def test_the_seed_decides():
    net = build()
    first, again, other = (monte_carlo(net, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.forward, again.forward)
    assert torch.equal(first.mutual_information, again.mutual_information)
    assert not torch.equal(first.forward, other.forward)


@pytest.mark.parametrize("passes", [1, 2, 8])
def test_spread_stays_within_its_bounds(passes):
    many = monte_carlo(build(early_dropout=0.5), passes)
    row = many.forward.exp()
    assert torch.allclose(row.sum(1), torch.ones(1, 16, 16), atol=1e-4)
    information, best = many.mutual_information, row.max(1).values
    assert information.shape == many.variance.shape == (1, 16, 16)
    assert (information >= 0).all()
    assert (information <= entropy(row) + 1e-4).all()
    assert (information <= math.log(passes) + 1e-4).all()  # n passes cannot tell more than which of them it was
    assert (many.variance >= 0).all()
    assert (many.variance <= best * (1 - best) + 1e-6).all()


def test_two_passes_that_contradict_each_other(monkeypatch):
    """By hand: each sure of another displacement, so log 2 nats and the variance of a fair coin."""
    monkeypatch.setattr(montecarlo, "PASSES_AT_ONCE", 2)
    net = build(uncertainty=False)
    with torch.no_grad():
        net.plain_log_scale.fill_(math.log(500.0))
    sar = F.normalize(torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    told = iter([sar.expand(2, -1, -1, -1), torch.cat([sar.roll(1, 3), sar.roll(-2, 2)])])
    net.describe = lambda encoding: Descriptors(next(told), encoding.fine, None)
    many = monte_carlo(net, 2, use_consensus=False)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert torch.allclose(many.mutual_information[inner], torch.tensor(math.log(2)), atol=1e-3)
    assert torch.allclose(many.variance[inner], torch.tensor(0.25), atol=1e-3)


@pytest.mark.parametrize("passes", [0, -1])
def test_fewer_than_one_pass_is_rejected(passes):
    with pytest.raises(ValueError, match="passes must be at least 1"):
        monte_carlo(build(), passes)
