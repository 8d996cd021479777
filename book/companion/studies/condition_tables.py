"""Tables of records by condition, by scene and by dose, and the claim on rotation (section 5.3)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from companion.intervals import (
    FEWEST_CLUSTERS,
    Crossed,
    cluster_bootstrap,
    crossed,
    crossed_sums,
    intervals,
    paired_difference,
    summarise,
    verdict,
)
from companion.studies.ablation import minus
from companion.studies.conditions import CONDITIONS

CLAIMED_GAIN = 0.021  # relative, in areas with significant geometric distortions (section 5.3)
ROWS = ("contrastive", "rotation")  # of table 3, equal but for rotation prediction


def by_condition(records: pd.DataFrame, levels: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means of records, with a column `method`, for each level of `conditions.classify`; no interval for few scenes."""
    return _without_few(summarise(_joined(records, levels), ["condition", "level", "method"], values), "n_scenes")


def by_scene(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means for each scene and method, with intervals over its pairs where there are at least `FEWEST_CLUSTERS`."""
    table = summarise(records, ["dataset", "scene", "method"], values, cluster="id").drop(columns="n_ids")
    return _without_few(table, "n_pairs").sort_values(["dataset", "scene"], kind="stable", ignore_index=True)


def _joined(records: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Records with their levels, a row for each condition that is known, in the order of the levels."""
    if records.duplicated(["id", "method"]).any():
        raise ValueError("records hold a pair and method more than once; choose one protocol and one search radius")
    return levels.merge(records, on="id")


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
        ends = [names[0], names[-1]]
        sides = group[group["level"].isin(ends)].assign(all=0)
        sums = _sums(sides, [sides[value].where(sides["level"] == name) for name in ends], ("all", "scene"))
        row = {"condition": condition, "method": method, "from": ends[0], "to": ends[1]}
        row |= _named("difference", crossed(sums, lambda s: _means(s)[:, 1] - _means(s)[:, 0]))
        rows.append(row | {"n_scenes": sides.groupby("level")["scene"].nunique().min()})
    return _judged(rows, ["condition", "method", "from", "to"], "difference", ["n_scenes"])


def _sums(table: pd.DataFrame, columns: Sequence[pd.Series], factors: tuple[str, str]) -> np.ndarray:
    """`crossed_sums` of columns of a table, then of where they are known."""
    numbers = pd.concat(columns, axis=1, keys=range(len(columns)))
    both = pd.concat([numbers.fillna(0.0), numbers.notna().astype(float).add_prefix("known ")], axis=1)
    return crossed_sums(table[list(factors)].join(both), list(both), factors)


def _means(sums: np.ndarray) -> np.ndarray:
    """Mean of each column from rows of `_sums`."""
    total, known = np.split(sums, 2, axis=1)
    return total / known


def _named(name: str, found: Crossed) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), (found.value, *found.interval()), strict=True))


def _judged(rows: list[dict[str, Any]], about: list[str], value: str, rest: list[str]) -> pd.DataFrame:
    """A table of these columns with verdicts on `value`, without intervals where there are too few scenes for one."""
    low, high, words = f"{value}_low", f"{value}_high", ("higher", "lower", "open")
    table = pd.DataFrame(rows, columns=[*about, value, low, high, *rest])
    judged = zip(table[low], table[high], table["n_scenes"], strict=True)
    return _without_few(table.assign(verdict=[verdict(*ends, None, words) for ends in judged]), "n_scenes")


def within_scenes(records: pd.DataFrame, measures: pd.DataFrame, value: str) -> pd.DataFrame:
    """Rank correlation of each numeric condition with a metric over the pairs of one scene, averaged over scenes.

    Scenes of fewer than `FEWEST_CLUSTERS` pairs, or in which the measure or the metric does not vary, do not count.
    """
    numeric = {c.name: c.measure for c in CONDITIONS if c.levels}
    joined = records.merge(measures[["id", *numeric.values()]], on="id")
    rows = []
    for condition, measure in numeric.items():
        for method, group in joined.groupby("method", sort=False):
            found = [
                {"scene": scene, "rho": float(spearmanr(own[measure], own[value]).statistic), "n": len(own)}
                for scene, own in group.dropna(subset=[measure, value]).groupby("scene")
                if len(own) >= FEWEST_CLUSTERS and (own[[measure, value]].nunique() > 1).all()
            ]
            table = pd.DataFrame(found, columns=["scene", "rho", "n"])
            counts = {"n_pairs": table["n"].sum(), "n_scenes": len(found)}
            rows.append({"condition": condition, "method": method} | intervals(table, ["rho"]) | counts)
    return _judged(rows, ["condition", "method"], "rho", ["n_pairs", "n_scenes"])


def paired_changes(before: pd.DataFrame, after: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """After minus before over the pairs that both have, for each method and metric; no rows where `after` has none."""
    rows = []
    for method, late in after.groupby("method", sort=False):
        early = before[(before["method"] == method) & before["id"].isin(late["id"])]
        for value in values:
            change = paired_difference(late, early, value)
            row = {"method": method, "metric": value, "before": early[value].mean(), "after": late[value].mean()}
            row |= change.named("difference")
            rows.append(row | {"n_pairs": change.n_pairs, "n_scenes": change.n_clusters})
    return _judged(rows, ["method", "metric", "before", "after"], "difference", ["n_pairs", "n_scenes"])


def by_dose(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means for each kind, dose and method, and how they differ from dose 0 on the same pairs, which must be there."""
    rows = []
    for (kind, method), group in records.groupby(["kind", "method"], sort=False):
        none = group[group["dose"] == 0]
        for value in values:
            for dose, own in group.groupby("dose"):
                level, change = cluster_bootstrap(own, value), paired_difference(own, none, value)
                row = {"kind": kind, "method": method, "metric": value, "dose": dose}
                row |= level.named("mean") | change.named("difference")
                rows.append(row | {"n_pairs": level.n_pairs, "n_scenes": level.n_clusters})
    return _without_few(pd.DataFrame(rows), "n_scenes")


def rotation_gain(records: pd.DataFrame, parts: Mapping[str, Sequence[str]], values: Sequence[str]) -> pd.DataFrame:
    """Gain by rotation prediction in two parts, and its difference, with intervals over seeds and scenes (section 5.3).

    Args:
        records: of one protocol, with `row` (of `ROWS`) and `seed`; ValueError where not both rows have all pairs once.
        parts: ids of the pairs of two parts by name, the distorted one first.
    """
    wide = _paired_rows(records, values)
    inside = {name: wide["id"].isin(set(ids)) for name, ids in parts.items()}
    if empty := [name for name, chosen in inside.items() if not chosen.any()]:
        raise ValueError(f"part {empty[0]!r} holds none of the records' pairs; leave the comparison out")
    rows = [row for value in values for row in _gains(wide, inside, value)]
    about, ends = ["metric", "part", *ROWS], ["relative", "relative_low", "relative_high"]
    counts = ["n_pairs", "n_scenes", "n_seeds", "seeds_better"]
    table = _judged(rows, about, "difference", [*ends, *counts])
    holds = table["relative_low"].le(CLAIMED_GAIN) & table["relative_high"].ge(CLAIMED_GAIN)
    judged = table[ROWS[0]].notna() & table["relative_low"].notna()
    claim = np.where(judged, np.where(holds, "within", "outside"), "")
    table.insert(table.columns.get_loc("verdict"), "claim", claim)
    return table


def _gains(wide: pd.DataFrame, inside: Mapping[str, pd.Series], value: str) -> list[dict[str, Any]]:
    """A row for each part, and for the first minus the second."""
    before, after = (wide[f"{row} {value}"] for row in ROWS)
    either = np.logical_or(*inside.values())
    columns = [numbers.where(chosen)[either] for chosen in inside.values() for numbers in (before, after)]
    sums = _sums(wide[either], columns, ("seed", "scene"))

    def gain(sums: np.ndarray, part: int, relative: bool) -> np.ndarray:
        base, own = _means(sums)[:, 2 * part : 2 * part + 2].T
        return (own - base) / np.where(base > 0, base, np.nan) if relative else own - base

    rows, found = [], []
    for i, (name, chosen) in enumerate(inside.items()):
        found.append([crossed(sums, partial(gain, part=i, relative=relative)) for relative in (False, True)])
        row = {"metric": value, "part": name, ROWS[0]: before[chosen].mean(), ROWS[1]: after[chosen].mean()}
        row |= _named("difference", found[i][0]) | _named("relative", found[i][1])
        by_seed = (after - before)[chosen].groupby(wide["seed"]).mean()
        row |= {"n_pairs": wide["id"][chosen].nunique(), "n_scenes": wide["scene"][chosen].nunique()}
        rows.append(row | {"n_seeds": len(by_seed), "seeds_better": int((by_seed > 0).sum())})
    apart = {name: min(row[name] for row in rows) for name in ("n_pairs", "n_scenes", "n_seeds")}
    apart |= {"metric": value, "part": " minus ".join(inside)}
    apart |= _named("difference", minus(found[0][0], found[1][0])) | _named("relative", minus(found[0][1], found[1][1]))
    return [*rows, apart]


def _paired_rows(records: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """One row a seed and pair: `seed`, `id`, `scene`, and each metric of both rows as "<row> <metric>"."""
    keys = ["seed", "id", "scene"]
    chosen = records[records["row"].isin(ROWS)]
    wide = chosen.pivot(index=keys, columns="row", values=list(values))
    wide.columns = [f"{row} {value}" for value, row in wide.columns]
    n = chosen["id"].nunique() * chosen["seed"].nunique()
    if not 0 < n == len(wide) == len(chosen) / 2:
        raise ValueError(f"rows {ROWS} must have the same seeds and pairs, got {len(chosen)} records")
    return wide.reset_index()
