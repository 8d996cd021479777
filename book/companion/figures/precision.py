"""Figures of the chapter on precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from torch import Tensor

from companion.figures.plots import diagonal, error_bars, line_style, lines_by, with_legend
from sarmatch.visualize import show_image


def coverage_curves(ax: Axes, curves: pd.DataFrame, scenes: pd.DataFrame) -> Axes:
    """Measured against asked coverage of `precision.coverage_table`, a line a source and a thin one a scene."""
    diagonal(ax, "as asked")
    for i, (name, rows) in enumerate(curves.groupby("source")):
        style = line_style(i)
        for _, one in scenes[scenes["source"] == name].groupby("scene"):
            ax.plot(one["asked"], one["covered"], color=style["color"], linewidth=0.6, alpha=0.4)
        error_bars(ax, rows["asked"], rows, "covered", label=name, **style)
    ax.set(xlabel="coverage asked for", ylabel="share within the radius")
    return with_legend(ax, fontsize="small")


def stated_and_measured(ax: Axes, table: pd.DataFrame) -> Axes:
    """Measured error of an axis against its stated deviation, a line a source, from `precision.errors_by_spread`."""
    diagonal(ax, "as stated", 1.05 * float(table[["stated_px", "measured_px"]].to_numpy().max()))
    lines_by(ax, table.sort_values("source", kind="stable"), "stated_px", "measured_px", "source")
    ax.set(xlabel="stated standard deviation, px", ylabel="root mean square error of an axis, px")
    return with_legend(ax, fontsize="small")


def error_ellipses(
    ax: Axes, optical: Tensor, xy: np.ndarray, covariance: np.ndarray, radius: np.ndarray, covered: np.ndarray
) -> Axes:
    """Matches (N, 2) on the optical image: ellipses of one deviation, circles of the radius, red where it fails."""
    show_image(ax, optical, title="optical")
    values, vectors = np.linalg.eigh(covariance)
    angle = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))  # of the longer axis
    sides = 2 * np.sqrt(np.maximum(values, 0))
    shared: dict[str, Any] = {"units": "xy", "offsets": xy, "offset_transform": ax.transData, "facecolors": "none"}
    colours: Sequence[str] = np.where(covered, "white", "red").tolist()
    ax.add_collection(EllipseCollection(sides[:, 1], sides[:, 0], angle, edgecolors="yellow", linewidths=1.2, **shared))
    none = np.zeros(len(xy))
    ax.add_collection(EllipseCollection(2 * radius, 2 * radius, none, edgecolors=colours, linewidths=0.8, **shared))
    ax.set(xlim=(-0.5, optical.shape[-1] - 0.5), ylim=(optical.shape[-2] - 0.5, -0.5))
    return ax
