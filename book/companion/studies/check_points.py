"""Check points: how far a pair is off from place to place, told twice, and neither time by a network.

Photogrammetry judges a map at points that did not make it. Here no surveyed points exist. Two similarities that share
little, oriented gradients and the mutual information of grey values, each give the shift of a block; where they agree,
what they say is taken for the truth there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from companion.baselines.mutual_information import equal_bins, mutual_information
from companion.studies.groundtruth import ResidualShift, peak_shift, residual_shift, windows
from sarmatch.data.pairs import Pair
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, gaussian_blur

BLOCK_PX = 256
PER_AXIS = 5
MAX_SHIFT_PX = 16
AGREE_PX = 2.0
"""Two estimates drawn at random within the largest shift agree to this in one of 87 cases."""
BINS = 16


@dataclass(frozen=True)
class CheckPoints:
    """Places of a SAR image and where they lie in the optical one.

    Attributes:
        xy_sar, xy_optical: (n, 2) px.
        n_blocks: that were asked.
    """

    xy_sar: np.ndarray
    xy_optical: np.ndarray
    n_blocks: int

    def nearest(self, corners: np.ndarray) -> np.ndarray:
        """For each of some places (k, 2), which check point lies nearest, (k,); none where there are no points."""
        if not len(self.xy_sar):
            return np.empty(0, int)
        return np.linalg.norm(corners[:, None] - self.xy_sar[None], axis=-1).argmin(axis=1)


def check_points(pair: Pair) -> CheckPoints:
    """Blocks of `BLOCK_PX`, `PER_AXIS` along each axis and overlapping, whose two estimates agree within `AGREE_PX`.

    The shift of a check point is the mean of both. Blocks whose gradients do not stand out are left out too.
    """
    side = min(BLOCK_PX, *pair.size)
    blocks = list(windows(pair, (side, side), PER_AXIS))
    centres, shifts = [], []
    for centre, part in blocks:
        first, second = residual_shift(part, MAX_SHIFT_PX), information_shift(part.sar, part.optical, MAX_SHIFT_PX)
        apart = np.hypot(first.dx - second.dx, first.dy - second.dy)
        if first.reliable and apart <= AGREE_PX:
            centres.append(centre)
            shifts.append(((first.dx + second.dx) / 2, (first.dy + second.dy) / 2))
    source = np.array(centres, np.float64).reshape(-1, 2)
    return CheckPoints(source, source + np.array(shifts, np.float64).reshape(-1, 2), len(blocks))


def information_shift(sar: Tensor, optical: Tensor, max_shift: int) -> ResidualShift:
    """The shift of a whole pair by which the mutual information of smoothed grey values is largest.

    Args:
        sar, optical: (C, H, W) and (C', H, W) in [0, 1]; the first SAR band and the mean over optical bands count.
        max_shift: along each axis, px; the SAR image is compared less a margin of so much.

    Raises:
        ValueError: images too small for such a margin.
    """
    height, width = sar.shape[1:]
    inner = (height - 2 * max_shift, width - 2 * max_shift)
    if min(inner) < 2 * max_shift:
        raise ValueError(
            f"images must be at least {4 * max_shift} px for shifts of {max_shift} px, got {height} x {width}"
        )
    first = equal_bins(gaussian_blur(sar[:1], SAR_SIGMA_PX), BINS)[0].numpy().astype(np.int64)
    second = equal_bins(gaussian_blur(optical.mean(dim=0, keepdim=True), OPTICAL_SIGMA_PX), BINS)[0]
    other = second.numpy().astype(np.int64)
    own = first[max_shift : max_shift + inner[0], max_shift : max_shift + inner[1]] * BINS
    steps = 2 * max_shift + 1
    counts = np.empty((steps, steps, BINS**2), np.float32)
    for dy, dx in np.ndindex(steps, steps):
        joint = own + other[dy : dy + inner[0], dx : dx + inner[1]]
        counts[dy, dx] = np.bincount(joint.ravel(), minlength=BINS**2)
    return peak_shift(mutual_information(counts).astype(np.float64), max_shift)
