"""Template matching on oriented-gradient channels: the strongest method for co-oriented pairs without any learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sarmatch.geometry import cell_centres
from sarmatch.gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, oriented_gradients, parabola_peak, shift_scores
from sarmatch.matches import Matches

STRIDE = 4
"""Spacing of the keypoints, px; the same grid as our matcher's."""
_PIXEL_STEP = 2  # channels are smoothed over more than 2 px: every second SAR pixel says the same at a quarter the cost
_UNKNOWN_RADIUS = 32  # px searched around the shift of the whole image where no radius is given
_PEAK_HALF_WIDTH = 4  # px around a maximum that belong to its peak
_STRIP_ENTRIES = 30_000_000  # score volume held at a time


@dataclass(frozen=True)
class TemplateMatcher:
    """Templates around a grid of SAR keypoints, searched in the optical image.

    The features are those of CFOG (Ye et al. 2019), the score of a displacement is the mean product of features over
    the template. Scores of all keypoints are computed together, one displacement at a time, as a box filter over the
    product of the two images.

    Attributes:
        template_px: side of the square template; rounded to an odd number of cells of 4 px.
        mutual: keep a match only where no other template fits its place in the optical image better.
        min_template: a displacement counts where at least this share of the template lies on the optical image.
    """

    template_px: int = 65
    mutual: bool = True
    min_template: float = 0.5

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """One match for each keypoint of the stride-4 grid, unless `mutual` drops it.

        Args:
            sar, optical: (C, H, W) and (C', H', W') float in [0, 1].
            search_radius: px; None takes 32 px around the shift at which the images as a whole correlate best, and so
                assumes that they differ by a shift.

        Returns:
            matches with sub-pixel positions; confidence is how far the best score stands above the best one elsewhere,
            as a share of it, and not a probability.
        """
        a, b = oriented_gradients(sar, SAR_SIGMA_PX), oriented_gradients(optical, OPTICAL_SIGMA_PX)
        offset = (0, 0) if search_radius is not None else _whole_image_shift(a, b)
        reach = float(_UNKNOWN_RADIUS if search_radius is None else search_radius)
        window, on_image = _window(b, tuple(a.shape[1:]), offset, math.ceil(reach))
        search = _Search(self, a, window, on_image, reach)
        displacement, confidence, keep = search.run()
        cells = cell_centres(*keep.shape, STRIDE).numpy()
        xy_optical = cells + displacement + np.array(offset)
        height, width = optical.shape[1:]
        keep &= ((xy_optical >= -0.5) & (xy_optical <= (width - 0.5, height - 0.5))).all(axis=-1)
        return Matches(cells[keep], xy_optical[keep], confidence[keep])


def _whole_image_shift(a: Tensor, b: Tensor) -> tuple[int, int]:
    """Shift (dx, dy) in whole px with the highest mean product of features."""
    max_shift = max(*a.shape[1:], *b.shape[1:]) - 1
    scores = shift_scores(a, b, max_shift)
    row, column = np.unravel_index(np.argmax(scores), scores.shape)
    return int(column) - max_shift, int(row) - max_shift
