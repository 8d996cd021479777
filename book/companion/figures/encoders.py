"""Figures of the chapter on the encoders: what they are made of and what they respond to."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from sklearn.decomposition import PCA
from torch import Tensor

from companion.figures.plots import all_neutral, colour_bar, line_style, with_legend
from companion.studies.encoders import INPUT, OUTPUT, Part
from sarmatch.visualize import COLOURS, NEUTRAL, as_array, neutral, show_image

Place: TypeAlias = tuple[int, int]  # column, and row from 0 downwards, so not positive
BOX = (0.84, 0.76)  # width and height of a box, where columns and rows are 1 apart


def diagram(ax: Axes, parts: Sequence[Part], within: str = "") -> Axes:
    """Boxes and arrows of a traced network: depth downwards, coarser resolution to the right, darker for more to learn.

    Arrows from parts left out are not drawn; `within` is a beginning of names that boxes leave out.
    """
    places = _places(parts)
    most = max(part.parameters for part in parts) or 1
    tint = sns.light_palette(COLOURS[0], as_cmap=True)
    for part in parts:
        x, y = places[part.name]
        colour = tint(0.5 * (part.parameters / most) ** 0.5) if part.parameters else "white"  # light: text is black
        corner = (x - BOX[0] / 2, y - BOX[1] / 2)
        ax.add_patch(FancyBboxPatch(corner, *BOX, boxstyle="round,pad=0,rounding_size=0.06", fc=colour, ec=NEUTRAL))
        ax.text(x, y, _caption(part, within), ha="center", va="center", size=7, color="black", linespacing=1.15)
        for source in (places[name] for name in part.sources if name in places):
            path = Path(_route(source, (x, y), set(places.values())))
            style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "zorder": 0, "clip_on": False}
            ax.add_patch(FancyArrowPatch(path=path, color=NEUTRAL, **style))
    columns = sorted({part.stride for part in parts})
    ax.set(xlim=(-0.5, len(columns) - 0.45), ylim=(min(y for _, y in places.values()) - 0.5, 0.5), yticks=[])
    ax.set_xticks(range(len(columns)), [f"stride {stride}" for stride in columns], size=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(frame_on=False)
    return neutral(ax)


def _caption(part: Part, within: str) -> str:
    shape = "×".join(map(str, part.shape[1:]))
    if part.kind in (INPUT, OUTPUT):
        return f"{part.name.rpartition('.')[2]}\n{shape}"
    window = f"{part.kernel}×{part.kernel}" if part.kernel else ""
    if part.dilation > 1:
        window += f", dilation {part.dilation}"
    return "\n".join(filter(None, (part.name.removeprefix(within), part.kind, window, shape)))


def _places(parts: Sequence[Part]) -> dict[str, Place]:
    """Row by the longest way from a source, column by stride; never two parts in one place."""
    columns = {stride: i for i, stride in enumerate(sorted({part.stride for part in parts}))}
    places: dict[str, Place] = {}
    for part in parts:
        row = min((places[name][1] - 1 for name in part.sources if name in places), default=0)
        while (columns[part.stride], row) in places.values():
            row -= 1
        places[part.name] = (columns[part.stride], row)
    return places


def _route(start: Place, end: Place, taken: set[Place]) -> list[tuple[float, float]]:
    """Corners of an arrow: down a free column, between two rows, or in the gutter between two columns."""
    (x0, y0), (x1, y1) = start, end
    half_width, half_height = BOX[0] / 2, BOX[1] / 2
    if x0 == x1 and not any((x0, y) in taken for y in range(y1 + 1, y0)):
        return [(x0, y0 - half_height), (x1, y1 + half_height)]
    if y0 - y1 == 1:
        return [(x0, y0 - half_height), (x0, y0 - 0.5), (x1, y0 - 0.5), (x1, y1 + half_height)]
    right = 1 if x1 >= x0 else -1
    side = right if x0 == x1 else -right
    gutter = x0 + right / 2
    leave, enter = y0 - 0.2, y1 + 0.2  # apart, so that arrows out of a box and into it do not touch
    return [(x0 + right * half_width, leave), (gutter, leave), (gutter, enter), (x1 + side * half_width, enter)]


def descriptor_colours(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Three principal components of descriptors (D >= 3, h_i, w_i) over all maps together as colours (h_i, w_i, 3).

    [0, 1] is the 2nd to 98th percentile of each component over all maps.
    """
    # Without standardising each map, the first component is the difference between the modalities.
    rows = [as_array(m.flatten(1).T) for m in maps]
    rows = [r - r.mean(axis=0) for r in rows]
    rows = [r / max(np.sqrt(np.square(r).sum(axis=1).mean()), 1e-9) for r in rows]
    components = PCA(3, svd_solver="covariance_eigh").fit(np.concatenate(rows))
    projected = [components.transform(r) for r in rows]
    low, high = np.percentile(np.concatenate(projected), (2, 98), axis=0)
    scaled = [np.clip((p - low) / np.maximum(high - low, 1e-9), 0, 1) for p in projected]
    return [s.reshape(*m.shape[1:], 3) for s, m in zip(scaled, maps, strict=True)]


def descriptor_gallery(axes: Any, images: Sequence[Tensor], descriptors: Mapping[str, Sequence[Tensor]]) -> Any:
    """Images in the first column and descriptors (D, h, w) as colours in one a network, SAR above optical."""
    for ax, image, what in zip(axes[:, 0], images, ("SAR", "optical"), strict=True):
        show_image(ax, image).set_ylabel(what)
    for column, (name, maps) in zip(axes.T[1:], descriptors.items(), strict=True):
        for ax, colours in zip(column, descriptor_colours(maps), strict=True):
            ax.imshow(colours, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        column[0].set_title(name)
    all_neutral(axes.ravel())
    return axes


def receptive_fields(axes: Sequence[Axes], fields: Mapping[str, Tensor], decades: int = 4) -> Sequence[Axes]:
    """Effective receptive fields (H, W) by name, on one logarithmic colour scale that ends `decades` below 1."""
    scale = LogNorm(10.0**-decades, 1)
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        half = field.shape[-1] / 2
        extent = (-half, half, half, -half)
        values = as_array(field.clamp(min=10.0**-decades))
        ax.imshow(values, cmap="cividis", norm=scale, extent=extent, interpolation="nearest")
        ax.set(title=name, xlabel="px")
        ax.label_outer()
    colour_bar(axes, "cividis", scale, "gradient, largest = 1")
    return all_neutral(axes)


def leak_maps(axes: Sequence[Axes], maps: Mapping[str, Tensor], chance: float) -> Sequence[Axes]:
    """Displacement of the mean descriptor by cell (h, w), by name; the colour scale begins at what chance gives."""
    scale = Normalize(chance, max(float(values.max()) for values in maps.values()))
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        ax.imshow(as_array(values), cmap="cividis", norm=scale, interpolation="nearest")
        ax.set(title=name, xticks=[], yticks=[])
    colour_bar(axes, "cividis", scale, "displacement of the mean")
    return all_neutral(axes)


def leak_profile(ax: Axes, profiles: Mapping[str, tuple[Tensor, Tensor]], chance: float) -> Axes:
    """Displacement of the mean descriptor against the distance to the border, a line a network."""
    for i, (name, (distance, value)) in enumerate(profiles.items()):
        ax.plot(as_array(distance), as_array(value), markersize=3.5, linewidth=1.2, label=name, **line_style(i))
    ax.axhline(chance, color=NEUTRAL, linestyle=":", linewidth=1.2, label="chance")
    ax.set(xlabel="distance to the border (px)", ylabel="displacement of the mean", ylim=(0, None))
    return with_legend(ax)
