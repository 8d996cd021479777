"""Matches from descriptors: hand-computed points, a known shift, and no match where there is none."""

import math

import pytest
import torch
import torch.nn.functional as F

from sarmatch.matching.aggregation import coarse_logits, pair_maps, reliability_weights
from sarmatch.matching.assignment import Prediction, log_softmax, mutual_matches, predict
from sarmatch.matching.correlation import coarse_volume, swap
from sarmatch.matching.refinement import RawMatches, local_expectation, pick_matches, window_moments
from sarmatch.model import Descriptors, SarOpticalNet
from sarmatch.model.uncertainty import SOURCES, Uncertainty
from sarmatch.profiles import profile

SMALL = profile("smoke").model


def random_descriptors(size: int, seed: int = 0) -> Descriptors:
    generator = torch.Generator().manual_seed(seed)
    coarse = F.normalize(torch.randn(1, 32, size // 4, size // 4, generator=generator), dim=1)
    fine = F.normalize(torch.randn(1, 8, size, size, generator=generator), dim=1)
    return Descriptors(coarse, fine, None)


def shifted(descriptors: Descriptors, cells: tuple[int, int]) -> Descriptors:
    dx, dy = cells
    return Descriptors(
        torch.roll(descriptors.coarse, (dy, dx), (2, 3)), torch.roll(descriptors.fine, (4 * dy, 4 * dx), (2, 3)), None
    )


@pytest.fixture(scope="module")
def net() -> SarOpticalNet:
    torch.manual_seed(0)
    return SarOpticalNet(SMALL).eval()


def match_descriptors(
    net, sar, optical, radius, sar_valid=None, optical_valid=None, use_consensus=True, refine=True
) -> RawMatches:
    masks = (sar_valid, optical_valid)
    prediction = predict(net, sar, optical, radius, *masks, use_consensus)
    return pick_matches(net, prediction, sar.fine, optical.fine, *masks, use_consensus, refine)[0]


def shares_within(matches: RawMatches, truth: tuple[float, float], px: float) -> float:
    error = (matches.xy_optical - matches.xy_sar - torch.tensor(truth)).norm(dim=-1)
    return float((error <= px).float().mean())


@pytest.mark.parametrize("use_consensus", [True, False])
def test_a_known_shift_is_found_everywhere_it_can_be(net, use_consensus):
    sar = random_descriptors(64)
    matches = match_descriptors(net, sar, shifted(sar, (2, -1)), 16.0, use_consensus=use_consensus)
    assert len(matches.probability) >= 13 * 14
    assert shares_within(matches, (8.0, -4.0), 0.5) > 0.97  # a border cell may err
    assert (matches.probability > 0.5).float().mean() > 0.9


def test_keypoints_are_cell_centres_and_matches_lie_on_the_image(net):
    sar = random_descriptors(64)
    matches = match_descriptors(net, sar, shifted(sar, (2, 0)), 16.0)
    assert torch.equal(matches.xy_sar % 4, torch.full_like(matches.xy_sar, 1.5))
    assert (matches.xy_optical >= 0).all()
    assert (matches.xy_optical <= 63).all()


@pytest.mark.parametrize(
    ("use_consensus", "refine", "beyond"), [(True, False, 0.0), (False, True, 4.0), (True, True, 5.7)]
)
def test_no_match_is_further_from_its_prediction_than_the_radius(net, use_consensus, refine, beyond):
    """Refinement may lead out by a cell (without consensus) or by the fine window's half-width."""
    for seed in range(1, 6):
        sar, other = random_descriptors(64), random_descriptors(64, seed=seed)
        matches = match_descriptors(net, sar, other, 12.0, use_consensus=use_consensus, refine=refine)
        assert ((matches.xy_optical - matches.xy_sar).norm(dim=-1) <= 12.0 + beyond).all()


def test_unrelated_descriptors_give_few_and_doubtful_matches(net):
    sar, other = random_descriptors(64), random_descriptors(64, seed=1)
    matches = match_descriptors(net, sar, other, 16.0, use_consensus=False)
    assert len(matches.probability) < 128
    assert matches.probability.median() < 0.3


def test_cells_without_data_are_not_matched(net):
    sar = random_descriptors(64)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, :, :8] = False
    matches = match_descriptors(net, sar, shifted(sar, (0, 0)), 16.0, sar_valid=valid)
    assert len(matches.probability) > 100
    assert (matches.xy_sar[:, 0] >= 32).all()
    matches = match_descriptors(net, sar, shifted(sar, (0, 0)), 16.0, optical_valid=valid, refine=False)
    assert (matches.xy_optical[:, 0] >= 32).all()


def test_mutual_means_both_ways():
    sar = F.normalize(torch.eye(3)[:, None, :].reshape(1, 3, 1, 3), dim=1)
    # Columns are optical cells: 0 and 1 both resemble SAR cell 0 (1 less so), 2 resembles SAR cell 2.
    optical = F.normalize(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]).reshape(1, 3, 1, 3), dim=1)
    volume = coarse_volume(sar, optical, 2)
    _, cells, displacement, confidence = mutual_matches(log_softmax(volume), log_softmax(swap(volume)))
    found = [(int(c[0]), int(c[0] + d[0])) for c, d in zip(cells, displacement, strict=True)]
    # SAR cell 1 likes optical cell 1 best, which prefers SAR cell 0, which prefers optical cell 0.
    assert found == [(0, 0), (2, 2)]
    assert ((confidence > 0) & (confidence < 1)).all()


def test_local_expectation_by_hand():
    logits = torch.full((1, 5, 5), -torch.inf)
    logits[0, 2, 3], logits[0, 2, 4] = 0.0, 0.0  # half at x = +1, half at x = +2
    logits[0, 3, 3] = 0.0
    x, y = local_expectation(logits)[0].tolist()
    assert x == pytest.approx((1 + 2 + 1) / 3)
    assert y == pytest.approx(1 / 3)


def test_local_expectation_at_the_border_stays_in_the_window():
    logits = torch.zeros(1, 3, 3)
    logits[0, 0, 0] = 50.0
    assert local_expectation(logits)[0].tolist() == pytest.approx([-1.0, -1.0])


def window(entries: dict[tuple[int, int], float], size: int = 9) -> torch.Tensor:
    """Log-probabilities of one window of which only these steps (dx, dy) can be."""
    logits = torch.full((1, size, size), -torch.inf)
    for (dx, dy), probability in entries.items():
        logits[0, dy + size // 2, dx + size // 2] = math.log(probability)
    return logits


def test_window_moments_of_an_isotropic_peak_by_hand():
    logits = window({(0, 0): 0.6, (1, 0): 0.1, (-1, 0): 0.1, (0, 1): 0.1, (0, -1): 0.1})
    moments = window_moments(logits, local_expectation(logits))[0]
    torch.testing.assert_close(moments, 0.2 * torch.eye(2))


def test_a_ridge_along_x_leaves_x_doubtful_and_y_not():
    ridge = window({(dx, 0): 0.2 if dx else 0.2001 for dx in range(-2, 3)})
    moments = window_moments(ridge, local_expectation(ridge))[0]
    assert moments[0, 0] == pytest.approx(2.0, rel=1e-3)  # (4 + 1 + 0 + 1 + 4) / 5, beyond the 3x3 steps
    assert moments[1, 1] == moments[0, 1] == 0
    upright = window_moments(ridge.transpose(1, 2), local_expectation(ridge.transpose(1, 2)))[0]
    torch.testing.assert_close(upright, moments.flip(0, 1))


def test_a_diagonal_ridge_and_a_distant_second_peak_show_in_the_moments():
    diagonal = window({(d, d): 1 / 3 for d in (-1, 0, 1)})
    torch.testing.assert_close(window_moments(diagonal, torch.zeros(1, 2))[0], torch.full((2, 2), 2 / 3))
    twins = window({(0, 0): 0.75, (4, 0): 0.25})
    position = local_expectation(twins)  # at the higher peak: the other is none of its neighbours
    assert position.tolist() == [[0.0, 0.0]]
    assert window_moments(twins, position)[0, 0, 0] == pytest.approx(0.25 * 16)


def test_moments_of_a_window_without_data_are_unknown():
    assert torch.isnan(window_moments(torch.full((1, 9, 9), -torch.inf), torch.zeros(1, 2))).all()


def test_matches_carry_a_spread_unless_they_stop_at_whole_cells(net):
    sar = random_descriptors(64)
    optical = shifted(sar, (1, 0))
    voted, alone, whole = (
        match_descriptors(net, sar, optical, 16, use_consensus=c, refine=r).covariance
        for c, r in ((True, True), (False, True), (True, False))
    )
    assert torch.isnan(whole).all()
    for covariance in (voted, alone):
        assert (torch.linalg.eigvalsh(covariance) > -1e-5).all()
        assert covariance.diagonal(dim1=1, dim2=2).max() > 0


def test_sub_pixel_shifts_are_found_to_a_fraction(net):
    generator = torch.Generator().manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(1, 8, 72, 72, generator=generator), 5, 1)
    moved = (smooth[..., 1:, 1:] + smooth[..., 1:, :-1]) / 2  # half a pixel to the right
    crop = (..., slice(0, 64), slice(0, 64))
    sar = random_descriptors(64)
    one = Descriptors(sar.coarse, F.normalize(smooth[..., 1:, 1:][crop], dim=1), None)
    two = Descriptors(sar.coarse, F.normalize(moved[crop], dim=1), None)
    matches = match_descriptors(net, one, two, 8.0)
    shift = (matches.xy_optical - matches.xy_sar).median(0).values
    assert abs(float(shift[0]) - 0.5) < 0.2
    assert abs(float(shift[1])) < 0.2


def doubtful(descriptors: Descriptors, seed: int) -> Descriptors:
    """The same with random maps of uncertainty."""
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = descriptors.coarse.shape
    fused, sources = (torch.rand(n, c, height, width, generator=generator) for c in (1, 3))
    summary = torch.randn(n, SMALL.feature_width, generator=generator)
    return descriptors._replace(uncertainty=Uncertainty(fused, sources, summary))


@pytest.fixture
def beta(net):
    """Set how strongly uncertainty lowers the reliability; restored afterwards."""
    before = net.vote_log_scale.detach().clone()

    def put(value: float) -> None:
        with torch.no_grad():
            net.vote_log_scale.fill_(math.log(value))

    yield put
    put(float(before.exp()))


def test_reliability_weights_are_those_of_both_ends(net, beta):
    beta(2.0)
    sar, optical = doubtful(random_descriptors(32), 0), doubtful(random_descriptors(32), 1)
    u_sar, u_optical = sar.uncertainty.fused[0, 0], optical.uncertainty.fused[0, 0]
    weights = reliability_weights(net, sar, optical, 2).detach()
    assert weights.shape == (1, 5, 5, 8, 8)
    for i, j, y, x in torch.cartesian_prod(*(torch.arange(n) for n in (5, 5, 8, 8))).tolist():
        to_y, to_x = y + i - 2, x + j - 2
        if 0 <= to_y < 8 and 0 <= to_x < 8:
            expected = math.exp(-2.0 * (u_sar[y, x] + u_optical[to_y, to_x]))
            assert float(weights[0, i, j, y, x]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", ["sar", "optical"])
def test_uncertainty_at_either_end_lowers_the_weight(net, beta, side):
    beta(1.0)
    quiet = Uncertainty(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, SMALL.feature_width))
    loud = quiet._replace(fused=quiet.fused.clone())
    loud.fused[..., 3, 4] = 1.0
    ends = {"sar": quiet, "optical": quiet} | {side: loud}
    sar, optical = (random_descriptors(32)._replace(uncertainty=ends[k]) for k in ("sar", "optical"))
    weights = reliability_weights(net, sar, optical, 1).detach()
    assert float(weights[0, 1, 1, 3, 4]) == pytest.approx(math.exp(-1))  # no displacement: the place itself
    assert float(weights[0, 1, 1, 0, 0]) == 1.0
    # To the right by a cell: the doubtful SAR cell itself, or the cell left of the doubtful optical one.
    assert float(weights[0, 1, 2, 3, 4 if side == "sar" else 3]) == pytest.approx(math.exp(-1))
    assert int(((weights > 0) & (weights < 1)).sum()) == 9  # zero is off the image


def slow_logits(net, sar, optical, radius, use_consensus):
    """Weighted similarities and their consensus in loops over cells, displacements and neighbours (design point 4)."""
    size, n, factor = 2 * radius + 1, sar.coarse.shape[-1], float(net.vote_log_scale.exp())
    u_sar, u_optical = (d.uncertainty.fused[0, 0] for d in (sar, optical))
    sides = (1, *net.config.consensus_cells) if use_consensus else (1,)
    scales = (net.coarse_log_scales if use_consensus else net.plain_log_scale[None]).exp().tolist()
    result = torch.zeros(size, size, n, n)
    for i, j, y, x in torch.cartesian_prod(*(torch.arange(k) for k in (size, size, n, n))).tolist():
        for side, scale in zip(sides, scales, strict=True):
            total, weights = 0.0, 0.0
            for near_y in range(max(0, y - side // 2), min(n, y + side // 2 + 1)):
                for near_x in range(max(0, x - side // 2), min(n, x + side // 2 + 1)):
                    to_y, to_x = near_y + i - radius, near_x + j - radius
                    if 0 <= to_y < n and 0 <= to_x < n:
                        weight = math.exp(-factor * (u_sar[near_y, near_x] + u_optical[to_y, to_x]))
                        cosine = float(sar.coarse[0, :, near_y, near_x] @ optical.coarse[0, :, to_y, to_x])
                        total, weights = total + weight * cosine, weights + weight
            # The cell alone is damped by its own weight; a neighbourhood is a mean.
            result[i, j, y, x] += scale * (total if side == 1 else total / max(weights, 1e-3))
    return result


@pytest.mark.parametrize("use_consensus", [True, False])
def test_logits_are_those_of_slow_loops(net, beta, use_consensus):
    beta(1.5)
    sar, optical = doubtful(random_descriptors(24), 0), doubtful(random_descriptors(24, seed=1), 1)
    logits = coarse_logits(net, sar, optical, 4.0, use_consensus=use_consensus)
    expected = slow_logits(net, sar, optical, 1, use_consensus)
    valid = logits.valid[0].expand_as(expected)
    assert torch.allclose(logits.values[0].detach()[valid], expected[valid], atol=1e-3)


@pytest.mark.parametrize("use_consensus", [True, False])
def test_without_weight_uncertainty_changes_nothing(net, beta, use_consensus):
    plain, other = random_descriptors(64), random_descriptors(64, seed=1)
    expected = predict(net, plain, other, 16.0, use_consensus=use_consensus)
    for value, same in ((1e-6, True), (1.0, False)):
        beta(value)
        found = predict(net, doubtful(plain, 0), doubtful(other, 1), 16.0, use_consensus=use_consensus)
        assert torch.allclose(found.forward, expected.forward, atol=1e-3) == same
        assert torch.allclose(found.backward, expected.backward, atol=1e-3) == same


def test_uncertain_places_follow_their_neighbours(net, beta):
    """Half of the optical cells show another place; where they say so, their neighbours decide."""
    beta(8.0)
    sar = random_descriptors(64)
    wrong = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(5)) < 0.5
    there = shifted(sar, (1, 0))
    elsewhere = shifted(sar, (-2, 2))
    mixed = there._replace(coarse=torch.where(wrong, elsewhere.coarse, there.coarse))
    shares = {}
    for informed in (True, False):
        told = Uncertainty(wrong.float() * informed, torch.zeros(1, 3, 16, 16), torch.zeros(1, SMALL.feature_width))
        silent = told._replace(fused=torch.zeros(1, 1, 16, 16))
        ends = sar._replace(uncertainty=silent), mixed._replace(uncertainty=told)
        found = predict(net, *ends, 16.0).forward.exp().unflatten(1, (9, 9))
        shares[informed] = float(found[:, 4, 5].mean())  # probability of the true displacement (1, 0)
    assert shares[True] > 0.8
    assert shares[True] > shares[False] + 0.1


def test_maps_of_a_pair_are_weighted_sources(net):
    sar, optical = doubtful(random_descriptors(32), 0), doubtful(random_descriptors(32), 1)
    weights = net.source_weights(sar.uncertainty, optical.uncertainty)[0]
    of_sar, of_optical = pair_maps(net, sar, optical)
    assert of_sar.shape == of_optical.shape == (1, 8, 8)
    assert torch.allclose(of_sar[0], sum(weights[k] * sar.uncertainty.sources[0, k] for k in range(3)))
    assert torch.allclose(of_optical[0], sum(weights[3 + k] * optical.uncertainty.sources[0, k] for k in range(3)))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_uncertainty_of_a_match_spans_zero_to_one(net, level):
    told = Uncertainty(*(torch.full(shape, level) for shape in ((1, 1, 8, 8), (1, 3, 8, 8), (1, SMALL.feature_width))))
    maps = pair_maps(net, *(random_descriptors(32)._replace(uncertainty=told),) * 2)
    assert torch.allclose(maps[0] + maps[1], torch.full((1, 8, 8), level))
    assert len(SOURCES) == 6  # three sources an image, as above


def test_matches_carry_the_doubt_of_both_ends_and_of_their_cell(net):
    sar = random_descriptors(64)
    prediction = predict(net, sar, shifted(sar, (2, -1)), 16.0)
    cells = torch.arange(256.0).reshape(1, 16, 16)
    told = prediction._replace(pair_maps=(cells / 1024, cells / 512), mutual_information=cells / 256)
    matches = pick_matches(net, told, sar.fine, shifted(sar, (2, -1)).fine, refine=False)[0]
    x, y = ((matches.xy_sar - 1.5) / 4).T
    to_x, to_y = ((matches.xy_optical - 1.5) / 4).T
    assert len(x) > 150
    assert torch.allclose(matches.aleatoric, (16 * y + x) / 1024 + (16 * to_y + to_x) / 512)
    assert torch.allclose(matches.epistemic, (16 * y + x) / 256)


def test_without_maps_and_passes_doubt_is_not_a_number(net):
    sar = random_descriptors(64)
    prediction = predict(net, sar, shifted(sar, (2, -1)), 16.0)
    assert prediction == Prediction(prediction.forward, prediction.backward)
    matches = pick_matches(net, prediction, sar.fine, shifted(sar, (2, -1)).fine)[0]
    assert matches.aleatoric.isnan().all()
    assert matches.epistemic.isnan().all()


def test_pairs_of_a_batch_are_predicted_each_by_itself(net):
    pairs = [(doubtful(random_descriptors(64, s), s), doubtful(random_descriptors(64, s + 9), s + 9)) for s in (0, 1)]
    singles = [predict(net, *pair, 16.0) for pair in pairs]
    stacked = []
    for ends in zip(*pairs, strict=True):
        told = Uncertainty(*(torch.cat(t) for t in zip(*(e.uncertainty for e in ends), strict=True)))
        stacked.append(Descriptors(torch.cat([e.coarse for e in ends]), torch.cat([e.fine for e in ends]), told))
    both = predict(net, *stacked, 16.0)
    assert torch.allclose(both.forward, torch.cat([s.forward for s in singles]), atol=1e-3)
    assert torch.allclose(both.backward, torch.cat([s.backward for s in singles]), atol=1e-3)
    assert torch.allclose(both.pair_maps[1], torch.cat([s.pair_maps[1] for s in singles]), atol=1e-5)
