"""How scenes are opened and matched. Comments on fields of `SceneOptions` are the help of the commands' options."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from sarmatch.matching.matcher import Matcher

Image = Literal["sar", "optical"]
Model = Literal["shift", "affine", "polynomial", "field"]
Interpolation = Literal["nearest", "bilinear", "cubic"]
SarUnits = Literal["byte", "unit", "db", "power", "amplitude"]
OpticalUnits = Literal["byte", "unit", "reflectance"]
SearchRadius: TypeAlias = float | Literal["auto"] | None


@dataclass(frozen=True)
class SceneOptions:
    """Which bands and units, and whose grid counts."""

    to: Image = "sar"  # whose grid counts: windows lie on it, and a registration moves the other image onto it.
    sar_bands: tuple[int, ...] | None = None  # bands to use, counted from 0; default the first.
    optical_bands: tuple[int, ...] | None = None  # default red, green and blue.
    sar_units: SarUnits | None = None  # what the numbers mean; default guessed from samples.
    optical_units: OpticalUnits | None = None  # likewise.

    def __post_init__(self) -> None:
        if self.to not in ("sar", "optical"):
            raise ValueError(f"to must be 'sar' or 'optical', got {self.to!r}")


@dataclass(frozen=True)
class MatchSettings:
    """How scenes are matched."""

    weights: str | Matcher = "s1s2"  #: Shipped, by name; a run folder; a .safetensors file; a matcher, for one process.
    search_radius: SearchRadius = "auto"
    """How far georeferences, or images without one, may disagree, px of the common grid; None searches the whole image;
    `auto` is 64 px between georeferences, else the whole image."""
    spacing: float | None = None  #: Windows are spread evenly, one a so many px; None covers everything.
    options: SceneOptions = field(default_factory=SceneOptions)
    matcher: tuple[tuple[str, Any], ...] = ()  #: Keywords for `load_matcher`: device, mc_passes, distilled.
    workers: int = 1  #: Processes.
    progress: bool = True  #: Show bars in a terminal.

    def __post_init__(self) -> None:
        radius = self.search_radius
        if radius not in (None, "auto") and (isinstance(radius, str) or not 0 < radius <= 256):
            raise ValueError(
                "search_radius must be a number above 0 and up to 256 px, None to search the whole image, or 'auto'; "
                f"got {radius!r}"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.workers > 1 and not isinstance(self.weights, str | os.PathLike):
            raise ValueError("several workers load the weights again: give their name or path, not a matcher")
