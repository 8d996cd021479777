"""Generated pairs: determined by the seed, related by structure, and each nuisance does what it says."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude, maximum_filter

from sarmatch.data import Nuisance, render, render_pair, split_by_scene, synthetic_pairs
from sarmatch.data.synthetic import _project
from sarmatch.data.synthetic_scene import CLASSES, FOREST, ROOF, WATER, draw_style, largest

CALM = Nuisance(
    looks=np.inf, layover_px=0, double_bounce=0, relief=0, haze=0, cloud=0, shadow=0, illumination=0, snow=0
)


URBAN = next(seed for seed in range(50) if draw_style(seed).land_cover == "urban")


def vary(**changes: float) -> Nuisance:
    return dataclasses.replace(CALM, **changes)


def test_a_pair_follows_from_its_seed() -> None:
    first, again, other = render_pair(5, 64), render_pair(5, 64), render_pair(6, 64)
    assert torch.equal(first.sar, again.sar) and torch.equal(first.optical, again.optical)
    assert not torch.equal(first.sar, other.sar)
    assert first.size == (64, 64) and bool(first.valid.all())


def test_sequence_has_scenes_seasons_and_labels() -> None:
    pairs = synthetic_pairs(64, 32, seed=1)
    assert list(pairs.index["scene"].value_counts().unique()) == [4] and pairs.index["scene"].nunique() == 16
    assert pairs.index.groupby("scene")[["season", "land_cover"]].nunique().max().max() == 1
    assert pairs.index["season"].nunique() == 4 and pairs.index["land_cover"].nunique() == 4
    assert len(split_by_scene(pairs).test) >= 8
    assert not (pairs.index.loc[pairs.index["season"] == "summer", "snow"] > 0).any()
    pair, row = pairs[7], pairs.index.iloc[7]
    assert (pair.id, pair.scene, pair.season) == (row["id"], row["scene"], row["season"])
    assert torch.equal(pair.sar, synthetic_pairs(64, 32, seed=1)[7].sar)
    assert not torch.equal(pair.sar, synthetic_pairs(64, 32, seed=2)[7].sar)
    assert torch.equal(pickle.loads(pickle.dumps(pairs.read))(row).sar, pair.sar)


def test_fixed_nuisance_and_both_polarisations() -> None:
    pairs = synthetic_pairs(2, 48, seed=0, sar_bands=(0, 1), nuisance=vary(haze=0.3))
    assert set(pairs.index["haze"]) == {0.3} and pairs[0].sar.shape == (2, 48, 48)
    assert not torch.equal(pairs[0].sar[0], pairs[0].sar[1])


def test_later_acquisition_shows_the_same_place_with_other_speckle() -> None:
    pairs = synthetic_pairs(4, 96, seed=3, nuisance=vary(looks=4))
    now, later, elsewhere = pairs[0].sar[0], pairs.later_sar(0), pairs[1].sar[0]
    assert later is not None and not torch.equal(now, later[0])
    smooth = [gaussian_filter(image.numpy(), 3).ravel() for image in (now, later[0], elsewhere)]
    assert np.corrcoef(smooth[0], smooth[1])[0, 1] > 0.7 > np.corrcoef(smooth[0], smooth[2])[0, 1]


def test_edges_of_both_modalities_agree_at_the_truth_only() -> None:
    """What makes the pairs learnable: structure is shared, whatever the radiometry."""
    agreement = {0: [], 10: []}
    for seed in range(12):
        pair = render_pair(seed, 128, vary(looks=8))
        sar, optical = (gaussian_gradient_magnitude(x.numpy(), 2) for x in (pair.sar[0], pair.optical.mean(0)))
        for shift, values in agreement.items():
            values.append(np.corrcoef(np.roll(sar, shift, 1).ravel(), optical.ravel())[0, 1])
    assert np.mean(agreement[0]) > 0.25
    assert abs(np.mean(agreement[10])) < 0.1


def test_radiometry_is_not_shared() -> None:
    """Gray values of SAR and optical have no common sign of correlation over scenes."""
    signs = []
    for seed in range(16):
        pair = render_pair(seed, 96, CALM)
        signs.append(np.corrcoef(pair.sar[0].flatten().numpy(), pair.optical.mean(0).flatten().numpy())[0, 1] > 0)
    assert 2 <= sum(signs) <= 14


def test_some_classes_differ_in_one_modality_only() -> None:
    style = draw_style(0)
    vv, colours = style.backscatter[0], style.colours
    assert vv[0] == vv[1] and not np.allclose(colours[0], colours[1])
    assert np.allclose(colours[2], colours[3]) and vv[2] != vv[3]
    assert len(colours) == len(vv) == len(CLASSES)


def test_sensors_have_their_own_nuisances() -> None:
    plain = render_pair(URBAN, 64, CALM)
    for name, value in (("haze", 0.5), ("cloud", 0.3), ("shadow", 0.8), ("illumination", 0.5), ("snow", 0.5)):
        pair = render_pair(URBAN, 64, vary(**{name: value}))
        assert torch.equal(pair.sar, plain.sar) and not torch.equal(pair.optical, plain.optical), name
    for name, value in (("looks", 1.0), ("layover_px", 4.0), ("double_bounce", 1.0)):
        pair = render_pair(URBAN, 64, vary(**{name: value}))
        assert torch.equal(pair.optical, plain.optical) and not torch.equal(pair.sar, plain.sar), name


def test_fewer_looks_make_more_speckle() -> None:
    clean = render_pair(2, 128, CALM).sar
    spread = [float((render_pair(2, 128, vary(looks=looks)).sar - clean).std()) for looks in (1, 4, 16)]
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]
    # The logarithm of L-look speckle in dB has a standard deviation of 10 / ln 10 * sqrt(trigamma(L)).
    assert spread[2] * 25 == pytest.approx(10 / np.log(10) * np.sqrt(0.0645), rel=0.15)


def test_haze_cloud_and_snow_maps() -> None:
    calm = render(4, 128, CALM)
    assert calm.haze.max() == 0 and calm.snow.max() == 0
    hazy = render(4, 128, vary(haze=0.4))
    assert hazy.haze.mean() == pytest.approx(0.4, abs=0.1)
    contrast = [np.mean(gaussian_gradient_magnitude(made.pair.optical.mean(0).numpy(), 1)) for made in (hazy, calm)]
    assert contrast[0] < 0.8 * contrast[1]
    cloudy = render(4, 128, vary(cloud=0.3))
    assert (cloudy.haze > 0.9).mean() == pytest.approx(0.3, abs=0.12)
    snowy = render(4, 128, vary(snow=0.5))
    white = torch.from_numpy(snowy.snow == 1)
    assert float(white.float().mean()) > 0.1 and not (snowy.snow > 0)[snowy.land_cover == WATER].any()
    assert float(snowy.pair.optical[:, white].mean()) > float(calm.pair.optical[:, white].mean()) + 0.2


def test_displacement_is_towards_the_sensor_and_only_where_something_is_high() -> None:
    assert not render(4, 96, CALM).displacement.any()
    seeds = range(6)
    for seed in seeds:
        made = render(seed, 96, vary(layover_px=4))
        look = draw_style(seed).look
        assert (made.displacement * look <= 0).all() and np.abs(made.displacement).max() <= 4
        trees = np.abs(made.displacement[made.land_cover == FOREST])
        np.testing.assert_allclose(trees, 1, atol=1e-6)  # trees have a quarter of the height of the highest roofs


def test_speckle_map_is_the_factor_on_the_power() -> None:
    clean, noisy = render(2, 96, CALM), render(2, 96, vary(looks=4))
    assert (clean.speckle == 1).all()
    assert noisy.speckle.mean() == pytest.approx(1, abs=0.03) and noisy.speckle.var() == pytest.approx(1 / 4, rel=0.1)
    before, after = clean.pair.sar[0].numpy(), noisy.pair.sar[0].numpy()
    whole = (before > 0.1) & (after > 0.1) & (after < 1)  # neither clipped nor near the noise floor
    np.testing.assert_allclose(25 * (after - before)[whole], 10 * np.log10(noisy.speckle[whole]), atol=0.2)


def test_layover_map() -> None:
    assert (render(7, 96, CALM).layover == 1).all()
    made = render(7, 128, vary(layover_px=6))
    assert made.layover.max() > 1.5 and made.layover.min() < 0.1
    untouched = maximum_filter(np.abs(made.displacement), size=(1, 15)) == 0
    assert untouched.any() and (made.layover[:, 8:-8] == 1)[untouched[:, 8:-8]].all()


def test_relief_moves_and_shades() -> None:
    made, calm = render(8, 128, vary(relief=1.0)), render(8, 128, CALM)
    np.testing.assert_allclose(made.displacement, -0.5 * draw_style(8).look * made.relief, rtol=1e-5)
    assert (calm.shading == 1).all() and np.array_equal(calm.relief, made.relief)
    change = (made.pair.optical - calm.pair.optical).mean(0).numpy()
    assert np.corrcoef(change.ravel(), made.shading.ravel())[0, 1] > 0.8


def test_double_bounce_is_bright_and_at_walls_that_face_the_sensor() -> None:
    made, calm = render(URBAN, 128, vary(double_bounce=1.0, layover_px=4)), render(URBAN, 128, vary(layover_px=4))
    wall = made.double_bounce > 0.5
    assert wall.sum() > 50 and calm.double_bounce.max() == 0
    roof = made.land_cover == ROOF
    assert roof[made.double_bounce > 0].all()
    towards_sensor = np.roll(made.displacement, draw_style(URBAN).look, axis=1)
    assert (np.abs(towards_sensor) < np.abs(made.displacement))[:, 1:-1][wall[:, 1:-1]].all()
    brighter = (made.pair.sar - calm.pair.sar)[0].numpy()
    assert brighter[wall].mean() > 0.1 and brighter.min() >= 0


def test_illumination_map_is_a_gradient_on_the_optical_image() -> None:
    made, calm = render(9, 96, vary(illumination=0.3)), render(9, 96, CALM)
    assert (calm.illumination == 1).all()
    assert 0.3 < np.ptp(made.illumination) < 0.3 * 2 * np.sqrt(2)
    np.testing.assert_allclose(np.diff(made.illumination, n=2, axis=0), 0, atol=1e-6)
    before, after = calm.pair.optical.numpy(), made.pair.optical.numpy()
    np.testing.assert_allclose(after, before * made.illumination, atol=0.03)


def test_haze_and_cloud_are_told_apart() -> None:
    assert render(4, 96, vary(haze=0.4)).cloud.max() == 0
    made = render(4, 96, vary(haze=0.2, cloud=0.3))
    assert (made.haze >= made.cloud).all() and (made.haze > made.cloud).any()
    assert np.array_equal(render(4, 96, vary(cloud=0.3)).haze, made.cloud)


def test_projection_moves_energy_and_keeps_it() -> None:
    sigma = np.zeros((3, 8), np.float32)
    sigma[1, 5] = 2
    np.testing.assert_allclose(_project(sigma, np.full((3, 8), -2.0))[1], [0, 0, 0, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(_project(sigma, np.full((3, 8), 0.25))[1], [0, 0, 0, 0, 0, 1.5, 0.5, 0])
    layover = np.zeros((1, 8))
    layover[0, 4] = -2.0
    np.testing.assert_allclose(_project(np.ones((1, 8), np.float32), layover)[0, 1:6], [1, 2, 1, 0, 1])


def test_largest_share() -> None:
    values = np.random.default_rng(0).normal(size=(64, 64))
    assert not largest(values, 0).any()
    assert largest(values, 0.25).mean() == pytest.approx(0.25, abs=0.05)


def test_rejected_input() -> None:
    for bad in ({"looks": 0}, {"layover_px": 9}, {"double_bounce": -1}, {"haze": 1.5}, {"snow": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Nuisance(**bad)
    with pytest.raises(ValueError, match="at least 32 px, got 4 and 16"):
        synthetic_pairs(4, 16, seed=0)
    with pytest.raises(ValueError, match=r"at least 1 and .* got 0 and 64"):
        synthetic_pairs(0, 64, seed=0)
