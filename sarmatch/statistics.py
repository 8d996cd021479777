"""Intervals and tests for tables of records, one row a pair.

Pairs of one scene share terrain, season and acquisition, so they are not independent. The paper's paired t-test
(section 4.4) takes them as if they were; the bootstrap here resamples whole scenes instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

Statistic = Callable[[np.ndarray], float]
FEWEST_CLUSTERS = 5
"""Clusters below which a resampling interval carries no verdict: with two it errs three times as often as it says."""


@dataclass(frozen=True)
class Interval:
    """A statistic with its confidence interval.

    Attributes:
        mean: the statistic of all records; the mean unless another was asked for.
        low, high: ends of the interval; NaN where a single cluster leaves nothing to resample.
        n_pairs, n_clusters: records used, and the clusters they come from.
    """

    mean: float
    low: float
    high: float
    n_pairs: int
    n_clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired t-test of a - b.

    Attributes:
        mean: mean difference.
        low, high: its confidence interval under the t distribution.
        t, p: statistic and two-sided p-value.
        cohens_d: mean difference over the standard deviation of the differences, the effect size.
        n_pairs: number of pairs compared.
    """

    mean: float
    low: float
    high: float
    t: float
    p: float
    cohens_d: float
    n_pairs: int


def cluster_bootstrap(
    records: pd.DataFrame,
    value: str,
    cluster: str = "scene",
    n: int = 2000,
    seed: int = 0,
    statistic: Statistic = np.mean,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic under resampling of whole clusters with replacement.

    Clusters keep their sizes, so the statistic is one over pairs, not over clusters. Percentile intervals are
    somewhat too narrow below about 20 clusters.

    Args:
        records: one row a pair, with the columns `value` and `cluster`.
        value: numeric column; rows where it is NaN (no matches to measure) are left out, which `n_pairs` shows.
        cluster: column naming the group that stays together.
        n: number of resamples.
        seed: of the resampling.
        statistic: of the pooled values of a resample.
        level: probability content of the interval, in (0, 1).

    Raises:
        ValueError: missing columns, no values, an unnamed cluster, or `level` outside (0, 1).
    """
    _check_columns(records, (value, cluster))
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    table = records[[cluster, value]].dropna(subset=[value])
    if table.empty:
        raise ValueError(f"column {value!r} holds no values: {len(records)} records, all NaN")
    if table[cluster].isna().any() or (table[cluster].astype(str) == "").any():
        raise ValueError(f"column {cluster!r} is empty for some records; name the cluster of each or choose another")
    groups = [group.to_numpy(dtype=np.float64) for _, group in table.groupby(cluster, sort=True)[value]]
    estimate = float(statistic(np.concatenate(groups)))
    low, high = _percentiles(groups, n, seed, statistic, level) if len(groups) > 1 else (float("nan"),) * 2
    return Interval(estimate, low, high, len(table), len(groups))


def _percentiles(
    groups: list[np.ndarray], n: int, seed: int, statistic: Statistic, level: float
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(groups), size=(n, len(groups)))
    if statistic is np.mean:  # sums of the groups suffice
        sums, sizes = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
        values = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    else:
        values = np.array([statistic(np.concatenate([groups[i] for i in draw])) for draw in draws])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def crossed_sums(
    records: pd.DataFrame,
    values: Sequence[str],
    factors: tuple[str, str] = ("seed", "scene"),
    levels: Sequence[Sequence[Any]] | None = None,
) -> np.ndarray:
    """Sums of columns over the records of each pair of levels, (levels, levels, values); 0 where there are none.

    Args:
        levels: those of both factors; None takes what the records have, sorted. Tables that are to be resampled alike
            need the same.
    """
    _check_columns(records, (*values, *factors))
    sums = records.groupby(list(factors))[list(values)].sum()
    levels = levels or [sorted(records[factor].unique()) for factor in factors]
    full = sums.reindex(pd.MultiIndex.from_product(levels, names=factors), fill_value=0.0)
    return full.to_numpy(dtype=np.float64).reshape(len(levels[0]), len(levels[1]), len(values))


def verdict(
    low: float,
    high: float,
    n_clusters: int,
    n_seeds: int | None = None,
    words: tuple[str, str, str] = ("better", "worse", "undecided"),
) -> str:
    """What the interval of a difference says; nothing where there is too little to tell from.

    Args:
        n_clusters: scenes that the interval was made from; fewer than `FEWEST_CLUSTERS` tell nothing.
        n_seeds: of the trainings that are compared; None where one and the same network was used in two ways.
        words: for an interval above 0, below 0, and one that holds it.
    """
    if n_seeds is not None and n_seeds < 2:
        return "one seed"
    if n_clusters < FEWEST_CLUSTERS or np.isnan(low):
        return "too few scenes"
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


class Crossed(NamedTuple):
    """A statistic of records that two factors cross, such as trainings of a few seeds that all match the same scenes.

    Attributes:
        value: of all records.
        by_first: of each level of the first factor alone, (A,).
        by_draw: of resamples of the levels of the second factor with replacement, (n,); constant where it has one.
        n_second: levels of the second factor.
    """

    value: float
    by_first: np.ndarray
    by_draw: np.ndarray
    n_second: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval for other levels of both factors.

        The variance is that of the mean over the first factor plus that of the bootstrap over the second, and t has the
        degrees of freedom of Satterthwaite: from a few seeds little is known of how much seeds differ, and resampling
        them as if they were all there are would err several times as often as it says.

        Returns:
            NaN twice where the second factor has a single level. Of a single level of the first factor nothing is known
            beyond itself: the interval is then that of the second.
        """
        if self.n_second < 2:
            return float("nan"), float("nan")
        first, known = self.by_first[np.isfinite(self.by_first)], self.by_draw[np.isfinite(self.by_draw)]
        of_first = float(first.var(ddof=1)) / len(first) if len(first) > 1 else 0.0
        of_second = float(known.var()) if len(known) else 0.0
        total = of_first + of_second
        if total == 0:
            return self.value, self.value
        freedom = total**2 / (of_first**2 / max(1, len(first) - 1) + of_second**2 / (self.n_second - 1))
        half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total)
        return self.value - half, self.value + half


def crossed(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], n: int = 2000, seed: int = 0) -> Crossed:
    """A statistic of sums over records, for all, for each level of the first factor and for draws of the second.

    Args:
        sums: as `crossed_sums` returns, (A, B, V). Equal shapes see equal draws.
        statistic: of rows of sums (m, V), returns (m,).
        n, seed: of the resampling.
    """
    drawn = np.random.default_rng(seed).integers(0, sums.shape[1], size=(n, sums.shape[1]))
    times = (drawn[..., None] == np.arange(sums.shape[1])).sum(axis=1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may miss all scenes that hold anything
        value = statistic(sums.sum((0, 1))[None])
        return Crossed(
            float(value[0]), statistic(sums.sum(1)), statistic(times @ sums.sum(0)), int(sums.any((0, 2)).sum())
        )


def crossed_bootstrap(
    records: pd.DataFrame,
    value: str,
    factors: tuple[str, str] = ("seed", "scene"),
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of a column with the interval of `Crossed`, for one row a pair and training.

    Args:
        value: numeric column; rows where it is NaN are left out.
        n, seed, level: as in `cluster_bootstrap`.

    Returns:
        an interval whose `n_clusters` counts the levels of the second factor.

    Raises:
        ValueError: missing columns, or no values.
    """
    _check_columns(records, (value, *factors))
    known = records.dropna(subset=[value]).assign(_one=1.0)
    if known.empty:
        raise ValueError(f"column {value!r} holds no values: {len(records)} records, all NaN")
    sums = crossed_sums(known, [value, "_one"], factors)
    found = crossed(sums, lambda s: s[:, 0] / s[:, 1], n, seed)
    return Interval(found.value, *found.interval(level), len(known), found.n_second)


def paired_difference(
    records_a: pd.DataFrame,
    records_b: pd.DataFrame,
    value: str,
    key: str = "id",
    cluster: str = "scene",
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of a - b over the same pairs, with a cluster bootstrap interval; zero outside it speaks for a difference.

    Args:
        records_a, records_b: tables of two methods over the same pairs and protocol, one row a pair.
        value, cluster: as in `cluster_bootstrap`.
        key: column that identifies a pair.
        n, seed, level: as in `cluster_bootstrap`.

    Raises:
        ValueError: a pair occurs twice in a table, or only in one of them; infinite values (failed registrations).
    """
    difference = _differences(records_a, records_b, value, key, cluster)
    return cluster_bootstrap(difference, "difference", cluster, n, seed, level=level)


def paired_t_test(
    records_a: pd.DataFrame, records_b: pd.DataFrame, value: str, key: str = "id", level: float = 0.95
) -> PairedTest:
    """The paper's significance test: a two-sided paired t-test that takes pairs as independent.

    Raises:
        ValueError: a pair occurs twice in a table, or only in one of them; fewer than two pairs with a value in both.
    """
    difference = _differences(records_a, records_b, value, key, None)["difference"].dropna().to_numpy()
    if len(difference) < 2:
        raise ValueError(f"a paired t-test of {value!r} needs at least 2 pairs with a value in both tables")
    result = scipy.stats.ttest_1samp(difference, 0.0)
    interval = result.confidence_interval(level)
    spread = float(np.std(difference, ddof=1))
    mean = float(difference.mean())
    effect = mean / spread if spread > 0 else float(np.sign(mean)) * float("inf") if mean else 0.0
    return PairedTest(
        mean, float(interval.low), float(interval.high), float(result.statistic), float(result.pvalue), effect,
        len(difference),
    )  # fmt: skip


def _differences(
    records_a: pd.DataFrame, records_b: pd.DataFrame, value: str, key: str, cluster: str | None
) -> pd.DataFrame:
    for name, records in (("a", records_a), ("b", records_b)):
        _check_columns(records, (key, value) if cluster is None else (key, value, cluster))
        if not records[key].is_unique:
            twice = records[key][records[key].duplicated()].iloc[0]
            raise ValueError(
                f"records_{name}: {key} {twice} stands in several rows; choose one protocol and one search radius"
            )
        if np.isinf(records[value].to_numpy(dtype=np.float64)).any():
            raise ValueError(
                f"records_{name}: {value!r} is infinite for some pairs; compare the share below a threshold instead"
            )
    only_one = set(records_a[key]) ^ set(records_b[key])
    if only_one:
        raise ValueError(f"{len(only_one)} pairs stand in one table only, e.g. {min(only_one)}; compare equal pairs")
    kept = [key] if cluster is None else [key, cluster]
    merged = records_a[[*kept, value]].merge(records_b[[key, value]], on=key, suffixes=("_a", "_b"))
    return merged.assign(difference=merged[f"{value}_a"] - merged[f"{value}_b"])


def _check_columns(records: pd.DataFrame, names: tuple[str, ...]) -> None:
    missing = set(names) - set(records.columns)
    if missing:
        raise ValueError(f"records lack the columns {sorted(missing)}; they have {list(records.columns)}")


def summarise(
    records: pd.DataFrame, by: Sequence[str], values: Sequence[str], cluster: str = "scene", seed: int = 0
) -> pd.DataFrame:
    """`cluster_bootstrap` of several columns, a row a group in order of appearance.

    Returns:
        the columns `by`, `n_pairs`, `n_<cluster>s`, and for each value its mean, `<value>_low` and `<value>_high`; NaN
        where a group holds no value.
    """
    rows = []
    for names, group in records.groupby(list(by), sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, names, strict=True))
        row |= {"n_pairs": len(group), f"n_{cluster}s": group[cluster].nunique()}
        for value in values:
            known = bool(group[value].notna().any())
            interval = cluster_bootstrap(group, value, cluster, seed=seed) if known else None
            ends = (interval.mean, interval.low, interval.high) if interval else (float("nan"),) * 3
            row |= dict(zip((value, f"{value}_low", f"{value}_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def with_intervals(summary: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A `summarise` table for reading: each value as "mean [low, high]", the columns of its ends left out."""
    shown = summary.copy()
    for name in [c.removesuffix("_low") for c in summary if c.endswith("_low")]:
        ends = zip(summary[name], summary[f"{name}_low"], summary[f"{name}_high"], strict=True)
        shown[name] = [_interval_text(*values, digits) for values in ends]
        shown = shown.drop(columns=[f"{name}_low", f"{name}_high"])
    return shown


def _interval_text(mean: float, low: float, high: float, digits: int) -> str:
    if np.isnan(mean):
        return ""
    digits = 0 if abs(mean) >= 100 else digits  # counts
    interval = "" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{interval}"
