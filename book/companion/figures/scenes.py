"""Figures of the chapter on scenes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from companion.figures.plots import all_neutral, line_style, with_legend
from companion.studies.scenes import Study
from sarmatch.matching.matches import Matches
from sarmatch.scenes.report import View
from sarmatch.scenes.transforms import required_share
from sarmatch.visualize import checkered, draw_matches


def before_and_after(axes: Sequence[Axes], view: View) -> Sequence[Axes]:
    """Checkerboards of one view as georeferenced and as registered."""
    for ax, moving, title in zip(axes, (view.before, view.after), ("as georeferenced", "registered"), strict=True):
        ax.imshow(checkered(view.reference, moving), interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=title)
    return all_neutral(axes)


def joined(ax: Axes, view: View, matches: Matches) -> Axes:
    """Matches (px of the common grid) in a view, joined where the georeference puts them, coloured by confidence."""
    corner = np.array([view.region.x, view.region.y])
    ends = [(xy - corner + 0.5) / view.factor - 0.5 for xy in (matches.xy_sar, matches.xy_optical)]
    height, width = view.reference.shape[:2]
    inside = np.all([(xy > -0.5) & (xy < (width - 0.5, height - 0.5)) for xy in ends], axis=(0, 2))
    shown = dataclasses.replace(matches, xy_sar=ends[0], xy_optical=ends[1]).select(inside)
    first, second = (torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in (view.reference, view.before))
    return draw_matches(ax, first, second, shown)


def corner_errors(axes: Sequence[Axes], registrations: pd.DataFrame, threshold_px: float = 3.0) -> Sequence[Axes]:
    """Corner errors by model, one mark a registration: by the shift applied, and at check points."""
    models = list(registrations["model"].unique())
    scenes = registrations.groupby("id", sort=False)
    columns = {"corner_error_px": "from the shift applied", "check_corner_px": "at the check points nearest to corners"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for i, (scene, rows) in enumerate(scenes):
            x = rows["model"].map(models.index) + 0.08 * (i - (len(scenes) - 1) / 2)
            ax.scatter(x, rows[column], s=26, alpha=0.8, linewidths=0, label=scene, **line_style(i))
        ax.axhline(threshold_px, color="0.5", linewidth=1, linestyle="--")
        ax.set(xticks=range(len(models)), xticklabels=models, title=title, ylabel="corner error, px", ylim=(0, None))
    with_legend(axes[-1], fontsize=8)
    return all_neutral(axes)


def agreeing_shares(ax: Axes, study: Study) -> Axes:
    """Share of agreeing matches over their number: related scenes, unrelated crops and scenes, and what is required."""
    related = study.registrations.drop_duplicates(["id", "dx", "dy"])
    groups = {"same scene": related, "unrelated crops": study.unrelated_crops}
    groups |= {"unrelated scenes": study.unrelated_scenes}
    for i, (name, table) in enumerate(groups.items()):
        ax.scatter(table["n_thinned"], table["share"], s=16, alpha=0.7, label=name, **line_style(i))
    most = max(float(table["n_thinned"].max()) for table in groups.values() if len(table))
    n = np.geomspace(20, max(most, 200), 100)
    ax.plot(n, [required_share(int(v)) for v in n], color="0.4", linewidth=1, label="required")
    ax.set(xscale="log", ylim=(0, 1.03), xlabel="matches, one per 16 px", ylabel="share that agrees")
    return with_legend(ax, fontsize=8)
