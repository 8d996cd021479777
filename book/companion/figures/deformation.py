"""Accuracy under a smooth displacement field, against its amplitude and against the width of what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from companion.figures.plots import lines_by, metric_name, with_legend
from companion.intervals import summarise


def by_amplitude(axes: Sequence[Any], records: pd.DataFrame, value: str = "mma_3px") -> Sequence[Any]:
    """A metric against the amplitude of the field, an axis for each correlation length, a line for each method."""
    table = summarise(records, ["length_px", "method", "amplitude_px"], [value])
    names = list(records["method"].unique())
    for ax, (length, own) in zip(axes, table.groupby("length_px"), strict=True):
        lines_by(ax, own, "amplitude_px", value, "method", 0.12, names)
        ax.set(title=f"smooth over {length:g} px", xlabel="largest displacement (px)", ylim=(0, 1))
        with_legend(ax)
    axes[0].set_ylabel(metric_name(value))
    return axes


def by_window(axes: Sequence[Any], records: pd.DataFrame, value: str = "mma_3px") -> Sequence[Any]:
    """A metric against the side of the window that a method compares, an axis for each protocol."""
    table = summarise(records, ["protocol", "method", "window_px"], [value])
    names = list(records["method"].unique())
    for ax, protocol in zip(axes, records["protocol"].unique(), strict=True):
        lines_by(ax, table[table["protocol"] == protocol], "window_px", value, "method", names=names)
        ax.set(title=str(protocol), xlabel="side of the window (px)", ylim=(0, 1))
        with_legend(ax)
    axes[0].set_ylabel(metric_name(value))
    return axes
