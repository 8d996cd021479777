"""Conditions of known images: speckle of known looks, windows of known shifts, levels of known numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.studies import conditions
from companion.studies.conditions import dosed_pairs, haze_index
from companion.studies.uncertainty import CALM
from sarmatch.config import EvaluationConfig
from sarmatch.data import Nuisance, Pair, Pairs, synthetic_pairs
from sarmatch.data.crops import haze, speckle
from sarmatch.evaluation.protocols import evaluation_crops

SIZE = 128


def a_pair(sar: Tensor | None = None, optical: Tensor | None = None, dataset: str = "ombria", **more: object) -> Pair:
    sar = torch.full((1, SIZE, SIZE), 0.4) if sar is None else sar
    optical = torch.full((3, *sar.shape[-2:]), 0.3) if optical is None else optical
    valid = torch.ones(sar.shape[-2:], dtype=torch.bool)
    return dataclasses.replace(Pair(sar, optical, valid, id="a", dataset=dataset, scene="s"), **more)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def some(n: int = 4, nuisance: Nuisance | None = None, size: int = SIZE) -> Pairs:
    return synthetic_pairs(n, size, seed=1, nuisance=nuisance)


def table(**columns: object) -> pd.DataFrame:
    """A table of measures in which only the named columns are known."""
    n = max(len(values) for values in columns.values())  # type: ignore[arg-type]
    numeric = {c.measure for c in conditions.CONDITIONS if c.levels}
    rest = {c.measure: np.nan if c.measure in numeric else "" for c in conditions.CONDITIONS}
    return pd.DataFrame({"id": [f"p{i}" for i in range(n)], "dataset": "d", "scene": "s"} | rest | columns)


# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_known_looks_are_found_again(looks: float) -> None:
    even = torch.full((1, 256, 256), 0.2)
    pair = a_pair(speckle(even, looks, np.random.default_rng(0)).clamp(1e-3, 0.999))
    assert 1 / conditions.speckle_strength(pair) == pytest.approx(looks, rel=0.15)


def test_speckle_is_measured_where_the_optical_image_is_even() -> None:
    """The radar image is textured on the left; the optical image says that only the right half is even."""
    sar, optical = torch.full((1, SIZE, SIZE), 0.4), torch.full((3, SIZE, SIZE), 0.3)
    sar[..., : SIZE // 2] = 0.1 + 0.8 * noise(1, SIZE, SIZE // 2)
    optical[..., : SIZE // 2] = noise(3, SIZE, SIZE // 2, seed=1)
    assert conditions.speckle_strength(a_pair(sar, optical)) < 1e-9
    assert conditions.speckle_strength(a_pair(sar, optical.flip(-1))) > 0.3


def test_speckle_does_not_depend_on_brightness_and_is_unknown_in_dark_or_clipped_images() -> None:
    noisy = speckle(torch.full((1, SIZE, SIZE), 0.2), 8.0, np.random.default_rng(0))
    assert conditions.speckle_strength(a_pair(noisy)) == pytest.approx(conditions.speckle_strength(a_pair(noisy * 2)))
    assert np.isnan(conditions.speckle_strength(a_pair(noisy * 0.1)))
    clipped = noisy.clone()
    clipped[..., ::8, ::8] = 1.0  # one clipped pixel in each window
    assert np.isnan(conditions.speckle_strength(a_pair(clipped)))


def test_water_is_counted_by_hand_and_only_where_there_is_short_wave_infrared() -> None:
    optical = torch.full((3, SIZE, SIZE), 0.3)
    optical[2, : SIZE // 4] = 0.5  # B3 of the upper quarter above B11
    assert conditions.water_share(a_pair(optical=optical)) == 0.25
    assert np.isnan(conditions.water_share(a_pair(optical=optical, dataset="sen1-2")))
    full = torch.full((13, SIZE, SIZE), 0.3)
    full[2, : SIZE // 2] = 0.5
    assert conditions.water_share(a_pair(optical=full, dataset="sen12ms")) == 0.5
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    valid[: SIZE // 4] = False
    assert conditions.water_share(a_pair(optical=optical, valid=valid)) == 0


def test_texture_ignores_contrast_and_brightness_and_rises_with_frequency() -> None:
    x = torch.arange(SIZE, dtype=torch.float32)
    waves = {period: (0.5 + 0.4 * torch.sin(2 * torch.pi * x / period)).expand(3, SIZE, SIZE) for period in (64, 16)}
    slow, fast = (conditions.texture(a_pair(optical=waves[period].contiguous())) for period in (64, 16))
    assert slow == pytest.approx(2 * np.sqrt(2) / np.pi * 2 * np.pi / 64, rel=0.1)  # mean |cos| over the rms of sin
    assert fast > 3 * slow
    faint = (0.2 + 0.3 * waves[16]).contiguous()
    assert conditions.texture(a_pair(optical=faint)) == pytest.approx(fast, rel=1e-3)
    assert np.isnan(conditions.texture(a_pair()))


def test_a_common_shift_is_no_misfit_and_shifts_apart_are() -> None:
    ground = torch.nn.functional.interpolate(noise(1, 1, 40, 40), (280, 280), mode="bicubic")[0].clamp(0, 1)
    sar = ground[:, 12:268, 12:268].contiguous()
    common = ground[:, 9:265, 14:270].expand(3, 256, 256).contiguous()
    apart = common.clone()
    apart[..., 128:] = ground[:, 9:265, 142 - 6 : 270 - 6]  # the right half is shifted by 6 px more
    same = conditions.local_misfit(a_pair(sar, common))
    moved = conditions.local_misfit(a_pair(sar, apart))
    assert same < 0.3
    assert (
        2.0 < moved < 4.0
    )  # three columns of windows: two shifts 6 px apart and a mixed one; the median is one of them


def test_misfit_is_unknown_where_images_share_nothing() -> None:
    assert np.isnan(conditions.local_misfit(a_pair(noise(1, SIZE, SIZE), noise(3, SIZE, SIZE, seed=5))))


def test_echo_needs_a_shadow_beside_it_in_the_row() -> None:
    def strip(shadow: tuple[slice, slice] | None) -> float:
        sar = torch.full((1, SIZE, SIZE), 0.4)
        sar[:, 60:68, 60:68] = 0.95
        if shadow is not None:
            sar[:, shadow[0], shadow[1]] = 0.0
        return conditions.echo_by_shadow(a_pair(sar))

    assert strip(None) == 0
    beside = strip((slice(60, 68), slice(68, 76)))
    assert 30 < beside * SIZE**2 <= 100
    assert strip((slice(60, 68), slice(52, 60))) == pytest.approx(beside, rel=0.2)  # either side: both orbits
    assert strip((slice(100, 108), slice(60, 68))) == 0  # below, not beside


def test_relief_and_layover_of_rendered_scenes_raise_the_share_of_echoes_by_shadows() -> None:
    calm = dataclasses.replace(CALM, looks=64.0)
    steep = dataclasses.replace(calm, layover_px=8.0, double_bounce=2.0, relief=1.0)
    shares = [[conditions.echo_by_shadow(pair) for pair in some(6, nuisance)] for nuisance in (calm, steep)]
    assert np.mean(shares[1]) > np.mean(shares[0])


def test_invalid_pixels_change_nothing() -> None:
    pair = some(1, CALM, 192)[0]
    valid = torch.ones(192, 192, dtype=torch.bool)
    valid[:, :64] = False
    for fill in (0.0, 1.0):
        sar, optical = pair.sar.clone(), pair.optical.clone()
        sar[..., :64], optical[..., :64] = fill, 1 - fill
        measures = conditions.measure_conditions(one(dataclasses.replace(pair, sar=sar, optical=optical, valid=valid)))
        if fill == 0.0:
            first = measures
    smoothed = ["layover", "misfit_px"]  # over the edge, the fill is felt a little
    pd.testing.assert_frame_equal(first.drop(columns=smoothed), measures.drop(columns=smoothed))
    assert first["layover"][0] == pytest.approx(measures["layover"][0], abs=0.01)
    assert first["misfit_px"][0] == pytest.approx(measures["misfit_px"][0], abs=0.05)


def one(pair: Pair) -> Pairs:
    row = {name: getattr(pair, name) for name in ("id", "dataset", "scene", "season", "land_cover")}
    return Pairs(pd.DataFrame([row]), lambda row: pair)


def test_measures_are_those_of_each_pair() -> None:
    pairs = some(3)
    measures = conditions.measure_conditions(pairs)
    assert measures["id"].tolist() == pairs.index["id"].tolist()
    assert measures["season"].tolist() == pairs.index["season"].tolist()
    assert {c.measure for c in conditions.CONDITIONS} <= set(measures)
    assert measures["haze"][1] == pytest.approx(haze_index(pairs[1].optical, pairs[1].valid))
    assert (measures["water"] == "").all()  # true colour
    white = conditions.measure_conditions(one(a_pair(optical=torch.full((3, SIZE, SIZE), 0.9))))
    assert white["cloud"][0] == "yes" and np.isnan(white["texture"][0])


# --- levels ----------------------------------------------------------------------------------------------------------


def test_thirds_by_hand_unknown_left_out_and_in_order() -> None:
    levels = conditions.classify(table(haze=[0.9, 0.1, 0.5, np.nan, 0.2, 0.6, 0.8]))
    own = levels[levels["condition"] == "haze"]
    assert own.set_index("id")["level"].to_dict() == {
        "p1": "clear", "p4": "clear", "p2": "middle", "p5": "middle", "p0": "bright", "p6": "bright",
    }  # fmt: skip
    assert list(own["level"].unique()) == ["clear", "middle", "bright"]
    rules = conditions.rules(table(haze=[0.9, 0.1, 0.5, np.nan, 0.2, 0.6, 0.8])).set_index("condition")
    assert rules.loc["haze", "n_pairs"] == 6 and rules.loc["haze", "below"] == pytest.approx(0.4)
    assert rules.loc["speckle", "n_pairs"] == 0 and np.isnan(rules.loc["speckle", "below"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_thirds_keep_the_order_of_values_and_equal_values_together(values: list[float]) -> None:
    levels = conditions.classify(table(haze=values))
    own = levels[levels["condition"] == "haze"].assign(value=lambda t: [values[int(name[1:])] for name in t["id"]])
    if len(set(values)) < 3:
        assert own.empty
        return
    assert len(own) == len(values)
    assert (own.groupby("value")["level"].nunique() == 1).all()
    ranks = own["level"].map({"clear": 0, "middle": 1, "bright": 2})
    assert own.assign(rank=ranks).sort_values("value")["rank"].is_monotonic_increasing


def test_text_is_its_own_level_and_one_level_counts_as_absent() -> None:
    measures = table(season=["winter", "", "fall", "winter"], water=["no", "no", "no", ""])
    levels = conditions.classify(measures)
    assert levels[levels["condition"] == "season"]["level"].tolist() == ["fall", "winter", "winter"]
    absent = conditions.absent(levels)
    assert "season" not in absent and {"water", "land cover", "haze", "speckle"} <= set(absent)


def test_distorted_third_and_rest_and_who_is_judged() -> None:
    n = 12
    measures = table(misfit_px=[float(i) for i in range(n)], layover=[float(n - i) for i in range(n)])
    levels = conditions.classify(measures)
    parts = conditions.distortion_parts(levels, "misfit_px")
    assert sorted(parts["distorted"]) == ["p10", "p11", "p8", "p9"] and len(parts["rest"]) == 8
    assert set(conditions.distortion_parts(levels, "layover")["distorted"]) == {"p0", "p1", "p2", "p3"}
    index = measures[["id", "dataset", "scene", "season", "land_cover"]]
    judged = conditions.judged_pairs(Pairs(index, lambda row: a_pair()), levels, 20)
    ids = set(judged.index["id"])
    assert len(ids) == 8 and set(parts["distorted"]) < ids
    few = set(conditions.judged_pairs(Pairs(index, lambda row: a_pair()), levels, 5).index["id"])
    assert [len(few & set(part)) for part in parts.values()] == [2, 2]
    other = conditions.classify(table(layover=[float(i) for i in range(n)]))  # the first proxy is absent
    assert {"p8", "p9", "p10", "p11"} < set(
        conditions.judged_pairs(Pairs(index, lambda row: a_pair()), other, 20).index["id"]
    )
    nothing = conditions.classify(table(haze=[0.0] * n))
    assert conditions.distortion_parts(nothing, "misfit_px") == {}
    assert len(conditions.judged_pairs(Pairs(index, lambda row: a_pair()), nothing, 20)) == 0


# --- changed pairs ---------------------------------------------------------------------------------------------------


def test_later_pairs_swap_the_radar_image_alone_and_keep_the_crops() -> None:
    pairs = some(3)
    laters = {name: torch.full((1, SIZE, SIZE), 0.1 * i) for i, name in enumerate(pairs.index["id"].iloc[:2], 1)}
    whole = Pairs(pairs.index, pairs.read, lambda row: laters.get(row["id"]))
    later = conditions.later_pairs(whole)
    assert later.index["id"].tolist() == pairs.index["id"].tolist()[:2]
    assert torch.equal(later[1].sar, laters[later[1].id]) and torch.equal(later[1].optical, pairs[1].optical)
    assert later.fingerprint() != pairs.subset([0, 1]).fingerprint()
    config = EvaluationConfig(crop_size=64, max_shift_px=8.0)
    crops = [evaluation_crops(p[0], "shift", config) for p in (pairs, later)]
    assert torch.equal(crops[0].A_sar_to_optical, crops[1].A_sar_to_optical)
    assert torch.equal(crops[0].optical, crops[1].optical) and not torch.equal(crops[0].sar, crops[1].sar)
    assert len(conditions.later_pairs(Pairs(pairs.index, pairs.read))) == 0


def test_dosed_pairs_change_one_image_as_much_as_asked() -> None:
    pairs = some(2, CALM)
    assert dosed_pairs(pairs, "haze", 0) is pairs
    fogged, thick = (dosed_pairs(pairs, "haze", dose) for dose in (0.3, 0.9))
    assert torch.equal(fogged[0].sar, pairs[0].sar)
    rise = [float((p[0].optical - pairs[0].optical).abs().mean()) for p in (fogged, thick)]
    assert rise[1] == pytest.approx(3 * rise[0], rel=1e-3)  # one field, three times the opacity
    noisy = dosed_pairs(pairs, "speckle", 1 / 4)
    assert torch.equal(noisy[1].optical, pairs[1].optical) and not torch.equal(noisy[1].sar, pairs[1].sar)
    assert torch.equal(noisy[1].sar, dosed_pairs(pairs, "speckle", 1 / 4)[1].sar)
    assert not torch.equal(noisy[1].sar, dosed_pairs(pairs, "speckle", 1 / 4, seed=1)[1].sar)
    names = {p.fingerprint() for p in (pairs, fogged, thick, noisy, dosed_pairs(pairs, "speckle", 1 / 4, seed=1))}
    assert len(names) == 5


def test_dose_of_speckle_is_the_inverse_number_of_looks() -> None:
    pairs = one(a_pair(torch.full((1, 256, 256), 0.2)))
    assert conditions.speckle_strength(dosed_pairs(pairs, "speckle", 1 / 4)[0]) == pytest.approx(1 / 4, rel=0.15)
    veiled = dosed_pairs(pairs, "haze", 0.5)[0].optical
    assert float(veiled.max()) == pytest.approx(float(haze(pairs[0].optical, 0.5, np.random.default_rng(0)).max()))


@pytest.mark.parametrize(("kind", "dose"), [("rain", 0.5), ("haze", 1.5), ("speckle", -0.1)])
def test_other_doses_are_rejected(kind: str, dose: float) -> None:
    with pytest.raises(ValueError, match=r"kind|dose"):
        dosed_pairs(some(1), kind, dose)  # type: ignore[arg-type]


def test_pairs_changed_twice_are_neither_those_changed_once() -> None:
    index = pd.DataFrame({"id": ["a"], "scene": "s", "dataset": "", "season": "", "land_cover": ""})
    pairs = Pairs(index, lambda row: a_pair())
    hazy = dosed_pairs(pairs, "haze", 0.3)
    both = dosed_pairs(dosed_pairs(pairs, "speckle", 0.25), "haze", 0.3)
    assert len({p.fingerprint() for p in (pairs, hazy, both, dosed_pairs(hazy, "haze", 0.3))}) == 4
