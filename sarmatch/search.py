"""What is known beforehand of how two images lie to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """Where the counterpart of a SAR pixel may lie.

    Attributes:
        radius: greatest distance of a match from the same pixel position, px; None searches the whole image.
        max_rotation_deg: how far the optical image may be turned against the SAR image, degrees in [0, 180].
        scale_range: smallest and largest scale of the optical image against the SAR image.

    Raises:
        ValueError: a value out of range; the message names the argument of `Matcher.match`.
    """

    radius: float | None
    max_rotation_deg: float = 0.0
    scale_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise ValueError(f"search_radius must be positive, in px, or None for the whole image; got {self.radius}")
        if not 0 <= self.max_rotation_deg <= 180:
            raise ValueError(f"max_rotation_deg must lie in [0, 180], got {self.max_rotation_deg}")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must satisfy 0 < low <= high, got {self.scale_range}")

    @property
    def turned(self) -> bool:
        """Whether more than a shift is searched."""
        return self.max_rotation_deg > 0 or tuple(self.scale_range) != (1.0, 1.0)

    @property
    def shift_radius(self) -> float | None:
        """The radius that confidences are calibrated for; None where more than a shift is searched."""
        return None if self.turned else self.radius
