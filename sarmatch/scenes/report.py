"""The report of a registration: one HTML file without anything from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarmatch.data.raster import Raster
from sarmatch.io import atomic_path
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.transforms import CE90, THRESHOLD_PX, SceneTransform
from sarmatch.visualize import COLOURS, checkered, display_range, evenly

if TYPE_CHECKING:
    from sarmatch.scenes.pipeline import MatchedPair, SceneRegistration

DETAIL_SIDE = 448  # px


def write_report(path: str | os.PathLike[str], done: SceneRegistration, matched: MatchedPair) -> None:
    """Write the report of a registration whose images are still open; an existing file is replaced in one step."""
    pair, transform = matched.pair, done.transform
    agreeing = matched.ends[0][transform.inliers]
    central = agreeing[np.linalg.norm(agreeing - np.median(agreeing, axis=0), axis=1).argmin()]
    views = [overview(pair, transform, matched.region), detail(pair, transform, central, matched.region)]
    parts = {
        "title": html.escape(f"{done.about['moving']} registered onto {done.about['reference']}"),
        "result": _table(_result(done)),
        "flickers": "".join(_flicker(view) for view in views),
        "checkerboards": "".join(_checkerboards(view) for view in views),
        "figures": _figures(views[0], done, matched),
        "about": _table(done.about),
    }
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"{{{{{name}}}}}", part)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _result(done: SceneRegistration) -> dict[str, str]:
    agreed, metres = done.agreement, done.metres_per_px

    def length(px: float) -> str:
        return f"{px:.2f} px" + (f" = {px * metres:.1f} m" if metres else "")

    dx, dy = done.transform.coefficients[0]
    errors = np.linalg.norm(done.transform.residuals[done.transform.inliers], axis=1)
    return {
        "displacement at the centre": f"({dx:+.2f}, {dy:+.2f}) px of the common grid",
        "registration error, CE90": length(done.ce90_px),
        "registration error, 1 sigma an axis": length(done.sigma_px),
        "RMSE of agreeing matches": length(done.transform.rmse_px),
        "CE90 of agreeing matches": length(float(np.quantile(errors, 0.9))),
        "matches": f"{agreed.n_matches} in {agreed.n_windows} windows, {agreed.n_thinned} at one per 16 px",
        "agreeing": f"{agreed.n_agree} ({agreed.share:.0%}) with one affine map within {THRESHOLD_PX:g} px; "
        f"{agreed.required:.0%} are needed",
        "px of the common grid": f"{metres:.2f} m on the ground" if metres else "size unknown",
    }


def _table(rows: dict[str, str]) -> str:
    cells = (f"<tr><th>{html.escape(k.replace('_', ' '))}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _image(data: bytes, kind: str, text: str, name: str = "") -> str:
    content = base64.b64encode(data).decode()
    return f'<img class="{name}" alt="{text}" src="data:image/{kind};base64,{content}">'


def _jpeg(picture: np.ndarray, text: str, name: str = "") -> str:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return _image(data.tobytes(), "jpeg", text, name)


def _captioned(content: str, text: str) -> str:
    return f"<figure>{content}<figcaption>{text}</figcaption></figure>"


def _flicker(view: View) -> str:
    names = ("reference", "before", "after")
    images = "".join(_jpeg(getattr(view, name), f"{view.name}, {name}", name) for name in names)
    scale = "full resolution" if view.factor == 1 else f"one px shows {view.factor} x {view.factor}"
    text = f"{view.name.capitalize()}: {view.region.width} x {view.region.height} px of the common grid, {scale}."
    return _captioned(f'<div class="stack">{images}</div>', text)


def _checkerboards(view: View) -> str:
    pictures = {"before: as georeferenced": view.before, "after: registered": view.after}
    boards = {f"{view.name.capitalize()}, {text}.": checkered(view.reference, p) for text, p in pictures.items()}
    return "".join(_captioned(_jpeg(board, text), text) for text, board in boards.items())


def _figures(view: View, done: SceneRegistration, matched: MatchedPair) -> str:
    xy, confidence, transform = matched.ends[0], matched.thinned.confidence, done.transform
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplots(2, 2)
    draw_confidence(axes[0, 0], view, xy, confidence)
    draw_residuals(axes[0, 1], view, xy, transform)
    draw_error_map(axes[1, 0], view, transform, done.metres_per_px)
    draw_reliability(axes[1, 1], confidence, transform.inliers)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    text = (
        f"Matches at one per 16 px by confidence; their residuals from the {transform.model} map; the map of the "
        "registration error; and whether matches of a confidence agree with the map as often as it says, which is no "
        "proof: the map is fitted to them."
    )
    return _captioned(_image(content.getvalue(), "png", text), text)


def _show(ax: Axes, view: View, title: str) -> None:
    region = view.region
    extent = (region.x - 0.5, region.x + region.width - 0.5, region.y + region.height - 0.5, region.y - 0.5)
    ax.imshow(view.reference, extent=extent, alpha=0.5)
    ax.set(title=title, xticks=[], yticks=[])


def draw_confidence(ax: Axes, view: View, xy: np.ndarray, confidence: np.ndarray) -> Axes:
    """Matches (N, 2) px of the reference on it, coloured by confidence."""
    _show(ax, view, "confidence of matches")
    shown = evenly(len(xy), 1200)
    x, y = xy[shown].T
    points = ax.scatter(x, y, 10, confidence[shown], cmap="plasma", vmin=0, vmax=1, linewidths=0)
    ax.figure.colorbar(points, ax=ax, shrink=0.8, label="probability of lying within 3 px")
    return ax


def draw_residuals(ax: Axes, view: View, xy: np.ndarray, transform: SceneTransform) -> Axes:
    """Residuals of agreeing matches as arrows, enlarged; those that disagree as dots."""
    _show(ax, view, "residuals")
    agree = np.flatnonzero(transform.inliers)
    shown = agree[evenly(len(agree), 400)]
    enlarged = 0.06 * max(view.region.width, view.region.height) / THRESHOLD_PX
    arrows = transform.residuals[shown] * enlarged
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003, "color": COLOURS[1]}
    quiver = ax.quiver(*xy[shown].T, *arrows.T, **style)
    ax.quiverkey(quiver, 0.9, 1.03, enlarged, "1 px", labelpos="E")
    others = xy[~transform.inliers]
    x, y = others[evenly(len(others), 1200)].T
    ax.scatter(x, y, 6, color=COLOURS[3], linewidths=0, label=f"{len(others)} disagree")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def draw_error_map(ax: Axes, view: View, transform: SceneTransform, metres_per_px: float | None) -> Axes:
    """CE90 of the map over the common ground, metres (px where unknown)."""
    region, n = view.region, 48
    error = CE90 * transform.sigma(region.nodes(n)).reshape(n, n) * (metres_per_px or 1)
    extent = (region.x, region.x + region.width, region.y + region.height, region.y)
    shown = ax.imshow(error, extent=extent, cmap="cividis", interpolation="bilinear")
    ax.figure.colorbar(shown, ax=ax, shrink=0.8, label=f"CE90, {'m' if metres_per_px else 'px'}")
    ax.set(title="registration error", xticks=[], yticks=[])
    return ax


def draw_reliability(ax: Axes, confidence: np.ndarray, agrees: np.ndarray, bins: int = 10) -> Axes:
    """Share of matches that agree with the map, by confidence; bins with fewer than five matches are left out."""
    table = pd.DataFrame({"confidence": confidence, "agrees": agrees})
    binned = table.groupby(np.minimum((confidence * bins).astype(int), bins - 1))
    means = binned.mean()[binned.size() >= 5]
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="confidence is right")
    ax.plot(means["confidence"], means["agrees"], "o-", color=COLOURS[0], label="agree with the map")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share", title="confidence and agreement")
    ax.legend(loc="upper left", fontsize=8)
    return ax


@dataclass(frozen=True, eq=False)
class View:
    """One part of the common grid, as pictures (H, W, 3) uint8."""

    name: str
    region: Region
    factor: int  #: Px of the common grid that a px of the pictures is wide.
    reference: np.ndarray
    before: np.ndarray  #: The moving image where its georeference puts it.
    after: np.ndarray  #: Registered.


def overview(pair: ScenePair, transform: SceneTransform, region: Region) -> View:
    """The common ground, reduced to 900 px at most."""
    factor = math.ceil(max(region.width, region.height) / 900)
    reference, moving = pair.reference.reduced(factor), pair.moving.reduced(factor)
    here = _pixels(region.width // factor, region.height // factor) + np.array([region.x, region.y]) / factor
    there = (transform((here + 0.5) * factor - 0.5) + 0.5) / factor - 0.5
    return View("overview", region, factor, _picture(reference, here), _picture(moving, here), _picture(moving, there))


def detail(pair: ScenePair, transform: SceneTransform, centre: np.ndarray, region: Region) -> View:
    """`DETAIL_SIDE` px around a place, at full resolution."""
    width, height = (min(DETAIL_SIDE, n) for n in (region.width, region.height))
    x = int(np.clip(centre[0] - width / 2, region.x, region.x + region.width - width))
    y = int(np.clip(centre[1] - height / 2, region.y, region.y + region.height - height))
    part, own = Region(x, y, width, height), _pixels(width, height)
    there = transform(own + np.array([x, y]))
    wanted = Region.enclosing(there.reshape(-1, 2), 1, 2)
    moved = pair.moving.read(wanted.intersection(Region(wanted.x, wanted.y, 4 * DETAIL_SIDE, 4 * DETAIL_SIDE)))
    reference, before = (_picture(scene.read(part), own) for scene in (pair.reference, pair.moving))
    return View("detail", part, 1, reference, before, _picture(moved, there - np.array(wanted[:2])))


def _pixels(width: int, height: int) -> np.ndarray:
    """Positions (H, W, 2) of all px of an image."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)


def _picture(raster: Raster, xy: np.ndarray) -> np.ndarray:
    """An image at positions (H, W, 2), stretched for the eye; black where it shows nothing."""
    shown = np.dstack([display_range(raster.image, raster.valid)] * (1 if raster.image.shape[0] >= 3 else 3))
    shown = np.where(raster.valid.numpy()[..., None], shown, 0).astype(np.float32)
    x, y = cv2.split(xy.astype(np.float32))
    moved = cv2.remap(shown, x, y, cv2.INTER_LINEAR)
    return np.asarray(np.clip(moved * 255, 0, 255).astype(np.uint8))
