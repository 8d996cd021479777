"""Both images as they lie on each other, before and after registration: for the eye, so reduced and stretched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from sarmatch.data.raster import Raster
from sarmatch.scenes.grids import Region
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.transforms import SceneTransform
from sarmatch.visualize import display_range

OVERVIEW_SIDE = 900
DETAIL_SIDE = 448


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

    def nodes() -> np.ndarray:
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        return np.stack([columns, rows], -1).reshape(-1, 2) + corner

    def in_grid(coarse: np.ndarray) -> np.ndarray:
        return (coarse + 0.5) * factor - 0.5

    there = ((_mapped(transform, in_grid(nodes())) + 0.5) / factor - 0.5).reshape(*size, 2)
    here = nodes().reshape(*size, 2)
    pictures = (_picture(reference, here), _picture(moving, here), _picture(moving, there))
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
