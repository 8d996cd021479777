"""Figures of the chapters on self-supervision and cost: losses, embeddings, convergence, and what passes take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from torch import Tensor

from companion.figures.plots import MARKERS, all_neutral, error_bars, line_style, with_legend
from companion.studies.cost import ONE_PASS
from sarmatch.training.losses import info_nce, info_nce_printed
from sarmatch.visualize import COLOURS, NEUTRAL, as_array, neutral


def contrastive_curves(similarity: np.ndarray, batch: int, temperature: float) -> pd.DataFrame:
    """Both readings of eq. 4 for a batch of at least 2 pairs whose negatives have cosine 0, by that of positives (S,).

    Columns form, similarity, loss, pull (minus the derivative of the loss by similarity).
    """
    axes = torch.eye(2 * batch, dtype=torch.float64)
    rows = []
    for form, loss in (("standard", info_nce), ("as printed", info_nce_printed)):
        for cosine in similarity:
            s = torch.tensor(cosine, dtype=torch.float64, requires_grad=True)
            # Each pair turns in a plane of its own, so that other pairs stay orthogonal. The part beside it meets no
            # SAR embedding, and its derivative is infinite at 1: hence detached.
            beside = (1 - s.detach() ** 2).clamp(min=0).sqrt()
            value = loss(axes[:batch], s * axes[:batch] + beside * axes[batch:], temperature)
            (slope,) = torch.autograd.grad(value, s)
            rows.append((form, cosine, value.item(), -slope.item()))
    return pd.DataFrame(rows, columns=["form", "similarity", "loss", "pull"])


def contrastive_losses(axes: Sequence[Axes], curves: pd.DataFrame) -> Sequence[Axes]:
    """Loss and pull of `contrastive_curves` on two axes against the similarity of the positive, a line a form."""
    for ax, column, label in zip(axes, ("loss", "pull"), ("loss (nats)", "pull on the positive"), strict=True):
        for (form, rows), colour, style in zip(curves.groupby("form", sort=False), COLOURS, ("-", "--"), strict=False):
            ax.plot(rows["similarity"], rows[column], style, color=colour, linewidth=1.6, label=str(form))
        ax.axhline(0, color=NEUTRAL, linewidth=0.8)
        ax.set(xlabel="similarity of the positive", ylabel=label, xticks=[-1, -0.5, 0, 0.5, 1])
    with_legend(axes[0])
    return all_neutral(axes)


def project(z_sar: Tensor, z_optical: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Three principal components (2, N, 3) of both modalities' embeddings (N >= 2, D >= 3) together, and their share.

    The share is that of the variance of all 2 N embeddings, (3,) in [0, 1].
    """
    pca = PCA(3, svd_solver="full")
    with np.errstate(invalid="ignore"):  # embeddings that are all equal have no variance to explain
        places = pca.fit_transform(as_array(torch.cat([z_sar, z_optical])).astype(np.float64))
    return places.reshape(2, -1, 3), np.nan_to_num(pca.explained_variance_ratio_)


def embedding_panels(
    axes: Sequence[Axes], embeddings: tuple[Tensor, Tensor], groups: Sequence[str], title: str
) -> None:
    """Figure 7: first component of `project` against second and third; a line joins SAR (circle) and optical (square).

    Each group has a colour, in order of appearance.
    """
    projected, explained = project(*embeddings)
    names = list(dict.fromkeys(groups))
    colours = [line_style(names.index(group))["color"] for group in groups]
    for ax, second in zip(axes, (1, 2), strict=True):
        ends = projected[..., [0, second]]
        ax.add_collection(LineCollection(list(ends.swapaxes(0, 1)), colors=colours, linewidths=0.7, alpha=0.35))
        for places, marker in zip(ends, MARKERS, strict=False):
            ax.scatter(places[:, 0], places[:, 1], c=colours, marker=marker, s=16, linewidths=0, alpha=0.85)
        labels = [f"component {i + 1} ({100 * explained[i]:.2g} %)" for i in (0, second)]
        ax.set(xlabel=labels[0], ylabel=labels[1])
        neutral(ax)
    axes[0].set_title(title)


def embedding_legend(figure: Figure, groups: Sequence[str]) -> Legend:
    """What colours and markers of `embedding_panels` mean, below a figure of constrained layout."""
    images = zip(MARKERS, ("SAR", "optical"), strict=False)
    handles = [Line2D([], [], linestyle="", color=NEUTRAL, marker=m, label=n) for m, n in images]
    names = dict.fromkeys(groups)
    handles += [Line2D([], [], color=line_style(i)["color"], linewidth=3, label=n) for i, n in enumerate(names)]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles), "frameon": False}
    return figure.legend(handles=handles, labelcolor=NEUTRAL, **place)


def convergence_curves(ax: Axes, histories: pd.DataFrame, label: str, score: str = "mma_3px") -> Axes:
    """A column of `convergence_histories` with and without pretraining: a thin line a seed, a thick one their mean."""
    for (pretrained, rows), colour, marker in zip(histories.groupby("pretrained"), COLOURS, MARKERS, strict=False):
        for _, one in rows.groupby("seed"):
            ax.plot(one["step"], one[score], color=colour, linewidth=0.8, alpha=0.5)
        mean = rows.groupby("step")[score].mean()
        name = "pretrained" if pretrained else "from scratch"
        ax.plot(mean.index, mean, color=colour, marker=marker, markersize=4.5, linewidth=2.2, label=name)
    ax.set(xlabel="step of fine-tuning", ylabel=label, ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return with_legend(ax)


def part_bars(ax: Axes, parts: pd.DataFrame) -> Axes:
    """Milliseconds of each part of `cost.measure_parts`, the first on top; colours for what further passes repeat."""
    times = 1e3 * parts[["seconds", "seconds_low", "seconds_high"]]
    again = (parts["per_pass"] > 0).to_numpy()
    for chosen, colour, label in zip((~again, again), COLOURS, ("computed once", "again in each pass"), strict=False):
        ax.barh(np.flatnonzero(chosen), times["seconds"][chosen], color=colour, height=0.7, label=label)
    error_bars(ax, np.arange(len(parts)), times, "seconds", True, fmt="none", ecolor=NEUTRAL)
    ax.set_yticks(range(len(parts)), list(parts.index))
    ax.set_xlabel("ms")
    ax.invert_yaxis()
    return with_legend(ax)


def seconds_by_passes(ax: Axes, modes: pd.DataFrame, bound: Callable[[int], float], paper: float) -> Axes:
    """Seconds of `cost.measure_modes` against the number of passes, between what sharing allows and none at all.

    Relative to one pass, `bound` is the least by the number of passes and `paper` is printed for 20.
    """
    one_pass = float(modes.loc[modes["mode"] == ONE_PASS, "seconds"].iloc[0])
    rows = modes[modes["passes"] > 0].sort_values("passes")
    n = rows["passes"].to_numpy()
    error_bars(ax, n, rows, "seconds", label="measured", **line_style(0))
    ax.plot(n, [one_pass * bound(int(k)) for k in n], "--", color=COLOURS[1], label="all shared that can be")
    ax.plot(n, one_pass * n, ":", color=COLOURS[2], label="nothing shared")
    ax.plot(20, one_pass * paper, "X", color=COLOURS[3], markersize=9, label="at the paper's ratio")
    ax.set(xlabel="passes", ylabel="seconds", xticks=n, ylim=(0, None))
    return with_legend(ax)
