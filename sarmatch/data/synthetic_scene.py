"""The scene behind a synthetic pair: what lies where, how high it is, and the radiometry of each class."""

from typing import NamedTuple

import cv2
import numpy as np

SEASONS = ("spring", "summer", "fall", "winter")
MIXTURES = {  # shares of forest, built-up and water
    "croplands": (0.12, 0.05, 0.02),
    "forest": (0.55, 0.02, 0.03),
    "urban": (0.10, 0.45, 0.02),
    "water": (0.15, 0.08, 0.25),
}
CLASSES = ("crop 0", "crop 1", "crop 2", "crop 3", "crop 4", "hedge", "forest", "water", "road", "built-up", "roof")
N_CROPS = 5
HEDGE, FOREST, WATER, ROAD, BUILT, ROOF = range(N_CROPS, len(CLASSES))


class Style(NamedTuple):
    """What the patches of one scene have in common."""

    season: str
    land_cover: str
    colours: np.ndarray  # (classes, 3)
    backscatter: np.ndarray  # (2, classes), VV and VH in dB
    look: int  # +1: the sensor is on the left
    sun: np.ndarray  # unit vector (x, y) towards the sun


class Ground(NamedTuple):
    """The scene on a plane larger than the image, each layer (S, S)."""

    kind: np.ndarray  # index into CLASSES
    field: np.ndarray  # number of the field
    height: np.ndarray  # of roofs and trees, 0 to 1
    relief: np.ndarray  # terrain, zero mean, unit variance
    crowns: np.ndarray  # texture of trees, 0 elsewhere


def draw_style(seed: int) -> Style:
    """Season, land cover, and for each class a colour and, independently, a backscatter."""
    rng = np.random.default_rng([seed, 4])
    season = str(rng.choice(SEASONS))
    green_ripe_soil = np.array([[0.25, 0.42, 0.20], [0.66, 0.58, 0.34], [0.45, 0.36, 0.28]])
    weights = {"spring": (4, 1, 2), "summer": (2, 4, 1), "fall": (1, 2, 4), "winter": (1, 0.5, 5)}[season]
    crops: np.ndarray = rng.dirichlet(np.array(weights) / 2, N_CROPS) @ green_ripe_soil
    crops *= rng.uniform(0.6, 1.4, (N_CROPS, 1))
    crops[3] = crops[2]  # alike in the optical image only
    leaf = {"spring": 1.1, "summer": 1.0, "fall": 1.15, "winter": 0.8}[season]
    hedge, forest, water = [0.18, 0.27, 0.15], [0.14 * leaf, 0.24, 0.13], [0.08, 0.16, 0.22]
    colours = np.vstack([crops, hedge, forest, water, [0.58, 0.56, 0.53], [0.42, 0.40, 0.37], [0.55, 0.5, 0.47]])
    colours[HEDGE:] *= rng.uniform(0.8, 1.2, (len(CLASSES) - HEDGE, 1))
    vv_crops = rng.uniform(-16, -7, N_CROPS)
    vv_crops[1] = vv_crops[0]  # alike in SAR only
    vv = np.append(vv_crops, np.array([-8.0, -8.5, -21.0, -17.0, -11.0, -9.0]) + rng.normal(0, 1.2, 6))
    vh = vv - np.append(rng.uniform(5, 9, N_CROPS), [5.5, 5.5, 8.0, 7.5, 8.0, 7.0])
    angle = rng.uniform(0, 2 * np.pi)
    return Style(
        season=season,
        land_cover=str(rng.choice(list(MIXTURES))),
        colours=colours.clip(0.02, 0.9).astype(np.float32),
        backscatter=np.stack([vv, vh]).astype(np.float32),
        look=int(rng.choice([-1, 1])),
        sun=np.array([np.cos(angle), np.sin(angle)], np.float32),
    )


def smooth_noise(rng: np.random.Generator, size: int, cell: int) -> np.ndarray:
    """Smooth Gaussian noise (size, size) with structures of `cell` px, about unit variance."""
    n = size // cell + 4
    coarse = rng.standard_normal((n, n), dtype=np.float32) * np.float32(1.35)  # interpolation takes variance away
    weights = cv2.resize(np.eye(n, dtype=np.float32), (n, n * cell), interpolation=cv2.INTER_CUBIC)  # of one axis
    y, x = rng.integers(cell, 2 * cell, 2)
    return weights[y : y + size] @ coarse @ weights[x : x + size].T


def largest(values: np.ndarray, share: float) -> np.ndarray:
    """Mask of about the largest `share` of the values, by a sixteenth of them."""
    if share <= 0:
        return np.zeros(values.shape, bool)
    return values > np.quantile(values[::4, ::4], 1 - share)


def draw_ground(rng: np.random.Generator, size: int, style: Style) -> Ground:
    """Land cover from back to front: fields with hedges, forest, built-up ground, water, roads, roofs."""
    forest, built, water = MIXTURES[style.land_cover]
    field = _fields(rng, size)
    kind = rng.integers(0, N_CROPS, field.max() + 1)[field]
    border = (field != np.roll(field, 1, 0)) | (field != np.roll(field, 1, 1))
    hedged = rng.random(field.max() + 1) < 0.35
    kind[border & hedged[field]] = HEDGE
    kind[_blobs(rng, size, 48, forest)] = FOREST
    town = _blobs(rng, size, 64, built)
    kind[town] = BUILT
    kind[_blobs(rng, size, 56, water) | _lines(rng, size, int(rng.integers(0, 2)), (4, 10), 0.25)] = WATER
    kind[_lines(rng, size, int(rng.integers(1, 5)), (1, 4), 0.06)] = ROAD
    crowns = np.where((kind == FOREST) | (kind == HEDGE), smooth_noise(rng, size, 3), 0).astype(np.float32)
    trees = np.where(kind == FOREST, 0.25, 0).astype(np.float32)
    roofs = _roofs(rng, size, town & (kind == BUILT))
    kind[roofs > 0] = ROOF
    relief = smooth_noise(rng, size, 40) + 0.4 * smooth_noise(rng, size, 16)
    return Ground(kind, field, np.maximum(trees, roofs), relief, crowns)


def _fields(rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbered Voronoi polygons of jittered seeds on a turned and stretched grid, (size, size) int."""
    spacing, stretch, angle = rng.uniform(14, 30), rng.uniform(1, 2), rng.uniform(0, np.pi)
    canvas = int(size * 1.5)
    n = int(canvas / spacing) + 1
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2)
    seeds = ((grid + rng.uniform(0, 1, grid.shape)) * spacing).astype(int)
    x, y = seeds[(seeds < canvas).all(axis=1)].T
    away = np.ones((canvas, canvas), np.uint8)
    away[y, x] = 0
    _, label = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    linear = np.array([[np.cos(angle) / stretch, -np.sin(angle)], [np.sin(angle) / stretch, np.cos(angle)]])
    to_canvas = np.column_stack([linear, canvas / 2 - linear @ [size / 2, size / 2]])
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    label = label.astype(np.uint16)  # warpAffine knows no 32-bit integers
    return cv2.warpAffine(label, to_canvas, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE).astype(int)


def _blobs(rng: np.random.Generator, size: int, cell: int, share: float) -> np.ndarray:
    """Rounded regions that cover about `share` of the plane."""
    noise = smooth_noise(rng, size, cell) + 0.25 * smooth_noise(rng, size, 9)
    return largest(noise, share * rng.uniform(0.5, 1.5))


def _lines(rng: np.random.Generator, size: int, count: int, width: tuple[int, int], bend: float) -> np.ndarray:
    """Winding lines across the plane, width in px (upper end excluded), `bend` in radians a step of size / 16."""
    mask = np.zeros((size, size), np.uint8)
    for _ in range(count):
        heading = rng.uniform(0, 2 * np.pi)
        through = rng.uniform(0.2, 0.8, 2) * size
        turns = heading + np.cumsum(rng.normal(0, bend, 40))
        path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0) * size / 16
        points = path - path[20] + through
        cv2.polylines(mask, [np.round(points * 16).astype(np.int32)], False, 1, int(rng.integers(*width)), shift=4)
    return mask > 0


def _roofs(rng: np.random.Generator, size: int, town: np.ndarray) -> np.ndarray:
    """Heights (0, 1] of rectangular buildings on a turned street grid, where the whole building stands in town."""
    height = np.zeros((size, size), np.float32)
    pitch, angle = rng.uniform(11, 17), rng.uniform(0, np.pi / 2)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    n = int(size / pitch)
    grid = np.stack(np.meshgrid(np.arange(-n, n), np.arange(-n, n)), -1).reshape(-1, 2) * pitch
    centres = grid @ axes + size / 2 + rng.uniform(-1, 1, (len(grid), 2))
    halves = rng.uniform(2, pitch / 2 - 1.5, (len(grid), 1, 2))
    corners = (halves * [[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ axes + centres[:, None]
    pixel = np.round(centres).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(axis=1)
    inside[inside] = town[pixel[inside, 1], pixel[inside, 0]]
    tops = rng.uniform(0.2, 1, len(grid))
    for i in np.flatnonzero(inside & (rng.random(len(grid)) < 0.85)):
        cv2.fillConvexPoly(height, np.round(corners[i] * 16).astype(np.int32), float(tops[i]), shift=4)
    return height * town
