"""From two files to matches: open, locate, match window by window, judge."""

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

from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.matching.matches import Matches
from sarmatch.matching.vector_files import matches_writer, write_matches
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.grids import Region
from sarmatch.scenes.locate import locate, radius_of
from sarmatch.scenes.pair import ScenePair, open_pair
from sarmatch.scenes.settings import MatchSettings
from sarmatch.scenes.transforms import THIN_PX, Agreement, judge
from sarmatch.scenes.windows import RADIUS, Task, TileStore, concatenated, match_tiles, plan_tiles

SPACING = 256.0
"""Distance of the windows that a registration takes by default, px; twice that where a side exceeds `LARGE_SIDE`."""
LARGE_SIDE = 2048

Source: TypeAlias = str | os.PathLike[str] | DatasetReader


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

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Thinned matches in the reference and in the moving image, (N, 2) px each."""
        return self.pair.ordered(self.thinned.xy_sar, self.thinned.xy_optical)

    def refuse(self) -> None:
        """Raise SceneRefusal, and remove the finished windows, where the matches do not agree."""
        if not self.agreement.accepted:
            self.store.remove()
            raise SceneRefusal(f"{self.pair.names}: {self.agreement.reason}")


@contextmanager
def matched_pair(
    sar: Source, optical: Source, settings: MatchSettings, output: str | os.PathLike[str] | None, spread: bool = False
) -> Iterator[MatchedPair]:
    """Open and match two scenes; raises as `open_pair`.

    Args:
        output: file beside which finished windows are kept until the computation is done; None: in a temporary folder.
        spread: spread windows evenly where the settings leave the spacing open, instead of covering everything.
    """
    weights, spacing = settings.weights, settings.spacing
    matcher = weights if isinstance(weights, Matcher) else load_matcher(weights, **dict(settings.matcher))
    config = matcher.net.config
    with (
        open_pair(sar, optical, settings.options, config.sar_channels, config.optical_channels) as pair,
        tempfile.TemporaryDirectory() as temporary,
    ):
        radius = radius_of(pair, settings.search_radius)
        shift = locate(pair, matcher, radius)
        region = pair.region(shift)
        if spacing is None and spread:
            spacing = SPACING if max(region.width, region.height) <= LARGE_SIDE else 2 * SPACING
        tiles = plan_tiles(region, spacing)
        task = Task(source_name(sar), source_name(optical), settings, shift, min(radius or RADIUS, RADIUS))
        folder = Path(temporary)
        if output is not None:
            name = f".{Path(output).name}.windows-{task.key(matcher, region, spacing)}"
            folder = Path(output).with_name(name)
        store = TileStore(folder, tiles)
        match_tiles(pair, matcher, store, task)
        # First by window, so that memory stays bounded; then at the seams, where windows overlap.
        thinned = concatenated([part.thin(THIN_PX) for part in store]).thin(THIN_PX)
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
    if output is not None:
        matches_writer(output)
    settings = dataclasses.replace(settings or MatchSettings(), **changes)
    with matched_pair(sar, optical, settings, output) as matched:
        if not force:
            matched.refuse()
        pair, overlaps = matched.pair, matched.agreement.accepted
        parts = (to_files(part, pair) for part in matched.store)
        if output is None:
            return concatenated(list(parts), **georeference(pair), overlaps=overlaps)
        write_matches(output, parts, overlaps)
        return dataclasses.replace(to_files(matched.thinned, pair), overlaps=overlaps)


def to_files(matches: Matches, pair: ScenePair) -> Matches:
    """Matches in px of the common grid as px of the two files, with their georeference."""
    reference, moving = pair.ordered(matches.xy_sar, matches.xy_optical)
    sar, optical = pair.ordered(pair.to_reference(reference), pair.to_moving(moving))
    kept = np.isfinite(sar).all(axis=1) & np.isfinite(optical).all(axis=1)
    part, scale = matches.select(kept), np.float32(pair.optical_scale)
    precision: dict[str, Any] = {"covariance": part.covariance * scale**2, "radius": part.radius * scale}
    return dataclasses.replace(part, xy_sar=sar[kept], xy_optical=optical[kept], **precision, **georeference(pair))


def georeference(pair: ScenePair) -> dict[str, Any]:
    """The attributes of `Matches` that say where the files lie."""
    known: dict[str, Any] = {}
    for image, scene in (("sar", pair.sar), ("optical", pair.optical)):
        known[f"{image}_transform"] = None if scene.own.affine.is_identity else scene.own.affine
        known[f"{image}_crs"] = str(scene.dataset.crs) if scene.dataset.crs else None
    return known


def source_name(source: Source) -> str:
    return source.name if isinstance(source, DatasetReader) else os.fspath(source)
