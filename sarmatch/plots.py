"""Figures of the book: each function draws on given axes and returns them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from sarmatch.data.pairs import Pair
from sarmatch.matches import Matches
from sarmatch.statistics import cluster_bootstrap

COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494")
"""Seaborn's colour-blind palette without its palest colours, told apart on white and on black."""
MARKERS = "osD^vP"
ERROR_LIMITS_PX = (1.0, 3.0)
"""Limits between good, fair and wrong matches in drawings, px."""
ERROR_COLOURS = ("#56b4e9", "#f0e442", "#d55e00")
"""Colours of the three, told apart by everyone on a grey or coloured image."""
LOSS_PARTS = ("plain", "consensus", "fine")
"""Names under which training logs the parts of its loss."""
_MMA_COLUMN = re.compile(r"mma_([\d.]+)px")
NEUTRAL = "#757575"  # contrast of about 4.5 with white and with black


def display_range(image: Tensor, valid: Tensor | None = None) -> np.ndarray:
    """An image for the eye: its first or first three channels, 1st to 99th percentile of valid pixels to [0, 1].

    Args:
        image: (C, H, W) float.
        valid: (H, W) bool; None takes all pixels.

    Returns:
        (H, W) for fewer than three channels, else (H, W, 3); invalid pixels are 1 (white).
    """
    channels = 3 if image.shape[0] >= 3 else 1
    values = image[:channels].permute(1, 2, 0).numpy().astype(np.float64)
    mask = np.ones(values.shape[:2], dtype=bool) if valid is None else valid.numpy()
    low, high = np.percentile(values[mask], (1, 99)) if mask.any() else (0.0, 1.0)
    stretched = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    stretched[~mask] = 1
    return stretched if channels == 3 else stretched[..., 0]


def show_image(ax: Axes, image: Tensor, valid: Tensor | None = None, title: str = "") -> Axes:
    """One image without ticks, stretched as `display_range` does; `image` (C, H, W), `valid` (H, W) or None."""
    ax.imshow(display_range(image, valid), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    return neutral(ax)


def pair_gallery(axes: Any, pairs: Mapping[str, Pair]) -> Any:
    """Pairs as columns of (2, n) axes, SAR above optical, each under its name."""
    for column, (name, pair) in zip(np.asarray(axes).T, pairs.items(), strict=True):
        show_image(column[0], pair.sar, pair.valid, name)
        show_image(column[1], pair.optical, pair.valid)
    for ax, label in zip(np.asarray(axes)[:, 0], ("SAR", "optical"), strict=True):
        ax.set_ylabel(label)
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


def value_histograms(axes: Sequence[Axes], samples: Mapping[str, Sequence[Pair]], bins: int = 64) -> Sequence[Axes]:
    """Distribution of the values of valid pixels, a line a source: SAR (first band) left, optical (all bands) right."""
    for ax, kind in zip(axes, ("sar", "optical"), strict=True):
        for name, pairs in samples.items():
            bands = 1 if kind == "sar" else None
            values = np.concatenate([getattr(p, kind)[:bands, p.valid].flatten().numpy() for p in pairs])
            density, edges = np.histogram(values, bins, (0, 1), density=True)
            ax.stairs(density, edges, label=name)
        ax.set(xlabel=f"{'SAR' if kind == 'sar' else kind} value", ylabel="density", xlim=(0, 1))
    with_legend(axes[-1])
    for ax in axes:
        neutral(ax)
    return axes


def show_sar(ax: Axes, sar: Tensor, title: str = "SAR") -> Axes:
    """The first band of a SAR image (C, H, W) in grey."""
    return show_image(ax, sar[:1], title=title)


def show_optical(ax: Axes, optical: Tensor, title: str = "optical") -> Axes:
    """The first three bands of an optical image (C, H, W) as red, green and blue; one band in grey."""
    return show_image(ax, optical, title=title)


def draw_matches(
    ax: Axes,
    sar: Tensor,
    optical: Tensor,
    matches: Matches,
    errors: np.ndarray | None = None,
    max_lines: int = 60,
    gap: int = 12,
) -> Axes:
    """SAR and optical image side by side, with a line a match.

    Args:
        sar, optical: (C, H, W) float.
        errors: (N,) px; lines take the `ERROR_COLOURS`, and the legend says which share of all matches lies between
            which `ERROR_LIMITS_PX`. None colours them by confidence.
        max_lines: of more matches an even sample in the order given is drawn, neither the best nor the worst.
        gap: px between the images.
    """
    offset = sar.shape[-1] + gap
    for image, left in ((sar, 0), (optical, offset)):
        height, width = image.shape[-2:]
        extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)  # pixel centres at whole numbers
        ax.imshow(display_range(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    shown = np.unique(np.linspace(0, max(len(matches) - 1, 0), min(max_lines, len(matches))).round().astype(int))
    segments = np.stack([matches.xy_sar, matches.xy_optical + np.array([offset, 0])], axis=1)[shown]
    lines = LineCollection(list(segments), linewidths=0.8, alpha=0.9, capstyle="round")
    if errors is None:
        lines.set(array=matches.confidence[shown], cmap="spring", clim=(0, 1))  # bright at both ends: images are dark
        neutral(ax.figure.colorbar(lines, ax=ax, label="confidence", shrink=0.8).ax)
    else:
        lines.set_color([ERROR_COLOURS[i] for i in np.searchsorted(ERROR_LIMITS_PX, errors[shown])])
        ax.legend(handles=_error_handles(errors), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    ax.add_collection(lines)
    ax.set(xticks=[], yticks=[], xlim=(-0.5, offset + optical.shape[-1] - 0.5), frame_on=False)
    ax.set_ylim(max(sar.shape[-2], optical.shape[-2]) - 0.5, -0.5)
    return neutral(ax)


def _error_handles(errors: np.ndarray) -> list[Line2D]:
    """Legend entries with the share of all matches that has each of the `ERROR_COLOURS`."""
    good, fair = ERROR_LIMITS_PX
    names = (f"up to {good:g} px", f"{good:g} to {fair:g} px", f"over {fair:g} px")
    shares = np.bincount(np.searchsorted(ERROR_LIMITS_PX, errors), minlength=3) / max(len(errors), 1)
    entries = zip(names, shares, ERROR_COLOURS, strict=True)
    return [Line2D([], [], color=colour, linewidth=3, label=f"{name}: {share:.0%}") for name, share, colour in entries]


def checkerboard(ax: Axes, sar: Tensor, optical_warped: Tensor, tiles: int = 8) -> Axes:
    """SAR and the optical image resampled onto it, in alternating tiles: edges run on where registration is right.

    Args:
        sar, optical_warped: (C, H, W) and (C', H, W) float of the same size.
        tiles: number of tiles along the longer side.
    """
    if sar.shape[-2:] != optical_warped.shape[-2:]:
        raise ValueError(
            f"checkerboard needs images of one size, got {tuple(sar.shape)} and {tuple(optical_warped.shape)}; "
            "warp the optical image onto the SAR image first"
        )
    rows, columns = np.indices(sar.shape[-2:]) * tiles // max(sar.shape[-2:])
    take_sar = ((rows + columns) % 2 == 0)[..., None]
    grey, colour = (np.dstack([display_range(image)] * n) for image, n in ((sar[:1], 3), (optical_warped, 1)))
    ax.imshow(np.where(take_sar, grey, colour), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return neutral(ax)


def displacement_volume(
    ax: Axes,
    scores: np.ndarray | Tensor,
    step_px: float = 1.0,
    truth: tuple[float, float] | None = None,
    estimate: tuple[float, float] | None = None,
) -> Axes:
    """Similarity of one SAR position with all displacements: a slice of the volume of design point 4.

    Args:
        scores: (K, K), rows dy and columns dx from -(K - 1) / 2 to (K - 1) / 2 steps; not finite where impossible.
        step_px: px per step.
        truth, estimate: displacements (dx, dy) in px to mark.
    """
    values = np.ma.masked_invalid(np.asarray(scores, dtype=np.float64))
    reach = len(values) / 2 * step_px
    ax.imshow(values, cmap="viridis", extent=(-reach, reach, reach, -reach), interpolation="nearest")
    if truth is not None:
        ax.scatter(*truth, s=70, marker="o", facecolors="none", edgecolors=COLOURS[3], linewidths=1.8, label="truth")
    if estimate is not None:
        ax.scatter(*estimate, s=50, marker="x", color=COLOURS[3], linewidths=1.8, label="estimate")
    if truth is not None or estimate is not None:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    ax.set(xlabel="dx (px)", ylabel="dy (px)")
    return neutral(ax)


def training_curves(axes: Sequence[Axes], history: pd.DataFrame) -> Sequence[Axes]:
    """Losses on the first axes, validation accuracy on the second, the learning rate on a third where there is one.

    Args:
        axes: two or three.
        history: one row a logged step: `step`, `loss`, its parts (`loss_*` or any of `LOSS_PARTS`), `mma_*px`, `lr`;
            NaN where a value was not measured. Losses are drawn with a running median over 5 % of the rows.
    """
    if history.empty:
        for ax in axes:
            ax.text(0.5, 0.5, "no log comes with these weights", ha="center", va="center", transform=ax.transAxes)
            ax.set(xlabel="step", xticks=[], yticks=[])
        return [neutral(ax) for ax in axes]
    losses = [name for name in history if name == "loss" or name.startswith("loss_") or name in LOSS_PARTS]
    for i, name in enumerate(losses):
        values, colour = history[["step", name]].dropna(), line_style(i)["color"]
        axes[0].plot(values["step"], values[name], color=colour, alpha=0.25, linewidth=0.8)
        smooth = values[name].rolling(max(len(values) // 20, 1), center=True, min_periods=1).median()
        axes[0].plot(values["step"], smooth, color=colour, label=name.removeprefix("loss_"))
    for i, (name, threshold) in enumerate(_mma_thresholds(history).items()):
        values = history[["step", name]].dropna()
        axes[1].plot(values["step"], values[name], **line_style(i), label=f"within {threshold:g} px")
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].set_ylim(bottom=0)
    axes[1].set(xlabel="step", ylabel="share of matches", ylim=(0, 1))
    for ax in axes[:2]:
        ax.legend(frameon=False)
    if len(axes) > 2:
        axes[2].plot(history["step"], history["lr"], color=COLOURS[0])
        axes[2].set(xlabel="step", ylabel="learning rate")
    for ax in axes:
        neutral(ax)
    return axes


def mma_by_threshold(ax: Axes, records: pd.DataFrame, group: str = "dataset", cluster: str = "scene") -> Axes:
    """Mean matching accuracy against its threshold, a line a group, with 95 % intervals of a cluster bootstrap.

    Args:
        records: one row a pair, with columns `mma_*px`, `group` and `cluster`.
    """
    columns = _mma_thresholds(records)
    thresholds = np.array(list(columns.values()))
    groups = records.groupby(group, sort=False)
    for i, (name, rows) in enumerate(groups):
        x = thresholds + 0.05 * (i - (len(groups) - 1) / 2)  # side by side, so that intervals can be read
        found = [cluster_bootstrap(rows, column, cluster).named("mma") for column in columns]
        error_bars(ax, x, pd.DataFrame(found), "mma", label=str(name), **line_style(i))
    ax.set(xlabel="threshold (px)", ylabel="MMA", ylim=(0, 1), xticks=thresholds)
    return with_legend(ax, title=group.replace("_", " "))


def mma_by_radius(
    ax: Axes, records: pd.DataFrame, value: str = "mma_3px", group: str = "protocol", cluster: str = "scene"
) -> Axes:
    """A metric against the search radius, a line a group, with 95 % intervals of a cluster bootstrap.

    Args:
        records: one row a pair and radius, with `search_radius` (px; None or NaN for the whole image, drawn last).
    """
    radius = records["search_radius"].astype(float).fillna(np.inf)
    places = {r: i for i, r in enumerate(sorted(radius.unique()))}
    groups = records.assign(_place=radius.map(places)).groupby(group, sort=False)
    for i, (name, rows) in enumerate(groups):
        found = {at: cluster_bootstrap(own, value, cluster).named(value) for at, own in rows.groupby("_place")}
        x = np.array(list(found)) + 0.06 * (i - (len(groups) - 1) / 2)
        error_bars(ax, x, pd.DataFrame(list(found.values())), value, label=str(name), **line_style(i))
    ax.set(xlabel="search radius (px)", ylabel=metric_name(value), ylim=(0, None))
    ax.set_xticks(range(len(places)), ["none" if np.isinf(r) else f"{r:g}" for r in places])
    return with_legend(ax, title=group.replace("_", " "))


def row_intervals(ax: Axes, table: pd.DataFrame, metric: str, printed: str | None = None, label: str = "row") -> Axes:
    """A metric of each row of a table with its interval, the first row on top; beside it what a paper printed.

    Args:
        table: columns `label`, `metric`, `<metric>_low`, `<metric>_high`, and `printed` where that is given.
    """
    y = np.arange(len(table))[::-1]
    error_bars(ax, y, table, metric, True, fmt="o", color=COLOURS[0], markersize=5, label="measured here")
    ax.set(xlabel=metric_name(metric), yticks=y, yticklabels=table[label])
    ax.grid(axis="x", alpha=0.3)
    if printed is None:
        return neutral(ax)
    ax.plot(table[printed], y, "D", color=COLOURS[1], markerfacecolor="none", label="paper, other data")
    return with_legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")


def provenance_line(target: Figure | Axes, text: str) -> Figure | Axes:
    """One small line under a figure (or under the figure of an axes): profile, data, commit."""
    figure = target if isinstance(target, Figure) else target.figure
    figure.text(0.995, -0.01, text, ha="right", va="top", size="x-small", color=NEUTRAL)
    return target


def error_bars(
    ax: Axes, at: Any, table: pd.DataFrame, value: str, horizontal: bool = False, **style: Any
) -> ErrorbarContainer:
    """A column against positions, with error bars where the table has `<value>_low` and `<value>_high` and knows them.

    Args:
        at: (N,) places along the other axis: x, or y where the bars are `horizontal`.
        style: as `Axes.errorbar` takes it.
    """
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
    """Columns `mma_<threshold>px` and their thresholds, the lowest first."""
    found = {name: float(match[1]) for name in table if (match := _MMA_COLUMN.fullmatch(name))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def line_style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th line, told apart in grey too."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def with_legend(ax: Axes, **legend: Any) -> Axes:
    """`neutral` axes with a legend without frame."""
    ax.legend(frameon=False, **legend)
    return neutral(ax)


def neutral(ax: Axes) -> Axes:
    """Text and frame in a grey that can be read on a light and on a dark page, nothing painted behind the data."""
    ax.set_facecolor("none")
    ax.tick_params(colors=NEUTRAL, labelcolor=NEUTRAL)
    for spine in ax.spines.values():
        spine.set_color(NEUTRAL)
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label]
    legend = ax.get_legend()
    if legend is not None:
        texts += [legend.get_title(), *legend.get_texts()]
    for text in texts:
        text.set_color(NEUTRAL)
    return ax
