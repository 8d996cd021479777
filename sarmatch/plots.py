"""Figures of the book: each function draws on given axes and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from sarmatch.data.pairs import Pair


def display_range(image: Tensor, valid: Tensor) -> np.ndarray:
    """An image for the eye: its first or first three channels, 1st to 99th percentile of valid pixels to [0, 1].

    Args:
        image: (C, H, W) float.
        valid: (H, W) bool.

    Returns:
        (H, W) for fewer than three channels, else (H, W, 3); invalid pixels are 1 (white).
    """
    channels = 3 if image.shape[0] >= 3 else 1
    values = image[:channels].permute(1, 2, 0).numpy().astype(np.float64)
    mask = valid.numpy()
    low, high = np.percentile(values[mask], (1, 99)) if mask.any() else (0.0, 1.0)
    stretched = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    stretched[~mask] = 1
    return stretched if channels == 3 else stretched[..., 0]


def show_image(ax: Axes, image: Tensor, valid: Tensor, title: str = "") -> Axes:
    """One image without ticks, stretched as `display_range` does; `image` (C, H, W), `valid` (H, W)."""
    ax.imshow(display_range(image, valid), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    return ax


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
    return ax


def value_histograms(axes: Sequence[Axes], samples: Mapping[str, Sequence[Pair]], bins: int = 64) -> Sequence[Axes]:
    """Distribution of the values of valid pixels, a line a source: SAR (first band) left, optical (all bands) right."""
    for ax, kind in zip(axes, ("sar", "optical"), strict=True):
        for name, pairs in samples.items():
            bands = 1 if kind == "sar" else None
            values = np.concatenate([getattr(p, kind)[:bands, p.valid].flatten().numpy() for p in pairs])
            density, edges = np.histogram(values, bins, (0, 1), density=True)
            ax.stairs(density, edges, label=name)
        ax.set(xlabel=f"{'SAR' if kind == 'sar' else kind} value", ylabel="density", xlim=(0, 1))
    axes[-1].legend()
    return axes
