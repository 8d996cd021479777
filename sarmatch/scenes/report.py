"""The report of a registration: one HTML file without anything from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarmatch.data.raster import Raster
from sarmatch.io import atomic_path, check_output
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.transforms import CE90, THRESHOLD_PX, SceneTransform
from sarmatch.visualize import COLOURS, display_range

if TYPE_CHECKING:
    from sarmatch.scenes.pipeline import MatchedPair
    from sarmatch.scenes.registering import SceneRegistration

MAX_ARROWS = 400
REPORTS = (".html",)
OVERVIEW_SIDE = 900  # px
DETAIL_SIDE = 448  # px


def write_report(path: str | os.PathLike[str], done: SceneRegistration, matched: MatchedPair) -> None:
    """Write the report of a registration whose images are still open; an existing file is replaced in one step."""
    check_output(path, "reports", REPORTS)
    pair, transform = matched.pair, done.transform
    thinned = matched.thinned
    xy = thinned.xy_sar if pair.to == "sar" else thinned.xy_optical
    agreeing = xy[transform.inliers]
    central = agreeing[np.linalg.norm(agreeing - np.median(agreeing, axis=0), axis=1).argmin()]
    views = [overview(pair, transform, matched.region), detail(pair, transform, central, matched.region)]
    sections = [
        _section("Result", _table(_result(done)) + f"<p>{html.escape(_MEANING)}</p>"),
        _section("Both images", "".join(_flicker(view, number) for number, view in enumerate(views)) + _CONTROLS),
        _section("Checkerboard", "".join(_checkerboards(view) for view in views)),
        _section("Matches", _figures(views[0], xy, thinned.confidence, transform, done, matched)),
        _section("What was done", _table(done.about)),
    ]
    title = html.escape(f"{done.about['moving']} registered onto {done.about['reference']}")
    page = _PAGE.replace("{title}", title).replace("{body}", "\n".join(sections))
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


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _table(rows: dict[str, str]) -> str:
    cells = (f"<tr><th>{html.escape(k.replace('_', ' '))}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _jpeg(picture: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _flicker(view: View, number: int) -> str:
    names = {"reference": view.reference, "before": view.before, "after": view.after}
    images = "".join(
        f'<img class="{name}" alt="{view.name}, {name}" src="{_jpeg(picture)}">' for name, picture in names.items()
    )
    stack = f'<div class="stack" id="stack{number}">{images}</div>'
    return f"<figure>{stack}<figcaption>{_caption(view)}</figcaption></figure>"


def _caption(view: View) -> str:
    scale = "full resolution" if view.factor == 1 else f"one px shows {view.factor} x {view.factor}"
    return f"{view.name.capitalize()}: {view.region.width} x {view.region.height} px of the common grid, {scale}."


def _checkerboards(view: View) -> str:
    parts = []
    for name, moving in (("before", view.before), ("after", view.after)):
        picture = _jpeg(checkered(view.reference, moving))
        text = f"{view.name.capitalize()}, {name}: {'as georeferenced' if name == 'before' else 'registered'}."
        parts.append(f'<figure class="half"><img alt="{text}" src="{picture}"><figcaption>{text}</figcaption></figure>')
    return "".join(parts)


def _figures(
    view: View,
    xy: np.ndarray,
    confidence: np.ndarray,
    transform: SceneTransform,
    done: SceneRegistration,
    matched: MatchedPair,
) -> str:
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplots(2, 2)
    draw_confidence(axes[0, 0], view, xy, confidence)
    draw_residuals(axes[0, 1], view, xy, transform)
    draw_error_map(axes[1, 0], view, transform, done.metres_per_px)
    draw_reliability(axes[1, 1], confidence, transform.inliers)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    picture = base64.b64encode(content.getvalue()).decode()
    text = (
        f"Matches at one per 16 px by confidence; their residuals from the {transform.model} map; the map of the "
        "registration error; and whether matches of a confidence agree with the map as often as it says, which is no "
        "proof: the map is fitted to them."
    )
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'


def _some(n: int, at_most: int = 1200) -> np.ndarray:
    """An even sample of n rows."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(at_most, n)).round().astype(int))


def _show(ax: Axes, view: View, title: str) -> None:
    region = view.region
    extent = (region.x - 0.5, region.x + region.width - 0.5, region.y + region.height - 0.5, region.y - 0.5)
    ax.imshow(view.reference, extent=extent, alpha=0.5)
    ax.set(title=title, xticks=[], yticks=[])


def draw_confidence(ax: Axes, view: View, xy: np.ndarray, confidence: np.ndarray) -> Axes:
    """Matches (N, 2) px of the reference on it, coloured by confidence."""
    _show(ax, view, "confidence of matches")
    shown = _some(len(xy))
    style: dict[str, Any] = {"cmap": "plasma", "vmin": 0, "vmax": 1, "linewidths": 0}
    points = ax.scatter(xy[shown, 0], xy[shown, 1], 10, confidence[shown], **style)
    ax.figure.colorbar(points, ax=ax, shrink=0.8, label="probability of lying within 3 px")
    return ax


def draw_residuals(ax: Axes, view: View, xy: np.ndarray, transform: SceneTransform) -> Axes:
    """Residuals of agreeing matches as arrows, enlarged; those that disagree as dots."""
    _show(ax, view, "residuals")
    agree = np.flatnonzero(transform.inliers)
    shown = agree[_some(len(agree), MAX_ARROWS)]
    enlarged = 0.06 * max(view.region.width, view.region.height) / THRESHOLD_PX
    arrows = transform.residuals[shown] * enlarged
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003, "color": COLOURS[1]}
    quiver = ax.quiver(xy[shown, 0], xy[shown, 1], arrows[:, 0], arrows[:, 1], **style)
    ax.quiverkey(quiver, 0.9, 1.03, enlarged, "1 px", labelpos="E")
    others = xy[~transform.inliers]
    few = others[_some(len(others))]
    ax.scatter(few[:, 0], few[:, 1], 6, color=COLOURS[3], linewidths=0, label=f"{len(others)} disagree")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def draw_error_map(ax: Axes, view: View, transform: SceneTransform, metres_per_px: float | None) -> Axes:
    """CE90 of the map over the common ground, metres (px where unknown)."""
    region, n = view.region, 48
    x, y = (np.linspace(0, length - 1, n) for length in (region.width, region.height))
    nodes = np.stack(np.meshgrid(x + region.x, y + region.y), -1).reshape(-1, 2)
    error = CE90 * transform.sigma(nodes).reshape(n, n) * (metres_per_px or 1)
    extent = (region.x, region.x + region.width, region.y + region.height, region.y)
    shown = ax.imshow(error, extent=extent, cmap="cividis", interpolation="bilinear")
    ax.figure.colorbar(shown, ax=ax, shrink=0.8, label=f"CE90, {'m' if metres_per_px else 'px'}")
    ax.set(title="registration error", xticks=[], yticks=[])
    return ax


def draw_reliability(ax: Axes, confidence: np.ndarray, agrees: np.ndarray, bins: int = 10) -> Axes:
    """Share of matches that agree with the map, by confidence; bins with fewer than five matches are left out."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(number, minlength=bins)
    kept = count >= 5
    share = np.bincount(number, agrees, minlength=bins)[kept] / count[kept]
    mean = np.bincount(number, confidence, minlength=bins)[kept] / count[kept]
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="confidence is right")
    ax.plot(mean, share, "o-", color=COLOURS[0], label="agree with the map")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share", title="confidence and agreement")
    ax.legend(loc="upper left", fontsize=8)
    return ax


@dataclass(frozen=True, eq=False)
class View:
    """One part of the common grid.

    Attributes:
        name: what it shows.
        region: in px of the common grid; a px of the pictures is `factor` of them wide.
        reference, before, after: (H, W, 3) uint8; the moving image where its georeference puts it, and registered.
    """

    name: str
    region: Region
    factor: int
    reference: np.ndarray
    before: np.ndarray
    after: np.ndarray


def overview(pair: ScenePair, transform: SceneTransform, region: Region) -> View:
    """The common ground, reduced to `OVERVIEW_SIDE` px at most."""
    factor = math.ceil(max(region.width, region.height) / OVERVIEW_SIDE)
    reference, moving = pair.reference.reduced(factor), pair.moving.reduced(factor)
    size = (region.height // factor, region.width // factor)
    corner = np.array([region.x, region.y]) / factor

    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    here = np.stack([columns, rows], -1) + corner
    there = (_mapped(transform, (here.reshape(-1, 2) + 0.5) * factor - 0.5) + 0.5) / factor - 0.5
    pictures = (_picture(reference, here), _picture(moving, here), _picture(moving, there.reshape(*size, 2)))
    return View("overview", region, factor, *pictures)


def detail(pair: ScenePair, transform: SceneTransform, centre: np.ndarray, region: Region) -> View:
    """`DETAIL_SIDE` px around a place, at full resolution."""
    width, height = (min(DETAIL_SIDE, n) for n in (region.width, region.height))
    x = int(np.clip(centre[0] - width / 2, region.x, region.x + region.width - width))
    y = int(np.clip(centre[1] - height / 2, region.y, region.y + region.height - height))
    part = Region(x, y, width, height)
    rows, columns = np.mgrid[0:height, 0:width]
    here = np.stack([columns + x, rows + y], -1)
    there = _mapped(transform, here.reshape(-1, 2)).reshape(height, width, 2)
    low, high = np.floor(there.min((0, 1))).astype(int) - 1, np.ceil(there.max((0, 1))).astype(int) + 2
    wanted = Region(int(low[0]), int(low[1]), *(int(v) for v in np.minimum(high - low, 4 * DETAIL_SIDE)))
    moving = pair.moving.read(wanted)
    own = here - [x, y]
    pictures = (
        _picture(pair.reference.read(part), own),
        _picture(pair.moving.read(part), own),
        _picture(moving, there - low),
    )
    return View("detail", part, 1, *pictures)


def _mapped(transform: SceneTransform, xy: np.ndarray, step: int = 8192) -> np.ndarray:
    return np.concatenate([transform(xy[i : i + step]) for i in range(0, len(xy), step)])


def _picture(raster: Raster, xy: np.ndarray) -> np.ndarray:
    """An image at positions (H, W, 2), stretched for the eye; black where it shows nothing."""
    shown = np.dstack([display_range(raster.image, raster.valid)] * (1 if raster.image.shape[0] >= 3 else 3))
    shown = np.where(raster.valid.numpy()[..., None], shown, 0).astype(np.float32)
    x, y = (np.ascontiguousarray(xy[..., i], dtype=np.float32) for i in (0, 1))
    moved = cv2.remap(shown, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(np.clip(moved * 255, 0, 255).astype(np.uint8))


def checkered(first: np.ndarray, second: np.ndarray, tiles: int = 8) -> np.ndarray:
    """Two pictures of one size in alternating tiles."""
    rows, columns = np.indices(first.shape[:2]) * tiles // max(first.shape[:2])
    return np.where(((rows + columns) % 2 == 0)[..., None], first, second)


def as_image(picture: np.ndarray) -> torch.Tensor:
    """A picture (H, W, 3) uint8 as an image (3, H, W) in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


_MEANING = (
    "The registration error is that of the map, root mean square over the common ground: how far clusters of matches "
    "disagree on its parameters, and what it leaves in them. Single matches scatter more. Neither sees what all "
    "matches share, such as the displacement of slopes in SAR images without terrain correction."
)
_CONTROLS = """<p class="controls"><label><input type="radio" name="mode" value="flicker" checked> flicker</label>
<label><input type="radio" name="mode" value="blend"> blend <input type="range" id="blend" min="0" max="100" value="50">
</label> &nbsp; moving image: <label><input type="radio" name="which" value="after" checked> registered</label>
<label><input type="radio" name="which" value="before"> as georeferenced</label></p>
<script>
const pick = name => document.querySelector(`input[name=${name}]:checked`).value;
let on = true;
function draw() {
  const top = pick("mode") === "flicker" ? (on ? 1 : 0) : document.getElementById("blend").value / 100;
  for (const stack of document.querySelectorAll(".stack")) for (const name of ["before", "after"])
    stack.querySelector("." + name).style.opacity = name === pick("which") ? top : 0;
}
setInterval(() => { on = !on; draw(); }, 800);
for (const input of document.querySelectorAll(".controls input")) input.addEventListener("input", draw);
draw();
</script>"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 500; padding: .15rem 1.5rem .15rem 0; }
td { padding: .15rem 0; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0 1% 1rem 0; width: 48%; vertical-align: top; }
section > figure:only-of-type { width: 100%; }
img { width: 100%; display: block; } figcaption { font-size: .85rem; color: #555; }
.stack { position: relative; } .stack img + img { position: absolute; inset: 0; opacity: 0; }
@media (max-width: 700px) { figure { width: 100%; } }
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
