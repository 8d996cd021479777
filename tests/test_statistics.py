"""Intervals against simulations and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from sarmatch.statistics import (
    cluster_bootstrap,
    crossed_bootstrap,
    crossed_resamples,
    crossed_sums,
    paired_difference,
    paired_t_test,
    summarise,
    with_intervals,
)


def simulate(rng: np.random.Generator, scenes: int = 30, pairs: int = 8, between: float = 1.0) -> pd.DataFrame:
    effect = np.repeat(rng.normal(0, between, scenes), pairs)
    scene = np.repeat([f"scene{i}" for i in range(scenes)], pairs)
    return pd.DataFrame(
        {"id": np.arange(scenes * pairs), "scene": scene, "mma": effect + rng.normal(0, 0.3, scenes * pairs)}
    )


def test_interval_covers_the_truth_as_often_as_it_says_where_the_naive_one_does_not() -> None:
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(200):
        records = simulate(rng)
        interval = cluster_bootstrap(records, "mma", n=400)
        covered += interval.low <= 0 <= interval.high
        single = cluster_bootstrap(records, "mma", cluster="id", n=400)
        naive += single.low <= 0 <= single.high
    assert 0.87 <= covered / 200 <= 0.99  # nominal 0.95; three standard errors, and the percentile's known shortfall
    assert naive / 200 < 0.75


def test_reproducible_with_the_seed_and_independent_of_the_order_of_rows() -> None:
    records = simulate(np.random.default_rng(1))
    first = cluster_bootstrap(records, "mma", seed=4)
    assert first == cluster_bootstrap(records, "mma", seed=4)
    assert first != cluster_bootstrap(records, "mma", seed=5)
    shuffled = cluster_bootstrap(records.sample(frac=1, random_state=0), "mma", seed=4)
    assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high))


def test_the_shortcut_for_means_equals_the_general_way() -> None:
    records = simulate(np.random.default_rng(2), scenes=6)
    records = records.drop(index=[0, 1, 2, 9])  # unequal scenes
    general = cluster_bootstrap(records, "mma", n=200, statistic=lambda values: float(values.sum() / len(values)))
    short = cluster_bootstrap(records, "mma", n=200)
    assert (short.mean, short.low, short.high) == pytest.approx((general.mean, general.low, general.high))


def test_counts_leave_out_missing_values() -> None:
    records = pd.DataFrame({"scene": ["a", "a", "b", "c"], "rmse_px": [1.0, 3.0, 5.0, np.nan]})
    interval = cluster_bootstrap(records, "rmse_px", n=50, statistic=np.median)
    assert (interval.mean, interval.n_pairs, interval.n_clusters) == (3.0, 3, 2)
    assert 2.0 <= interval.low <= interval.mean <= interval.high <= 5.0
    assert str(interval).startswith("3.000 [")


def test_one_cluster_has_no_interval() -> None:
    interval = cluster_bootstrap(pd.DataFrame({"scene": ["a", "a"], "mma": [0.0, 1.0]}), "mma")
    assert interval.mean == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"mma": [1.0]}, r"lack the columns \['scene'\]"),
        ({"mma": [np.nan], "scene": ["a"]}, "holds no values"),
        ({"mma": [1.0, 2.0], "scene": ["a", ""]}, "'scene' is empty for some records"),
    ],
)
def test_rejects_tables_that_cannot_be_resampled(records: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(pd.DataFrame(records), "mma")


def test_rejects_impossible_levels() -> None:
    with pytest.raises(ValueError, match="level must lie strictly"):
        cluster_bootstrap(simulate(np.random.default_rng(0)), "mma", level=95)


def test_t_test_equals_scipy_on_the_two_columns() -> None:
    a = simulate(np.random.default_rng(3))
    b = a.assign(mma=a["mma"] - 0.05 + np.random.default_rng(4).normal(0, 0.2, len(a)))
    result = paired_t_test(a, b.sample(frac=1, random_state=0), "mma")
    expected = scipy.stats.ttest_rel(a["mma"], b["mma"])
    assert (result.t, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.low < result.mean < result.high
    assert result.cohens_d == pytest.approx(result.t / math.sqrt(result.n_pairs))
    assert paired_t_test(a, a, "mma").cohens_d == 0


def test_difference_uses_the_pairing() -> None:
    a = simulate(np.random.default_rng(5), between=10.0)
    b = a.assign(mma=a["mma"] - 0.1)
    interval = paired_difference(a, b.iloc[::-1], "mma")
    assert interval.mean == pytest.approx(0.1)
    assert interval.high - interval.low < 1e-9  # the large scatter between scenes cancels
    assert interval.n_clusters == 30


def test_difference_rejects_tables_over_different_pairs() -> None:
    a = simulate(np.random.default_rng(6))
    with pytest.raises(ValueError, match=r"1 pairs stand in one table only, e\.g\. 0"):
        paired_difference(a, a.iloc[1:], "mma")
    with pytest.raises(ValueError, match="records_b: id 0 stands in several rows"):
        paired_difference(a, pd.concat([a, a]), "mma")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        paired_t_test(a.iloc[:1], a.iloc[:1], "mma")
    with pytest.raises(ValueError, match="infinite for some pairs"):
        paired_difference(a, a.assign(mma=np.inf), "mma")


def test_summary_has_a_row_a_group_with_the_bootstrap_of_each_column() -> None:
    records = pd.DataFrame(
        {
            "method": ["a"] * 4 + ["b"] * 2,
            "scene": ["x", "x", "y", "y", "x", "x"],
            "mma": [0.0, 0.2, 0.4, 0.6, 1.0, 1.0],
            "rmse": [1.0, 2.0, 3.0, 4.0, np.nan, np.nan],
        }
    )
    table = summarise(records, ["method"], ["mma", "rmse"])
    assert table["method"].tolist() == ["a", "b"]
    assert table["n_pairs"].tolist() == [4, 2]
    assert table["n_scenes"].tolist() == [2, 1]
    expected = cluster_bootstrap(records[records["method"] == "a"], "mma")
    assert tuple(table.loc[0, ["mma", "mma_low", "mma_high"]]) == (expected.mean, expected.low, expected.high)
    assert table.loc[1, "mma"] == 1.0
    assert np.isnan(table.loc[1, "rmse"])
    shown = with_intervals(table, digits=1)
    assert shown.columns.tolist() == ["method", "n_pairs", "n_scenes", "mma", "rmse"]
    assert shown.loc[0, "mma"] == "0.3 [0.1, 0.5]"
    assert shown.loc[1, "mma"] == "1.0"  # one scene: nothing to resample
    assert shown.loc[1, "rmse"] == ""


def test_crossed_sums_and_resamples_against_the_written_out_draw() -> None:
    records = pd.DataFrame(
        {"seed": [0, 0, 1, 1, 1], "scene": ["a", "b", "a", "a", "c"], "x": [1.0, 2.0, 3.0, 4.0, 5.0], "one": 1.0}
    )
    sums = crossed_sums(records, ["x", "one"])
    assert sums[..., 0].tolist() == [[1, 2, 0], [7, 0, 5]] and sums[..., 1].tolist() == [[1, 1, 0], [2, 0, 1]]
    drawn = crossed_resamples(sums, n=50, seed=3)
    rng = np.random.default_rng(3)
    seeds, scenes = rng.integers(0, 2, size=(50, 2)), rng.integers(0, 3, size=(50, 3))
    for i in range(50):
        expected = sum(sums[a, b] for a in seeds[i] for b in scenes[i])
        np.testing.assert_allclose(drawn[i], expected)
    both = crossed_sums(records, ["x"], levels=([0, 1, 2], ["a", "b", "c", "d"]))
    assert both.shape == (3, 4, 1) and both[2].sum() == both[:, 3].sum() == 0


def test_crossed_bootstrap_is_wider_than_that_of_scenes_alone_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    rows = [(s, f"{c}", 0.2 * s + 0.01 * rng.normal()) for s in range(3) for c in range(10)]
    records = pd.DataFrame(rows, columns=["seed", "scene", "x"])
    crossed, scenes = crossed_bootstrap(records, "x"), cluster_bootstrap(records, "x")
    assert crossed.mean == pytest.approx(scenes.mean) and crossed.n_clusters == 10
    assert crossed.high - crossed.low > 5 * (scenes.high - scenes.low)


def test_crossed_bootstrap_of_one_seed_is_that_of_its_scenes_and_of_one_scene_unknown() -> None:
    rng = np.random.default_rng(1)
    records = pd.DataFrame({"seed": 0, "scene": np.repeat(list("abcdefgh"), 5), "x": rng.normal(size=40)})
    crossed, scenes = crossed_bootstrap(records, "x", n=4000), cluster_bootstrap(records, "x", n=4000)
    assert (crossed.low, crossed.high) == pytest.approx((scenes.low, scenes.high), abs=0.05)
    one = crossed_bootstrap(records.assign(scene="a"), "x")
    assert np.isnan(one.low) and np.isnan(one.high)
    with pytest.raises(ValueError, match="holds no values"):
        crossed_bootstrap(records.assign(x=np.nan), "x")
