"""From two files to matches or a registered image: open, locate, match window by window, fit, judge, write."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rasterio.io import DatasetReader

from sarmatch.io import digest
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.matching.matches import Matches
from sarmatch.matching.vector_files import matches_writer, write_matches
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.grids import Region, between, scale_ratio
from sarmatch.scenes.locate import SearchRadius, check_radius, locate, radius_of
from sarmatch.scenes.pair import SceneOptions, ScenePair, open_pair
from sarmatch.scenes.transforms import THIN_PX, Agreement, judge
from sarmatch.scenes.windows import RADIUS, Task, TileStore, concatenated, match_tiles, plan_tiles

SPACING = 256.0
"""Distance of the windows that a registration takes by default, px; twice that where a side exceeds `LARGE_SIDE`."""
LARGE_SIDE = 2048

Source: TypeAlias = str | os.PathLike[str] | DatasetReader


@dataclass(frozen=True)
class MatchSettings:
    """How scenes are matched.

    Attributes:
        weights: shipped weights by name, a run folder or a .safetensors file; or a matcher, for one process.
        search_radius: px of the common grid that the georeferences, or px of images without one, may disagree by; None
            searches the whole image; `auto` is 64 px between georeferences, else the whole image.
        spacing: None covers everything with windows; a number spreads them evenly, one a `spacing` px.
        options: bands, units, and whose grid counts.
        matcher: keywords for `load_matcher`: device, mc_passes, distilled.
        workers: processes.
        progress: show bars in a terminal.
    """

    weights: str | Matcher = "s1s2"
    search_radius: SearchRadius = "auto"
    spacing: float | None = None
    options: SceneOptions = dataclasses.field(default_factory=SceneOptions)
    matcher: tuple[tuple[str, Any], ...] = ()
    workers: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        check_radius(self.search_radius)
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.workers > 1 and isinstance(self.weights, Matcher):
            raise ValueError("several workers load the weights again: give their name or path, not a matcher")


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """Two open scenes with the matches of their windows, in px of the common grid, and the judgement on them.

    Attributes:
        shift: displacement of the moving image that the windows were read with, px.
        thinned: the most confident match of every 16 px of the SAR image.
    """

    pair: ScenePair
    shift: tuple[int, int]
    region: Region
    store: TileStore
    thinned: Matches
    agreement: Agreement

    def parts(self) -> Iterator[Matches]:
        """All matches window by window, in px of the two files, with their georeference."""
        for part in self.store:
            yield to_files(part, self.pair)


@contextmanager
def matched_pair(
    sar: Source, optical: Source, settings: MatchSettings, folder: Path | None, spread: bool = False
) -> Iterator[MatchedPair]:
    """Open and match two scenes; raises as `open_pair`.

    Args:
        spread: spread windows evenly where the settings leave the spacing open, instead of covering everything.
        folder: where finished windows are kept until the computation is done; None: a temporary folder.
    """
    weights = settings.weights
    matcher = weights if isinstance(weights, Matcher) else load_matcher(weights, **dict(settings.matcher))
    channels, names = matcher.net.config, (source_name(sar), source_name(optical))
    with open_pair(sar, optical, settings.options, channels.sar_channels, channels.optical_channels) as pair:
        radius = radius_of(pair, settings.search_radius)
        shift = locate(pair, matcher, radius)
        region = pair.region(shift)
        spacing = settings.spacing
        if spacing is None and spread:
            spacing = SPACING if max(region.width, region.height) <= LARGE_SIDE else 2 * SPACING
        tiles = plan_tiles(region, spacing)
        task = Task(*names, settings.options, str(weights), settings.matcher, "", shift, min(radius or RADIUS, RADIUS))
        # A name or path may stand for other weights the next time: a training goes on, a run is trained afresh.
        task = dataclasses.replace(task, network=digest(matcher.net))
        with tempfile.TemporaryDirectory() as temporary:
            place = (
                Path(temporary) if folder is None else folder.with_name(f"{folder.name}-{task.key(region, spacing)}")
            )
            store = TileStore(place, tiles)
            task = dataclasses.replace(task, folder=str(place))
            match_tiles(pair, matcher, store, task, settings.workers, settings.progress)
            # First by window, so that memory stays bounded; then at the seams, where windows overlap.
            thinned = concatenated([part.thin(THIN_PX) if len(part) else part for part in store]).thin(THIN_PX)
            yield MatchedPair(pair, shift, region, store, thinned, judge(thinned, store, pair.to))
        # Only here, so that a failure later (a full disk) does not cost the windows again.
        store.remove()


def match_scenes(
    sar: Source,
    optical: Source,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    settings: MatchSettings | None = None,
    **changes: Any,
) -> Matches:
    """Tie points between two scenes of any size, reference system and resolution.

    Args:
        sar, optical: paths or open rasterio datasets.
        output: also write all matches, part by part: .geojson, .csv, .parquet or .gpkg; then, so that memory stays
            bounded, those returned are thinned to one per 16 px.
        force: return matches of images that look unrelated, with `overlaps` False, instead of refusing.
        settings, changes: `MatchSettings`, and fields of it by name.

    Returns:
        positions in px of the two files.

    Raises:
        SceneRefusal: no common ground, no data, or matches that do not agree.
        FileNotFoundError, ValueError: files that cannot be read, arguments that make no sense.
    """
    settings = dataclasses.replace(settings or MatchSettings(), **changes)
    folder = None
    if output is not None:
        matches_writer(output)
        folder = Path(output).with_name(f".{Path(output).name}.windows")
    with matched_pair(sar, optical, settings, folder) as matched:
        agreed = matched.agreement
        if not agreed.accepted and not force:
            matched.store.remove()
            names = f"{matched.pair.sar.dataset.name} and {matched.pair.optical.dataset.name}"
            raise SceneRefusal(f"{names}: {agreed.reason}")
        if output is None:
            parts = list(matched.parts())
            return concatenated(parts, **georeference(matched.pair), overlaps=agreed.accepted)
        write_matches(output, matched.parts(), agreed.accepted)
        return dataclasses.replace(to_files(matched.thinned, matched.pair), overlaps=agreed.accepted)


def to_files(matches: Matches, pair: ScenePair) -> Matches:
    """Matches in px of the common grid as px of the two files, with their georeference."""
    to_reference, to_moving = file_positions(pair)
    ends = {"sar": matches.xy_sar, "optical": matches.xy_optical}
    ends[pair.to] = to_reference(ends[pair.to])
    other = "optical" if pair.to == "sar" else "sar"
    ends[other] = to_moving(ends[other])
    kept = np.isfinite(ends["sar"]).all(axis=1) & np.isfinite(ends["optical"]).all(axis=1)
    part = matches if kept.all() else matches.select(kept)
    scale = _optical_scale(pair)
    return dataclasses.replace(
        part,
        xy_sar=ends["sar"][kept],
        xy_optical=ends["optical"][kept],
        covariance=part.covariance * np.float32(scale**2),
        radius=part.radius * np.float32(scale),
        **georeference(pair),
    )


def georeference(pair: ScenePair) -> dict[str, Any]:
    """The attributes of `Matches` that say where the files lie."""
    return {
        f"{name}_{what}": getattr(scene.own, what)
        if what == "transform" or scene.own.crs is None
        else str(scene.own.crs)
        for name, scene in (("sar", pair.sar), ("optical", pair.optical))
        for what in ("transform", "crs")
    }


def file_positions(pair: ScenePair) -> tuple[Any, Any]:
    """Functions from px (N, 2) of the common grid to px of the reference's and of the moving image's file."""

    def to_reference(xy: np.ndarray) -> np.ndarray:
        return (np.asarray(xy, np.float64) + 0.5) * pair.factor - 0.5

    def to_moving(xy: np.ndarray) -> np.ndarray:
        return between(pair.grid, pair.moving.own, xy) if pair.located and len(xy) else np.asarray(xy, np.float64)

    return to_reference, to_moving


def _optical_scale(pair: ScenePair) -> float:
    """Px of the optical file a px of the common grid is wide, at its middle."""
    if pair.to == "optical" or not pair.located:
        return float(pair.factor)
    return 1 / scale_ratio(pair.optical.own, pair.grid)


def source_name(source: Source) -> str:
    return source.name if isinstance(source, DatasetReader) else os.fspath(source)
