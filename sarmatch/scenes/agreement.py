"""Whether the matches of a pair agree on one map more than those of unrelated images do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sarmatch.matching.matches import Matches
from sarmatch.matching.robust_fit import RegistrationError, fit_affine
from sarmatch.scenes.transforms import THIN_PX, THRESHOLD_PX

MIN_INLIERS = 12
"""Fewer agreeing matches, thinned to one per 16 px, are taken for chance."""
MAX_DISTORTION = 0.2
"""A map that stretches or turns by more than this cannot be right: matching assumes that it does not."""
CONSENSUS_PX = 100.0
"""Side of the widest neighbourhood that votes together, px; nearer matches are no independent evidence."""
MIN_GROUPS = 3.0
"""With fewer neighbourhoods than this, unrelated images agree as well as related ones do."""
_ALWAYS = 0.25  # share that must agree however large the images are


@dataclass(frozen=True)
class Agreement:
    """Evidence for a pair.

    Attributes:
        n_matches: of all windows.
        n_thinned, n_agree: one per 16 px, and those of them within 3 px of one affine map.
        n_windows: windows with any matches.
        mean_confidence: of all matches; NaN without any.
        required: share of thinned matches that must agree.
        reason: why the pair is refused; empty where it is accepted.
    """

    n_matches: int
    n_thinned: int
    n_agree: int
    n_windows: int
    mean_confidence: float
    required: float
    reason: str

    @property
    def accepted(self) -> bool:
        return not self.reason

    @property
    def share(self) -> float:
        return self.n_agree / self.n_thinned if self.n_thinned else 0.0


def groups(n_thinned: int) -> float:
    """How many neighbourhoods of `CONSENSUS_PX` so many matches fill, one per 16 px."""
    return n_thinned * (THIN_PX / CONSENSUS_PX) ** 2


def required_share(n_thinned: int) -> float:
    """Least share of agreeing matches, given how many there are when thinned to one per 16 px.

    Neighbours vote, so matches move in groups of about `CONSENSUS_PX`: of a few groups most may agree by chance, which
    becomes unlikely as their number grows.
    """
    return _ALWAYS + (1 - _ALWAYS) / math.sqrt(max(groups(n_thinned), 1.0))


def judge(thinned: Matches, parts: Iterable[Matches], to: str = "sar") -> Agreement:
    """Judge a pair by its matches.

    Args:
        thinned: one per 16 px, in px of the common grid.
        parts: all of them, window by window.
        to: whose grid counts.
    """
    counts = [(len(part), float(part.confidence.sum())) for part in parts]
    n_matches = sum(n for n, _ in counts)
    n_windows = sum(n > 0 for n, _ in counts)
    confidence = sum(total for _, total in counts) / n_matches if n_matches else math.nan
    required, n_agree, distortion = required_share(len(thinned)), 0, 0.0
    ends = (thinned.xy_sar, thinned.xy_optical) if to == "sar" else (thinned.xy_optical, thinned.xy_sar)
    try:
        fit = fit_affine(*ends, threshold_px=THRESHOLD_PX, min_inliers=MIN_INLIERS)
        n_agree, distortion = fit.n_inliers, float(np.abs(fit.matrix[:2, :2] - np.eye(2)).max())
    except RegistrationError:
        pass
    share = n_agree / len(thinned) if len(thinned) else 0.0
    reason = ""
    if n_agree < MIN_INLIERS:
        reason = f"only {n_agree} of {len(thinned)} matches (one per 16 px) agree, at least {MIN_INLIERS} are needed"
    elif groups(len(thinned)) < MIN_GROUPS:
        side = round(CONSENSUS_PX * math.sqrt(MIN_GROUPS))
        reason = (
            f"their {len(thinned)} matches (one per 16 px) are too few to tell agreement from chance; about {side} x "
            f"{side} px of common ground are needed"
        )
    elif distortion > MAX_DISTORTION:
        reason = f"their matches agree on a map that distorts by {distortion:.0%}, which matching cannot see"
    elif share < required:
        reason = f"{share:.0%} of their matches agree on one map, as of unrelated images; {required:.0%} are needed"
    if reason:
        reason += "; do both images show the same ground, within the search radius?"
    return Agreement(n_matches, len(thinned), n_agree, n_windows, confidence, required, reason)
