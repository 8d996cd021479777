"""What every baseline is: an object that matches two images, and so also the crops of an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sarmatch.matching.matches import Matches

if TYPE_CHECKING:
    from sarmatch.data.crops import EvaluationCrops


class Baseline(ABC):
    """A method to compare with, which `sarmatch.evaluate` takes as it takes our matcher."""

    @abstractmethod
    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Match a SAR image (1 or 2, H, W) and an optical image (C, H', W'), float in [0, 1].

        The search radius is the largest distance in px between both positions of a match; None where it is not known.
        """

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        """Match the crops of an evaluation protocol; matches that lie on pixels without data are left out."""
        matches = self.match(crops.sar, crops.optical, search_radius)
        on_data = np.ones(len(matches), dtype=bool)
        for xy, valid in ((matches.xy_sar, crops.sar_valid), (matches.xy_optical, crops.optical_valid)):
            column, row = np.clip(np.rint(xy).astype(int), 0, np.array(valid.shape[::-1]) - 1).T
            on_data &= valid.cpu().numpy()[row, column]
        return matches.select(on_data)


def as_matches(xy_sar: Tensor, xy_optical: Tensor, confidence: Tensor) -> Matches:
    return Matches(xy_sar.cpu().numpy(), xy_optical.cpu().numpy(), confidence.cpu().numpy())


def on_image(xy: np.ndarray, image: Tensor) -> np.ndarray:
    """Whether positions (..., 2) lie on the pixels of an image (C, H, W), (...) bool."""
    highest = np.array([image.shape[-1], image.shape[-2]]) - 0.5
    return np.all((xy >= -0.5) & (xy <= highest), axis=-1)


def mutual_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a row and a column (n,) each that score best for each other, of (N, M)."""
    best = scores.argmax(dim=1)
    rows = (scores.argmax(dim=0)[best] == torch.arange(len(best), device=best.device)).nonzero()[:, 0]
    return rows, best[rows]


def ratio_matches(distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (n,) nearest to each other in (N, M >= 2), and their distance over the row's second smallest."""
    rows, columns = mutual_best(-distance)
    known = distance[rows, columns].isfinite()
    rows, columns = rows[known], columns[known]
    best, second = distance[rows].topk(2, dim=1, largest=False).values.T  # a single candidate's ratio is 0
    return rows, columns, best / second.clamp(min=1e-12)
