"""Procedural SAR-optical pairs: two renderings of one scene of fields, forest, water, roads, buildings and relief.

They share geometry but not radiometry. All follows from the seed. Pixel (x, y) of both images shows the same ground
point, unless SAR layover moved it (`Rendering.displacement`), as in terrain-corrected Sentinel-1.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sarmatch.data import synthetic_scene as kinds
from sarmatch.data.pairs import Pair, Pairs
from sarmatch.data.synthetic_scene import Ground, Style, draw_ground, draw_style, largest, smooth_noise
from sarmatch.data.units import SAR_RANGES_DB

MARGIN = 12  # border rendered around the image, px, so that layover and shadows can come from outside


@dataclass(frozen=True)
class Nuisance:
    """What makes a pair hard; zero switches an effect off."""

    looks: float = 4.0  # equivalent number of looks of the speckle (single look 1, none: infinity)
    layover_px: float = 2.0  # displacement of the highest roofs towards the sensor, px, at most 8
    double_bounce: float = 1.0  # echo of walls that face the sensor; 1 gives the highest 4 dB in VV
    relief: float = 0.5  # strength of the terrain, 0 to 1: slopes in SAR, optical shading, some displacement
    haze: float = 0.1  # mean opacity, 0 to 1
    cloud: float = 0.0  # share of the optical image, 0 to 1
    shadow: float = 0.45  # depth of the shadows of buildings and trees, 0 to 1
    illumination: float = 0.1  # half amplitude of a linear gradient of optical brightness, 0 to 1
    snow: float = 0.0  # share of the land in the optical image, 0 to 1; SAR penetrates dry snow

    def __post_init__(self) -> None:
        if not self.looks > 0:
            raise ValueError(f"looks must be positive, got {self.looks}")
        most = {"layover_px": 8.0, "double_bounce": math.inf}
        for name, value in dataclasses.asdict(self).items():
            if name != "looks" and not 0 <= value <= most.get(name, 1.0):
                raise ValueError(f"{name} must lie in [0, {most.get(name, 1.0):g}], got {value}")


class Rendering(NamedTuple):
    """A pair and the causes of its difficulty, each map (H, W), on the grid of the image it concerns."""

    pair: Pair
    land_cover: np.ndarray  # index into `synthetic_scene.CLASSES`, uint8
    relief: np.ndarray  # height of the terrain, zero mean and unit variance, whatever `Nuisance.relief`
    displacement: np.ndarray  # of the ground point in SAR, px along x, towards the sensor
    layover: np.ndarray  # ground shown by a SAR pixel: 1 unmoved, more in layover, 0 in radar shadow
    double_bounce: np.ndarray  # share of the backscatter from walls, in [0, 1] (first band)
    speckle: np.ndarray  # factor on the SAR power (first band); mean 1, variance 1 / looks
    haze: np.ndarray  # opacity of haze and cloud in [0, 1]
    cloud: np.ndarray  # opacity of clouds alone in [0, 1]
    snow: np.ndarray  # cover in [0, 1]
    shading: np.ndarray  # factor of relief shading and cast shadows on the optical brightness
    illumination: np.ndarray  # factor of the gradient across the optical image


def synthetic_pairs(
    n: int, size: int, seed: int, sar_bands: Sequence[int] = (0,), nuisance: Nuisance | None = None
) -> Pairs:
    """`n` generated pairs of `size` px in n/4 scenes, rendered when read; the last 512 are shared: never write to them.

    Args:
        sar_bands: (0,) for VV or (0, 1) for VV and VH.
        nuisance: the same for all pairs; None draws it for each pair (columns of the index).
    """
    if n < 1 or size < 32:
        raise ValueError(f"n must be at least 1 and size at least 32 px, got {n} and {size}")
    rng = np.random.default_rng([seed, 0])
    rows = []
    for i in range(n):
        scene_seed = _scene_seed(seed, i // 4)
        style = draw_style(scene_seed)
        row: dict[str, Any] = {"id": f"synthetic_{seed}_{i}", "dataset": "synthetic", "scene": f"synthetic/{i // 4}"}
        row |= {"season": style.season, "land_cover": style.land_cover}
        row |= {"seed": _scene_seed(seed, 10**6 + i), "scene_seed": scene_seed}
        rows.append(row | dataclasses.asdict(nuisance or _draw_nuisance(rng, style.season)))
    form: dict[str, Any] = {"size": size, "sar_bands": tuple(sar_bands)}
    return Pairs(pd.DataFrame(rows), partial(_render_row, **form), partial(_render_later, **form))


def render_pair(seed: int, size: int, nuisance: Nuisance = Nuisance()) -> Pair:
    """One VV-RGB pair; `render` without the maps."""
    return render(seed, size, nuisance).pair


def render(
    seed: int,
    size: int,
    nuisance: Nuisance = Nuisance(),
    *,
    scene_seed: int | None = None,
    sar_bands: Sequence[int] = (0,),
    acquisition: int = 0,
    id: str = "",
) -> Rendering:
    """Render one pair of `size` px (at least 32) with the maps of its nuisances.

    Args:
        scene_seed: of season, land cover, colours and backscatter, as `seed` of geometry and noise; default `seed`.
        acquisition: of SAR; each has speckle and moisture of its own.
    """
    scene_seed = seed if scene_seed is None else scene_seed
    style = draw_style(scene_seed)
    ground = draw_ground(np.random.default_rng([seed, 1]), size + 2 * MARGIN, style)
    sar, sar_maps = _sar(np.random.default_rng([seed, 2, acquisition]), ground, style, nuisance, sar_bands)
    optical, optical_maps = _optical(np.random.default_rng([seed, 3]), ground, style, nuisance)
    maps = sar_maps | optical_maps | {"land_cover": ground.kind.astype(np.uint8), "relief": ground.relief}
    inner = slice(MARGIN, MARGIN + size)
    pair = Pair(
        torch.from_numpy(np.ascontiguousarray(sar[:, inner, inner])),
        torch.from_numpy(np.ascontiguousarray(optical[inner, inner].transpose(2, 0, 1))),
        torch.ones(size, size, dtype=torch.bool),
        id=id or f"synthetic_{seed}",
        dataset="synthetic",
        scene=f"synthetic/{scene_seed}",
        season=style.season,
        land_cover=style.land_cover,
    )
    return Rendering(pair, **{name: layer[inner, inner].copy() for name, layer in maps.items()})


def _scene_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _draw_nuisance(rng: np.random.Generator, season: str) -> Nuisance:
    return Nuisance(
        looks=float(np.exp(rng.uniform(0, np.log(16)))),
        layover_px=float(rng.uniform(0, 4)),
        relief=float(rng.uniform(0, 1)),
        haze=float(rng.beta(1, 6)),
        cloud=float(rng.uniform(0, 0.15) * (rng.random() < 0.15)),
        illumination=float(rng.uniform(0, 0.25)),
        snow=float(rng.uniform(0.1, 0.7) * (season == "winter" and rng.random() < 0.5)),
    )


def _render_row(row: pd.Series, **form: Any) -> Pair:
    nuisance = Nuisance(**{field.name: float(row[field.name]) for field in dataclasses.fields(Nuisance)})
    seeds = {"seed": int(row["seed"]), "scene_seed": int(row["scene_seed"])}
    return dataclasses.replace(_rendered(nuisance=nuisance, id=row["id"], **seeds, **form), scene=row["scene"])


def _render_later(row: pd.Series, **form: Any) -> Tensor:
    return _render_row(row, acquisition=1, **form).sar


@lru_cache(maxsize=512)  # the short trainings of a study read the same few pairs again and again
def _rendered(**arguments: Any) -> Pair:
    return render(**arguments).pair


def _sar(
    rng: np.random.Generator, ground: Ground, style: Style, nuisance: Nuisance, bands: Sequence[int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Class backscatter, projected by height and speckled, in clipped dB: (bands, S, S) in [0, 1]; and its maps."""
    displacement = -style.look * (nuisance.layover_px * ground.height + 0.5 * nuisance.relief * ground.relief)
    field = rng.normal(0, 0.8, ground.field.max() + 1).astype(np.float32)[ground.field]
    moisture = 0.9 * smooth_noise(rng, len(field), 32)
    slope = np.gradient(ground.relief, axis=1).astype(np.float32) * style.look
    db = field + moisture + 12 * nuisance.relief * slope + 1.5 * ground.crowns  # in SAR only, but for the crowns
    rise = ground.height - np.roll(ground.height, style.look, axis=1)
    wall = nuisance.double_bounce * np.where(ground.kind == kinds.ROOF, rise.clip(0), 0)
    channels, shares, gains = [], [], []
    for band in bands:
        sigma: np.ndarray = _project(10 ** ((style.backscatter[band][ground.kind] + db) / 10), displacement)
        echo = wall * (2.5, 0.5)[band]  # not projected: the way over wall and ground is as long as that to the foot
        shares.append(echo / (sigma + echo + 1e-12))
        sigma = cv2.GaussianBlur(sigma + echo, (0, 0), 0.6)
        looks = np.float32(nuisance.looks)
        speckled = np.isfinite(looks)  # infinitely many looks have none
        gains.append(rng.standard_gamma(looks, sigma.shape, np.float32) / looks if speckled else np.ones_like(sigma))
        low, high = SAR_RANGES_DB[band]
        channels.append(((10 * np.log10(sigma * gains[-1] + 1e-4) - low) / (high - low)).clip(0, 1))
    maps = {"layover": _project(np.ones_like(ground.height), displacement), "displacement": displacement}
    return np.stack(channels).astype(np.float32), maps | {"double_bounce": shares[0], "speckle": gains[0]}


def _project(sigma: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Move each ground point's energy along x by its displacement; what falls together adds up, gaps stay dark."""
    height, width = sigma.shape
    x = np.clip(np.arange(width) + displacement, 0, width - 1.001)
    left = np.floor(x).astype(int)
    share = x - left
    cell = np.arange(height)[:, None] * width + left
    energy = np.bincount(cell.ravel(), (sigma * (1 - share)).ravel(), sigma.size)
    energy[1:] += np.bincount(cell.ravel(), (sigma * share).ravel(), sigma.size)[:-1]
    return energy.reshape(sigma.shape).astype(np.float32)


def _optical(
    rng: np.random.Generator, ground: Ground, style: Style, nuisance: Nuisance
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Colour image (S, S, 3) float32 in [0, 1], and its maps."""
    size = len(ground.kind)
    of_field = rng.normal(0, 0.025, (ground.field.max() + 1, 3)).astype(np.float32)  # in the optical image only
    roof = np.where(ground.kind == kinds.ROOF, np.sin(97 * ground.height), np.float32(0))  # a tone for each building
    tone = 0.12 * roof - 0.035 * ground.crowns + 0.02 * smooth_noise(rng, size, 24) + 0.012 * smooth_noise(rng, size, 2)
    image: np.ndarray = style.colours.take(ground.kind, axis=0) + tone[..., None]
    strength = np.where(ground.kind < kinds.HEDGE, np.float32(1), np.float32(0.3))[..., None]
    image += of_field.take(ground.field, axis=0) * strength

    snow_line = smooth_noise(rng, size, 20) + 0.7 * ground.relief
    cover = np.where(ground.kind == kinds.FOREST, 0.4, ground.kind != kinds.WATER).astype(np.float32)
    snow = largest(snow_line, nuisance.snow) * cover
    image += snow[..., None] * (0.88 - image)

    gradient = np.gradient(ground.relief)
    shade: np.ndarray = 1 - 2.5 * nuisance.relief * (style.sun[0] * gradient[1] + style.sun[1] * gradient[0])
    cast = np.round(-2.0 * style.sun).astype(int)  # shadows of roofs fall away from the sun
    shade *= 1 - nuisance.shadow * (np.roll(ground.height, cast[::-1], (0, 1)) > ground.height + 0.15)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    across = rng.uniform(0, 2 * np.pi)
    light = 1 + nuisance.illumination * (math.cos(across) * ramp[None] + math.sin(across) * ramp[:, None])
    image *= (shade * light).astype(np.float32)[..., None].clip(0.2, 1.8)

    cloud = largest(smooth_noise(rng, size, 40) + 0.3 * smooth_noise(rng, size, 10), nuisance.cloud)
    soft_cloud = cv2.GaussianBlur(cloud.astype(np.float32), (0, 0), 2)
    haze = nuisance.haze * (1 + 0.5 * smooth_noise(rng, size, 48))
    opacity = np.maximum(soft_cloud, haze.clip(0, 0.95))
    image += opacity[..., None] * (0.8 - image)
    grain = 0.01 * rng.standard_normal(image.shape, dtype=np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 0.6) + grain
    maps = {"haze": opacity, "cloud": soft_cloud, "snow": snow, "shading": shade, "illumination": light}
    return image.clip(0, 1), maps
