"""A co-registered SAR-optical pair, and a sequence of such pairs with an index table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

INDEX_COLUMNS = ("id", "dataset", "scene", "season", "land_cover")
"""Columns every index table has; unknown values are empty strings."""


SPLIT_COLUMN = "split"
"""Column of the parts that a manifest's author chose, `train`, `validation` or `test`; other tables lack it."""


class PairError(ValueError):
    """A file or array that cannot serve as a pair."""


class AbsentDatasetError(PairError):
    """A folder has no pair of a dataset that was asked for."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One co-registered pair: pixel (x, y) of both images shows the same place; unknown labels are empty."""

    sar: Tensor  # (1 or 2, H, W) float32 in [0, 1]; VV, or VV and VH
    optical: Tensor  # (3 or 13, H, W) float32 in [0, 1]
    valid: Tensor  # (H, W) bool; False where either image has no data
    id: str  # unique within its sequence
    dataset: str = ""
    scene: str = ""
    season: str = ""
    land_cover: str = ""
    transform: Any = None  # rasterio's affine from pixel corners to map coordinates
    crs: str | None = None  # as rasterio prints it

    def __post_init__(self) -> None:
        _check_image(self.sar, (1, 2), f"SAR image of {self.id!r}")
        _check_image(self.optical, (3, 13), f"optical image of {self.id!r}")
        sizes = {tuple(self.sar.shape[-2:]), tuple(self.optical.shape[-2:]), tuple(self.valid.shape)}
        if len(sizes) != 1:
            raise PairError(
                f"pair {self.id!r}: SAR {tuple(self.sar.shape)}, optical {tuple(self.optical.shape)} and valid "
                f"{tuple(self.valid.shape)} differ in height or width; resample them to one grid first"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.sar.shape[-2], self.sar.shape[-1]


def _check_image(image: Tensor, channels: tuple[int, ...], what: str) -> None:
    if image.dtype != torch.float32 or image.ndim != 3 or image.shape[0] not in channels:
        raise PairError(
            f"{what}: expected float32 of shape ({' or '.join(map(str, channels))}, H, W), "
            f"got {image.dtype} {tuple(image.shape)}"
        )
    low, high = (float(v) for v in torch.aminmax(image))  # one pass; NaN propagates into both
    if not (low >= 0 and high <= 1):
        raise PairError(
            f"{what}: values must lie in [0, 1], got [{low:.3g}, {high:.3g}]; scale them, and fill NaN or infinity"
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """A sequence of pairs that are read when asked for."""

    index: pd.DataFrame  # one row a pair, at least `INDEX_COLUMNS`; further columns are the reader's own
    read: Callable[[pd.Series], Pair]  # of a row of `index`
    read_later: Callable[[pd.Series], Tensor | None] = field(default=lambda row: None)  # a later SAR image, or None
    problems: tuple[str, ...] = ()  # files that were left out when the index was built, each with its reason

    def __post_init__(self) -> None:
        if missing := set(INDEX_COLUMNS) - set(self.index.columns):
            raise PairError(f"index table lacks the columns {sorted(missing)}; it has {list(self.index.columns)}")
        if not self.index["id"].is_unique:
            twice = self.index["id"][self.index["id"].duplicated()].iloc[0]
            raise PairError(f"id {twice!r} stands more than once in the index; ids must be unique")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Pair:
        return self.read(self.index.iloc[i])

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def later_sar(self, i: int) -> Tensor | None:
        """A later SAR image of the same place, (C, H, W) in [0, 1], or None where the dataset has none."""
        return self.read_later(self.index.iloc[i])

    def subset(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs at these positions; a boolean mask works too."""
        index = self.index.iloc[np.asarray(rows)].reset_index(drop=True)
        return Pairs(index, self.read, self.read_later, self.problems)

    def digest(self) -> str:
        """Twelve hex digits of the fingerprint and of the content of the first, the middle and the last pair."""
        found = hashlib.sha256(self.fingerprint().encode())
        for i in sorted({0, len(self) // 2, len(self) - 1} if len(self) else set()):
            pair = self[i]
            for values in (pair.sar, pair.optical, pair.valid):
                found.update(f"{tuple(values.shape)}".encode() + values.contiguous().numpy().tobytes())
        return found.hexdigest()[:12]

    def fingerprint(self) -> str:
        """Eight hex digits of the index's ids and labels; a column `partner`, of mismatched pairs, counts too."""
        columns = [*INDEX_COLUMNS, *self.index.columns.intersection(["partner"])]
        text = self.index[columns].astype(str).to_csv(index=False)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
