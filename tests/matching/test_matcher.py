"""The matcher on images whose relation is known, with a network that needs no training."""

from itertools import pairwise

import numpy as np
import pytest
import rasterio
import torch
from patch_net import PatchNet, texture

from sarmatch import load_matcher
from sarmatch.data.raster import Raster
from sarmatch.evaluation.metrics import match_errors
from sarmatch.geometry import Search, rotation_scale, transform_points, translation, warp
from sarmatch.matching import matcher as inference
from sarmatch.matching import monte_carlo
from sarmatch.matching.coarse_alignment import hypotheses
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import RawMatches
from sarmatch.matching.tiling import TILE, tile_intervals
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import save_weights
from sarmatch.profiles import profile


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(PatchNet())


def pair(size: int, A_sar_to_optical: torch.Tensor, margin: int = 40, seed: int = 0):
    """SAR and optical crops of one texture, related by the given map."""
    scene = texture(size + 2 * margin, seed)
    sar_to_scene = translation(margin, margin)
    optical_to_scene = sar_to_scene @ torch.linalg.inv(A_sar_to_optical)
    sar = warp(scene, sar_to_scene, (size, size))
    optical = warp(scene, optical_to_scene, (size, size))
    return sar[0].numpy(), optical.expand(3, -1, -1).numpy()


def test_a_shift_is_found_to_a_fraction_of_a_pixel(matcher):
    truth = translation(7.4, -5.7)
    matches = matcher.match(*pair(96, truth), search_radius=16)
    errors = match_errors(matches, truth)
    assert len(matches) > 300
    assert np.mean(errors < 0.5) > 0.9  # the rest lie at the border, where little of a cell is seen
    assert np.isnan(matches.epistemic).all()


def test_the_whole_image_is_searched_without_a_radius(matcher):
    truth = translation(37.0, 30.0)
    images = pair(128, truth)
    assert np.mean(match_errors(matcher.match(*images, search_radius=None), truth) < 1) > 0.9
    assert np.mean(match_errors(matcher.match(*images, search_radius=16), truth) < 1) < 0.05


def test_rotation_and_scale_are_searched_when_asked_for(matcher):
    truth = translation(5, -3) @ rotation_scale(21.0, 1.07, (63.5, 63.5))
    matches = matcher.match(*pair(128, truth), search_radius=16, max_rotation_deg=30, scale_range=(0.9, 1.1))
    errors = match_errors(matches, truth)
    assert len(matches) > 200
    assert np.mean(errors < 1) > 0.9


def test_covariance_turns_with_the_prior(matcher):
    sar, optical = (torch.from_numpy(image) for image in pair(128, translation(0, 0)))
    valid = torch.ones(1, 128, 128, dtype=torch.bool)
    (plain,) = matcher._match_warped([(sar[None, None], optical[None], valid, valid)], [translation(0, 0)], [0])
    quarter = torch.tensor([[0.0, -1, 127], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # (x, y) to (127 - y, x)
    turned_image = optical.rot90(-1, (1, 2))[None]
    (turned,) = matcher._match_warped([(sar[None, None], turned_image, valid, valid)], [quarter], [0])
    assert len(plain.covariance) == len(turned.covariance) > 500
    expected = plain.covariance.flip(1, 2) * torch.tensor([[1.0, -1], [-1, 1]])
    torch.testing.assert_close(turned.covariance, expected, atol=1e-3, rtol=1e-2)


def test_covariance_of_a_sheared_prior_is_that_of_the_sheared_points(matcher, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4000, 2, generator=generator) * torch.tensor([0.5, 0.2])
    unknown, centre = torch.full((1,), torch.nan), torch.full((1, 2), 32.0)
    found = RawMatches(centre, centre, unknown, unknown, unknown, points.T.cov()[None], torch.zeros(1, 7))
    monkeypatch.setattr(matcher, "_match_tiles", lambda *_: [found])
    prior = torch.tensor([[0.5, 0.3, 4], [-0.1, 1.2, 2], [0, 0, 1]], dtype=torch.float64)
    image, valid = torch.zeros(1, 1, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)
    (moved,) = matcher._match_warped([(image, image, valid, valid)], [prior], [0])
    torch.testing.assert_close(moved.covariance[0], transform_points(prior, points).T.cov())


def test_pixels_without_data_do_not_change_what_is_matched_beside_them():
    torch.manual_seed(0)
    matcher = Matcher(SarOpticalNet(profile("smoke").model), device="cpu")
    sar, optical = pair(96, translation(4, 0))
    filled, holed = sar.copy(), sar.copy()
    filled[:, :48] = sar[:, 48:].mean()  # what a hole must be taken for
    holed[:, :48] = np.nan
    expected = matcher.match(filled, optical, search_radius=8)
    found = matcher.match(holed, optical, search_radius=8)
    assert (found.xy_sar[:, 0] >= 48).all()
    common = {tuple(xy) for xy in found.xy_sar} & {tuple(xy) for xy in expected.xy_sar}
    assert len(common) > 0.5 * len(found)


def test_unrelated_images_agree_no_better_than_chance(matcher):
    sar, _ = pair(96, translation(0, 0))
    _, other = pair(96, translation(0, 0), seed=1)
    errors = match_errors(matcher.match(sar, other, search_radius=32), translation(0, 0))
    assert np.mean(errors < 3) < 0.05


def test_a_large_image_is_matched_in_tiles_like_a_small_one(matcher):
    size = TILE + 112
    truth = translation(6.0, 9.0)
    matches = matcher.match(*pair(size, truth), search_radius=16)
    assert np.mean(match_errors(matches, truth) < 0.5) > 0.98
    cells = {tuple(xy) for xy in matches.xy_sar.tolist()}
    assert len(cells) == len(matches)  # no keypoint twice, although tiles overlap
    x, y = matches.xy_sar.T
    counts, _, _ = np.histogram2d(x, y, bins=size // 16)
    assert counts[1:-2, 1:-2].min() >= 4  # of 16 cells, everywhere: no gap at a seam


def test_a_search_wider_than_tiles_overlap_goes_through_the_global_stage(matcher):
    truth = translation(88.0, 0.0)
    matches = matcher.match(*pair(TILE + 112, truth, margin=96), search_radius=100)
    assert np.mean(match_errors(matches, truth) < 1) > 0.9
    counts, _ = np.histogram(matches.xy_sar[:, 0], bins=np.arange(0, 280, 32))
    assert counts[1:-1].min() > 100  # no dip at a seam


def test_a_global_search_of_a_huge_image_is_refused_with_a_remedy(matcher):
    noise = np.random.default_rng(0).random((16, 4096, 3))
    with pytest.raises(ValueError, match="give a smaller search_radius"):
        matcher.match(noise[..., 0], noise, search_radius=None)


@pytest.mark.parametrize("length", [TILE + 16, 700, 1024, 4000])
def test_tiles_cover_a_line_without_gap_and_their_cores_lie_inside(length):
    tiles = tile_intervals(length, 32.0)
    assert tiles[0][1] == -1.0
    assert tiles[-1][2] == length
    assert all(a[2] == b[1] for a, b in pairwise(tiles))
    assert tiles[-1][0] + TILE >= length - 15
    inner = tiles[1:-1]
    assert all(start + 31 <= low and high <= start + TILE - 31 for start, low, high in inner)
    assert all(start % 16 == 0 for start, _, _ in tiles)


def test_layouts_and_dtypes_of_arrays_do_not_matter(matcher):
    sar, optical = pair(64, translation(4, 0))
    reference = matcher.match(sar, optical, search_radius=8)
    last = matcher.match(sar[None], np.moveaxis(optical, 0, -1), search_radius=8)
    tensors = matcher.match(torch.from_numpy(sar), torch.from_numpy(optical), search_radius=8)
    coarse = matcher.match((sar * 255).astype(np.uint8), (optical * 255).astype(np.uint8), search_radius=8)
    for other in (last, tensors):
        assert np.array_equal(other.xy_optical, reference.xy_optical)
    assert np.abs(np.mean(coarse.xy_optical - coarse.xy_sar, 0) - [4, 0]).max() < 0.2


def test_images_need_not_be_multiples_of_anything_nor_equal(matcher):
    sar, optical = pair(96, translation(3, 2))
    matches = matcher.match(sar[:90, :77], optical[:, :85, :], search_radius=8)
    assert np.mean(match_errors(matches, translation(3, 2)) < 0.5) > 0.95
    assert matches.xy_sar[:, 0].max() <= 76
    assert matches.xy_sar[:, 1].max() <= 89
    assert matches.xy_optical[:, 1].max() <= 84 + 1


def test_files_carry_their_georeference_into_the_matches(matcher, tmp_path):
    sar, optical = pair(64, translation(4, 0))
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 4_600_000)
    paths = (tmp_path / "sar.tif", tmp_path / "optical.tif")
    for path, values in zip(paths, (sar[None], optical), strict=True):
        values = (values * 255).astype(np.uint8)
        kind = {"count": len(values), "height": 64, "width": 64, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32631", transform=transform, **kind) as file:
            file.write(values)
    matches = matcher.match(*paths, search_radius=8)
    frame = matches.to_frame()
    assert matches.sar_crs == "EPSG:32631"
    assert np.allclose(frame["map_x_sar"], 500_000 + 10 * (frame["x_sar"] + 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search_radius": 0}, "search_radius must be positive"),
        ({"search_radius": -3.0}, "search_radius must be positive"),
        ({"max_rotation_deg": 200}, "max_rotation_deg"),
        ({"scale_range": (1.2, 0.8)}, "scale_range"),
    ],
)
def test_unusable_search_is_rejected(matcher, arguments, message):
    with pytest.raises(ValueError, match=message):
        matcher.match(np.random.default_rng(0).random((64, 64)), np.zeros((64, 64, 3)), **arguments)


def test_unusable_arrays_are_rejected(matcher):
    good = np.random.default_rng(0).random((64, 64, 3))
    with pytest.raises(ValueError, match="sar: expected"):
        matcher.match(good, good)
    with pytest.raises(ValueError, match="optical: expected"):
        matcher.match(good[..., 0], good[..., :2])
    with pytest.raises(ValueError, match="array of numbers"):
        matcher.match(np.array([["a", "b"]]), good)


def test_hypotheses_span_the_range_and_include_the_middle():
    candidates = hypotheses(30.0, (0.9, 1.1))
    angles = sorted({angle for angle, _ in candidates})
    scales = sorted({scale for _, scale in candidates})
    assert angles == [-30.0, -22.5, -15.0, -7.5, 0.0, 7.5, 15.0, 22.5, 30.0]
    assert scales[0] == pytest.approx(0.9)
    assert scales[-1] == pytest.approx(1.1)
    assert hypotheses(0.0, (1.0, 1.0)) == [(0.0, 1.0)]


def test_weights_go_through_a_file_unchanged(tmp_path):
    torch.manual_seed(0)
    net = SarOpticalNet(profile("smoke").model).eval()
    save_weights(net, tmp_path / "model.safetensors")
    sar, optical = pair(64, translation(2, 0))
    expected = Matcher(net).match(sar, optical, search_radius=8)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        got = load_matcher(source, device="cpu").match(sar, optical, search_radius=8)
        assert np.array_equal(got.xy_optical, expected.xy_optical)


def untrained(**changes) -> SarOpticalNet:
    torch.manual_seed(0)
    return SarOpticalNet(profile("smoke").replace(model=changes).model)


def test_passes_give_matches_an_epistemic_uncertainty():
    images = pair(96, translation(4, 0))
    net = untrained()
    single, many = Matcher(net, "cpu"), Matcher(net, "cpu", mc_passes=6)
    without, matches = single.match(*images, search_radius=16), many.match(*images, search_radius=16)
    assert np.isnan(without.epistemic).all()
    assert np.isfinite(matches.epistemic).all()
    assert (matches.epistemic >= 0).all()
    assert matches.epistemic.max() > 0
    for found in (without, matches):
        assert len(found) > 10
        assert ((found.aleatoric >= 0) & (found.aleatoric <= 1)).all()
    # The number of a single call counts before that of the matcher.
    asked = single.match(*images, search_radius=16, mc_passes=6)
    assert np.array_equal(asked.epistemic, matches.epistemic)
    assert np.isnan(many.match(*images, search_radius=16, mc_passes=0).epistemic).all()


def test_the_callers_network_stays_as_it_is():
    images = pair(64, translation(4, 0))
    net = untrained().train()
    net.optical_encoder.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    found = Matcher(net, "cpu").match(*images, search_radius=8)
    assert {name: module.training for name, module in net.named_modules()} == modes
    expected = Matcher(untrained().eval(), "cpu").match(*images, search_radius=8)
    np.testing.assert_array_equal(found.xy_optical, expected.xy_optical)  # without dropout, although the caller trains
    places = {t.device for t in net.state_dict().values()}
    Matcher(net, "meta")
    assert {t.device for t in net.state_dict().values()} == places


def test_a_network_that_is_ready_is_not_copied():
    net = untrained().eval()
    assert Matcher(net, "cpu").net is net


def test_the_seed_of_the_masks_is_the_callers():
    images, net = pair(96, translation(4, 0)), untrained().eval()
    first, again, other = (
        Matcher(net, "cpu", mc_passes=3, mc_seed=seed).match(*images, search_radius=8) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.epistemic, again.epistemic)
    assert not np.array_equal(first.confidence, other.confidence)
    asked = Matcher(net, "cpu", mc_passes=3).match(*images, search_radius=8, mc_seed=1)
    assert np.array_equal(asked.confidence, other.confidence)
    with pytest.raises(ValueError, match="mc_seed must not be negative, got -1"):
        Matcher(net, "cpu", mc_seed=-1)


def test_each_tile_and_window_draws_masks_of_its_own(monkeypatch):
    seeds, predict = [], monte_carlo.predict_monte_carlo

    def watched(*arguments):
        seeds.extend(arguments[-1])
        return predict(*arguments)

    monkeypatch.setattr(inference, "predict_monte_carlo", watched)
    matcher = Matcher(untrained().eval(), "cpu", mc_passes=1, mc_seed=4)
    sar, optical = (torch.from_numpy(image) for image in pair(288, translation(4, 0)))
    valid = torch.ones(288, 288, dtype=torch.bool)
    for window in (0, 1):
        rasters = (Raster(image, valid, None, None) for image in (sar[None], optical))
        matcher.match_rasters(*rasters, Search(8.0), window)
    assert len(seeds) == len(set(seeds)) == 8
    assert {seed[:2] for seed in seeds} == {(4, 0), (4, 1)}


def test_convolutions_are_exact_and_settings_stay(matcher, monkeypatch):
    """TF32 is off while matching, and what the caller set of cuDNN holds during and after it."""
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "deterministic", True)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    original = matcher._match_tiles

    def watched(*arguments):
        seen.append((cudnn.allow_tf32, cudnn.deterministic))
        return original(*arguments)

    monkeypatch.setattr(matcher, "_match_tiles", watched)
    matcher.match(*pair(96, translation(4, 0)), search_radius=8)
    assert seen == [(False, True)]
    assert (cudnn.allow_tf32, cudnn.deterministic) == (True, True)


@pytest.mark.parametrize("passes", [0, 2])
def test_a_batch_gives_what_each_pair_gives_alone(monkeypatch, passes):
    """Of pairs of two sizes, and all tiles of one size in one batch."""
    monkeypatch.setattr(inference, "TILES_AT_ONCE", 8)
    matcher = Matcher(untrained().eval(), "cpu", mc_passes=passes)
    rasters = []
    for size, shift in ((96, 4), (64, 0), (96, -8)):
        sar, optical = (torch.from_numpy(image) for image in pair(size, translation(shift, 0)))
        valid = torch.ones(size, size, dtype=torch.bool)
        valid[:16] = shift < 0
        rasters.append((Raster(sar[None], valid, None, None), Raster(optical, valid, None, None)))
    together = matcher.match_batch(rasters, Search(8.0), windows=(0, 1, 2))
    for k, (found, one) in enumerate(zip(together, rasters, strict=True)):
        alone = matcher.match_rasters(*one, Search(8.0), k)
        assert len(alone) > 20
        assert np.array_equal(found.xy_sar, alone.xy_sar)
        assert np.allclose(found.xy_optical, alone.xy_optical, atol=1e-3)
        assert np.allclose(found.epistemic, alone.epistemic, atol=1e-5, equal_nan=True)
    assert matcher.match_batch([], Search(8.0)) == []


def test_passes_repeat_and_leave_no_trace():
    images = pair(96, translation(4, 0))
    matcher = Matcher(untrained(), "cpu", mc_passes=3)
    state = torch.get_rng_state()
    first, again = (matcher.match(*images, search_radius=8) for _ in range(2))
    assert np.array_equal(first.xy_optical, again.xy_optical)
    assert np.array_equal(first.epistemic, again.epistemic)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in matcher.net.modules())


def test_passes_without_dropout_change_nothing():
    images = pair(96, translation(4, 0))
    net = untrained(early_dropout=0.0, uncertainty_dropout=0.0, fusion_dropout=0.0)
    single = Matcher(net, "cpu").match(*images, search_radius=8)
    many = Matcher(net, "cpu", mc_passes=4).match(*images, search_radius=8)
    assert np.array_equal(many.xy_sar, single.xy_sar)
    assert np.allclose(many.xy_optical, single.xy_optical, atol=1e-3)
    assert np.allclose(many.confidence, single.confidence, rtol=1e-3)
    assert np.allclose(many.aleatoric, single.aleatoric, atol=1e-4)
    assert many.epistemic.max() < 1e-4


@pytest.mark.parametrize("mc_passes", [0, 7])
def test_what_comes_before_dropout_runs_once(mc_passes):
    net, calls = untrained(), {}

    def count(name):
        return lambda module, inputs, output: calls.setdefault(name, []).append(len(output))

    net.sar_encoder.stem.register_forward_hook(count("sar stem"))
    net.optical_encoder.stem.register_forward_hook(count("optical stem"))
    net.sar_encoder.out.register_forward_hook(count("sar out"))
    net.optical_encoder.out.register_forward_hook(count("optical out"))
    net.sar_encoder.fine.register_forward_hook(count("fine"))
    Matcher(net, "cpu", mc_passes=mc_passes).match(*pair(64, translation(4, 0)), search_radius=8)
    assert calls["sar stem"] == calls["optical stem"] == [1]
    assert sum(calls["sar out"]) == sum(calls["optical out"]) == 1 + mc_passes
    assert sum(calls["fine"]) == 1  # positions within a cell come from the deterministic pass


def test_without_its_modules_aleatoric_uncertainty_is_not_a_number():
    for mc_passes in (0, 2):
        matcher = Matcher(untrained(uncertainty=False), "cpu", mc_passes=mc_passes)
        matches = matcher.match(*pair(64, translation(4, 0)), search_radius=8)
        assert len(matches) > 5
        assert np.isnan(matches.aleatoric).all()
        assert np.isfinite(matches.epistemic).all() == (mc_passes > 0)


def test_a_negative_number_of_passes_is_rejected(matcher, tmp_path):
    with pytest.raises(ValueError, match="mc_passes must not be negative, got -1"):
        Matcher(PatchNet(), mc_passes=-1)
    with pytest.raises(ValueError, match="mc_passes must not be negative"):
        matcher.match(*pair(64, translation(4, 0)), mc_passes=-2)
    save_weights(untrained(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="mc_passes must not be negative"):
        load_matcher(tmp_path, "cpu", mc_passes=-1)


def test_missing_weights_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_matcher(tmp_path / "nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_matcher(tmp_path / "broken.safetensors")


def test_what_is_kept_of_a_matcher_is_found_by_its_settings_alone(matcher):
    """Tables are kept under a digest of these: one more attribute, and all that was measured is measured again."""
    names = {
        "device",
        "net",
        "use_consensus",
        "mc_passes",
        "mc_seed",
        "confidence",
        "distilled",
        "coverage",
        "encoders",
    }
    assert set(vars(matcher)) == names
