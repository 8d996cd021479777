"""Write a seeded miniature of SEN12MS in its real form: folders, names, UTM GeoTIFF, types, bands and value ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.crs import CRS

from sarmatch.data.synthetic import Nuisance, render_pair
from sarmatch.data.units import SAR_RANGES_DB

SCENES = (("ROIs1158_spring", 1), ("ROIs1158_spring", 8), ("ROIs1868_summer", 3), ("ROIs1868_summer", 5))
IGBP = (12, 1, 13, 17)
"""Dominant class of the scenes in turn: croplands, evergreen forest, urban, water."""
SIZE = 256


def write_sen12ms(
    root: Path, scenes: tuple[tuple[str, int], ...] = SCENES, patches: int = 2, seed: int = 0, layers: str = "s1 s2 lc"
) -> Path:
    """Write `patches` triplets of each scene, neighbours half overlapping as in the original; returns `root`.

    The images are of synthetic pairs, so that a network can learn from them.
    """
    for number, (roi, scene) in enumerate(scenes):
        for patch in range(patches):
            arrays = make_patch(seed * 1000 + number * 100 + patch, IGBP[number % len(IGBP)])
            x = 300_000 + 10 * SIZE * 4 * number + 10 * SIZE / 2 * patch
            for layer in layers.split():
                name = f"{roi}_{layer}_{scene}_p{30 + patch}.tif"
                write_tif(
                    Path(root) / roi / f"{layer}_{scene}" / name, arrays[layer], Affine(10, 0, x, 0, -10, 5_400_000)
                )
    return Path(root)


def make_patch(seed: int, igbp: int) -> dict[str, np.ndarray]:
    """One triplet as arrays: s1 (2, 256, 256) dB, s2 (13, 256, 256) reflectance x 10,000, lc (4, 256, 256)."""
    pair = render_pair(seed, SIZE, Nuisance(looks=4))
    rng = np.random.default_rng(seed)
    low, high = SAR_RANGES_DB[0]
    vv = pair.sar[0].numpy() * (high - low) + low
    s1 = np.stack([vv, vv - 7 + rng.normal(0, 1, vv.shape)]).astype(np.float32)
    red, green, blue = (pair.optical.numpy() * 4000).astype(np.uint16)
    s2 = np.stack([blue, blue, green, red] + [green // 2 + red // 2] * 9).astype(np.uint16)
    lc = np.full((4, SIZE, SIZE), igbp, np.uint8)
    lc[0, : SIZE // 3] = 10  # a third of grassland
    return {"s1": s1, "s2": s2, "lc": lc}


def write_tif(
    path: Path, values: np.ndarray, transform: Affine | None = None, crs: str = "EPSG:32632", **options: object
) -> Path:
    """Write (C, H, W) as an uncompressed GeoTIFF, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    transform = Affine(10, 0, 300_000, 0, -10, 5_400_000) if transform is None else transform
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", transform=transform, crs=CRS.from_string(crs), **profile, **options) as dataset:
        dataset.write(values)
    return path
