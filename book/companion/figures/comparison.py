"""Figures of the comparison."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from companion.figures.plots import MARKERS, error_bars, line_style, metric_name, with_legend
from sarmatch.visualize import COLOURS


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
