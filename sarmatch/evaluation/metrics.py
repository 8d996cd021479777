"""Metrics of matching (section 4.3 of the paper) and of registration, of one pair unless they say otherwise.

The error of a match is the distance between its optical position and the true place of its SAR position.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sarmatch.geometry import TrueMap, cell_centres, inside
from sarmatch.matching.matches import Matches
from sarmatch.matching.robust_fit import RegistrationError
from sarmatch.model import STRIDE


def match_errors(matches: Matches | tuple[np.ndarray, np.ndarray], truth: Any) -> np.ndarray:
    """Distance of each match from the truth, (N,) float64, px; arguments as `match_residuals`."""
    return np.linalg.norm(match_residuals(matches, truth), axis=-1)


def match_residuals(matches: Matches | tuple[np.ndarray, np.ndarray], truth: Any) -> np.ndarray:
    """Found less true optical position of each match, (N, 2) float64, px.

    Two (N, 2) arrays of SAR and optical positions do as well; the true map of pixel coordinates is (3, 3) or a
    `TrueMap` of one pair.
    """
    xy_sar, xy_optical = (matches.xy_sar, matches.xy_optical) if isinstance(matches, Matches) else matches
    return np.asarray(xy_optical, dtype=np.float64) - _transform(xy_sar, truth)


def mma(errors: np.ndarray, threshold: float) -> float:
    """Mean matching accuracy of the field: share of all matches within `threshold` px, in [0, 1]; 0 without matches."""
    return float(np.mean(errors <= threshold)) if len(errors) else 0.0


def maximum_mean_accuracy(errors: np.ndarray, n_ground_truth: int, threshold: float = 1.0) -> float:
    """Eq. 6 for one pair, as printed: the maximum over thresholds j of |C_j n G_j| / |G_j|, in [0, 1].

    C_j are the matches whose confidence is at least j; G_j is read as all `visible_keypoints`, for every j. Then the
    lowest j, which keeps every match, has the maximum, and the number is a recall that needs no confidence.
    """
    if n_ground_truth <= 0:
        raise ValueError(f"n_ground_truth must be positive, got {n_ground_truth}; leave out pairs that do not overlap")
    return min(float(np.sum(errors <= threshold)) / n_ground_truth, 1.0)


def visible_keypoints(truth: Any, size: tuple[int, int]) -> int:
    """|G| of eq. 6: cells of the SAR image whose centres lie on the optical image of the same (height, width)."""
    centres = cell_centres(size[0] // STRIDE, size[1] // STRIDE, STRIDE).reshape(-1, 2)
    return int(inside(torch.from_numpy(_transform(centres, truth)), size).sum())


def rmse(errors: np.ndarray) -> float:
    """Root mean square error of the matches, px (eq. 7); NaN without matches."""
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else float("nan")


def corner_error(A_estimated: Any, A_true: Any, size: tuple[int, int]) -> float:
    """Mean distance of the four corner pixels' centres of a SAR image (height, width) under two (3, 3) maps, px."""
    right, bottom = size[1] - 1, size[0] - 1
    corners = np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=np.float64)
    distances = np.linalg.norm(_transform(corners, A_estimated) - _transform(corners, A_true), axis=1)
    return float(distances.mean())


# long because it documents the columns of every table of records
def pair_record(
    matches: Matches, truth: Any, size: tuple[int, int], thresholds: Sequence[float] = (1.0, 2.0, 3.0, 5.0)
) -> dict[str, float]:
    """All metrics of one pair, the row of a table of records.

    For each threshold t of `thresholds` (1 px is written `1px`):

    - `n_correct_<t>px`: matches within t; `mma_<t>px`: as a share of all matches (0 without matches);
    - `mma_thinned_<t>px`: the same after keeping one match per 16 px.

    And once:

    - `n_matches`; `n_confident`: those of a confidence above 0.5, whose mean over pairs is aNM (eq. 9);
      `n_thinned_16px`: after keeping the most confident match per 16 px: neighbours are not independent;
    - `mma_eq6_1px`: eq. 6 with all visible grid keypoints as ground truth, a recall; see `maximum_mean_accuracy`;
    - `rmse_px`: over all matches (eq. 7); `rmse_normalised`: the same over the diagonal of the image (section 4.3.2);
      `rmse_inlier_px`: over the matches within 5 px only; `median_error_px`; all NaN without matches;
    - `corner_error_px`: of a robust affine map from all matches, inf where there is none; where the truth is deformed,
      against the affine map nearest to it.

    `truth` is the true map from SAR to optical pixels, (3, 3) or a `TrueMap`; `size` the (height, width) of both.
    """
    errors = match_errors(matches, truth)
    thinned = matches.thin(16.0)
    thinned_errors = match_errors(thinned, truth)
    record: dict[str, float] = {
        "n_matches": len(matches),
        "n_confident": len(matches.above(0.5)),
        "n_thinned_16px": len(thinned),
    }
    for t in thresholds:
        record[f"n_correct_{t:g}px"] = int((errors <= t).sum())
        record[f"mma_{t:g}px"] = mma(errors, t)
        record[f"mma_thinned_{t:g}px"] = mma(thinned_errors, t)
    try:
        affine = truth.nearest_affine(size) if isinstance(truth, TrueMap) else truth
        corner = corner_error(matches.affine().matrix, affine, size)
    except RegistrationError:
        corner = float("inf")
    return record | {
        "mma_eq6_1px": maximum_mean_accuracy(errors, visible_keypoints(truth, size), threshold=1.0),
        "rmse_px": rmse(errors),
        "rmse_normalised": rmse(errors) / float(np.hypot(*size)),
        "rmse_inlier_px": rmse(errors[errors <= 5]),
        "median_error_px": float(np.median(errors)) if len(errors) else float("nan"),
        "corner_error_px": corner,
    }


def _transform(xy: Any, affine: Any) -> np.ndarray:
    if isinstance(affine, TrueMap):
        return affine.to_optical(torch.as_tensor(np.asarray(xy, dtype=np.float64))[None])[0].numpy()
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (3, 3):
        raise ValueError(f"an affine map must be a (3, 3) matrix, got shape {matrix.shape}")
    return np.asarray(xy, dtype=np.float64) @ matrix[:2, :2].T + matrix[:2, 2]
