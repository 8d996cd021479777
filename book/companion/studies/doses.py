"""Artificial speckle and haze on real pairs in given doses, and an index of real haze."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.data.crops import haze, speckle
from sarmatch.data.pairs import Pair, Pairs
from sarmatch.data.raster import RED_GREEN_BLUE

Kind = Literal["speckle", "haze"]
AUGMENTATION_DOSES: Mapping[str, tuple[float, ...]] = {
    "speckle": (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    "haze": (0.0, 0.2, 0.4, 0.6, 0.8),
}
"""1 / looks of the speckle, and the largest opacity of the haze; 0 leaves the image as it is."""


def check_doses(kind: str, doses: Sequence[float]) -> None:
    """Raises ValueError for a kind without artificial doses, none of them, or some out of [0, 1]."""
    if kind not in AUGMENTATION_DOSES:
        raise ValueError(f"kind must be one of {sorted(AUGMENTATION_DOSES)}, got {kind!r}")
    if not doses or not all(0 <= dose <= 1 for dose in doses):
        raise ValueError(f"doses of {kind} must lie in [0, 1] (speckle: 1 / looks), got {list(doses)}")


def with_dose(pair: Pair, kind: Kind, dose: float, rng: np.random.Generator) -> Pair:
    """The pair under speckle (dose 1 / looks) on its SAR or haze (largest opacity) on its optical image."""
    if kind == "haze":
        return dataclasses.replace(pair, optical=haze(pair.optical, dose, rng).clamp(0, 1))
    return dataclasses.replace(pair, sar=speckle(pair.sar, 1 / dose, rng).clamp(0, 1)) if dose else pair


def dosed_pairs(pairs: Pairs, kind: Kind, dose: float, seed: int = 0) -> Pairs:
    """The same pairs `with_dose`, on top of the image's own; ValueError as `check_doses`.

    Args:
        seed: with the id of a pair it determines the noise.
    """
    check_doses(kind, [dose])
    if dose == 0:
        return pairs

    def read(row: pd.Series) -> Pair:
        pair = pairs.read(row)
        return with_dose(pair, kind, dose, np.random.default_rng([seed, zlib.crc32(f"{kind}/{pair.id}".encode())]))

    return Pairs(pairs.index.assign(partner=changed(pairs, f"{kind} {dose:g}, seed {seed}")), read)


def changed(pairs: Pairs, how: str) -> pd.Series | str:
    """The `partner` of pairs that were changed, after what was changed before."""
    return pairs.index["partner"] + ", " + how if "partner" in pairs.index else how


def haze_index(optical: Tensor, valid: Tensor | None = None) -> float:
    """Mean over valid pixels of the dark channel (He et al. 2011): the least of red, green and blue within 15 px.

    Snow, clouds and bright ground raise it like haze: compare within one season and land cover. NaN without pixels.
    """
    least = (optical if len(optical) == 3 else optical[list(RED_GREEN_BLUE)]).amin(0)
    valid = torch.ones_like(least, dtype=torch.bool) if valid is None else valid
    least = least.masked_fill(~valid, 1.0)  # no data is not dark
    dark = -F.max_pool2d(-least[None, None], 15, 1, 7)[0, 0]
    return float(dark[valid].mean())
