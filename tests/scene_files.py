"""Small generated scenes on disk, whose two images show one texture, so that a network without weights matches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio import Affine

UTM = "EPSG:32631"
TRANSFORM = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise in [1, 255], (height, width) float32."""
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 45 * smooth / smooth.std(), 1, 255)


def write(path: Path, values: np.ndarray, crs: Any = UTM, transform: Any = TRANSFORM, **options: Any) -> Path:
    """A GeoTIFF (or another format by `driver`) of values (C, H, W) or (H, W)."""
    values = values[None] if values.ndim == 2 else values
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype, "crs": crs, "transform": transform} | options
    profile = {name: value for name, value in profile.items() if value is not None}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
    return path


def write_pair(folder: Path, size: tuple[int, int] = (200, 200), shift: tuple[int, int] = (0, 0)) -> tuple[Path, Path]:
    """SAR and optical image of one texture; the optical one shows at p + shift what SAR shows at p. 8 bits, UTM."""
    height, width = size
    margin = 80
    ground = texture(height + 2 * margin, width + 2 * margin)
    x, y = margin - shift[0], margin - shift[1]
    sar = ground[margin : margin + height, margin : margin + width].astype(np.uint8)
    optical = ground[y : y + height, x : x + width].astype(np.uint8)
    return write(folder / "sar.tif", sar), write(folder / "optical.tif", np.stack([optical] * 3))
