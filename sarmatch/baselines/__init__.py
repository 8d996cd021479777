"""Methods to compare with, one file each, all called like our matcher.

A baseline is an object with one method:

    match(sar, optical, search_radius=None) -> Matches

where `sar` (1 or 2, H, W) and `optical` (C, H', W') are float tensors in [0, 1] and `search_radius` is the largest
distance in px between the position in the SAR image and the position in the optical image; None means that nothing is
known of the position. `sarmatch.evaluation` takes any such object.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sarmatch.baselines.sift import SiftMatcher
from sarmatch.baselines.template import TemplateMatcher
from sarmatch.matches import Matches

__all__ = ["Matcher", "SiftMatcher", "TemplateMatcher"]


class Matcher(Protocol):
    """Whatever finds matches between a SAR and an optical image."""

    def match(self, sar: Tensor, optical: Tensor, search_radius: float | None = None) -> Matches:
        """Matches of one pair; see the module's documentation for shapes and units."""
        ...
