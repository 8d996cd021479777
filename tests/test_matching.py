"""Matches from descriptors: hand-computed points, a known shift, and no match where there is none."""

import pytest
import torch
import torch.nn.functional as F

from sarmatch.matching import RawMatches, local_expectation, mutual_matches, pick_matches, predict
from sarmatch.models import Descriptors, SarOpticalNet
from sarmatch.profiles import profile
from sarmatch.volumes import coarse_volume, log_softmax, swap

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
    return pick_matches(net, prediction, sar.fine, optical.fine, *masks, use_consensus, refine)


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
    cells, displacement, confidence = mutual_matches(log_softmax(volume), log_softmax(swap(volume)))
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
