"""Intervals over scenes, paired tests and verdicts, for tables of one row a pair.

Pairs of one scene are not independent, so whole scenes are resampled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

FEWEST_CLUSTERS = 5  #: With fewer clusters an interval carries no verdict: its coverage is far below its level.


@dataclass(frozen=True)
class Interval:
    """A statistic with its confidence interval; the ends are NaN where a single cluster leaves nothing to resample."""

    mean: float
    low: float
    high: float
    n_pairs: int  #: Records used.
    n_clusters: int  #: Clusters they come from.

    def named(self, name: str, prefix: str | None = None) -> dict[str, float]:
        """As the columns `name`, `<prefix>low` and `<prefix>high`; the prefix is `<name>_` unless given."""
        prefix = f"{name}_" if prefix is None else prefix
        return {name: self.mean, f"{prefix}low": self.low, f"{prefix}high": self.high}


def resampled_counts(n_clusters: int, n: int = 2000) -> np.ndarray:
    """How often each of n resamples with replacement holds each cluster, (n, n_clusters) float64."""
    draws = np.random.default_rng(0).integers(0, n_clusters, size=(n, n_clusters))
    counts = np.zeros((n, n_clusters))
    np.add.at(counts, (np.arange(n)[:, None], draws), 1)
    return counts


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n_clusters: int, n: int = 2000) -> np.ndarray:
    """A statistic with its 95 % percentile interval under resampling of whole clusters with replacement.

    Args:
        statistic: of a matrix of counts (m, n_clusters), how often each cluster is there; returns (m, ...).

    Returns:
        (3, ...): the statistic of every cluster once, and the ends, NaN where there is a single cluster. Resamples with
        the value NaN do not count.
    """
    counts = np.ones((1, n_clusters))
    if n_clusters > 1:
        counts = np.concatenate([counts, resampled_counts(n_clusters, n)])
    value, *drawn = np.asarray(statistic(counts))
    ends = pd.DataFrame(np.reshape(drawn, (len(drawn), value.size))).quantile([0.025, 0.975])
    return np.stack([value, *ends.to_numpy().reshape(2, *value.shape)])


def cluster_bootstrap(records: pd.DataFrame, value: str, cluster: str = "scene") -> Interval:
    """Mean of a column over rows that have it, one a pair, with the interval of `bootstrap` over clusters of any size.

    No values or an unnamed cluster are a ValueError.
    """
    known = _known(records, value, (cluster,))
    if known[cluster].isna().any() or (known[cluster].astype(str) == "").any():
        raise ValueError(f"column {cluster!r} is empty for some records; name the cluster of each or choose another")
    parts = known.groupby(cluster)[value].agg(["sum", "size"]).to_numpy(np.float64)
    mean, low, high = bootstrap(lambda counts: _quotient(counts @ parts), len(parts))
    return Interval(float(mean), float(low), float(high), len(known), len(parts))


def _quotient(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _known(records: pd.DataFrame, value: str, names: Sequence[str]) -> pd.DataFrame:
    known = records[[*names, value]].dropna(subset=[value])
    if known.empty:
        raise ValueError(f"column {value!r} holds no values: {len(records)} records, all NaN")
    return known


def crossed_sums(
    records: pd.DataFrame,
    values: Sequence[str],
    factors: tuple[str, str] = ("seed", "scene"),
    levels: Sequence[Sequence[Any]] | None = None,
) -> np.ndarray:
    """Sums of columns over the records of each pair of levels, (levels, levels, values); 0 where there are none.

    Levels are those of both factors; None takes what the records have, sorted.
    """
    sums = records.groupby(list(factors))[list(values)].sum()
    levels = levels or [sorted(records[factor].unique()) for factor in factors]
    full = sums.reindex(pd.MultiIndex.from_product(levels, names=factors), fill_value=0.0)
    return full.to_numpy(dtype=np.float64).reshape(len(levels[0]), len(levels[1]), len(values))


def verdict(
    low: float,
    high: float,
    n_clusters: int | None = None,
    n_seeds: int | None = None,
    words: tuple[str, str, str] = ("better", "worse", "undecided"),
) -> str:
    """Verdict of the interval of a difference, in words for one above 0, below 0, and one that holds it.

    Fewer than `FEWEST_CLUSTERS` scenes behind the interval, or a NaN, give "too few scenes"; fewer than 2 trainings
    give "one seed", but None says that one network was used in two ways.
    """
    if n_seeds is not None and n_seeds < 2:
        return "one seed"
    if (n_clusters is not None and n_clusters < FEWEST_CLUSTERS) or np.isnan(low):
        return "too few scenes"
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


class Crossed(NamedTuple):
    """A statistic of records that two factors cross, such as trainings of a few seeds that match the same scenes."""

    value: float  #: Of all records.
    by_first: np.ndarray  #: Of each level of the first factor alone, (A,).
    by_draw: np.ndarray  #: Of resamples of the levels of the second factor, (n,); constant where it has one.
    n_second: int  #: Levels of the second factor.

    def interval(self) -> tuple[float, float]:
        """95 % interval for other levels of both factors; NaN twice where the second factor has a single level.

        The variance is that of the mean over the first factor plus that of the bootstrap over the second, with t of
        Satterthwaite's degrees of freedom: resampling few seeds would be too narrow.
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
        half = float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(total)
        return self.value - half, self.value + half


def crossed(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Crossed:
    """A statistic, of rows of sums (m, V) to (m,), of `crossed_sums` (A, B, V): of all, of each A, of draws of B."""
    counts = resampled_counts(sums.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may miss all scenes that hold anything
        value = float(statistic(sums.sum((0, 1))[None])[0])
        by_first, by_draw = statistic(sums.sum(1)), statistic(counts @ sums.sum(0))
    return Crossed(value, by_first, by_draw, int(sums.any((0, 2)).sum()))


def crossed_bootstrap(records: pd.DataFrame, value: str) -> Interval:
    """Mean of a column over pairs and trainings, with the interval of `Crossed`; errors as `cluster_bootstrap`."""
    known = _known(records, value, ("seed", "scene")).assign(_one=1.0)
    found = crossed(crossed_sums(known, [value, "_one"]), _quotient)
    return Interval(found.value, *found.interval(), len(known), found.n_second)


def paired_difference(records_a: pd.DataFrame, records_b: pd.DataFrame, value: str) -> Interval:
    """`cluster_bootstrap` over scenes of a - b on the same pairs, one row a pair in both tables.

    Pairs that occur twice or in one table only are a ValueError, as are infinite values (failed registrations).
    """
    return cluster_bootstrap(_differences(records_a, records_b, value), "difference")


def paired_t_test(records_a: pd.DataFrame, records_b: pd.DataFrame, value: str) -> Any:
    """The paper's significance test: scipy's result of a two-sided paired t-test, which takes pairs as independent.

    Errors as `paired_difference`, and where fewer than two pairs have a value in both tables.
    """
    difference = _differences(records_a, records_b, value)["difference"].dropna()
    if len(difference) < 2:
        raise ValueError(f"a paired t-test of {value!r} needs at least 2 pairs with a value in both tables")
    return scipy.stats.ttest_1samp(difference, 0.0)


def _differences(records_a: pd.DataFrame, records_b: pd.DataFrame, value: str) -> pd.DataFrame:
    for name, records in (("a", records_a), ("b", records_b)):
        if not records["id"].is_unique:
            raise ValueError(f"records_{name}: an id stands in several rows; choose one protocol and one search radius")
        if np.isinf(records[value].astype(float)).any():
            raise ValueError(
                f"records_{name}: {value!r} is infinite for some pairs; compare the share below a threshold"
            )
    only_one = set(records_a["id"]) ^ set(records_b["id"])
    if only_one:
        raise ValueError(f"{len(only_one)} pairs stand in one table only, e.g. {min(only_one)}; compare equal pairs")
    merged = records_a.merge(records_b[["id", value]], on="id", suffixes=("", "_b"))
    return merged.assign(difference=merged[value] - merged[f"{value}_b"])


def intervals(
    records: pd.DataFrame, values: Sequence[str], of: Callable[[pd.DataFrame, str], Interval] = cluster_bootstrap
) -> dict[str, float]:
    """Interval of each column as `Interval.named`; NaN where no record has a value."""
    unknown = Interval(math.nan, math.nan, math.nan, 0, 0)
    found = ((value, of(records, value) if records[value].notna().any() else unknown) for value in values)
    return {name: number for value, interval in found for name, number in interval.named(value).items()}


def summarise(records: pd.DataFrame, by: Sequence[str], values: Sequence[str], cluster: str = "scene") -> pd.DataFrame:
    """`cluster_bootstrap` of several columns, a row a group in order of appearance, with the columns `by`, `n_pairs`,
    `n_<cluster>s`, and for each value its mean, `<value>_low` and `<value>_high`."""
    of = partial(cluster_bootstrap, cluster=cluster)
    rows: list[dict[str, Any]] = []
    for names, group in records.groupby(list(by), sort=False, dropna=False):
        counts = {"n_pairs": len(group), f"n_{cluster}s": group[cluster].nunique()}
        rows.append(dict(zip(by, names, strict=True)) | counts | intervals(group, values, of))
    return pd.DataFrame(rows)


def with_intervals(summary: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A `summarise` table for reading: each value as "mean [low, high]", the columns of its ends left out."""

    def text(mean: float, low: float, high: float) -> str:
        if np.isnan(mean):
            return ""
        places = 0 if abs(mean) >= 100 else digits  # counts
        return f"{mean:.{places}f}" + ("" if np.isnan(low) else f" [{low:.{places}f}, {high:.{places}f}]")

    shown = summary.copy()
    for name in [c.removesuffix("_low") for c in summary if c.endswith("_low")]:
        columns = [name, f"{name}_low", f"{name}_high"]
        shown[name] = [text(*row) for row in summary[columns].to_numpy(np.float64)]
        shown = shown.drop(columns=columns[1:])
    return shown
