"""What all baselines share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from companion.baselines import Baseline
from sarmatch.data.crops import EvaluationCrops
from sarmatch.matching.matches import Matches


class Diagonal(Baseline):
    """Matches (i, i) with (i + 1, i) for i = 0 to 7; keeps the search radius it was asked for."""

    asked: float | None = -1.0

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        self.asked = search_radius
        i = np.arange(8.0)
        return Matches(np.stack([i, i], 1), np.stack([i + 1, i], 1), np.ones(8))


def crops(sar_valid: Tensor, optical_valid: Tensor) -> EvaluationCrops:
    image = torch.rand(1, 8, 9)
    return EvaluationCrops(image, image.expand(3, -1, -1), sar_valid, optical_valid, torch.eye(3))


def test_crops_are_matched_and_places_without_data_left_out() -> None:
    sar_valid, optical_valid = torch.ones(8, 9, dtype=torch.bool), torch.ones(8, 9, dtype=torch.bool)
    baseline = Diagonal()
    assert len(baseline.match_crops(crops(sar_valid, optical_valid), 32.0)) == 8
    assert baseline.asked == 32.0
    sar_valid[2, 2] = False
    optical_valid[5, 6] = False
    optical_valid[3, 3] = False  # no match ends here
    matches = baseline.match_crops(crops(sar_valid, optical_valid), None)
    assert matches.xy_sar[:, 0].tolist() == [0, 1, 3, 4, 6, 7]
    assert baseline.asked is None
