"""Figures of the chapters on uncertainty, calibration and precision."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from companion.figures.plots import all_neutral, colour_bar, diagonal, error_bars, line_style, lines_by, with_legend
from sarmatch.visualize import COLOURS, NEUTRAL, as_array, evenly, neutral, show_image

SCORE_NAMES = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC", "aurc": "AURC"}


def reliability_diagram(ax: Axes, tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Accuracy against mean confidence of each bin of `scores.reliability_table`, a line a name, with its intervals."""
    diagonal(ax, "calibrated")
    known = pd.concat(tables, names=["name"]).dropna(subset=["accuracy"])
    lines_by(ax, known.reset_index("name"), "confidence", "accuracy", "name")
    ax.set(xlabel="confidence", ylabel="share of correct matches")
    return with_legend(ax)


def counts_histogram(ax: Axes, tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Matches of each bin of equal width of `scores.reliability_table`, logarithmic, a line a name."""
    for i, (name, table) in enumerate(tables.items()):
        edges = np.append(table["low"], table["high"].iloc[-1])
        ax.stairs(table["n"], edges, color=line_style(i)["color"], linewidth=1.4, label=name, baseline=None)
    ax.set(xlabel="confidence", ylabel="matches", xlim=(0, 1), yscale="log")
    ax.set_ylim(bottom=0.7)  # one match is visible, none lies below the frame
    return neutral(ax)


def risk_coverage_curves(
    ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], base_error: float, most_points: int = 400
) -> Axes:
    """Share of wrong matches among those kept against the share kept, a line a confidence, from `scores.risk_coverage`.

    `base_error` is the error rate of all matches, what a constant confidence has everywhere.
    """
    ax.axhline(base_error, color=NEUTRAL, linestyle="--", linewidth=1, label="constant confidence")
    for i, (name, (coverage, risk)) in enumerate(curves.items()):
        chosen = evenly(len(coverage), most_points)
        every = max(len(chosen) // 8, 1)
        start = every * i // len(curves)  # markers of lines that coincide lie side by side
        style: dict[str, Any] = line_style(i) | {"linewidth": 1.4, "markersize": 4.5, "markevery": (start, every)}
        ax.plot(coverage[chosen], risk[chosen], label=name, **style)
    ax.set(xlabel="most confident matches kept", ylabel="share of them wrong", xlim=(0, 1), ylim=(0, None))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return with_legend(ax)


def score_by_passes(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """Each of `SCORE_NAMES` in `calibration.scores_by_passes` against the number of passes, and seconds on the last."""
    table = table.sort_values("passes")
    for i, (ax, score) in enumerate(zip(axes, [*SCORE_NAMES, "seconds"], strict=True)):
        style = line_style(i) if score in SCORE_NAMES else {"color": NEUTRAL, "marker": "o"}
        error_bars(ax, table["passes"], table, score, **style)
        ax.set(xlabel="passes", xticks=table["passes"], ylabel=SCORE_NAMES.get(score, score))
    axes[-1].set_ylim(bottom=0)
    return all_neutral(axes)


def uncertainty_maps(
    axes_row: Sequence[Axes], images: Mapping[str, Tensor], maps: Mapping[str, Tensor | np.ndarray]
) -> Sequence[Axes]:
    """Images (C, H, W) of one size, then maps of their cells (h, w), each under its name; one colour bar for the maps.

    Cells are squares of pixels from the top left corner on; one that is NaN stays empty.
    """
    height, width = next(iter(images.values())).shape[-2:]
    of_images, of_maps = axes_row[: len(images)], axes_row[len(images) :]
    for ax, (name, image) in zip(of_images, images.items(), strict=True):
        show_image(ax, image, title=name)
    arrays = [np.ma.masked_invalid(as_array(values).astype(np.float64)) for values in maps.values()]
    scale = Normalize(min(a.min() for a in arrays), max(a.max() for a in arrays))
    for ax, name, values in zip(of_maps, maps, arrays, strict=True):
        rows, columns = np.array(values.shape) * (width // values.shape[1])  # what the cells cover, px
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        ax.imshow(values, cmap="viridis", norm=scale, extent=extent, interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=name)
        neutral(ax)
    colour_bar(axes_row, "viridis", scale, "uncertainty", 0.8)
    return axes_row


def dose_response(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """Uncertainty of `uncertainty.summary_curves` against the dose: an axes a nuisance, a line a source."""
    sources = list(table["source"].unique())  # of the whole table: a source looks the same on all axes
    table = table.rename(columns={"low": "value_low", "high": "value_high"})
    for ax, (nuisance, rows) in zip(axes, table.groupby("nuisance", sort=False), strict=True):
        lines_by(ax, rows, "dose", "value", "source", names=sources)
        ax.set(title=str(nuisance).replace("_", " "), xlabel="dose")
    axes[0].set_ylabel("uncertainty")
    drawn = {line.get_label(): line for ax in axes for line in ax.containers}
    handles = [drawn[str(source)] for source in sources]  # also those of other axes only
    with_legend(axes[-1], handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return all_neutral(axes)


def true_false_rates(ax: Axes, rates: pd.DataFrame, marked: int = 5) -> Axes:
    """`true_accept` against `false_accept`, by `threshold`; some evenly chosen thresholds stand beside the curve."""
    rates = rates.sort_values("threshold")
    ax.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="chance")
    ax.plot(rates["false_accept"], rates["true_accept"], color=COLOURS[0], linewidth=1.6, label="by threshold")
    points = rates.iloc[evenly(len(rates), marked)]
    ax.scatter(points["false_accept"], points["true_accept"], color=COLOURS[0], s=18, zorder=3)
    for threshold, true, false in points[["threshold", "true_accept", "false_accept"]].to_numpy():
        ax.annotate(
            f"{threshold:.3g}", (false, true), xytext=(5, -9), textcoords="offset points", size="small", color=NEUTRAL
        )
    ax.set(xlabel="false pairs accepted", ylabel="true pairs accepted", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return with_legend(ax)


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
