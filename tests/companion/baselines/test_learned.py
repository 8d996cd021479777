"""Learned methods find a shift of one image after a short training on textures; what they share, by hand."""

from __future__ import annotations

import copy
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from patch_net import texture
from torch import Tensor, nn

from companion.baselines.attention import CoAttentionNet, LinearAttention, TransformerNet
from companion.baselines.base import mutual_best
from companion.baselines.detect_and_describe import DetectAndDescribeNet
from companion.baselines.learned import LearnedMatcher, PeerNet, PeerSize, around, expected_step
from companion.baselines.multiscale import MultiscaleNet, moved
from companion.baselines.siamese import PairHead, PatchNet, PseudoSiameseNet, ThreeStepNet, template_means
from companion.baselines.translation import TranslationNet
from companion.studies.learned_baselines import PEERS
from sarmatch.data.crops import Sample
from sarmatch.evaluation import metrics
from sarmatch.geometry import translation, warp

SIZE = PeerSize(width=32, window_cells=4)
STEPS = {
    ThreeStepNet: (20, 48),
    TranslationNet: (20, 48),
    TransformerNet: (160, 64),
    CoAttentionNet: (60, 64),
    PatchNet: (110, 48),
}
"""Optimiser steps, and side of the crops in px, after which a method finds a shift of one image."""
DX, DY = 8, -4


def batch(seed: int, n: int = 4, side: int = 64, max_shift: float = 8.0) -> Sample:
    """Textures and their shifted copies; one image is both modalities."""
    rng = torch.Generator().manual_seed(seed)
    scenes = [texture(side + 40, seed=1000 + seed * n + i) for i in range(n)]
    maps = [translation(*((torch.rand(2, generator=rng) * 2 - 1) * max_shift).tolist()) for _ in range(n)]
    size, valid = (side, side), torch.ones(n, side, side, dtype=torch.bool)
    sar = torch.stack([warp(scene, translation(20, 20), size) for scene in scenes])
    optical = [warp(s, translation(20, 20) @ torch.linalg.inv(A), size) for s, A in zip(scenes, maps, strict=True)]
    return Sample(
        sar=sar,
        optical=torch.stack(optical).expand(-1, 3, -1, -1),
        sar_valid=valid,
        optical_valid=valid,
        A_sar_to_optical=torch.stack(maps).float(),
        field=torch.zeros(n, 2, side, side),
    )


@lru_cache
def trained(kind: type[PeerNet]) -> LearnedMatcher:
    torch.manual_seed(0)
    net, (steps, side) = kind(SIZE), STEPS[kind]
    scales = [p for name, p in net.named_parameters() if name.endswith("log_scale")]
    weights = [p for name, p in net.named_parameters() if not name.endswith("log_scale")]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": scales}])
    for step in range(steps):
        rate = 3e-3 * min(1, (step + 1) / 15) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group, speed in zip(optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = rate * speed
        loss = net(batch(step, side=side))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return LearnedMatcher(net)


def pair(dx: float, dy: float, side: int = 112) -> tuple[Tensor, Tensor]:
    scene, size = texture(side + 64), (side, side)
    return warp(scene, translation(32, 32), size), warp(scene, translation(32 - dx, 32 - dy), size).expand(3, -1, -1)


@pytest.fixture(params=STEPS, ids=lambda kind: kind.__name__)
def matcher(request: pytest.FixtureRequest) -> LearnedMatcher:
    return trained(request.param)


def test_a_known_shift_of_one_image_is_found_and_no_other(matcher: LearnedMatcher) -> None:
    truth = translation(DX, DY)
    matches = matcher.match(*pair(DX, DY), search_radius=12)
    share = metrics.mma(metrics.match_errors(matches, truth), 3.0)
    assert len(matches) > 60 and share > 0.75
    assert np.linalg.norm(matches.xy_optical - matches.xy_sar, axis=1).max() <= 12.8
    for seed in (1, 3, 5, 7):
        others = matcher.match(texture(112, seed=seed), texture(112, seed=seed + 1).expand(3, -1, -1), search_radius=12)
        assert metrics.mma(metrics.match_errors(others, truth), 3.0) < 0.25  # by chance 6 %
        assert matches.confidence.sum() > 1.5 * others.confidence.sum()  # matches that it expects to be right


def test_without_a_radius_the_whole_image_is_searched() -> None:
    matches = trained(ThreeStepNet).match(*pair(20, 8), search_radius=None)
    assert metrics.mma(metrics.match_errors(matches, translation(20, 8)), 3.0) > 0.85


def test_separate_branches_with_equal_weights_are_the_shared_network() -> None:
    shared = trained(PatchNet).net
    net = PseudoSiameseNet(PeerSize(1, 1, SIZE.width, SIZE.window_cells))
    for part in ("sar_branch", "optical_branch"):
        getattr(net, part).load_state_dict(shared.sar_branch.state_dict())
    net.head.load_state_dict(shared.head.state_dict())
    sar, optical = pair(DX, DY)
    expected = trained(PatchNet).match(sar, optical, 12.0)
    found = LearnedMatcher(net).match(sar, optical[:1], 12.0)
    np.testing.assert_allclose(found.xy_optical, expected.xy_optical, atol=1e-3)


@pytest.mark.parametrize("kind", [PseudoSiameseNet, MultiscaleNet, DetectAndDescribeNet])
def test_training_lowers_the_loss_of_what_it_learns_from(kind: type[PeerNet]) -> None:
    torch.manual_seed(0)
    net, fixed = kind(SIZE), batch(0, n=2, side=48)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        torch.manual_seed(1)  # the same negatives
        loss = net(fixed)["loss"]
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("kind", PEERS.values())
def test_losses_are_computed_in_32_bits_where_the_network_runs_in_16(
    kind: type[PeerNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, sample = kind(SIZE), batch(0, n=2, side=48)
    described: list[tuple[Tensor, ...]] = []
    in_16_bits = []
    describe = getattr(net, "describe", None)

    def record(*images: Tensor) -> tuple[Tensor, ...]:
        described.append(describe(*images))
        in_16_bits.append(torch.is_autocast_enabled("cpu"))
        return described[-1]

    def losses(autocast: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)  # the same negatives
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return net(sample)

    monkeypatch.setattr(net, "describe", record, raising=False)
    expected, rounded = losses(autocast=False), losses(autocast=True)
    assert in_16_bits == [False, True]
    assert not torch.equal(described[0][0], described[1][0].float())
    assert all(loss.dtype == torch.float32 for loss in rounded.values())
    monkeypatch.setattr(net, "describe", lambda *_: described[0])
    for name, loss in losses(autocast=True).items():
        assert loss.item() == expected[name].item(), name


@pytest.mark.parametrize("training", [True, False])
def test_matching_is_that_of_evaluation_mode_and_leaves_the_mode_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    net = DetectAndDescribeNet(SIZE)  # its encoders have dropout
    net.sar_encoder.eval()
    images = torch.rand(1, 64, 64), torch.rand(3, 64, 64)
    expected = LearnedMatcher(copy.deepcopy(net).eval()).match(*images, 9.0)
    net.optical_encoder.train(training)
    modes = [module.training for module in net.modules()]
    found = LearnedMatcher(net).match(*images, 9.0)
    assert [module.training for module in net.modules()] == modes
    np.testing.assert_array_equal(found.xy_optical, expected.xy_optical)


@pytest.mark.parametrize("kind", PEERS.values())
def test_a_search_radius_is_kept_by_an_untrained_network(kind: type[PeerNet]) -> None:
    torch.manual_seed(0)
    matches = LearnedMatcher(kind(SIZE)).match(torch.rand(1, 64, 64), torch.rand(3, 64, 64), search_radius=9)
    moved_by = np.linalg.norm(matches.xy_optical - matches.xy_sar, axis=1)
    assert len(matches) and moved_by.max() <= 9.8
    assert ((matches.confidence >= 0) & (matches.confidence <= 1)).all()


@pytest.mark.parametrize("kind", PEERS.values())
def test_images_may_differ_in_size_and_flat_ones_match_nothing(kind: type[PeerNet]) -> None:
    torch.manual_seed(0)
    matcher = LearnedMatcher(kind(SIZE))
    matches = matcher.match(torch.rand(1, 50, 64), torch.rand(3, 64, 41), search_radius=None)
    assert (matches.xy_sar < (64, 50)).all() and (matches.xy_optical < (41, 64)).all()
    flat = torch.full((3, 64, 64), 0.5)
    assert len(matcher.match(torch.rand(1, 64, 64), flat, search_radius=9)) == 0


def test_unusable_input_is_named() -> None:
    matcher = LearnedMatcher(MultiscaleNet(SIZE))
    sar, optical = torch.rand(1, 64, 64), torch.rand(3, 64, 64)
    for first, second in ((sar[0], optical), (sar, optical[:2]), (sar[:, :8], optical)):
        with pytest.raises(ValueError, match=r"must be \([13], H, W\) with sides of at least 16 px, got"):
            matcher.match(first, second, 9.0)
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="search_radius must be positive"):
            matcher.match(sar, optical, radius)
    with pytest.raises(ValueError, match="width must be a positive multiple of 16, got 24"):
        PeerSize(width=24)


def test_a_chain_without_corrections_stays_where_it_is() -> None:
    net = MultiscaleNet(SIZE)
    for link in net.links:
        nn.init.zeros_(link.layers[-1].weight)
        nn.init.zeros_(link.layers[-1].bias)
    sar, optical = pair(0, 0, 64)
    matches = LearnedMatcher(net).match(sar, optical, 9.0)
    assert len(matches) == 256 and (matches.confidence == 1).all()
    np.testing.assert_allclose(matches.xy_optical, matches.xy_sar)


def test_a_moved_image_shows_what_lies_where_it_was_told_to_look() -> None:
    image = torch.rand(1, 1, 8, 9)
    displacement = torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 8, 9)
    torch.testing.assert_close(moved(image, displacement)[..., 1:, :-2], image[..., :-1, 2:])


def test_the_head_is_a_layer_of_the_concatenated_features() -> None:
    head, a, b = PairHead(8), torch.rand(5, 8), torch.rand(5, 8)
    both = torch.cat([head.sar.weight, head.optical.weight], dim=1)
    first = torch.cat([a, b], dim=1) @ both.T + head.sar.bias
    torch.testing.assert_close(head(head.sar(a), head.optical(b)), head.rest(first)[:, 0])


def test_linear_attention_is_a_mean_of_values_weighted_by_positive_products() -> None:
    layer, x, source = LinearAttention(8), torch.rand(1, 3, 8), torch.rand(1, 5, 8)
    query, key = (torch.nn.functional.elu(f(t)) + 1 for f, t in ((layer.query, x), (layer.key, source)))
    heads = []
    for i in range(4):
        part = slice(2 * i, 2 * i + 2)
        weights = query[0, :, part] @ key[0, :, part].T
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ layer.value(source)[0, :, part])
    torch.testing.assert_close(layer(x, source)[0], layer.merge(torch.cat(heads, dim=1)))


def test_template_means_by_hand() -> None:
    similarity = torch.rand(4, 3, 5, 4)
    means = template_means(similarity, 3)
    inner = torch.stack([similarity[1 + i, 1 + j, 2 + i, 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]).mean()
    torch.testing.assert_close(means[1, 1, 2, 1], inner)
    corner = torch.stack([similarity[i, j, 1 + i, j] for i in (0, 1) for j in (0, 1)]).mean()
    torch.testing.assert_close(means[0, 0, 1, 0], corner)


def test_mutual_best_pairs_and_their_step_by_hand() -> None:
    scores = torch.tensor([[5.0, 1.0, 0.0], [6.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    rows, columns = mutual_best(scores)
    assert rows.tolist() == [1, 2] and columns.tolist() == [0, 2]
    peak = torch.full((1, 4, 5), -math.inf)
    peak[0, 2, 3], peak[0, 2, 4] = 0.0, math.log(0.25)
    torch.testing.assert_close(expected_step(peak, torch.tensor([13])), torch.tensor([[0.2, 0.0]]))
    assert around(torch.arange(6.0).reshape(1, 2, 3), torch.tensor([0]), 1)[0, 1:, 1:].tolist() == [[0, 1], [3, 4]]
