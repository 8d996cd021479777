"""Tables of records by condition, by scene and by dose, and the claim on rotation (section 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from companion.studies.conditions import CONDITIONS
from sarmatch.evaluation.intervals import (
    FEWEST_CLUSTERS,
    Crossed,
    check_columns,
    cluster_bootstrap,
    crossed,
    crossed_sums,
    intervals,
    paired_difference,
    summarise,
    verdict,
)

DIRECTIONS = ("higher", "lower", "open")
CLAIMED_GAIN = 0.021  # relative, in areas with significant geometric distortions (section 5.3)
ROWS = ("contrastive", "rotation")  # of table 3, equal but for rotation prediction


def by_condition(records: pd.DataFrame, levels: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means of records for each level of each condition and each method.

    Args:
        records: of `sarmatch.evaluate`, with a column `method`.
        levels: of `conditions.classify`.

    Returns:
        `condition`, `level`, `method` and what `summarise` adds; no interval below `FEWEST_CLUSTERS` scenes.
    """
    joined = _joined(records, levels)
    if joined.empty:
        return pd.DataFrame(columns=["condition", "level", "method", "n_pairs", "n_scenes", *values])
    return _without_few(summarise(joined, ["condition", "level", "method"], values), "n_scenes")


def by_scene(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means for each scene and method, with intervals over its pairs where there are at least `FEWEST_CLUSTERS`."""
    table = summarise(records, ["dataset", "scene", "method"], values, cluster="id").drop(columns="n_ids")
    return _without_few(table, "n_pairs").sort_values(["dataset", "scene"], kind="stable", ignore_index=True)


def _joined(records: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Records with their levels, a row for each condition that is known, in the order of the levels."""
    if records.duplicated(["id", "method"]).any():
        raise ValueError("records hold a pair and method more than once; choose one protocol and one search radius")
    return levels.merge(records, on="id", how="inner")


def _without_few(table: pd.DataFrame, count: str) -> pd.DataFrame:
    ends = [name for name in table if name.endswith(("_low", "_high"))]
    table.loc[table[count] < FEWEST_CLUSTERS, ends] = np.nan
    return table


def effects(records: pd.DataFrame, levels: pd.DataFrame, value: str) -> pd.DataFrame:
    """The last level of each condition minus the first, with an interval over scenes; levels hold different pairs.

    Conditions with one level, or with several that have no order, are left out. `n_scenes` is of the smaller level.
    """
    ordered = {c.name for c in CONDITIONS if c.levels}
    rows = []
    for (condition, method), group in _joined(records, levels).groupby(["condition", "method"], sort=False):
        names = list(group["level"].unique())
        if len(names) < 2 or (condition not in ordered and len(names) > 2):
            continue
        sides = [group[group["level"] == name].assign(_all=0) for name in (names[0], names[-1])]
        n_scenes = min(side["scene"].nunique() for side in sides)
        sums, ((first,), (last,)) = _means(sides, [value], ("_all", "scene"))
        ends = _named("difference", crossed(sums, _minus(last, first)))
        about = {"condition": condition, "method": method, "from": names[0], "to": names[-1]}
        rows.append(about | ends | {"n_scenes": n_scenes})
    columns = ["condition", "method", "from", "to", *_ends_of("difference"), "n_scenes"]
    return _with_verdict(pd.DataFrame(rows, columns=columns), "difference")


Statistic = Callable[[np.ndarray], np.ndarray]


def _means(
    tables: Sequence[pd.DataFrame], values: Sequence[str], factors: tuple[str, str]
) -> tuple[np.ndarray, list[list[Statistic]]]:
    """Sums of columns of several tables over the same levels, and for each table and column its mean from them."""
    every = pd.concat(tables)
    levels = [sorted(every[factor].unique()) for factor in factors]
    parts = []
    for table in tables:
        known = {f"_{value}": table[value].notna().astype(float) for value in values}
        parts.append(crossed_sums(table.assign(**known).fillna(0.0), [*values, *known], factors, levels))
    width = len(values)

    def mean(j: int, i: int) -> Statistic:
        at = 2 * width * j + i
        return lambda sums: sums[:, at] / sums[:, at + width]

    return np.concatenate(parts, axis=2), [[mean(j, i) for i in range(width)] for j in range(len(tables))]


def _minus(a: Statistic, b: Statistic) -> Statistic:
    return lambda sums: a(sums) - b(sums)


def _relative(a: Statistic, b: Statistic) -> Statistic:
    """a / b - 1; NaN where b is zero."""
    return lambda sums: a(sums) / np.where(b(sums) > 0, b(sums), np.nan) - 1


def _ends_of(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _named(name: str, found: Crossed) -> dict[str, float]:
    return dict(zip(_ends_of(name), (found.value, *found.interval()), strict=True))


def _with_verdict(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """The table with its verdicts, and without intervals where there are too few scenes for one."""
    ends = zip(table[f"{value}_low"], table[f"{value}_high"], table["n_scenes"], strict=True)
    return _without_few(table.assign(verdict=[verdict(*row, words=DIRECTIONS) for row in ends]), "n_scenes")


def within_scenes(records: pd.DataFrame, measures: pd.DataFrame, value: str) -> pd.DataFrame:
    """Rank correlation of each numeric condition with a metric over the pairs of one scene, averaged over scenes.

    Scenes of fewer than `FEWEST_CLUSTERS` pairs, or in which the measure or the metric does not vary, do not count.

    Args:
        measures: of `conditions.measure_conditions`.
    """
    numeric = [c for c in CONDITIONS if c.levels]
    joined = records.merge(measures[["id", *(c.measure for c in numeric)]], on="id")
    rows = []
    for condition in numeric:
        for method, group in joined.groupby("method", sort=False):
            known = group.dropna(subset=[condition.measure, value])
            found = [
                {"scene": scene, "rho": float(spearmanr(own[condition.measure], own[value]).statistic), "n": len(own)}
                for scene, own in known.groupby("scene")
                if len(own) >= FEWEST_CLUSTERS and own[condition.measure].nunique() > 1 and own[value].nunique() > 1
            ]
            rho = intervals(pd.DataFrame(found, columns=["scene", "rho", "n"]), ["rho"])
            counts = {"n_pairs": sum(own["n"] for own in found), "n_scenes": len(found)}
            rows.append({"condition": condition.name, "method": method} | rho | counts)
    columns = ["condition", "method", *_ends_of("rho"), "n_pairs", "n_scenes"]
    return _with_verdict(pd.DataFrame(rows, columns=columns), "rho")


def paired_changes(before: pd.DataFrame, after: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """After minus before over the pairs that both have, for each method and metric; no rows where `after` has none."""
    rows = []
    for method, late in after.groupby("method", sort=False) if len(after) else ():
        early = before[(before["method"] == method) & before["id"].isin(late["id"])]
        for value in values:
            change = paired_difference(late, early, value)
            row = {"method": method, "metric": value, "before": early[value].mean(), "after": late[value].mean()}
            counts = {"n_pairs": change.n_pairs, "n_scenes": change.n_clusters}
            rows.append(row | change.named("difference") | counts)
    columns = ["method", "metric", "before", "after", *_ends_of("difference"), "n_pairs", "n_scenes"]
    return _with_verdict(pd.DataFrame(rows, columns=columns), "difference")


def by_dose(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means for each kind, dose and method, and how they differ from dose 0 on the same pairs.

    Args:
        records: with columns `kind`, `dose` and `method`; dose 0 of each kind among them.
    """
    rows = []
    for (kind, method), group in records.groupby(["kind", "method"], sort=False):
        none = group[group["dose"] == 0]
        if none.empty:
            raise ValueError(f"records of {kind!r} by {method!r} lack dose 0, with which the others are compared")
        for value in values:
            for dose, own in group.groupby("dose"):
                level, change = cluster_bootstrap(own, value), paired_difference(own, none, value)
                row = {"kind": kind, "method": method, "metric": value, "dose": dose}
                row |= level.named("mean") | change.named("difference")
                rows.append(row | {"n_pairs": level.n_pairs, "n_scenes": level.n_clusters})
    return _without_few(pd.DataFrame(rows), "n_scenes")


def rotation_gain(records: pd.DataFrame, parts: Mapping[str, Sequence[str]], values: Sequence[str]) -> pd.DataFrame:
    """Gain by rotation prediction in two parts, with intervals over seeds and scenes (section 5.3).

    Args:
        records: of one protocol, with `row` (of `ROWS`) and `seed`; both rows have all seeds and pairs.
        parts: ids of the pairs of two parts by name, the distorted one first.

    Returns:
        for each of `values` and part, and for the first part minus the second: `metric`, `part`, means of both `ROWS`,
        `difference` and `relative` (over `contrastive`) with their ends, counts, `seeds_better`, `verdict`, and
        `claim`: whether the interval of `relative` holds `CLAIMED_GAIN`.

    Raises:
        ValueError: rows, seeds or pairs are missing or repeated; an empty part, or other than two parts.
    """
    if len(parts) != 2:
        raise ValueError(f"parts must be two, the distorted one first, got {list(parts)}")
    wide = _paired_rows(records, values)
    tables = {name: wide[wide["id"].isin(set(ids))] for name, ids in parts.items()}
    for name, table in tables.items():
        if table.empty:
            raise ValueError(f"part {name!r} holds none of the records' pairs; leave the comparison out")
    table = _gain_rows(tables, values)
    holds = table["relative_low"].le(CLAIMED_GAIN) & table["relative_high"].ge(CLAIMED_GAIN)
    judged = table["n_scenes"].ge(FEWEST_CLUSTERS) & table[ROWS[0]].notna() & table["relative_low"].notna()
    table["claim"] = np.where(judged, np.where(holds, "within", "outside"), "")
    columns = ["metric", "part", *ROWS, *_ends_of("difference"), *_ends_of("relative")]
    columns += ["n_pairs", "n_scenes", "n_seeds", "seeds_better", "claim"]
    return _with_verdict(table[columns], "difference")


def _gain_rows(tables: Mapping[str, pd.DataFrame], values: Sequence[str]) -> pd.DataFrame:
    """A row for each metric and table, and for their difference."""
    names = [f"{row} {value}" for value in values for row in ROWS]
    sums, means = _means(list(tables.values()), names, ("seed", "scene"))

    def gains(gain: Statistic, relative: Statistic) -> dict[str, float]:
        return _named("difference", crossed(sums, gain)) | _named("relative", crossed(sums, relative))

    rows: list[dict[str, Any]] = []
    for i, value in enumerate(values):
        gain = [_minus(of[2 * i + 1], of[2 * i]) for of in means]
        relative = [_relative(of[2 * i + 1], of[2 * i]) for of in means]
        found: list[dict[str, Any]] = []
        for j, (name, table) in enumerate(tables.items()):
            base = {row: crossed(sums, means[j][2 * i + k], 1).value for k, row in enumerate(ROWS)}
            by_seed = (table[f"{ROWS[1]} {value}"] - table[f"{ROWS[0]} {value}"]).groupby(table["seed"]).mean()
            counts = {"n_pairs": table["id"].nunique(), "n_scenes": table["scene"].nunique(), "n_seeds": len(by_seed)}
            counts["seeds_better"] = int((by_seed > 0).sum())
            found.append({"metric": value, "part": name} | base | counts | gains(gain[j], relative[j]))
        apart = gains(_minus(*gain), _minus(*relative))
        fewer = {name: min(row[name] for row in found) for name in ("n_pairs", "n_scenes", "n_seeds")}
        rows += [*found, {"metric": value, "part": " minus ".join(tables)} | apart | fewer]
    return pd.DataFrame(rows)


def _paired_rows(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """One row a seed and pair: `seed`, `id`, `scene`, and each metric of both rows as "<row> <metric>"."""
    keys = ["seed", "id", "scene"]
    check_columns(records, (*keys, "row", *values))
    chosen = records[records["row"].isin(ROWS)]
    if chosen.duplicated([*keys, "row"]).any():
        raise ValueError("records hold a row, seed and pair more than once; choose one protocol")
    parts = [
        chosen[chosen["row"] == row][[*keys, *values]].rename(columns={v: f"{row} {v}" for v in values}) for row in ROWS
    ]
    wide = parts[0].merge(parts[1], on=keys)
    n_pairs, n_seeds = chosen["id"].nunique(), chosen["seed"].nunique()
    if wide.empty or not len(wide) == len(parts[0]) == len(parts[1]) == n_pairs * n_seeds:
        raise ValueError(f"rows {ROWS} must have the same seeds and pairs; got {[len(part) for part in parts]} records")
    return wide
