"""Figures of the chapters on labels and sensitivity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from companion.figures.plots import MARKERS
from sarmatch.visualize import COLOURS, neutral


def share_curves(ax: Axes, table: pd.DataFrame, metric: str = "mma_3px") -> Axes:
    """A metric, named like `mma_3px`, against the share of labelled pairs with its intervals, a line a start."""
    for i, (start, rows) in enumerate(table.groupby("start", sort=False)):
        rows = rows.sort_values("share")
        mean = rows[metric].to_numpy(float)
        ends = np.stack([mean - rows[f"{metric}_low"], rows[f"{metric}_high"] - mean])
        x = rows["share"].to_numpy(float) * (1 + 0.02 * i)  # side by side, so that intervals can be read
        style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "label": str(start)}
        ax.errorbar(x, mean, yerr=np.nan_to_num(np.clip(ends, 0, None)), capsize=2.5, markersize=4.5, **style)
    shares = sorted(table["share"].unique())
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="labelled training pairs", ylabel=f"MMA within {metric[4:-2]} px", ylim=(0, None))
    ax.legend(frameon=False)
    return neutral(ax)
