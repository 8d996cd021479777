"""What depends on what: which pairs a study takes, what is cut from a network, and against which truth it is judged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from companion.baselines import TemplateMatcher
from companion.figures.plots import share_curves
from companion.settings import book_profile
from companion.studies import ablation, sensitivity
from companion.studies.ablation import BY_NAME, DATA_EFFICIENCY, SETTINGS, TRANSFER, Variant
from companion.studies.data import residual_shift_table
from companion.studies.sensitivity import (
    PositionMatcher,
    by_source,
    crop_records,
    crop_sides,
    differences,
    named_records,
    neighbourhood_sets,
    possible,
    refined_records,
    seed_records,
    shared_test_pairs,
    split_gains,
    split_leak,
    with_neighbourhoods,
    with_shares,
    with_source,
)
from sarmatch.data import open_pairs, split_pairs
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation.protocols import evaluation_crops, spread
from sarmatch.geometry import cell_centres, transform_points, translation
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import SarOpticalNet

SMOKE = book_profile("smoke").replace(studies={"seeds": (0,)})


@pytest.fixture(scope="module")
def pairs():
    return open_pairs(SMOKE.data, SMOKE.seed)


@pytest.fixture(scope="module")
def net() -> SarOpticalNet:
    """Three neighbourhoods, all scales different."""
    torch.manual_seed(0)
    made = SarOpticalNet(dataclasses.replace(SMOKE.model, consensus_cells=(3, 5, 9)))
    with torch.no_grad():
        made.coarse_log_scales += torch.arange(4) / 10
        made.fine_log_scales -= torch.arange(4) / 10
    return made.eval()


@pytest.fixture(scope="module")
def crops(split):
    return evaluation_crops(split.test[0], "shift", SMOKE.evaluation)


def relabelled(pairs: Pairs, names: list[str]) -> Pairs:
    index = pairs.index.assign(dataset=[names[i % len(names)] for i in range(len(pairs))])
    return dataclasses.replace(pairs, index=index)


# Studies


def test_variants_need_pairs_to_learn_from_and_room_for_their_crops(split) -> None:
    assert [v.name for v in possible(TRANSFER, SMOKE, split)] == ["all data"]
    mixed = dataclasses.replace(split, train=relabelled(split.train, ["ombria", "sen12ms"]))
    assert possible(TRANSFER, SMOKE, mixed) == TRANSFER
    alone = dataclasses.replace(split, train=relabelled(split.train, ["ombria"]))
    assert [v.name for v in possible(TRANSFER, SMOKE, alone)] == ["all data"], "no other source to carry over to"
    assert possible(SETTINGS, SMOKE, split) == SETTINGS
    large = (Variant("crops of 128 px", data={"crop_size": 128}),)
    assert possible(large, SMOKE, split) == ()  # of patches of 96 px
    assert possible(large, SMOKE.replace(data={"patch_size": 128}), split) == large
    shares = {v.share for v in possible(DATA_EFFICIENCY, SMOKE, split)}
    assert shares == {0.25, 0.5, 1.0}  # a tenth of 32 pairs are fewer than a batch of 4


def test_tables_of_each_source_stand_below_each_other() -> None:
    scores = pd.DataFrame({"dataset": ["sen1-2", "ombria", "sen12ms", "synthetic"], "value": [1.0, 2.0, 4.0, 8.0]})
    assert with_source(scores)["source"].tolist() == ["SEN12", "OMBRIA", "SEN12", "synthetic"]
    table = by_source(scores, lambda part: part[["value"]].sum().to_frame().T)
    assert table.to_dict("list") == {"source": ["OMBRIA", "SEN12", "synthetic"], "value": [2.0, 5.0, 8.0]}


def test_shares_are_drawn_with_their_numbers_of_pairs(split) -> None:
    names = [variant.name for variant in DATA_EFFICIENCY]
    values = np.linspace(0.1, 0.8, len(names))
    table = pd.DataFrame({"row": names, "mma_3px": values, "mma_3px_low": values - 0.1, "mma_3px_high": values + 0.2})
    table = with_shares(table, split)
    n = len(split.train)
    assert table["labelled_pairs"].tolist() == 2 * [round(0.1 * n), round(0.25 * n), round(0.5 * n), n]
    assert table["start"].tolist() == 4 * ["from scratch"] + 4 * ["pretrained"]
    ax = share_curves(Figure().subplots(), table)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["10%", "25%", "50%", "100%"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["from scratch", "pretrained"]
    assert ax.get_ylabel() == "MMA within 3 px"
    np.testing.assert_allclose(ax.containers[1].lines[0].get_ydata(), values[4:])
    bar = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(bar, [values[0] - 0.1, values[0] + 0.2])


def test_runs_of_a_study_are_named(run, split) -> None:
    table = ablation.study_runs(SMOKE, [BY_NAME["both"]], split, run.path.parents[1])
    assert table["run"].tolist() == [run.path.name] and table["steps"].tolist() == [SMOKE.studies.steps]


# Split by patch


def test_the_leak_is_measured_on_pairs_that_neither_training_saw(pairs, tmp_path, monkeypatch) -> None:
    shared = shared_test_pairs(SMOKE, pairs)
    ids, asked = set(shared.index["id"]), []

    def fake(config, variants, split, runs_dir, test):
        assert [v.name for v in variants] == ["both"] and runs_dir == tmp_path
        assert not ids & (set(split.train.index["id"]) | set(split.validation.index["id"]))
        assert ids <= set(split.test.index["id"]) and set(test.index["id"]) == ids
        asked.append((config.data.split, split.train.index["scene"].isin(test.index["scene"]).any()))
        error = {"scene": 4.0, "patch": 2.5}[config.data.split]
        return test.index[["id", "dataset", "scene"]].assign(row="both", seed=0, voting=True, error_px=error)

    monkeypatch.setattr(ablation, "study_matches", fake)
    scores = split_leak(SMOKE, pairs, tmp_path)
    assert asked == [("scene", False), ("patch", True)]
    assert scores.groupby("row")["mma_3px"].mean().to_dict() == {"split by patch": 1.0, "split by scene": 0.0}


def test_gains_of_the_split_are_over_seeds_and_scenes() -> None:
    rng = np.random.default_rng(0)
    cells = pd.MultiIndex.from_product([range(3), range(18)], names=["seed", "pair"]).to_frame(index=False)
    base = cells.assign(
        id=cells["pair"].map("p{}".format), scene=(cells["pair"] // 3).map("s{}".format), mma_3px=rng.uniform(size=54)
    )
    patch = base.assign(mma_3px=base["mma_3px"] + 0.1 + 0.001 * rng.normal(size=54), row="split by patch")
    scores = pd.concat([base.assign(row="split by scene"), patch.sample(frac=1, random_state=0)])
    found = split_gains(scores, ["mma_3px"]).iloc[0]
    assert found["difference"] == pytest.approx(0.1, abs=1e-3) == found["by_patch"] - found["by_scene"]
    assert (found["verdict"], found["n_pairs"], found["n_scenes"]) == ("better", 18, 6)
    assert found["low"] < found["difference"] < found["high"]
    alone = split_gains(scores[scores["id"] == "p0"], ["mma_3px"]).iloc[0]
    assert alone["verdict"] == "too few scenes" and np.isnan(alone["low"])


def test_splits_without_a_common_test_pair_are_rejected(pairs) -> None:
    one_each = pairs.subset(np.arange(0, 48, 4))  # a pair a scene: the parts have few pairs, and none in common
    seeds = range(30)
    for seed in seeds:
        config = SMOKE.replace(data={"split_seed": seed})
        parts = [split_pairs(one_each, dataclasses.replace(config.data, split=by)).test for by in ("scene", "patch")]
        if not set(parts[0].index["id"]) & set(parts[1].index["id"]):
            break
    with pytest.raises(ValueError, match="no pair lies in both test parts of 2 and 2 pairs"):
        shared_test_pairs(config, one_each)


# Neighbourhoods


def test_kept_neighbourhoods_keep_their_scales_and_the_network_stays_as_it_was(net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cut = with_neighbourhoods(net, (9, 3))
    assert cut.config.consensus_cells == (3, 9)
    for name in ("coarse_log_scales", "fine_log_scales"):
        assert torch.equal(getattr(cut, name), getattr(net, name)[[0, 1, 3]])
    with torch.no_grad():
        cut.coarse_log_scales.zero_()
        cut.plain_log_scale.zero_()
    assert net.config.consensus_cells == (3, 5, 9)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"among the neighbourhoods \(3, 5, 9\) of the network, got \[3, 7\]"):
        with_neighbourhoods(net, (3, 7))


def same(a: Matches, b: Matches) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("xy_sar", "xy_optical", "confidence"))


def test_all_neighbourhoods_are_the_matcher_and_none_is_each_cell_by_itself(net, crops) -> None:
    def matched(matcher: Matcher) -> Matches:
        return matcher.match_crops(crops, 16.0)

    assert same(matched(Matcher(with_neighbourhoods(net, (3, 5, 9)))), matched(Matcher(net)))
    assert same(matched(Matcher(with_neighbourhoods(net, ()))), matched(Matcher(net, use_consensus=False)))
    assert not same(matched(Matcher(with_neighbourhoods(net, (3,)))), matched(Matcher(net)))


def test_a_neighbourhood_of_no_scale_might_as_well_be_cut(net, crops) -> None:
    mute = with_neighbourhoods(net, (3, 5, 9))
    with torch.no_grad():
        for scales in (mute.coarse_log_scales, mute.fine_log_scales):
            scales[2] = -torch.inf
    a, b = (Matcher(n).match_crops(crops, 16.0) for n in (mute, with_neighbourhoods(net, (3, 9))))
    assert np.array_equal(a.xy_sar, b.xy_sar)
    np.testing.assert_allclose(a.xy_optical, b.xy_optical, atol=1e-4)


def test_sets_of_neighbourhoods() -> None:
    assert neighbourhood_sets((3, 7, 15)) == {
        "1": (), "1+3": (3,), "1+7": (7,), "1+15": (15,), "1+3+7": (3, 7), "1+3+7+15": (3, 7, 15),
    }  # fmt: skip
    assert neighbourhood_sets((3,)) == {"1": (), "1+3": (3,)}
    assert neighbourhood_sets(()) == {"1": ()}


def test_records_are_kept_with_the_run(run, split, monkeypatch) -> None:
    config = SMOKE.evaluation
    matchers = {str(sides): Matcher(with_neighbourhoods(run.net, sides)) for sides in ((), (3,), (3, 5))}
    first = named_records(run, "neighbourhoods", matchers, split.test, config, ("shift", "affine"))
    assert (first.groupby(["neighbourhoods", "protocol"]).size() == config.max_pairs).all()
    assert list(first["neighbourhoods"].unique()) == list(matchers)

    def never(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(Matcher, "match_crops", never)
    again = named_records(run, "neighbourhoods", matchers, split.test, config, ("shift", "affine"))
    pd.testing.assert_frame_equal(again, first)


# Positions


def test_the_fine_level_is_the_matcher_and_coarser_positions_lie_near_it(net, crops) -> None:
    found = {p: PositionMatcher(net, p).match_crops(crops, 16.0) for p in sensitivity.POSITIONS}
    assert same(found["fine level"], Matcher(net).match_crops(crops, 16.0))
    steps = (found["whole cells"].xy_optical - found["whole cells"].xy_sar) / 4
    assert len(steps) and np.array_equal(steps, np.round(steps))
    moved = found["3x3 expectation"].xy_optical - found["3x3 expectation"].xy_sar
    assert not np.array_equal(moved / 4, np.round(moved / 4))
    cells = {tuple(xy): place for xy, place in zip(found["whole cells"].xy_sar, steps, strict=True)}
    for xy, place in zip(found["3x3 expectation"].xy_sar, moved / 4, strict=True):
        if tuple(xy) in cells:
            assert np.abs(place - cells[tuple(xy)]).max() <= 1  # an expectation over the steps around it


def test_the_fine_level_is_the_matcher_where_pixels_are_missing_too(net, crops) -> None:
    """Else the edge of a hole, which both images share, would tell where a match lies."""
    masks = {"sar_valid": crops.sar_valid.clone(), "optical_valid": crops.optical_valid.clone()}
    for mask in masks.values():
        mask[8:44, 20:60] = False
    holed = crops._replace(**masks)
    expected = Matcher(net).match_crops(holed, 16.0)
    assert len(expected) and not same(expected, Matcher(net).match_crops(crops, 16.0))
    assert same(PositionMatcher(net, "fine level").match_crops(holed, 16.0), expected)


# Crops


def test_crops_are_shares_of_the_profile_s_and_share_their_truth(run, split) -> None:
    assert crop_sides(book_profile("s1s2", "data").evaluation) == (128, 160, 208)
    assert crop_sides(SMOKE.evaluation) == (32, 48, 64)
    records = crop_records(run, {"own": Matcher(run.net)}, split.test, SMOKE.evaluation)
    assert records.groupby("crop_size").size().to_dict() == dict.fromkeys((32, 48, 64), SMOKE.evaluation.max_pairs)
    truths = [
        evaluation_crops(split.test[0], "shift", dataclasses.replace(SMOKE.evaluation, crop_size=side)).A_sar_to_optical
        for side in crop_sides(SMOKE.evaluation)
    ]
    assert torch.equal(truths[0], truths[1]) and torch.equal(truths[0], truths[2])


# Truth


class Moved:
    """Finds every cell a fixed shift away from the published truth."""

    def __init__(self, dx: float, dy: float) -> None:
        self.shift = translation(dx, dy)

    def match_crops(self, crops, search_radius):
        xy = cell_centres(*(side // 4 for side in crops.sar.shape[-2:]), 4).double().reshape(-1, 2)
        found = transform_points(crops.A_sar_to_optical @ self.shift, xy)
        return Matches(xy.numpy(), found.numpy(), np.ones(len(xy)))


def test_truth_moves_by_the_estimated_shift_and_only_reliable_pairs_count(run, split) -> None:
    pairs = spread(split.test, 3)
    shifts = pairs.index[["id"]].assign(dx=2.0, dy=-1.0, reliable=[True, False, True])
    found = refined_records(run, Moved(2.0, -1.0), "moved", pairs, shifts, SMOKE.evaluation)
    assert sorted(found["id"].unique()) == sorted(pairs.index["id"].iloc[[0, 2]])
    means = found.groupby("truth")[["mma_1px", "mma_3px", "mma_5px"]].mean()
    assert means.loc["refined"].tolist() == [1, 1, 1]
    assert means.loc["raw"].tolist() == [0, 1, 1]  # off by 2.2 px
    assert means.loc["opposite"].tolist() == [0, 0, 1]  # by 4.5 px
    with pytest.raises(ValueError, match="none of the 3 pairs has a reliable residual shift"):
        refined_records(run, Moved(0, 0), "none", pairs, shifts.assign(reliable=False), SMOKE.evaluation)


def test_an_image_that_was_moved_is_found_where_it_was_moved_to(run, split) -> None:
    """Both ends of the sign: what is estimated on whole pairs is what a matcher then finds in their crops."""
    kept = spread(split.test, 2)

    def read(row):
        pair = kept.read(row)  # the same optical image twice, the second one moved: an estimate cannot be unsure
        return dataclasses.replace(pair, sar=pair.optical[:1], optical=torch.roll(pair.optical, (-2, 3), (1, 2)))

    moved = Pairs(kept.index, read)
    shifts = residual_shift_table(moved)
    np.testing.assert_allclose(shifts[["dx", "dy"]], [[3, -2], [3, -2]], atol=0.3)
    found = refined_records(run, TemplateMatcher(), "template", moved, shifts.assign(reliable=True), SMOKE.evaluation)
    means = found.groupby("truth")["mma_2px"].mean()
    assert means["refined"] > 0.5 > means["raw"] + means["opposite"]


# Differences


def test_differences_are_over_the_same_pairs_and_have_a_verdict_where_there_are_scenes() -> None:
    rng, rows = np.random.default_rng(0), []
    for protocol, gain in (("shift", 0.2), ("affine", -0.2)):
        for pair in range(24):
            base = rng.uniform(0.3, 0.5)
            rows.append((protocol, "all", f"p{pair}", f"s{pair // 4}", base))
            rows.append((protocol, "one", f"p{pair}", f"s{pair // 4}", base + gain + 0.001 * rng.normal()))
    records = pd.DataFrame(rows, columns=["protocol", "method", "id", "scene", "mma_3px"])
    table = differences(records, "method", "all", ["mma_3px"], ["protocol"])
    assert table["protocol"].tolist() == ["shift", "affine"] and table["method"].tolist() == ["one", "one"]
    assert table["difference"].tolist() == pytest.approx([0.2, -0.2], abs=1e-3)
    assert table["verdict"].tolist() == ["better", "worse"]
    few = records[(records["protocol"] == "shift") & records["scene"].isin(["s0", "s1"])]
    assert differences(few, "method", "all", ["mma_3px"])["verdict"].tolist() == ["too few scenes"]
    with pytest.raises(KeyError, match="none"):
        differences(records, "method", "none", ["mma_3px"])


def test_seeds_are_trainings_of_their_own_on_the_same_pairs(split, tmp_path) -> None:
    few = SMOKE.replace(training={"max_steps": 1})
    records = seed_records(few, split, tmp_path, (0, 3))
    assert records.groupby("seed")["run"].nunique().to_dict() == {0: 1, 3: 1} and records["run"].nunique() == 2
    ids = records.groupby("seed", sort=False)["id"].apply(list)
    assert ids[0] == ids[3] == list(spread(split.test, SMOKE.evaluation.max_pairs).index["id"])
    again = seed_records(few, split, tmp_path, (3,))
    pd.testing.assert_frame_equal(again, records[records["seed"] == 3].reset_index(drop=True))
