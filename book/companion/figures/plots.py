"""Drawings that several chapters share: each function draws on given axes and returns them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.container import ErrorbarContainer
from torch import Tensor

from companion.intervals import cluster_bootstrap, summarise
from sarmatch.data.pairs import Pair
from sarmatch.visualize import COLOURS, NEUTRAL, as_array, neutral, show_image

MARKERS = "osD^vP"
_MMA_COLUMN = re.compile(r"mma_([\d.]+)px")


def pair_gallery(axes: Any, pairs: Mapping[str, Pair]) -> Any:
    """Pairs as columns of (2, n) axes, SAR above optical, each under its name."""
    for column, (name, pair) in zip(axes.T, pairs.items(), strict=True):
        show_image(column[0], pair.sar, pair.valid, name)
        show_image(column[1], pair.optical, pair.valid)
    axes[0, 0].set_ylabel("SAR")
    axes[1, 0].set_ylabel("optical")
    return axes


def count_heatmap(ax: Axes, counts: pd.DataFrame) -> Axes:
    """Numbers of pairs by two labels, as figure 8 of the paper; colour in logarithmic scale, empty cells white."""
    scale = LogNorm(1, max(counts.max().max(), 2))
    sns.heatmap(
        counts, ax=ax, mask=counts == 0, annot=True, fmt="d", cmap="viridis", norm=scale, linewidths=0.5,
        cbar_kws={"label": "pairs"},
    )  # fmt: skip
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel=counts.columns.name, ylabel=str(counts.index.name).replace("_", " "))
    if (bar := ax.collections[0].colorbar) is not None:
        neutral(bar.ax)
    return neutral(ax)


def value_histograms(axes: Sequence[Axes], samples: Mapping[str, Sequence[Pair]]) -> Sequence[Axes]:
    """Distribution of valid pixels' values, a line a source: SAR (first band) left, optical (all bands) right."""
    for ax, kind, bands, label in zip(axes, ("sar", "optical"), (1, None), ("SAR", "optical"), strict=True):
        for name, pairs in samples.items():
            values = np.concatenate([as_array(getattr(p, kind)[:bands, p.valid].flatten()) for p in pairs])
            density, edges = np.histogram(values, 64, (0, 1), density=True)
            ax.stairs(density, edges, label=name)
        ax.set(xlabel=f"{label} value", ylabel="density", xlim=(0, 1))
    with_legend(axes[-1])
    return all_neutral(axes)


def displacement_volume(
    ax: Axes, scores: np.ndarray | Tensor, step_px: float, truth: tuple[float, float] | None = None
) -> Axes:
    """Similarity (K, K) of one SAR position with all displacements, not finite where impossible."""
    values = np.ma.masked_invalid(as_array(scores).astype(np.float64))
    radius = len(values) / 2 * step_px
    ax.imshow(values, cmap="viridis", extent=(-radius, radius, radius, -radius), interpolation="nearest")
    if truth is not None:
        ax.scatter(*truth, s=70, marker="o", facecolors="none", edgecolors=COLOURS[3], linewidths=1.8, label="truth")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    ax.set(xlabel="dx (px)", ylabel="dy (px)")
    return neutral(ax)


def training_curves(axes: Sequence[Axes], history: pd.DataFrame) -> Sequence[Axes]:
    """Losses with a running median over 5 % of the rows on the first axes, validation accuracy on the second."""
    if history.empty:
        for ax in axes:
            ax.text(0.5, 0.5, "no log comes with these weights", ha="center", va="center", transform=ax.transAxes)
            ax.set(xlabel="step", xticks=[], yticks=[])
        return all_neutral(axes)
    parts = ("plain", "consensus", "fine")  # as training logs those of its loss
    losses = [name for name in history if name == "loss" or name.startswith("loss_") or name in parts]
    for i, name in enumerate(losses):
        values, colour = history[["step", name]].dropna(), line_style(i)["color"]
        axes[0].plot(values["step"], values[name], color=colour, alpha=0.25, linewidth=0.8)
        smooth = values[name].rolling(max(len(values) // 20, 1), center=True, min_periods=1).median()
        axes[0].plot(values["step"], smooth, color=colour, label=name.removeprefix("loss_"))
    for i, (name, threshold) in enumerate(_mma_thresholds(history).items()):
        values = history[["step", name]].dropna()
        axes[1].plot(values["step"], values[name], **line_style(i), label=f"within {threshold:g} px")
    axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes[1].set(xlabel="step", ylabel="share of matches", ylim=(0, 1))
    for ax in axes:
        with_legend(ax)
    return axes


def mma_by_threshold(ax: Axes, records: pd.DataFrame, group: str = "dataset") -> Axes:
    """`mma_*px` of records against the threshold, a line a group, with 95 % intervals over scenes."""
    columns = _mma_thresholds(records)
    rows = [
        {group: name, "threshold": threshold} | cluster_bootstrap(own, column).named("mma")
        for name, own in records.groupby(group, sort=False)
        for column, threshold in columns.items()
    ]
    lines_by(ax, pd.DataFrame(rows), "threshold", "mma", group, 0.05)
    ax.set(xlabel="threshold (px)", ylabel="MMA", ylim=(0, 1), xticks=list(columns.values()))
    return with_legend(ax, title=group.replace("_", " "))


def mma_by_radius(ax: Axes, records: pd.DataFrame, value: str = "mma_3px", group: str = "method") -> Axes:
    """A metric against the search radius (the whole image last), a line a group, with 95 % intervals over scenes."""
    radius = records["search_radius"].astype(float).fillna(np.inf)
    places = {r: i for i, r in enumerate(sorted(radius.unique()))}
    table = summarise(records.assign(place=radius.map(places)), [group, "place"], [value])
    lines_by(ax, table, "place", value, group, 0.06)
    ax.set(xlabel="search radius (px)", ylabel=metric_name(value), ylim=(0, None))
    ax.set_xticks(range(len(places)), ["none" if np.isinf(r) else f"{r:g}" for r in places])
    return with_legend(ax, title=group.replace("_", " "))


def share_curves(ax: Axes, table: pd.DataFrame, metric: str = "mma_3px") -> Axes:
    """A metric, named like `mma_3px`, against the share of labelled pairs with its intervals, a line a start."""
    aside = 1 + 0.02 * table.groupby("start", sort=False).ngroup()  # so that intervals can be read
    lines_by(ax, table.assign(place=table["share"] * aside), "place", metric, "start")
    shares = sorted(table["share"].unique())
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="labelled training pairs", ylabel=metric_name(metric), ylim=(0, None))
    return with_legend(ax)


def row_intervals(ax: Axes, table: pd.DataFrame, metric: str, printed: str | None = None, label: str = "row") -> Axes:
    """A metric of each row of a table with its interval, the first row on top; beside it what a paper printed."""
    y = np.arange(len(table))[::-1]
    error_bars(ax, y, table, metric, True, fmt="o", color=COLOURS[0], markersize=5, label="measured here")
    ax.set(xlabel=metric_name(metric), yticks=y, yticklabels=table[label])
    ax.grid(axis="x", alpha=0.3)
    if printed is None:
        return neutral(ax)
    ax.plot(table[printed], y, "D", color=COLOURS[1], markerfacecolor="none", label="paper, other data")
    return with_legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")


def lines_by(
    ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, shift: float = 0.0, names: Sequence[Any] = ()
) -> None:
    """A column with its intervals against another, a line a group, `shift` apart so that intervals can be read.

    Groups look as their place among `names` says, else as that in the table.
    """
    groups = {name: rows.sort_values(x) for name, rows in table.groupby(by, sort=False)}
    order = list(names) or list(groups)
    for name, rows in groups.items():
        i = order.index(name)
        at = rows[x].to_numpy() + shift * (i - (len(groups) - 1) / 2)
        error_bars(ax, at, rows, y, label=str(name), **line_style(i))


def error_bars(
    ax: Axes, at: Any, table: pd.DataFrame, value: str, horizontal: bool = False, **style: Any
) -> ErrorbarContainer:
    """A column against places `at` (N,) on the other axis, with error bars where the ends are known."""
    mean, name, error = table[value].to_numpy(float), "xerr" if horizontal else "yerr", None
    if {f"{value}_low", f"{value}_high"} <= set(table):
        ends = mean - table[f"{value}_low"].to_numpy(float), table[f"{value}_high"].to_numpy(float) - mean
        error = np.nan_to_num(np.clip(ends, 0, None))
    style = {"capsize": 2.5, "linewidth": 1.4, "markersize": 4.5, "elinewidth": 1.1, name: error} | style
    return ax.errorbar(*((mean, at) if horizontal else (at, mean)), **style)


def metric_name(column: str) -> str:
    threshold = _MMA_COLUMN.fullmatch(column)
    return f"MMA within {threshold[1]} px" if threshold else column.replace("_", " ")


def _mma_thresholds(table: pd.DataFrame) -> dict[str, float]:
    found = {name: float(match[1]) for name in table if (match := _MMA_COLUMN.fullmatch(name))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def line_style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th line, distinct in grey too."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def diagonal(ax: Axes, label: str, top: float = 1.0) -> None:
    """Square axes from 0 to `top` and the line on which both agree."""
    ax.plot([0, top], [0, top], color=NEUTRAL, linestyle="--", linewidth=1, label=label)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")


def colour_bar(axes: Sequence[Axes], cmap: str, scale: Normalize, label: str, shrink: float = 0.9) -> None:
    """One colour bar of images that share a scale."""
    bar = axes[0].figure.colorbar(ScalarMappable(scale, cmap), ax=list(axes), label=label, shrink=shrink)
    neutral(bar.ax)


def all_neutral(axes: Sequence[Axes]) -> Sequence[Axes]:
    for ax in axes:
        neutral(ax)
    return axes


def with_legend(ax: Axes, **legend: Any) -> Axes:
    """`neutral` axes with a legend without frame."""
    ax.legend(frameon=False, **legend)
    return neutral(ax)
