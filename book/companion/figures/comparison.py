"""Figures of the comparison of methods, and of their accuracy by condition (figure 10) and by dose."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from companion.figures.plots import MARKERS, all_neutral, error_bars, line_style, lines_by, metric_name, with_legend
from sarmatch.visualize import COLOURS, NEUTRAL


def bars_of_methods(
    ax: Axes, table: pd.DataFrame, metric: str = "mma_1px", floor: float = 1e-3, learned: Collection[str] = ()
) -> Axes:
    """Figure 9: a metric of each method of `ranked` with its interval, on a logarithmic axis; the best on the left.

    Methods below `floor` are drawn there, as open triangles; `learned` names those that are learned beside ours.
    """
    table = table.sort_values(metric, ascending=False, kind="stable").reset_index(drop=True)
    table[f"{metric}_low"] = table[f"{metric}_low"].clip(lower=floor)
    ours, other = table["method"].str.startswith("network"), table["method"].isin(learned)
    groups = [(ours, COLOURS[1], "this network"), (other, COLOURS[2], "other learned methods")]
    groups.append((~ours & ~other, COLOURS[0], "methods without learning" if len(learned) else "other methods"))
    for group, colour, label in groups:
        shown, below = table[group & (table[metric] > floor)], table.index[group & ~(table[metric] > floor)]
        if group.any():
            error_bars(ax, shown.index, shown, metric, fmt="o", color=colour, markersize=5, label=label)
            ax.plot(below, np.full(len(below), floor), "v", color=colour, markerfacecolor="none")
    ax.set(yscale="log", ylim=(floor * 0.8, 1), ylabel=metric_name(metric), xlim=(-0.6, len(table) - 0.4))
    ax.set_xticks(table.index, table["method"], rotation=40, ha="right")
    ax.grid(axis="y", alpha=0.3)
    return with_legend(ax)


def accuracy_against_time(ax: Axes, table: pd.DataFrame, metric: str = "mma_3px") -> Axes:
    """Accuracy of each method against its seconds for a pair; the line joins those that no other beats in both."""
    table = table.sort_values(["seconds", metric], ascending=[True, False])
    best = table[metric].cummax()
    front = table[(table[metric] >= best) & ~best.duplicated()]
    ax.plot(front["seconds"], front[metric], color="0.6", linewidth=1, drawstyle="steps-post", zorder=0)
    for i, (name, row) in enumerate(table.set_index("method").iterrows()):
        style = line_style(i) | {"marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
        ax.plot(row["seconds"], row[metric], linestyle="none", markersize=7, label=name, **style)
    ax.set(xscale="log", xlabel="seconds a pair", ylabel=metric_name(metric), ylim=(-0.03, 1))
    ax.grid(alpha=0.3)
    return with_legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def condition_points(axes: Sequence[Axes], table: pd.DataFrame, values: Sequence[str]) -> Sequence[Axes]:
    """Each of `values` of `condition_tables.by_condition` on its axes, a point a level and method, with intervals."""
    levels = table[["condition", "level", "n_pairs", "n_scenes"]].drop_duplicates(["condition", "level"])
    starts = levels["condition"].ne(levels["condition"].shift())
    levels = levels.assign(y=np.arange(len(levels)) + 1.2 * starts.cumsum())  # room for the name of the condition
    methods = list(table["method"].unique())
    for ax, value in zip(axes, values, strict=True):
        for i, method in enumerate(methods):
            rows = table[table["method"] == method].merge(levels[["condition", "level", "y"]])
            y = rows["y"] + 0.16 * (2 * i - (len(methods) - 1))
            style = line_style(i) | {"label": method, "linestyle": "", "capsize": 2}
            error_bars(ax, y, rows, value, True, **style)
        for y in levels["y"][starts].iloc[1:]:
            ax.axhline(y - 1.6, color=NEUTRAL, linewidth=0.5, alpha=0.5)
        ax.margins(x=0.08)
        ax.set(xlabel=metric_name(value), yticks=[], xlim=(0, None))
        ax.set_ylim(levels["y"].max() + 0.7, levels["y"].min() - 1.6)
    _level_names(axes[0], levels, starts)
    with_legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return all_neutral(axes)


def _level_names(ax: Axes, levels: pd.DataFrame, starts: pd.Series) -> None:
    """Names of levels with their counts as ticks, and the name of each condition above its levels."""
    ax.set_yticks(levels["y"], [f"{row.level}  ({row.n_pairs} / {row.n_scenes})" for row in levels.itertuples()])
    for name, y in zip(levels["condition"][starts], levels["y"][starts], strict=True):
        ax.annotate(
            name, (0, y - 0.95), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
            ha="right", va="center", color=NEUTRAL, fontweight="bold", fontsize="small", annotation_clip=False,
        )  # fmt: skip


def dose_curves(axes: Sequence[Axes], table: pd.DataFrame, metric: str) -> Sequence[Axes]:
    """A metric of `condition_tables.by_dose` against the dose, an axes a kind and a line a method, with intervals."""
    labels = {"speckle": "artificial speckle (1 / looks)", "haze": "artificial haze (largest opacity)"}
    chosen = table[table["metric"] == metric].groupby("kind", sort=False)
    for ax, (kind, group) in zip(axes, chosen, strict=True):
        lines_by(ax, group, "dose", "mean", "method", 0.016)
        ax.set(xlabel=labels[str(kind)], ylabel=metric_name(metric), ylim=(0, None))
    with_legend(axes[0])
    return all_neutral(axes)
