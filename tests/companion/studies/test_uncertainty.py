"""A fake network of known responses: what responds must be found, where it responds, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.intervals import cluster_bootstrap
from companion.studies.conditions import AUGMENTATION_DOSES, haze_index
from companion.studies.uncertainty import (
    CALM,
    DOSES,
    MEASURED,
    WITHIN,
    augmented_dose_response,
    backscatter_relation,
    dose_response,
    group_levels,
    rank_correlations,
    summary_curves,
    within_image_relation,
)
from sarmatch.data import Nuisance, Pair, Pairs, synthetic_pairs
from sarmatch.model.uncertainty import SOURCES, UncertaintyMaps

SIZE = 64
FEW = {name: dict(list(DOSES[name].items())[::2]) for name in ("speckle", "haze")}


def fake(sar: Tensor, optical: Tensor) -> UncertaintyMaps:
    """Speckle: local contrast. Geometry: constant. Backscatter: dark. Atmosphere: bright. The rest: its opposite, 0."""
    band = sar[:, :1]
    mean = F.avg_pool2d(band, 4)
    contrast = (F.avg_pool2d(band**2, 4) - mean**2).clamp(min=0).sqrt()
    bright = F.avg_pool2d(optical.mean(1, keepdim=True), 4)
    half, none = torch.full_like(mean, 0.5), torch.zeros_like(bright)
    sources = torch.cat([contrast, half, 1 - mean, bright, 1 - bright, none], 1)
    level = bright.mean(dim=(1, 2, 3))
    weights = torch.stack([1 - level, *([torch.zeros_like(level)] * 2), level, *([torch.zeros_like(level)] * 2)], 1)
    return UncertaintyMaps(sources, weights, contrast, bright)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return dose_response(fake, 4, SIZE, seed=0)


@pytest.fixture(scope="module")
def real() -> Pairs:
    return synthetic_pairs(6, 80, seed=1, nuisance=Nuisance(looks=8.0, haze=0.0))


def one_pair(sar: Tensor, optical: Tensor, valid: Tensor | None = None) -> Pairs:
    valid = torch.ones(sar.shape[-2:], dtype=torch.bool) if valid is None else valid
    pair = Pair(sar, optical, valid, id="a", dataset="d", scene="s", season="winter", land_cover="urban")
    row = {name: getattr(pair, name) for name in ("id", "dataset", "scene", "season", "land_cover")}
    return Pairs(pd.DataFrame([row]), lambda row: pair)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- doses -----------------------------------------------------------------------------------------------------------


def test_every_ladder_starts_from_the_calm_scene_and_its_doses_rise() -> None:
    for ladder in DOSES.values():
        assert next(iter(ladder.values())) == CALM
        assert all(np.diff(list(ladder)) > 0)
    assert list(DOSES["speckle"]) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert list(DOSES["speckle"].values())[-1] == dataclasses.replace(CALM, looks=1.0)


def test_table_holds_every_step_once(table: pd.DataFrame) -> None:
    steps = sum(map(len, DOSES.values()))
    assert len(table) == steps * 4 * len(MEASURED) and not table.isna()["value"].any()
    assert not table.duplicated(["nuisance", "dose", "scene", "source"]).any()
    wide = table.pivot(index=["nuisance", "dose", "scene"], columns="source", values="value")
    np.testing.assert_allclose(wide["total"], (wide["sar"] + wide["optical"]) / 2)


def test_lowest_doses_are_one_and_the_same_image(table: pd.DataFrame) -> None:
    lowest = table[table["dose"] == table.groupby("nuisance")["dose"].transform("min")]
    assert (lowest.groupby(["scene", "source"])["value"].nunique() == 1).all()


def test_known_responses_are_found_and_nothing_else_moves(table: pd.DataFrame) -> None:
    found = rank_correlations(table).set_index(["nuisance", "source"])
    assert found.loc[("speckle", "speckle"), "rho"] == found.loc[("speckle", "sar"), "rho"] == 1
    assert found.loc[("haze", "atmosphere"), "rho"] == 1 and found.loc[("haze", "illumination"), "rho"] == -1
    assert found.loc[("snow", "atmosphere"), "rho"] > 0.9
    assert found.loc[("layover", "atmosphere"), "rho"] == found.loc[("haze", "speckle"), "rho"] == 0
    assert (found.xs("geometry", level="source")["rho"] == 0).all()
    rise = found.loc[("haze", "atmosphere")]
    assert rise["rho_low"] == rise["rho_high"] == 1 and rise["effect"] > 1 and rise["n_scenes"] == 4
    assert found.loc[("haze", "season"), "change"] == 0 and np.isnan(found.loc[("haze", "season"), "effect"])


def test_dose_response_follows_from_the_seed() -> None:
    first = dose_response(fake, 2, SIZE, seed=3, doses=FEW)
    pd.testing.assert_frame_equal(first, dose_response(fake, 2, SIZE, seed=3, doses=FEW))
    assert not first["value"].equals(dose_response(fake, 2, SIZE, seed=4, doses=FEW)["value"])
    fewer = dose_response(fake, 1, SIZE, seed=3, doses=FEW)  # the first scene is the same among more
    pd.testing.assert_frame_equal(first[first["scene"] == 0].reset_index(drop=True), fewer)


def test_measures_run_without_gradients_in_small_batches() -> None:
    sizes = []

    def watched(sar: Tensor, optical: Tensor) -> UncertaintyMaps:
        assert torch.is_inference_mode_enabled()
        sizes.append(len(sar))
        return fake(sar, optical)

    dose_response(watched, 1, SIZE, seed=0)
    assert max(sizes) <= 8 and sum(sizes) == 1 + sum(len(ladder) - 1 for ladder in DOSES.values())


# --- statistics of the tables ----------------------------------------------------------------------------------------


def made_table(values: np.ndarray, clusters: list[str] | None = None) -> pd.DataFrame:
    """One nuisance and source from values (scenes, doses)."""
    rows = [
        {"nuisance": "n", "dose": dose / 10, "scene": scene, "source": "sar", "value": values[scene, dose]}
        | ({"cluster": clusters[scene]} if clusters else {})
        for scene, dose in np.ndindex(*values.shape)
    ]
    return pd.DataFrame(rows)


def test_correlation_within_scenes_equals_scipys_whatever_the_levels_of_scenes() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((7, 6)).round(1)  # with ties
    found = rank_correlations(made_table(values)).iloc[0]
    each = [scipy.stats.spearmanr(np.arange(6), row).statistic for row in values]
    assert found["rho"] == pytest.approx(np.mean(each))
    shifted = rank_correlations(made_table(values + np.arange(7)[:, None])).iloc[0]
    assert shifted["rho"] == pytest.approx(found["rho"]) and shifted["change"] == pytest.approx(found["change"])
    assert rank_correlations(made_table(-values)).iloc[0]["rho"] == pytest.approx(-found["rho"])


def test_change_and_effect_by_hand() -> None:
    found = rank_correlations(made_table(np.array([[0.1, 0.0, 0.4], [0.3, 0.5, 0.8]]))).iloc[0]
    assert found["change"] == pytest.approx(0.4)
    assert found["effect"] == pytest.approx(0.4 / np.std([0.1, 0.3], ddof=1))
    assert found["rho"] == pytest.approx((0.5 + 1) / 2)


def test_differences_below_single_precision_are_no_response() -> None:
    values = 0.5 + 1e-8 * np.arange(5)[None] + np.array([[0.0], [0.1]])
    assert rank_correlations(made_table(values)).iloc[0]["rho"] == 0


def test_scenes_with_a_missing_dose_do_not_count() -> None:
    values = np.array([[0.1, 0.2, 0.3], [0.1, np.nan, 0.0], [0.3, 0.4, 0.5]])
    found = rank_correlations(made_table(values)).iloc[0]
    assert (found["rho"], found["n_scenes"]) == (1, 2)


def test_clusters_are_resampled_as_a_whole() -> None:
    values = np.array([[0.0, 0.1], [0.0, 0.2], [0.1, 0.0]])
    found = rank_correlations(made_table(values, ["x", "x", "y"])).iloc[0]
    assert (found["n_scenes"], found["n_clusters"], found["rho_low"], found["rho_high"]) == (3, 2, -1, 1)
    single = rank_correlations(made_table(values, ["x"] * 3)).iloc[0]
    assert single["rho"] == pytest.approx(1 / 3) and np.isnan(single["rho_low"])


def test_curves_are_mean_responses_with_the_bootstraps_interval() -> None:
    values = np.array([[0.1, 0.2, 0.4], [0.3, 0.3, 0.8], [0.2, 0.9, 0.9]])
    table = made_table(values)
    curves = summary_curves(table.sample(frac=1, random_state=0))
    assert list(curves) == ["nuisance", "dose", "source", "value", "low", "high"]
    np.testing.assert_allclose(curves["value"], values.mean(0) - 0.2, atol=1e-12)
    assert curves.loc[0, ["low", "high"]].tolist() == [0, 0]
    response = made_table(values - values[:, :1])
    same = cluster_bootstrap(response[response["dose"] == 0.1], "value", "scene")
    assert curves.loc[1, ["low", "high"]].tolist() == pytest.approx([same.low, same.high])
    assert table["value"].tolist() == values.ravel().tolist()  # the table is left as it was


# --- real pairs ------------------------------------------------------------------------------------------------------


def test_artificial_nuisances_move_what_responds_to_them(real: Pairs) -> None:
    speckled = rank_correlations(augmented_dose_response(fake, real, "speckle", crop_size=SIZE))
    hazy = rank_correlations(augmented_dose_response(fake, real, "haze", crop_size=SIZE))
    speckled, hazy = speckled.set_index("source"), hazy.set_index("source")
    assert speckled.loc["speckle", "rho"] > 0.9 and hazy.loc["atmosphere", "rho"] > 0.99
    assert hazy.loc["illumination", "rho"] < -0.99
    assert speckled.loc["atmosphere", "rho"] == hazy.loc["speckle", "rho"] == hazy.loc["backscatter", "rho"] == 0
    assert hazy.loc["sar", "n_scenes"] == 6 and hazy.loc["sar", "n_clusters"] == 2


def test_dose_zero_is_the_crop_itself_and_all_follows_from_the_seed(real: Pairs) -> None:
    few = real.subset([0, 1])
    for kind in AUGMENTATION_DOSES:
        table = augmented_dose_response(fake, few, kind, crop_size=SIZE, seed=5)
        again = augmented_dose_response(fake, few, kind, crop_size=SIZE, seed=5)
        pd.testing.assert_frame_equal(table, again)
        assert not table["value"].equals(augmented_dose_response(fake, few, kind, crop_size=SIZE, seed=6)["value"])
        plain = group_levels(fake, few, SIZE).set_index("id")
        for row in table[table["dose"] == 0].itertuples():
            assert row.value == pytest.approx(plain.loc[row.scene, f"mean_{row.source}"])


def test_unknown_scenes_are_clusters_of_their_own(real: Pairs) -> None:
    nameless = Pairs(real.index, lambda row: dataclasses.replace(real.read(row), scene=""))
    table = augmented_dose_response(fake, nameless.subset([0, 1]), "haze", SIZE)
    assert (table["cluster"] == table["scene"]).all() and table["cluster"].nunique() == 2


def test_cells_without_data_do_not_count() -> None:
    sar, optical, valid = torch.zeros(1, 32, 32), torch.full((3, 32, 32), 0.25), torch.ones(32, 32, dtype=torch.bool)
    optical[:, :, :6], valid[:, :6] = 0, False  # half of the second column of cells has no data
    row = group_levels(fake, one_pair(sar, optical, valid), 32).iloc[0]
    assert row["mean_atmosphere"] == pytest.approx(0.25) and row["haze_index"] == pytest.approx(0.25)
    empty = group_levels(fake, one_pair(sar, optical, torch.zeros_like(valid)), 32).iloc[0]
    assert np.isnan(empty["mean_atmosphere"]) and np.isnan(empty["haze_index"])
    assert np.isnan(backscatter_relation(fake, one_pair(sar, optical, torch.zeros_like(valid)), 32).loc[0, "ratio_sar"])


def test_backscatter_relation_by_hand() -> None:
    cells = torch.from_numpy(np.random.default_rng(0).permutation(100).reshape(10, 10) / 200).float()
    sar = cells.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]

    def known(sar: Tensor, optical: Tensor) -> UncertaintyMaps:
        mean = F.avg_pool2d(sar, 4)
        made = fake(sar, optical)
        return made._replace(sar=mean**2)

    row = backscatter_relation(known, one_pair(sar, noise(3, 40, 40)), 40).iloc[0]
    assert row["rho_sar"] == pytest.approx(1)
    assert row["ratio_sar"] == pytest.approx((np.arange(90, 100) ** 2).mean() / (np.arange(90) ** 2).mean())
    assert (row["id"], row["scene"], row["season"]) == ("a", "s", "winter")
    flat = backscatter_relation(known, one_pair(torch.full_like(sar, 0.3), noise(3, 40, 40)), 40).iloc[0]
    assert np.isnan(flat["rho_sar"]) and flat["ratio_sar"] == pytest.approx(1)


def test_crops_are_taken_from_the_centre() -> None:
    optical = torch.zeros(3, 48, 40)
    optical[:, 8:40, 4:36] = 1
    assert group_levels(fake, one_pair(noise(1, 48, 40), optical), 32).loc[0, "mean_atmosphere"] == 1


def test_group_levels_list_labels_levels_and_weights(real: Pairs) -> None:
    table = group_levels(fake, real, SIZE)
    labels = ["id", "dataset", "scene", "season", "land_cover", "haze_index"]
    assert list(table) == [*labels, *(f"mean_{n}" for n in MEASURED), *(f"weight_{n}" for n in SOURCES)] and len(
        table
    ) == len(real)
    assert table["season"].tolist() == real.index["season"].tolist()
    np.testing.assert_allclose(table[[f"weight_{name}" for name in SOURCES]].sum(axis=1), 1, atol=1e-6)


def test_haze_index_by_hand_and_under_haze() -> None:
    optical, everywhere = torch.full((3, 31, 31), 0.6), torch.ones(64, 64, dtype=torch.bool)
    whole = everywhere[:31, :31]
    assert haze_index(optical, whole) == pytest.approx(0.6)
    optical[2, 15, 15] = 0.1  # one band of one pixel darkens its window of 15 x 15
    assert haze_index(optical, whole) == pytest.approx(0.6 - 0.5 * 15**2 / 31**2)
    clear = noise(3, 64, 64)
    veiled = [haze_index(clear + opacity * (0.9 - clear), everywhere) for opacity in (0.0, 0.3, 0.6)]
    assert veiled == pytest.approx([veiled[0] + opacity * (0.9 - veiled[0]) for opacity in (0.0, 0.3, 0.6)])
    bands = torch.zeros(13, 31, 31)
    bands[1:4] = 0.4  # B2 to B4; the dark others are not looked at
    assert haze_index(bands, whole) == pytest.approx(0.4)


# --- where in the image ----------------------------------------------------------------------------------------------


def test_maps_that_respond_where_the_nuisance_is_are_told_from_those_that_do_not() -> None:
    table = within_image_relation(fake, [1, 2, 3], 128)
    assert len(table) == len(WITHIN) * 3 * len(MEASURED)
    mean = table.groupby(["nuisance", "source"], sort=False)[["rho", "rho_change"]].mean()
    assert mean.loc[("speckle", "speckle"), "rho"] > 0.6 and mean.loc[("speckle", "speckle"), "rho_change"] > 0.6
    assert mean.loc[("cloud", "atmosphere"), "rho"] > 0.6 and mean.loc[("cloud", "illumination"), "rho"] < -0.6
    assert mean.loc[("snow", "atmosphere"), "rho_change"] > 0.7
    assert (mean.xs("geometry", level="source").fillna(0) == 0).all().all()
    assert (mean.loc[["haze", "cloud", "snow", "illumination"]].query("source == 'speckle'")["rho_change"] == 0).all()
    assert (mean.loc[["speckle", "layover", "double_bounce"]].query("source == 'optical'")["rho_change"] == 0).all()
    pd.testing.assert_frame_equal(table, within_image_relation(fake, [1, 2, 3], 128))


# --- rejected inputs -------------------------------------------------------------------------------------------------


def test_rejected_crops(real: Pairs) -> None:
    with pytest.raises(ValueError, match="smaller than the 96 px crop"):
        group_levels(fake, real, 96)


def test_rejected_measures() -> None:
    def coarse(sar: Tensor, optical: Tensor) -> UncertaintyMaps:
        made = fake(sar, optical)
        return made._replace(**{name: getattr(made, name)[..., ::2, ::2] for name in ("sources", "sar", "optical")})

    def broken(sar: Tensor, optical: Tensor) -> UncertaintyMaps:
        return fake(sar, optical)._replace(sar=torch.full((len(sar), 1, 16, 16), torch.nan))

    for measure in (coarse, broken):
        with pytest.raises(ValueError, match="measure: expected finite maps"):
            dose_response(measure, 1, SIZE, 0, doses=FEW)
