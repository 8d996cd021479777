"""Images and matches drawn on given matplotlib axes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from torch import Tensor

from sarmatch.matching.matches import Matches

COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494")  # seaborn's, for the colour-blind
ERROR_LIMITS_PX = (1.0, 3.0)  # between good, fair and wrong matches in drawings
ERROR_COLOURS = ("#56b4e9", "#f0e442", "#d55e00")  # of the three, on a grey or coloured image
NEUTRAL = "#757575"  # contrast of about 4.5 with white and with black


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """What is to be drawn as an array, wherever it lies and whether or not it has a gradient."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def display_range(image: Tensor, valid: Tensor | None = None) -> np.ndarray:
    """An image (C, H, W) for display: 1st to 99th percentile of its valid pixels (H, W) stretched to [0, 1].

    (H, W) of the first channel, or (H, W, 3) of three or more channels; invalid pixels are 1 (white).
    """
    channels = 3 if image.shape[0] >= 3 else 1
    values = as_array(image[:channels].permute(1, 2, 0)).astype(np.float64)
    mask = np.ones(values.shape[:2], dtype=bool) if valid is None else as_array(valid)
    low, high = np.percentile(values[mask], (1, 99)) if mask.any() else (0.0, 1.0)
    stretched = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    stretched[~mask] = 1
    return stretched if channels == 3 else stretched[..., 0]


def show_image(ax: Axes, image: Tensor, valid: Tensor | None = None, title: str = "") -> Axes:
    """One image without ticks, stretched as `display_range` does."""
    ax.imshow(display_range(image, valid), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    return neutral(ax)


def draw_matches(
    ax: Axes, sar: Tensor, optical: Tensor, matches: Matches, errors: np.ndarray | None = None, max_lines: int = 60
) -> Axes:
    """SAR and optical image (C, H, W) side by side, with a line a match.

    Args:
        errors: (N,) px; colours the lines by `ERROR_LIMITS_PX`, with the shares of all matches in the legend. None
            colours them by confidence.
        max_lines: of more matches an even sample in the order given is drawn.
    """
    offset = sar.shape[-1] + 12  # a gap between the images
    for image, left in ((sar, 0), (optical, offset)):
        height, width = image.shape[-2:]
        extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)  # pixel centres at whole numbers
        ax.imshow(display_range(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    shown = evenly(len(matches), max_lines)
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
    names = [name.format(*ERROR_LIMITS_PX) for name in ("up to {:g} px", "{:g} to {:g} px", "over {1:g} px")]
    shares = np.bincount(np.searchsorted(ERROR_LIMITS_PX, errors), minlength=3) / max(len(errors), 1)
    entries = zip(names, shares, ERROR_COLOURS, strict=True)
    return [Line2D([], [], color=colour, linewidth=3, label=f"{name}: {share:.0%}") for name, share, colour in entries]


def checkered(first: np.ndarray, second: np.ndarray, tiles: int = 8) -> np.ndarray:
    """Two pictures (H, W, 3) of one size in alternating tiles."""
    rows, columns = np.indices(first.shape[:2]) * tiles // max(first.shape[:2])
    return np.where(((rows + columns) % 2 == 0)[..., None], first, second)


def evenly(n: int, at_most: int) -> np.ndarray:
    """At most so many of n places, the first and the last among them."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(at_most, n)).round().astype(int))


def neutral(ax: Axes) -> Axes:
    """Text and frame in a grey that can be read on a light and on a dark page, nothing painted behind the data."""
    ax.set_facecolor("none")
    ax.tick_params(colors=NEUTRAL, labelcolor=NEUTRAL)
    ax.spines[:].set_color(NEUTRAL)
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label]
    legend = ax.get_legend()
    if legend is not None:
        texts += [legend.get_title(), *legend.get_texts()]
    for text in texts:
        text.set_color(NEUTRAL)
    return ax
