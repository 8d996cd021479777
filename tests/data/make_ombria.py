"""Write a seeded miniature of OMBRIA in its own layout: its folders and names, 8-bit PNG of 256 px."""

from __future__ import annotations

from pathlib import Path

import cv2
import pandas as pd
from torch import Tensor

from sarmatch.data.datasets import SCENES
from sarmatch.data.synthetic import Nuisance, render_pair

PLACES = ("seg000", "seg003", "seg008", "seg015", "seg033", "seg034", "ALBANIA", "GUYANA")
"""Scenes of `registries/ombria_scenes.csv` with at least four pairs, from training, tests and 2021."""


def write_ombria(root: Path, places: tuple[str, ...] = PLACES, pairs: int = 4, size: int = 256, seed: int = 0) -> Path:
    """Write the first `pairs` pairs of each scene, each with its later SAR image; returns `root`.

    The images are of generated pairs, so that a network can learn from them.
    """
    table = pd.read_csv(SCENES, dtype=str).query("usable == '1' and scene in @places")
    for number, row in enumerate(table.groupby("scene").head(pairs).itertuples()):
        before = render_pair(seed * 1000 + number, size, Nuisance(looks=4))
        later = render_pair(seed * 1000 + number, size, Nuisance(looks=1))
        for name, image in ((row.sar, before.sar), (row.optical, before.optical), (row.sar_later, later.sar)):
            _write(Path(root) / str(name), image)
    return Path(root)


def _write(path: Path, image: Tensor) -> None:
    """Write (1|3, H, W) in [0, 1], red first, as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.numpy().transpose(1, 2, 0)[:, :, ::-1] * 255).round().astype("uint8")
    cv2.imwrite(str(path), pixels)
