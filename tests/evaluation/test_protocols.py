"""Protocols with exact truth, the same crops for every method, and no score where nothing can be matched."""

import dataclasses

import numpy as np
import pytest
import torch
from patch_net import PatchNet, texture

from sarmatch.config import EvaluationConfig
from sarmatch.data import Pair, Pairs, synthetic_pairs
from sarmatch.evaluation.protocols import evaluate, evaluation_crops, mismatched, validation_scores
from sarmatch.geometry import Search, cell_centres, field_at, inside, transform_points, warp
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile

CONFIG = EvaluationConfig(crop_size=96, affine_crop_size=64, max_shift_px=16.0, deformation_px=6.0, max_pairs=None)


def pairs_of_one_look(n: int = 4, size: int = 144) -> Pairs:
    """Pairs whose two images are the same texture, so that a matcher without training can be judged."""
    index = synthetic_pairs(n, 64, 0).index.copy()
    index["scene"] = [f"scene{i}" for i in range(n)]

    def read(row) -> Pair:
        image = texture(size, seed=int(row.name))
        labels = {name: row[name] for name in ("id", "dataset", "scene", "season", "land_cover")}
        return Pair(image, image.expand(3, -1, -1), torch.ones(size, size, dtype=torch.bool), **labels)

    return Pairs(index, read)


@pytest.mark.parametrize("protocol", ["aligned", "shift", "affine"])
def test_the_truth_leads_from_one_crop_to_the_same_place_in_the_other(protocol):
    pair = pairs_of_one_look(1)[0]
    crops = evaluation_crops(pair, protocol, CONFIG)
    size = (crops.sar.shape[-2], crops.sar.shape[-1])
    assert size == ((64, 64) if protocol == "affine" else (96, 96))
    moved = warp(crops.optical[:1], crops.A_sar_to_optical, size)
    points = torch.cartesian_prod(torch.arange(2.0, size[1] - 2), torch.arange(2.0, size[0] - 2)).double()
    visible = inside(transform_points(crops.A_sar_to_optical, points), size)
    x, y = points[visible].long().T
    assert visible.float().mean() > 0.4
    assert (moved[0, y, x] - crops.sar[0, y, x]).abs().mean() < 0.03
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.equal(crops.A_sar_to_optical, identity) == (protocol == "aligned")


def test_a_bent_crop_shows_what_its_truth_says():
    """On images whose pixels hold their own position, to a thousandth of a pixel."""
    size = 128
    places = cell_centres(size, size, 1).movedim(-1, 0) / (size - 1)
    valid = torch.ones(size, size, dtype=torch.bool)
    pair = Pair(places, torch.cat([places, places[:1]]), valid, id="places")
    for sigma in (12.0, 24.0, 48.0):
        crops = evaluation_crops(pair, "deform", dataclasses.replace(CONFIG, deformation_sigma_px=sigma))
        assert crops.field is not None
        assert float(crops.field.abs().max()) == pytest.approx(6.0)
        assert crops.optical_valid.all()  # no border is invented
        cells = cell_centres(20, 20, 4).reshape(1, -1, 2)
        there = crops.truth.to_optical(cells)
        seen = inside(there, (80, 80))
        assert seen.float().mean() > 0.4
        shown, own = field_at(crops.optical[None, :2], there), field_at(crops.sar[None], cells)
        assert (shown - own)[seen].norm(dim=-1).max() * (size - 1) < 1e-3


def test_without_amplitude_a_bent_crop_is_a_shifted_one():
    pair = pairs_of_one_look(1)[0]
    crops = evaluation_crops(pair, "deform", dataclasses.replace(CONFIG, deformation_px=0.0))
    assert crops.field is None
    assert torch.equal(crops.A_sar_to_optical[:2, :2], torch.eye(2, dtype=torch.float64))
    assert crops.sar.shape[-1] == 80


def test_a_field_that_would_fold_the_image_is_refused():
    folding = dataclasses.replace(CONFIG, deformation_px=12.0, deformation_sigma_px=4.0)
    with pytest.raises(ValueError, match="would fold the image"):
        evaluation_crops(pairs_of_one_look(1)[0], "deform", folding)
    with pytest.raises(ValueError, match="must not be negative"):
        dataclasses.replace(CONFIG, deformation_px=-1.0)


def test_errors_under_deformation_are_measured_against_the_bent_truth():
    class Knows:
        def match_crops(self, crops, search_radius):
            xy = cell_centres(20, 20, 4).reshape(-1, 2)
            there = crops.truth.to_optical(xy[None])[0]
            return Matches(xy.numpy(), there.numpy(), np.full(len(xy), 0.9, np.float32))

    table = evaluate(Knows(), pairs_of_one_look(2), "deform", 32.0, CONFIG, progress=False)
    assert (table["mma_1px"] == 1).all()
    assert (table["rmse_px"] < 1e-3).all()
    # The best affine map leaves out what bends, yet it is near the affine map nearest to the truth.
    assert table["corner_error_px"].between(0.0, 8.0).all()
    scores = validation_scores(Knows(), pairs_of_one_look(2), CONFIG, deformed=True)
    assert scores["mma_1px"] == (scores["shift_mma_1px"] + scores["deform_mma_1px"]) / 2 == 1


@pytest.mark.parametrize("protocol", ["shift", "affine"])
def test_no_border_is_invented_and_the_transform_keeps_its_range(protocol):
    for i in range(4):
        pair = pairs_of_one_look()[i]
        crops = evaluation_crops(pair, protocol, CONFIG)
        assert crops.sar_valid.all()
        assert crops.optical_valid.all()
        linear = crops.A_sar_to_optical[:2, :2]
        scale = float(torch.linalg.det(linear)) ** 0.5
        angle = float(torch.rad2deg(torch.atan2(linear[1, 0], linear[0, 0])))
        if protocol == "shift":
            assert torch.allclose(linear, torch.eye(2, dtype=torch.float64))
            assert crops.A_sar_to_optical[:2, 2].abs().max() <= 16.0
            assert crops.search == Search(None)
        else:
            assert 0.9 - 1e-9 <= scale <= 1.1 + 1e-9
            assert abs(angle) <= 30.0
            assert crops.search.max_rotation_deg == 30.0


def test_crops_depend_on_the_pair_and_the_seed_alone():
    pair, other = pairs_of_one_look()[0], pairs_of_one_look()[1]
    once = evaluation_crops(pair, "shift", CONFIG).A_sar_to_optical
    assert torch.equal(once, evaluation_crops(pair, "shift", CONFIG).A_sar_to_optical)
    assert not torch.equal(once, evaluation_crops(other, "shift", CONFIG).A_sar_to_optical)
    reseeded = dataclasses.replace(CONFIG, seed=1)
    assert not torch.equal(once, evaluation_crops(pair, "shift", reseeded).A_sar_to_optical)


def test_a_pair_too_small_for_the_protocol_is_an_error():
    pair = pairs_of_one_look(1, size=90)[0]
    with pytest.raises(ValueError, match="smaller than the 96 px crop"):
        evaluation_crops(pair, "shift", CONFIG)
    pair = pairs_of_one_look(1, size=96)[0]
    with pytest.raises(ValueError, match="leaves no room"):
        evaluation_crops(pair, "affine", dataclasses.replace(CONFIG, affine_crop_size=96))


def test_records_have_one_row_a_pair_and_a_working_matcher_scores_high():
    pairs = pairs_of_one_look()
    records = evaluate(Matcher(PatchNet()), pairs, "shift", 24.0, CONFIG, progress=False)
    assert records["id"].tolist() == pairs.index["id"].tolist()
    assert (records["protocol"] == "shift").all()
    assert (records["crop_size"] == 96).all()
    assert records["mma_3px"].min() > 0.8
    assert (records["mma_1px"] <= records["mma_3px"]).all()
    affine = evaluate(Matcher(PatchNet()), pairs, "affine", 16.0, CONFIG, progress=False)
    assert affine["mma_3px"].mean() > 0.6


def test_with_another_scenes_optical_image_the_score_falls_to_chance():
    pairs = pairs_of_one_look()
    wrong = mismatched(pairs)
    assert torch.equal(wrong[0].sar, pairs[0].sar)
    assert not torch.equal(wrong[0].optical, pairs[0].optical)
    for protocol in ("shift", "aligned"):
        records = evaluate(Matcher(PatchNet()), wrong, protocol, 24.0, CONFIG, progress=False)
        chance = 9 / 24**2
        assert records["mma_3px"].mean() < 4 * chance
    assert wrong.fingerprint() != pairs.fingerprint()


def test_a_matcher_that_answers_the_same_place_is_convicted_by_aligned_mismatched_pairs():
    class SamePlace:
        def match_crops(self, crops, search_radius):
            xy = np.argwhere(np.ones((8, 8))) * 8.0
            return Matches(xy, xy, np.ones(len(xy)))

    records = evaluate(SamePlace(), mismatched(pairs_of_one_look()), "aligned", 24.0, CONFIG, progress=False)
    assert records["mma_1px"].mean() == 1.0


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf")])
def test_an_unusable_radius_is_rejected(radius):
    with pytest.raises(ValueError, match="search_radius must be positive"):
        evaluate(Matcher(PatchNet()), pairs_of_one_look(2), "shift", radius, CONFIG, progress=False)


def test_an_untrained_network_does_not_match_by_position():
    torch.manual_seed(0)
    matcher = Matcher(SarOpticalNet(profile("smoke").model))
    wrong = mismatched(pairs_of_one_look())
    records = evaluate(matcher, wrong, "aligned", 24.0, CONFIG, progress=False)
    assert records["mma_3px"].mean() < 0.1  # chance is 0.016; 1 for a matcher by position


def test_mismatching_needs_two_scenes():
    pairs = pairs_of_one_look(2)
    same = dataclasses.replace(pairs, index=pairs.index.assign(scene="one"))
    with pytest.raises(ValueError, match="at least two scenes"):
        mismatched(same)
    with pytest.raises(ValueError, match="at least two scenes"):
        mismatched(same, same)


def test_one_scene_is_mismatched_with_spare_ones():
    pairs = pairs_of_one_look(8)
    scenes = pairs.index["scene"].to_numpy()
    one, spare = pairs.subset(scenes == scenes[0]), pairs.subset(scenes != scenes[0])
    wrong = mismatched(one, spare)
    assert torch.equal(wrong[0].sar, one[0].sar) and wrong[0].scene == scenes[0]
    assert any(torch.equal(wrong[0].optical, spare[i].optical) for i in range(len(spare)))
    assert mismatched(pairs, spare).fingerprint() == mismatched(pairs).fingerprint(), "taken only where needed"


def test_at_most_so_many_pairs_spread_over_all_scenes():
    pairs = pairs_of_one_look(8)
    index = pairs.index.assign(scene=["a"] * 6 + ["b", "c"])
    few = dataclasses.replace(CONFIG, max_pairs=4)
    records = evaluate(Matcher(PatchNet()), dataclasses.replace(pairs, index=index), "shift", 8.0, few, progress=False)
    assert len(records) == 4
    assert {"a", "c"} <= set(records["scene"])


def test_validation_scores_are_the_means_of_the_records():
    pairs = pairs_of_one_look()
    config = dataclasses.replace(CONFIG, headline_radius=24.0)
    scores = validation_scores(Matcher(PatchNet()), pairs, config)
    records = evaluate(Matcher(PatchNet()), pairs, "shift", 24.0, config, progress=False)
    assert scores["mma_3px"] == pytest.approx(records["mma_3px"].mean())
    assert scores["n_matches"] == pytest.approx(np.mean(records["n_matches"]))
