"""Training crops: exact truth, reproducible, within the pair, and radiometry that does what it is named for."""

import dataclasses

import numpy as np
import pytest
import torch

from sarmatch.config import DataConfig
from sarmatch.data import Pair, Pairs, synthetic_pairs
from sarmatch.data.crops import (
    HAZE_BRIGHTNESS,
    TrainingCrops,
    haze,
    mix_bands,
    optical_radiometry,
    part,
    random_maps,
    speckle,
)
from sarmatch.geometry import TrueMap, cell_centres, field_at, inside, transform_points, warp
from sarmatch.profiles import profile

PLAIN = DataConfig(
    crop_size=64, patch_size=128, relative_shift_px=12.0, noise_std=0.0, speckle_probability=0.0, band_mixing=0.0
)


def coordinate_pairs(size: int = 128, waves: float = 1.0) -> Pairs:
    """A pair whose two images are smooth and equal, so that the truth of a sample can be read off its pixels."""
    index = synthetic_pairs(1, 64, 0).index
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    image = ((6.3 * waves * x).sin() * (waves * (9.1 * y + 2 * x)).cos() / 2 + 0.5)[None].float()
    valid = torch.ones(size, size, dtype=torch.bool)
    return Pairs(index, lambda row: Pair(image, image.expand(3, -1, -1), valid, id=row["id"]))


def test_a_sample_depends_on_seed_epoch_and_position_alone():
    pairs = synthetic_pairs(4, 96, 0)
    config = profile("smoke").data
    first, second = TrainingCrops(pairs, config, seed=3), TrainingCrops(pairs, config, seed=3, cache=True)
    _ = second[0, 0], second[5, 2]  # whatever was drawn before
    for name, value in first[1, 2].items():
        assert torch.equal(value, second[1, 2][name])
    assert not torch.equal(first[1, 2]["sar"], first[2, 2]["sar"])
    assert not torch.equal(first[1, 2]["sar"], TrainingCrops(pairs, config, seed=4)[1, 2]["sar"])


def test_the_truth_of_a_sample_holds_in_its_pixels():
    crops = TrainingCrops(coordinate_pairs(), PLAIN, seed=0)
    for epoch in range(6):
        sample = crops[epoch, 0]
        A, size = sample["A_sar_to_optical"].double(), (64, 64)
        points = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0)).double()
        seen = inside(transform_points(A, points), size)
        x, y = points[seen].long().T
        moved = warp(sample["optical"][:1], A, size)[0, y, x]
        original = sample["sar"][0, y, x]
        # Radiometry changes contrast, not order: ranks must agree.
        assert seen.float().mean() > 0.4
        assert np.corrcoef(moved.argsort().argsort(), original.argsort().argsort())[0, 1] > 0.99


def test_a_bent_sample_shows_what_its_truth_says():
    config = dataclasses.replace(
        PLAIN, deformation_probability=1.0, deformation_px=6.0, deformation_sigma_px=(12.0, 30.0), haze_probability=0.0
    )
    crops = TrainingCrops(coordinate_pairs(waves=3.0), config, seed=0)
    for epoch in range(6):
        sample = crops[epoch, 0]
        assert 0 < sample["field"].abs().max() <= 6
        affine = sample["A_sar_to_optical"][None].double()
        points = cell_centres(64, 64, 1).reshape(1, -1, 2).double()
        agreement = []
        for truth in (TrueMap(affine, sample["field"][None]), TrueMap(affine)):
            there = truth.to_optical(points)
            on_data = field_at(sample["optical_valid"][None, None].float(), there)[0, :, 0] > 0.999
            seen = inside(there[0], (64, 64)) & on_data
            assert seen.float().mean() > 0.3
            moved, original = field_at(sample["optical"][None, :1], there)[0, seen, 0], sample["sar"][0].flatten()[seen]
            agreement.append(np.corrcoef(moved.argsort().argsort(), original.argsort().argsort())[0, 1])
        assert agreement[0] > 0.95
        assert agreement[0] > agreement[1]


def test_what_was_added_later_leaves_older_samples_as_they_were():
    pairs = synthetic_pairs(2, 96, 0)
    config = profile("smoke").data
    straight = TrainingCrops(pairs, config, seed=3)[1, 1]
    assert not straight["field"].any()
    bent = TrainingCrops(pairs, dataclasses.replace(config, deformation_probability=1.0), seed=3)[1, 1]
    assert torch.equal(bent["A_sar_to_optical"], straight["A_sar_to_optical"])
    assert bent["field"].any()


def test_datasets_drawn_twice_stand_twice_among_the_positions():
    pairs = synthetic_pairs(4, 96, 0)
    index = pairs.index.assign(dataset=["plain", "speckled", "plain", "speckled"])
    pairs = Pairs(index, pairs.read)
    crops = TrainingCrops(pairs, dataclasses.replace(profile("smoke").data, drawn_twice=("speckled",)), seed=0)
    assert len(crops) == 6
    assert sorted(crops.rows) == [0, 1, 1, 2, 3, 3]
    assert not torch.equal(crops[0, 1]["sar"], crops[0, 4]["sar"])  # another crop of the same pair


def test_a_nuisance_over_a_part_leaves_the_rest_alone():
    rng = np.random.default_rng(1)
    shares = [float((part(torch.zeros(1, 96, 96), rng) > 0.5).float().mean()) for _ in range(20)]
    assert 0.1 < np.mean(shares) < 0.9
    covered = part(torch.zeros(1, 96, 96), rng)
    assert covered.shape == (96, 96)
    assert covered.min() < 0.05
    assert covered.max() > 0.95
    clouded = dataclasses.replace(PLAIN, cloud_probability=1.0, haze_probability=0.0)
    dark = torch.zeros(3, 96, 96)
    seen = optical_radiometry(dark, clouded, np.random.default_rng(2))
    assert seen.max() > 0.5 > 0.2 > seen.min()


def test_a_pixel_scale_shows_more_or_less_of_the_pair():
    wide = dataclasses.replace(PLAIN, pixel_scale=(1.5, 1.5), relative_shift_px=2.0)
    rng = np.random.default_rng(0)
    maps = [random_maps((128, 128), wide, rng)[0] for _ in range(20)]
    scales = {round(float(torch.linalg.det(m[:2, :2]).abs().sqrt()), 6) for m in maps}
    assert 1.5 in scales


def test_crops_lie_inside_the_pair():
    rng = np.random.default_rng(0)
    corners = torch.tensor([[0.0, 0], [63, 0], [0, 63], [63, 63]], dtype=torch.float64)
    kept_grid = 0
    for _ in range(200):
        maps = random_maps((128, 128), PLAIN, rng)
        for affine in maps:
            assert inside(transform_points(affine, corners), (128, 128)).all()
        kept_grid += bool(torch.equal(maps[0], maps[0].round()))
    assert 70 < kept_grid < 130  # half stay on the pixel grid


def test_a_pair_just_large_enough_gives_a_plain_window():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(PLAIN, crop_size=128)
    sar_to_pair, optical_to_pair = random_maps((128, 128), config, rng)
    assert torch.equal(sar_to_pair.abs()[:2, :2], torch.eye(2, dtype=torch.float64))
    assert torch.equal(sar_to_pair, optical_to_pair)


def test_invalid_pixels_stay_invalid():
    pairs = coordinate_pairs()
    whole = pairs[0]
    valid = whole.valid.clone()
    valid[:, :64] = False
    half = Pairs(pairs.index, lambda row: dataclasses.replace(whole, valid=valid))
    masks = [TrainingCrops(half, PLAIN, seed=0)[epoch, 0]["sar_valid"] for epoch in range(8)]
    assert any(not mask.all() for mask in masks)


def test_the_later_acquisition_is_used_as_often_as_asked():
    pairs = coordinate_pairs()
    later = dataclasses.replace(pairs, read_later=lambda row: torch.ones(1, 128, 128))
    always = dataclasses.replace(PLAIN, later_sar_probability=1.0)
    never = dataclasses.replace(PLAIN, later_sar_probability=0.0)
    assert float(TrainingCrops(later, always, seed=0)[0, 0]["sar"].std()) < 1e-3
    assert float(TrainingCrops(later, never, seed=0)[0, 0]["sar"].std()) > 0.05


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_speckle_has_unit_mean_power_and_the_variance_of_its_looks(looks):
    out = speckle(torch.ones(1, 400, 400), looks, np.random.default_rng(0))
    power = out.square()
    assert float(power.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(power.var()) == pytest.approx(1 / looks, rel=0.05)


def test_mixed_bands_stay_in_range_and_keep_a_grey_image():
    rng = np.random.default_rng(0)
    grey = torch.rand(1, 8, 8).expand(3, -1, -1)
    colour = torch.rand(3, 8, 8)
    for _ in range(20):
        assert torch.allclose(mix_bands(grey, rng), grey, atol=1e-6)
        mixed = mix_bands(colour, rng)
        assert mixed.min() >= 0
        assert mixed.max() <= 1


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_haze_veils_unevenly_smoothly_and_alike_in_all_bands(density):
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(0)) * 0.8
    veiled = haze(image, density, np.random.default_rng(0))
    opacity = (veiled - image) / (HAZE_BRIGHTNESS - image)  # what the blend was made with
    assert torch.allclose(opacity, opacity[:1].expand(3, -1, -1), atol=1e-4)
    assert float(opacity.min()) == pytest.approx(0.0, abs=1e-4)
    assert float(opacity.max()) == pytest.approx(density, abs=1e-4)
    steps = [opacity[0].diff(dim=axis).abs().max() for axis in (0, 1)]
    assert max(steps) < density * 0.15  # against an image whose neighbours differ by up to its whole range
    assert veiled.min() >= 0
    assert veiled.max() <= 1


def test_haze_brightens_what_is_dark_and_flattens_contrast():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    light, dense = (haze(image, density, np.random.default_rng(1)) for density in (0.2, 0.8))
    assert dense.mean() > light.mean() > image.mean()
    thick = (dense - image)[0] / (HAZE_BRIGHTNESS - image)[0] > 0.6
    assert dense[:, thick].std() < 0.6 * image[:, thick].std()
    assert torch.allclose(haze(image, 0.0, np.random.default_rng(1)), image)


def test_haze_comes_as_often_as_asked():
    grey = torch.full((3, 32, 32), 0.3)

    def share_hazy(probability: float) -> float:
        config = dataclasses.replace(PLAIN, haze_probability=probability)
        rng = np.random.default_rng(0)
        return float(np.mean([float(optical_radiometry(grey, config, rng).std()) > 1e-3 for _ in range(200)]))

    assert share_hazy(0.0) == 0.0
    assert share_hazy(1.0) == 1.0
    assert share_hazy(0.3) == pytest.approx(0.3, abs=0.1)  # three standard errors
