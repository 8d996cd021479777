"""Intervals against simulations and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from companion.intervals import (
    Crossed,
    bootstrap,
    cluster_bootstrap,
    crossed,
    crossed_bootstrap,
    crossed_sums,
    paired_difference,
    paired_t_test,
    summarise,
    verdict,
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
        interval = cluster_bootstrap(records, "mma")
        covered += interval.low <= 0 <= interval.high
        single = cluster_bootstrap(records, "mma", cluster="id")
        naive += single.low <= 0 <= single.high
    assert 0.87 <= covered / 200 <= 0.99  # nominal 0.95; three standard errors, and the percentile's known shortfall
    assert naive / 200 < 0.75


def test_reproducible_and_independent_of_the_order_of_rows() -> None:
    records = simulate(np.random.default_rng(1))
    first = cluster_bootstrap(records, "mma")
    assert first == cluster_bootstrap(records, "mma")
    shuffled = cluster_bootstrap(records.sample(frac=1, random_state=0), "mma")
    assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high))


def test_bootstrap_of_a_statistic_is_that_of_the_drawn_clusters() -> None:
    groups = [np.array([1.0, 3.0]), np.array([5.0]), np.array([2.0, 2.0, 9.0])]

    def mean_and_median(counts: np.ndarray) -> np.ndarray:
        pooled = [np.concatenate([np.tile(g, int(k)) for g, k in zip(groups, row, strict=True)]) for row in counts]
        return np.array([(values.mean(), np.median(values)) for values in pooled])

    found = bootstrap(mean_and_median, 3, n=50)
    drawn = np.random.default_rng(0).integers(0, 3, size=(50, 3))
    values = [np.concatenate([groups[i] for i in draw]) for draw in drawn]
    expected = np.quantile([(v.mean(), np.median(v)) for v in values], [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found, [[22 / 6, 2.5], *expected])
    records = pd.DataFrame({"scene": [*"aab", *"ccc"], "x": np.concatenate(groups)})
    whole = cluster_bootstrap(records, "x")
    np.testing.assert_allclose((whole.mean, whole.low, whole.high), bootstrap(mean_and_median, 3)[:, 0])


def test_counts_leave_out_missing_values() -> None:
    records = pd.DataFrame({"scene": ["a", "a", "b", "c"], "rmse_px": [1.0, 3.0, 5.0, np.nan]})
    interval = cluster_bootstrap(records, "rmse_px")
    assert (interval.mean, interval.n_pairs, interval.n_clusters) == (3.0, 3, 2)
    assert 2.0 <= interval.low <= interval.mean <= interval.high <= 5.0


def test_one_cluster_has_no_interval() -> None:
    interval = cluster_bootstrap(pd.DataFrame({"scene": ["a", "a"], "mma": [0.0, 1.0]}), "mma")
    assert interval.mean == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"mma": [np.nan], "scene": ["a"]}, "holds no values"),
        ({"mma": [1.0, 2.0], "scene": ["a", ""]}, "'scene' is empty for some records"),
    ],
)
def test_rejects_tables_that_cannot_be_resampled(records: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(pd.DataFrame(records), "mma")


def test_t_test_equals_scipy_on_the_two_columns() -> None:
    a = simulate(np.random.default_rng(3))
    b = a.assign(mma=a["mma"] - 0.05 + np.random.default_rng(4).normal(0, 0.2, len(a)))
    result = paired_t_test(a, b.sample(frac=1, random_state=0), "mma")
    expected = scipy.stats.ttest_rel(a["mma"], b["mma"])
    assert (result.statistic, result.pvalue) == pytest.approx((expected.statistic, expected.pvalue))


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
    with pytest.raises(ValueError, match="records_b: an id stands in several rows"):
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


def test_crossed_sums_fill_what_is_not_there() -> None:
    records = pd.DataFrame(
        {"seed": [0, 0, 1, 1, 1], "scene": ["a", "b", "a", "a", "c"], "x": [1.0, 2.0, 3.0, 4.0, 5.0], "one": 1.0}
    )
    sums = crossed_sums(records, ["x", "one"])
    assert sums[..., 0].tolist() == [[1, 2, 0], [7, 0, 5]] and sums[..., 1].tolist() == [[1, 1, 0], [2, 0, 1]]
    both = crossed_sums(records, ["x"], levels=([0, 1, 2], ["a", "b", "c", "d"]))
    assert both.shape == (3, 4, 1) and both[2].sum() == both[:, 3].sum() == 0


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def test_crossed_is_the_statistic_of_all_of_each_seed_and_of_draws_of_scenes() -> None:
    sums = np.array([[[1.0, 1], [2, 1], [0, 0]], [[7, 2], [0, 0], [5, 1]]])
    found = crossed(sums, mean)
    assert (found.value, found.by_first.tolist(), found.n_second) == (15 / 5, [3 / 2, 12 / 3], 3)
    drawn = np.random.default_rng(0).integers(0, 3, size=(2000, 3))
    for i in range(40):
        total = sum(sums[a, b] for a in range(2) for b in drawn[i])
        np.testing.assert_allclose(found.by_draw[i], total[0] / total[1])


def test_the_interval_of_few_seeds_that_agree_is_that_of_scenes_and_grows_with_their_spread() -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.02, 4000)
    alike = Crossed(0.5, np.array([0.5, 0.5, 0.5]), draws, 20).interval()
    expected = scipy.stats.t.ppf(0.975, 19) * draws.std()
    assert alike == pytest.approx((0.5 - expected, 0.5 + expected))
    apart = Crossed(0.5, np.array([0.3, 0.5, 0.7]), np.full(100, 0.5), 20).interval()
    assert apart[1] - 0.5 == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.2 / np.sqrt(3))  # t with two degrees
    assert Crossed(0.5, np.array([0.5]), np.full(100, 0.5), 20).interval() == (0.5, 0.5)
    assert np.isnan(Crossed(0.5, np.array([0.3, 0.7]), np.full(100, 0.5), 1).interval()).all()


@pytest.mark.parametrize("of_seeds", [0.02, 0.2])
def test_intervals_over_three_seeds_miss_the_truth_about_as_often_as_they_say(of_seeds: float) -> None:
    rng, missed, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        values = of_seeds * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(1, 15)) + 0.02 * rng.normal(size=(3, 15))
        found = crossed(np.stack([values, np.ones_like(values)], -1), mean)
        low, high = found.interval()
        missed += not low <= 0 <= high
    assert missed / trials < 0.09  # resampling three seeds as if there were no others misses more than twice as often


def test_crossed_bootstrap_leaves_out_what_is_not_known() -> None:
    rng = np.random.default_rng(1)
    records = pd.DataFrame(
        {"seed": np.tile([0, 1], 20), "scene": np.repeat(list("abcdefgh"), 5), "x": rng.normal(size=40)}
    )
    found = crossed_bootstrap(records, "x")
    assert found.mean == pytest.approx(records["x"].mean()) and found.low < found.mean < found.high
    assert (found.n_pairs, found.n_clusters) == (40, 8)
    some = crossed_bootstrap(records.assign(x=records["x"].where(records.index > 9)), "x")
    assert some.mean == pytest.approx(records["x"][10:].mean()) and (some.n_pairs, some.n_clusters) == (30, 6)
    assert np.isnan(crossed_bootstrap(records.assign(scene="a"), "x").low)
    with pytest.raises(ValueError, match="holds no values"):
        crossed_bootstrap(records.assign(x=np.nan), "x")


def test_verdicts() -> None:
    asked = [(0.1, 0.2, 9, 3), (-0.2, -0.1, 9, None), (-0.1, 0.1, 9, 3), (0.1, 0.2, 9, 1), (0.1, 0.2, 4, 3)]
    assert [verdict(*one) for one in asked] == ["better", "worse", "undecided", "one seed", "too few scenes"]
    assert verdict(0.1, 0.2, 9, words=("higher", "lower", "open")) == "higher"
