"""Figures of the chapters on labels and sensitivity."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from companion.figures.plots import error_bars, line_style, metric_name, with_legend


def share_curves(ax: Axes, table: pd.DataFrame, metric: str = "mma_3px") -> Axes:
    """A metric, named like `mma_3px`, against the share of labelled pairs with its intervals, a line a start."""
    for i, (start, rows) in enumerate(table.groupby("start", sort=False)):
        rows = rows.sort_values("share")
        x = rows["share"] * (1 + 0.02 * i)  # side by side, so that intervals can be read
        error_bars(ax, x, rows, metric, label=str(start), **line_style(i))
    shares = sorted(table["share"].unique())
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="labelled training pairs", ylabel=metric_name(metric), ylim=(0, None))
    return with_legend(ax)
