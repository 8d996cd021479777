"""Figures of the chapter on uncertainty: what a confidence is worth and what an uncertainty responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from companion.figures.plots import error_bars, line_style, with_legend
from sarmatch.visualize import COLOURS, NEUTRAL, as_array, neutral, show_image

SCORE_NAMES = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC", "aurc": "AURC"}


def reliability_diagram(ax: Axes, tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Accuracy against mean confidence of each bin of `scores.reliability_table`, a line a name, with its intervals."""
    ax.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="calibrated")
    for i, (name, table) in enumerate(tables.items()):
        known = table.dropna(subset=["accuracy"])
        error_bars(ax, known["confidence"], known, "accuracy", label=name, **line_style(i))
    ax.set(xlabel="confidence", ylabel="share of correct matches", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return with_legend(ax)


def counts_histogram(ax: Axes, tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Matches of each bin of equal width of `scores.reliability_table`, logarithmic, a line a name."""
    for i, (name, table) in enumerate(tables.items()):
        edges = np.append(table["low"], table["high"].iloc[-1])
        if not np.allclose(edges[1:], table["high"]):
            raise ValueError(f"bins of {name!r} do not join; draw a table of bins of equal width")
        ax.stairs(table["n"], edges, color=line_style(i)["color"], linewidth=1.4, label=name, baseline=None)
    ax.set(xlabel="confidence", ylabel="matches", xlim=(0, 1), yscale="log")
    ax.set_ylim(bottom=0.7)  # one match is visible, none lies below the frame
    return neutral(ax)


def risk_coverage_curves(
    ax: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    base_error: float | None = None,
    most_points: int = 400,
) -> Axes:
    """Share of wrong matches among those kept against the share kept, a line a confidence, from `scores.risk_coverage`.

    Args:
        base_error: error rate of all matches, what a constant confidence has everywhere; None leaves the line out.
        most_points: evenly chosen points that are drawn at most.
    """
    if base_error is not None:
        ax.axhline(base_error, color=NEUTRAL, linestyle="--", linewidth=1, label="constant confidence")
    for i, (name, (coverage, risk)) in enumerate(curves.items()):
        chosen = _evenly(len(coverage), most_points)
        every = max(len(chosen) // 8, 1)
        start = every * i // len(curves)  # markers of lines that coincide lie side by side
        style: dict[str, Any] = line_style(i) | {"linewidth": 1.4, "markersize": 4.5, "markevery": (start, every)}
        ax.plot(coverage[chosen], risk[chosen], label=name, **style)
    ax.set(xlabel="most confident matches kept", ylabel="share of them wrong", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return with_legend(ax)


def score_by_passes(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """Scores of `calibration.scores_by_passes` against the number of passes, a line a score; seconds on the last axes.

    Args:
        axes: 2 to 5; the scores are dealt to all but the last in the order of `SCORE_NAMES`.
    """
    if not 2 <= len(axes) <= len(SCORE_NAMES) + 1:
        raise ValueError(f"score_by_passes needs 2 to {len(SCORE_NAMES) + 1} axes, got {len(axes)}")
    table = table.sort_values("passes")
    for ax, scores in zip(axes[:-1], np.array_split(list(SCORE_NAMES), len(axes) - 1), strict=True):
        for score in scores:
            error_bars(
                ax, table["passes"], table, score, label=SCORE_NAMES[score], **line_style([*SCORE_NAMES].index(score))
            )
        ax.set(ylabel="score" if len(scores) > 1 else SCORE_NAMES[scores[0]])
        if len(scores) > 1:
            with_legend(ax)
    axes[-1].plot(table["passes"], table["seconds"], color=NEUTRAL, marker="o", markersize=4.5, linewidth=1.4)
    axes[-1].set(ylabel="seconds")
    axes[-1].set_ylim(bottom=0)
    for ax in axes:
        ax.set(xlabel="passes", xticks=table["passes"])
        neutral(ax)
    return axes


def uncertainty_maps(
    axes_row: Sequence[Axes],
    images: Mapping[str, Tensor],
    maps: Mapping[str, np.ndarray],
    limits: tuple[float, float] | None = None,
) -> Sequence[Axes]:
    """Images (C, H, W), then maps of their cells (h, w), each under its name; the maps share one colour bar.

    Args:
        axes_row: one axes an image and a map, in this order.
        maps: a cell covers a square of pixels, from the top left corner on; NaN stays empty.
        limits: values at the ends of the colour bar; None takes the extremes of all maps.
    """
    if len(axes_row) != len(images) + len(maps) or not images or not maps:
        raise ValueError(
            f"{len(axes_row)} axes cannot hold {len(images)} images and {len(maps)} maps, one of each kind"
        )
    sizes = {tuple(image.shape[-2:]) for image in images.values()}
    if len(sizes) > 1:
        raise ValueError(f"images must have one size so that maps lie on all of them, got {sorted(sizes)}")
    height, width = sizes.pop()
    for ax, (name, image) in zip(axes_row, images.items(), strict=False):
        show_image(ax, image, title=name)
    arrays = {name: np.ma.masked_invalid(as_array(values).astype(np.float64)) for name, values in maps.items()}
    low, high = limits or (min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values()))
    for ax, (name, values) in zip(axes_row[len(images) :], arrays.items(), strict=True):
        drawn = ax.imshow(
            values, cmap="viridis", vmin=low, vmax=high, extent=_extent(values.shape, (height, width), name),
            interpolation="nearest",
        )  # fmt: skip
        ax.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=name)
        neutral(ax)
    bar = axes_row[0].figure.colorbar(drawn, ax=list(axes_row), label="uncertainty", shrink=0.8)
    neutral(bar.ax)
    return axes_row


def _extent(shape: tuple[int, ...], size: tuple[int, int], name: str) -> tuple[float, float, float, float]:
    """Edges of a map of cells in pixels, where the centre of the top-left pixel is (0, 0)."""
    strides = {round(side / cells) for side, cells in zip(size, shape, strict=False)}
    if len(shape) != 2 or len(strides) > 1 or 0 in strides:
        raise ValueError(f"map {name!r} of shape {shape} does not cover an image of {size} px with square cells")
    stride = strides.pop()
    return -0.5, shape[1] * stride - 0.5, shape[0] * stride - 0.5, -0.5


def dose_response(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """Uncertainty of `uncertainty.summary_curves` against the dose: an axes a nuisance, a line a source."""
    # Of the whole table: a source looks the same on all axes.
    styles = {source: line_style(i) for i, source in enumerate(table["source"].unique())}
    drawn: dict[Any, ErrorbarContainer] = {}
    for ax, (nuisance, rows) in zip(axes, table.groupby("nuisance", sort=False), strict=True):
        for source, line in rows.groupby("source", sort=False):
            renamed = line.sort_values("dose").rename(columns={"low": "value_low", "high": "value_high"})
            drawn[source] = error_bars(ax, renamed["dose"], renamed, "value", label=str(source), **styles[source])
        ax.set(title=str(nuisance).replace("_", " "), xlabel="dose")
        neutral(ax)
    axes[0].set_ylabel("uncertainty")
    handles = [drawn[source] for source in styles]  # also those of other axes only
    axes[-1].legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    neutral(axes[-1])
    return axes


def true_false_rates(ax: Axes, rates: pd.DataFrame, marked: int = 5) -> Axes:
    """True against false pairs accepted, by threshold.

    Args:
        rates: columns `threshold`, `true_accept` and `false_accept`.
        marked: thresholds that are written beside the curve, from an even choice of rows.
    """
    rates = rates.sort_values("threshold")
    ax.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="chance")
    ax.plot(rates["false_accept"], rates["true_accept"], color=COLOURS[0], linewidth=1.6, label="by threshold")
    points = rates.iloc[_evenly(len(rates), marked)]
    ax.scatter(points["false_accept"], points["true_accept"], color=COLOURS[0], s=18, zorder=3)
    for threshold, true, false in points[["threshold", "true_accept", "false_accept"]].to_numpy():
        ax.annotate(
            f"{threshold:.3g}", (false, true), xytext=(5, -9), textcoords="offset points", size="small", color=NEUTRAL
        )
    ax.set(xlabel="false pairs accepted", ylabel="true pairs accepted", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return with_legend(ax)


def _evenly(n: int, at_most: int) -> np.ndarray:
    """At most so many of n places, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(at_most, n)).round().astype(int))
