"""How far the moving image is displaced as a whole, before any single match."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

from sarmatch.data.raster import Raster
from sarmatch.geometry import Search
from sarmatch.matching.coarse_alignment import (
    MIN_OVERLAP,
    cross_correlation,
    describe_pair,
    global_prior,
    shift_of,
    within_shift,
)
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.tiling import MULTIPLE
from sarmatch.model import STRIDE
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import MARGIN, ScenePair
from sarmatch.scenes.windows import RADIUS

WINDOW = 512
"""Side of the windows whose correlations are summed, px."""
N_WINDOWS = 2
"""Windows an axis at most."""
WHOLE_SIDE = 1024
"""Side to which images are reduced where the displacement is unknown, px."""
SEARCH_RADIUS = 64.0
"""How far georeferences may disagree by default, px."""

SearchRadius: TypeAlias = float | Literal["auto"] | None
Masked: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def check_radius(search_radius: SearchRadius) -> None:
    """Raise ValueError for a radius that scenes cannot be searched with."""
    if search_radius is None or search_radius == "auto":
        return
    if isinstance(search_radius, str) or not 0 < search_radius <= MARGIN / 4:
        raise ValueError(
            f"search_radius must be a number above 0 and up to {MARGIN // 4} px, None to search the whole image, or "
            f"'auto'; got {search_radius!r}"
        )


def radius_of(pair: ScenePair, search_radius: SearchRadius) -> float | None:
    """The radius that `auto` means: `SEARCH_RADIUS` between georeferences, else none."""
    if isinstance(search_radius, str):
        return SEARCH_RADIUS if pair.located else None
    return search_radius


@torch.no_grad()
def locate(pair: ScenePair, matcher: Matcher, search_radius: float | None) -> tuple[int, int]:
    """Displacement (dx, dy) px of the moving image on the common grid, to within a few px.

    The correlations of up to four windows over all shifts within the radius are summed; without a radius both images
    are reduced and searched as a whole. SceneRefusal where they have no ground in common.
    """
    if search_radius is None:
        return _whole(pair, matcher)
    if search_radius <= RADIUS:
        return 0, 0
    common = pair.region()
    side = (
        min(WINDOW, common.width + -common.width % MULTIPLE),
        min(WINDOW, common.height + -common.height % MULTIPLE),
    )
    total: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for x in _starts(common.x, common.width, side[0]):
        for y in _starts(common.y, common.height, side[1]):
            region = Region(x, y, *side)
            reference, moving = (_batch(s.read(region), matcher) for s in (pair.reference, pair.moving))
            if not (bool(reference[1].any()) and bool(moving[1].any())):
                continue
            first, second = _described(pair, matcher, reference, moving)
            product, overlapping = cross_correlation(first, second)
            one = (product[0], overlapping[0], first[1].sum())
            total = one if total is None else (total[0] + one[0], total[1] + one[1], total[2] + one[2])
    if total is None:
        return 0, 0
    products, overlap, cells = total
    size = (products.shape[-2], products.shape[-1])
    enough = (overlap >= MIN_OVERLAP * cells) & within_shift(size, search_radius, products.device)
    score = (products / overlap.clamp(min=1).sqrt()).masked_fill(~enough, -torch.inf)
    dx, dy = (int(v) * STRIDE for v in shift_of(score.flatten().argmax(), size))
    return dx, dy


def _whole(pair: ScenePair, matcher: Matcher) -> tuple[int, int]:
    longest = max(pair.grid.width, pair.grid.height, pair.moving_extent.width, pair.moving_extent.height)
    factor = math.ceil(longest / WHOLE_SIDE)
    images = [scene.reduced(factor) for scene in (pair.reference, pair.moving)]
    height, width = (max(i.valid.shape[axis] for i in images) for axis in (0, 1))
    size = (height + -height % MULTIPLE, width + -width % MULTIPLE)
    reference, moving = (_batch(image, matcher, size) for image in images)
    sar, optical = (reference, moving) if pair.to == "sar" else (moving, reference)
    prior = global_prior(matcher.net, (sar[0], optical[0], sar[1], optical[1]), Search(None))
    dx, dy = (round(float(v) * factor) for v in prior[:2, 2])
    return (dx, dy) if pair.to == "sar" else (-dx, -dy)


def _described(pair: ScenePair, matcher: Matcher, reference: Masked, moving: Masked) -> tuple[Masked, Masked]:
    if pair.to == "sar":
        return describe_pair(matcher.net, reference, moving)
    second, first = describe_pair(matcher.net, moving, reference)
    return first, second


def _batch(raster: Raster, matcher: Matcher, size: tuple[int, int] | None = None) -> Masked:
    height, width = raster.valid.shape
    below, right = (0, 0) if size is None else (size[0] - height, size[1] - width)
    image = F.pad(raster.image[None], (0, right, 0, below))
    return image.to(matcher.device), F.pad(raster.valid, (0, right, 0, below))[None].to(matcher.device)


def _starts(first: int, length: int, side: int) -> list[int]:
    n = min(N_WINDOWS, math.ceil(length / side))
    return [first] if n == 1 else [first + round(i * (length - side) / (n - 1)) for i in range(n)]
