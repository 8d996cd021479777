"""How far the moving image is displaced as a whole, before any single match."""

import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.data.raster import Raster
from sarmatch.geometry import Search
from sarmatch.matching import coarse_alignment
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.tiling import MULTIPLE
from sarmatch.model import STRIDE
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.settings import SearchRadius
from sarmatch.scenes.windows import RADIUS

WINDOW = 512  #: Side of the windows whose correlations are summed, px.


def radius_of(pair: ScenePair, search_radius: SearchRadius) -> float | None:
    """The radius that `auto` means: 64 px between georeferences, else none."""
    auto = 64.0 if pair.located else None
    return auto if isinstance(search_radius, str) else search_radius


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
    width, height = (min(WINDOW, n + -n % MULTIPLE) for n in (common.width, common.height))
    correlations = []
    for x, y in product(_starts(common.x, common.width, width), _starts(common.y, common.height, height)):
        region = Region(x, y, width, height)
        sar, optical = (_batch(scene.read(region), matcher, (height, width)) for scene in (pair.sar, pair.optical))
        if bool(sar[1].any()) and bool(optical[1].any()):
            reference, moving = pair.ordered(*coarse_alignment.describe_pair(matcher.net, sar, optical))
            products, overlaps = coarse_alignment.cross_correlation(reference, moving)
            correlations.append((products[0], overlaps[0], reference[1].sum()))
    if not correlations:
        return 0, 0
    products, overlaps, cells = (torch.stack(parts).sum(0) for parts in zip(*correlations, strict=True))
    size = (products.shape[-2], products.shape[-1])
    enough = overlaps >= coarse_alignment.MIN_OVERLAP * cells
    enough &= coarse_alignment.within_shift(size, search_radius, products.device)
    score = (products / overlaps.clamp(min=1).sqrt()).masked_fill(~enough, -torch.inf)
    dx, dy = (int(v) * STRIDE for v in coarse_alignment.shift_of(score.flatten().argmax(), size))
    return dx, dy


def _starts(first: int, length: int, side: int) -> list[int]:
    n = min(2, math.ceil(length / side))
    return [round(v) for v in np.linspace(first, first + length - side, n)]


def _whole(pair: ScenePair, matcher: Matcher) -> tuple[int, int]:
    longest = max(pair.grid.width, pair.grid.height, pair.moving_extent.width, pair.moving_extent.height)
    factor = math.ceil(longest / 1024)
    images = [scene.reduced(factor) for scene in (pair.sar, pair.optical)]
    height, width = (max(image.valid.shape[axis] for image in images) for axis in (0, 1))
    size = (height + -height % MULTIPLE, width + -width % MULTIPLE)
    (sar, sar_valid), (optical, optical_valid) = (_batch(image, matcher, size) for image in images)
    prior = coarse_alignment.global_prior(matcher.net, (sar, optical, sar_valid, optical_valid), Search(None))
    dx, dy = (round(float(v) * factor) for v in prior[:2, 2])
    return (dx, dy) if pair.to == "sar" else (-dx, -dy)


def _batch(raster: Raster, matcher: Matcher, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (1, C, H, W) and mask (1, H, W), filled up to a size at the right and below."""
    height, width = raster.valid.shape
    margin = (0, size[1] - width, 0, size[0] - height)
    image, valid = (F.pad(values, margin)[None].to(matcher.device) for values in (raster.image, raster.valid))
    return image, valid
