"""One-pass estimates: hand-computed inputs, a head that learns, distances in order, and what is rejected."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf

from companion.studies.onepass import Density
from sarmatch.data import synthetic_pairs
from sarmatch.matching.assignment import Prediction, predict
from sarmatch.matching.correlation import MASKED
from sarmatch.matching.epistemic import FLOOR, attach, distilled_information, match_inputs, row_entropy
from sarmatch.matching.refinement import pick_matches
from sarmatch.model import Descriptors, SarOpticalNet, Uncertainty
from sarmatch.model.checkpoints import load_weights, save_weights
from sarmatch.model.uncertainty import EpistemicHead
from sarmatch.profiles import profile
from sarmatch.training import distillation
from sarmatch.training.distillation import DistillationTargets, distil, train_head

CONFIG = profile("smoke")
CROPS = 4
RADIUS = CONFIG.evaluation.headline_radius


@pytest.fixture(scope="module")
def pairs():
    return synthetic_pairs(4, CONFIG.data.patch_size, seed=3)


@pytest.fixture
def net() -> SarOpticalNet:
    torch.manual_seed(0)
    return SarOpticalNet(CONFIG.model).eval()


@pytest.fixture(scope="module")
def described(pairs) -> tuple[SarOpticalNet, Prediction, Descriptors, Descriptors]:
    torch.manual_seed(0)
    net = SarOpticalNet(CONFIG.model).eval()
    with torch.no_grad():
        sar, optical = net(pairs[0].sar[None], pairs[0].optical[None])
    return net, predict(net, sar, optical, RADIUS), sar, optical


def certain(displacements: list[tuple[int, int]], size: tuple[int, int], p: float) -> Prediction:
    """Rows of 3x3 displacements, the given (dx, dy) with probability p, the rest alike."""
    forward = torch.full((1, 9, len(displacements)), math.log((1 - p) / 8))
    for i, (dx, dy) in enumerate(displacements):
        forward[0, (dy + 1) * 3 + dx + 1, i] = math.log(p)
    forward = forward.unflatten(2, size)
    return Prediction(forward, forward)


def numbered(start: int, fused: float | None) -> Descriptors:
    """1 x 3 cells whose two channels tell the cell; uncertainty rises along the row."""
    coarse = torch.stack([torch.arange(3.0) + start, -torch.arange(3.0)])[None, :, None]
    maps = None
    if fused is not None:
        u = (fused + 0.1 * torch.arange(3.0)).reshape(1, 1, 1, 3)
        maps = Uncertainty(u, u.expand(1, 3, 1, 3), torch.zeros(1, 2))
    return Descriptors(coarse, torch.zeros(1, 1, 4, 12), maps)


def targets(n: int = 3000, crops: int = 10, seed: int = 0) -> DistillationTargets:
    """Inputs of very different size, of which the first two and the entropy make the information."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 12, generator=generator) * torch.logspace(-1, 2, 12) + 5
    inputs[:, -1] = 0.0
    z = (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6)
    information = torch.exp(z[:, 0].abs() + 0.7 * z[:, 1] - z[:, -3] - 3)
    crop = torch.arange(n) % crops
    return DistillationTargets(inputs, information, crop, crop // 2)


class TestInputs:
    def test_by_hand(self):
        prediction = certain([(1, 0), (0, 0), (-1, 0)], (1, 3), 0.6)
        inputs = match_inputs(prediction, numbered(10, 0.1), numbered(20, 0.5))
        entropy = -(0.6 * math.log(0.6) + 0.4 * math.log(0.05))
        log_p = math.log(0.6)
        expected = [
            [10, 0, 21, -1, log_p, entropy, 0.1, 0.6],
            [11, -1, 21, -1, log_p, entropy, 0.2, 0.6],
            [12, -2, 21, -1, log_p, entropy, 0.3, 0.6],
        ]
        assert torch.allclose(inputs, torch.tensor(expected))

    def test_a_match_off_the_image_takes_the_nearest_cell(self):
        inputs = match_inputs(certain([(-1, 0), (0, 1), (1, -1)], (1, 3), 0.6), numbered(10, None), numbered(20, None))
        assert inputs[:, 2].tolist() == [20, 21, 22]

    def test_without_uncertainty_modules_theirs_are_zero(self):
        inputs = match_inputs(certain([(0, 0)] * 3, (1, 3), 0.6), numbered(10, None), numbered(20, None))
        assert torch.equal(inputs[:, -2:], torch.zeros(3, 2))

    def test_the_head_takes_them(self, described):
        net, *parts = described
        inputs = match_inputs(*parts)
        assert net.epistemic_head(inputs).shape == (parts[0].forward.shape[-2:].numel(),)

    def test_pairs_of_a_batch_are_estimated_each_by_itself(self, described):
        _, prediction, sar, optical = described
        moved, other = (d._replace(coarse=d.coarse.roll(1, -1)) for d in (sar, optical))
        both = Prediction(torch.cat([prediction.forward, prediction.forward.roll(1, -1)]), prediction.backward)

        def batch(a: Descriptors, b: Descriptors) -> Descriptors:
            uncertainty = a.uncertainty and Uncertainty(*(torch.cat([t, t]) for t in a.uncertainty))
            return Descriptors(torch.cat([a.coarse, b.coarse]), a.fine, uncertainty)

        rows = match_inputs(both, batch(sar, moved), batch(optical, other))
        first = match_inputs(prediction, sar, optical)
        second = match_inputs(both._replace(forward=both.forward[1:]), moved, other)
        assert torch.equal(rows, torch.cat([first, second]))

    def test_other_sizes_and_batches_are_rejected(self, described):
        _, prediction, sar, optical = described
        smaller = optical._replace(coarse=optical.coarse[..., :-1])
        with pytest.raises(ValueError, match="optical: expected"):
            match_inputs(prediction, sar, smaller)
        two = Prediction(prediction.forward.repeat(2, 1, 1, 1), prediction.backward)
        with pytest.raises(ValueError, match="take what the prediction was made of"):
            match_inputs(two, sar, optical)


class TestRowEntropy:
    def test_entropy_against_scipy(self, described):
        prediction = described[1]
        p = prediction.forward.exp().numpy()
        assert np.allclose(row_entropy(prediction), scipy.stats.entropy(p, axis=1), rtol=1e-3, atol=1e-6)

    def test_displacements_that_cannot_be_add_nothing(self):
        forward = torch.tensor([0.0, 0.0, *[MASKED] * 7]).log_softmax(0).reshape(1, 9, 1, 1)
        prediction = Prediction(forward, forward)
        assert row_entropy(prediction).item() == pytest.approx(math.log(2))


class TestAttach:
    def test_matches_carry_the_estimate_of_their_cell(self, described):
        net, prediction, sar, optical = described
        height, width = prediction.forward.shape[-2:]
        estimate = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
        raw = pick_matches(net, attach(prediction, estimate), sar.fine, optical.fine)[0]
        x, y = ((raw.xy_sar - 1.5) / 4).round().T
        assert len(x) and torch.equal(raw.epistemic, y * width + x)
        assert prediction.mutual_information is None

    def test_another_shape_is_rejected(self, described):
        with pytest.raises(ValueError, match="information must have one number a SAR cell"):
            attach(described[1], torch.zeros(1, 3, 3))


class TestHead:
    def test_learns_a_known_function_and_keeps_it_for_raw_inputs(self):
        head, table = EpistemicHead(4), targets()
        curve = train_head(head, table, seed=0, epochs=15)
        last = curve.iloc[-1]
        assert last["rank_correlation"] > 0.9 and last["within_crops"] > 0.9
        assert last["rank_correlation"] > abs(last["entropy_rank_correlation"]) + 0.1
        assert curve["held_out_loss"].iloc[-1] < 0.3 * curve["held_out_loss"].iloc[0]
        new = targets(seed=1)
        with torch.no_grad():
            estimate = head(new.inputs)
        assert scipy.stats.spearmanr(estimate, new.information).statistic > 0.9
        assert F.smooth_l1_loss(estimate, (new.information + FLOOR).log()) < 2 * last["held_out_loss"] + 0.02

    def test_absorbing_is_the_same_function(self):
        torch.manual_seed(0)
        head, x = EpistemicHead(4), torch.randn(20, 12) * 30 + 100
        std, mean = torch.std_mean(x, 0)
        before = head((x - mean) / std)
        head.absorb(mean, std)
        assert torch.allclose(head(x), before, atol=1e-4)

    def test_correlations_against_scipy(self):
        head, table = EpistemicHead(4), targets(600)
        row = train_head(head, table._replace(scene=torch.zeros(600, dtype=torch.long)), seed=1, epochs=1).iloc[0]
        entropy, target = table.inputs[:, -3].numpy(), table.information.numpy()
        of_two = []  # a fifth of ten crops is held out: two of them
        for a in range(10):
            for b in range(a):
                rows = np.isin(table.crop.numpy(), (a, b))
                of_two.append(scipy.stats.spearmanr(entropy[rows], target[rows]).statistic)
        assert min(abs(np.array(of_two) - row["entropy_rank_correlation"])) < 1e-6

    def test_repeats_by_seed(self):
        curves = [train_head(EpistemicHead(4), targets(400), seed, epochs=2) for seed in (3, 3, 4)]
        pd.testing.assert_frame_equal(curves[0], curves[1])
        assert not curves[0].equals(curves[2])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"information": torch.zeros(400)}, "no dropout"),
            ({"crop": torch.zeros(400, dtype=torch.long)}, "held out"),
            ({"inputs": torch.zeros(0, 12)}, "no cell of the crops"),
        ],
    )
    def test_rejected_targets(self, change, message):
        with pytest.raises(ValueError, match=message):
            train_head(EpistemicHead(4), targets(400)._replace(**change), seed=0)

    def test_no_epochs_is_rejected(self):
        with pytest.raises(ValueError, match="epochs"):
            train_head(EpistemicHead(4), targets(400), seed=0, epochs=0)


class TestDistil:
    def test_changes_the_head_alone_and_repeats(self, net, pairs):
        again = copy.deepcopy(net)
        net.sar_encoder.train()
        modes = [module.training for module in net.modules()]
        before = copy.deepcopy(net.state_dict())
        curves = [distil(n, pairs, CONFIG, 0, 3, 32, 2, crops=CROPS) for n in (net, again)]
        changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if name.startswith("epistemic_head.")}
        assert [module.training for module in net.modules()] == modes
        assert not any(p.requires_grad for p in net.epistemic_head.parameters())
        pd.testing.assert_frame_equal(*curves)
        for name, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])

    def test_leaves_the_global_generator_alone(self, net, pairs):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        distil(net, pairs, CONFIG, 0, 2, 8, 1, crops=CROPS)
        assert torch.equal(torch.get_rng_state(), before)

    def test_learns_from_cells_of_every_crop(self, net, pairs, monkeypatch):
        monkeypatch.setattr(distillation, "train_head", lambda head, targets, seed, epochs: targets)
        table = distil(net, pairs, CONFIG, 0, 2, 20, crops=CROPS)
        assert table.inputs.shape == (80, net.epistemic_head.hidden.in_features)
        assert table.crop.bincount().tolist() == [20] * 4
        assert (table.information >= 0).all() and table.information.max() > 0
        assert len(table.scene.unique()) == pairs.index["scene"].nunique()

    def test_estimate_is_a_map_within_bounds_and_survives_the_file(self, net, pairs, tmp_path):
        distil(net, pairs, CONFIG, 0, 2, 32, 2, crops=CROPS)
        save_weights(net, tmp_path / "model.safetensors")
        loaded = load_weights(tmp_path / "model.safetensors")[0].eval()
        maps = []
        for network in (net, loaded):
            with torch.no_grad():
                sar, optical = network(pairs[1].sar[None], pairs[1].optical[None])
            prediction = predict(network, sar, optical, RADIUS)
            maps.append(distilled_information(network, prediction, sar, optical))
        assert maps[0].shape == (1, *sar.coarse.shape[-2:])
        assert (maps[0] >= 0).all() and maps[0].max() <= math.log(prediction.forward.shape[1])
        assert torch.equal(*maps)
        with torch.no_grad():
            net.epistemic_head.out.bias.fill_(1e4)
        at_most = distilled_information(net, prediction, sar, optical)
        assert torch.allclose(at_most, torch.tensor(math.log(prediction.forward.shape[1])))

    def test_a_head_that_learned_nothing_is_refused_also_from_older_weights(self, described):
        net, *parts = described
        with pytest.raises(ValueError, match="untrained"):
            distilled_information(net, *parts)
        other = copy.deepcopy(net)
        other.epistemic_head.distilled.fill_(1)
        older = {name: value for name, value in net.state_dict().items() if not name.endswith("distilled")}
        other.load_state_dict(older)
        with pytest.raises(ValueError, match="untrained"):
            distilled_information(other, *parts)

    def test_rejected_inputs(self, net, pairs):
        with pytest.raises(ValueError, match="passes"):
            distil(net, pairs, CONFIG, 0, passes=1)
        with pytest.raises(ValueError, match="training pair"):
            distil(net, pairs.subset([]), CONFIG, 0, crops=CROPS)
        with pytest.raises(ValueError, match="held out"):
            distil(net, pairs, CONFIG, 0, 2, crops=1)
        without = dataclasses.replace(CONFIG.model, early_dropout=0.0, uncertainty_dropout=0.0, fusion_dropout=0.0)
        with pytest.raises(ValueError, match="no dropout"):
            distil(SarOpticalNet(without), pairs, CONFIG, 0, 2, 8, crops=CROPS)


class TestDensity:
    @pytest.fixture(scope="class")
    @staticmethod
    def density(described, pairs) -> Density:
        return Density.fit(described[0], pairs, CONFIG, 0, crops=CROPS)

    def test_images_as_in_training_are_nearer_than_patterns(self, described, pairs, density):
        net, prediction, *_ = described

        def distance(sar, optical):
            with torch.no_grad():
                maps = net.sar_encoder.encode(sar), net.optical_encoder.encode(optical)
            return density.distance(*maps, prediction)

        sar, optical = pairs[0].sar[None], pairs[0].optical[None]
        stripes = (torch.arange(CONFIG.data.patch_size) % 4 < 2).float().expand_as(sar)
        inlier = distance(sar, optical)
        assert inlier.shape == (1, *prediction.forward.shape[-2:]) and (inlier >= 0).all()
        for outlier in ((stripes, optical), (sar, stripes.expand_as(optical))):
            assert distance(*outlier).median() > inlier.median() + 0.1
        assert inlier.expm1().mean() == pytest.approx(1, abs=0.5)

    def test_against_scikit_learn(self):
        rng = np.random.default_rng(0)
        fits = [LedoitWolf().fit(rng.normal(size=(50, 2)) @ [[1, 2], [0, 1]]) for _ in range(2)]
        density = Density(*(torch.tensor(np.array([getattr(f, n) for f in fits])) for n in ("location_", "precision_")))
        sar, optical = numbered(1, None).coarse, numbered(2, None).coarse
        got = density.distance(sar, optical, certain([(1, 0), (0, 0), (-1, 0)], (1, 3), 0.6))
        first = fits[0].mahalanobis(sar[0, :, 0].T.numpy())
        second = fits[1].mahalanobis(optical[0, :, 0].T.numpy())[1]
        assert np.allclose(got.flatten(), np.log1p((first + second) / 4), rtol=1e-5)

    def test_repeats_by_seed(self, described, pairs, density):
        again = Density.fit(described[0], pairs, CONFIG, 0, crops=CROPS)
        assert torch.equal(density.means, again.means) and torch.equal(density.precisions, again.precisions)

    def test_rejected_inputs(self, described, pairs, density):
        net, prediction, sar, _ = described
        features = torch.zeros(1, CONFIG.model.feature_width, *prediction.forward.shape[-2:])
        with pytest.raises(ValueError, match="expected features of 48 channels"):
            density.distance(features, sar.coarse, prediction)
        with pytest.raises(ValueError, match="take what the prediction was made of"):
            density.distance(features, features[..., :-1], prediction)
        with pytest.raises(ValueError, match="training pair"):
            Density.fit(net, pairs.subset([]), CONFIG, 0)
