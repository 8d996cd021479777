"""From two files to matches or a registered image: open, locate, match window by window, judge, fit, write."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import sarmatch
from sarmatch.data.raster import Source, source_name
from sarmatch.io import check_output
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.matching.matches import Matches
from sarmatch.matching.vector_files import matches_writer, write_matches
from sarmatch.scenes import write
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.grids import Region, metres_per_px
from sarmatch.scenes.locate import locate, radius_of
from sarmatch.scenes.pair import ScenePair, open_pair
from sarmatch.scenes.report import write_report
from sarmatch.scenes.settings import Interpolation, MatchSettings, Model
from sarmatch.scenes.transforms import CE90, THIN_PX, Agreement, SceneTransform, degree_of, fit_transform, judge
from sarmatch.scenes.windows import RADIUS, Task, TileStore, concatenated, match_tiles, plan_tiles

FilePath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """Two open scenes with the matches of their windows, in px of the common grid, and the judgement on them."""

    pair: ScenePair
    shift: tuple[int, int]  #: Displacement of the moving image that the windows were read with, px.
    region: Region
    store: TileStore
    thinned: Matches  #: The most confident one of every 16 px of the SAR image.
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
    sar: Source, optical: Source, settings: MatchSettings, output: FilePath | None, spread: bool = False
) -> Iterator[MatchedPair]:
    """Open and match two scenes; raises as `open_pair`.

    Args:
        output: file beside which finished windows are kept until the computation is done; None: in a temporary folder.
        spread: spread windows evenly where the settings leave the spacing open, instead of covering everything.
    """
    weights, spacing = settings.weights, settings.spacing
    matcher = weights if isinstance(weights, Matcher) else load_matcher(weights, **dict(settings.matcher))
    with (
        open_pair(sar, optical, settings.options, matcher.net.config) as pair,
        tempfile.TemporaryDirectory() as temporary,
    ):
        radius = radius_of(pair, settings.search_radius)
        shift = locate(pair, matcher, radius)
        region = pair.region(shift)
        if spacing is None and spread:
            spacing = 256.0 if max(region.width, region.height) <= 2048 else 512.0
        tiles = plan_tiles(region, spacing)
        task = Task(source_name(sar), source_name(optical), settings, shift, min(radius or RADIUS, RADIUS))
        folder = Path(temporary)
        if output is not None:
            folder = Path(output).with_name(f".{Path(output).name}.windows-{task.key(matcher, region, spacing)}")
        store = TileStore(folder, tiles)
        match_tiles(pair, matcher, store, task)
        counts, parts = [], []
        for part in store:
            counts.append(len(part))
            parts.append(part.thin(THIN_PX))  # now, so that memory stays bounded; below at the seams of windows
        thinned = concatenated(parts).thin(THIN_PX)
        agreement = judge(*pair.ordered(thinned.xy_sar, thinned.xy_optical), counts)
        yield MatchedPair(pair, shift, region, store, thinned, agreement)
        # Only here, so that a failure later (a full disk) does not cost the windows again.
        store.remove()


def match_scenes(
    sar: Source,
    optical: Source,
    output: FilePath | None = None,
    force: bool = False,
    settings: MatchSettings | None = None,
    **changes: Any,
) -> Matches:
    """Tie points between two scenes of any size, reference system and resolution, in px of the two files.

    Args:
        output: also write all matches, part by part: .geojson, .csv, .parquet or .gpkg; then, so that memory stays
            bounded, those returned are thinned to one per 16 px.
        force: return matches of images that look unrelated, with `overlaps` False, instead of a SceneRefusal.
        settings, changes: `MatchSettings`, and fields of it by name.
    """
    if output is not None:
        matches_writer(output)
    settings = dataclasses.replace(settings or MatchSettings(), **changes)
    with matched_pair(sar, optical, settings, output) as matched:
        if not force:
            matched.refuse()
        overlaps, found = matched.agreement.accepted, matched.thinned
        if output is None:
            found = concatenated(list(matched.store))
        else:
            write_matches(output, (to_files(part, matched.pair) for part in matched.store), overlaps)
        return dataclasses.replace(to_files(found, matched.pair), overlaps=overlaps)


@dataclass(frozen=True, eq=False)
class SceneRegistration:
    """What `register` did."""

    transform: SceneTransform  #: Px of the common grid in the reference to px of it in the moving image.
    matches: Matches  #: Thinned to one per 16 px, in px of the two files.
    agreement: Agreement  #: Why the pair was accepted.
    metres_per_px: float | None  #: Of the common grid; None where nothing is known of the ground.
    sigma_px: float  #: Registration error an axis, root mean square over the common ground, px of the grid.
    about: dict[str, str]  #: What was done with which weights, for reports.

    @property
    def ce90_px(self) -> float:
        """Radius that holds 90 % of registration errors."""
        return CE90 * self.sigma_px

    def __str__(self) -> str:
        unit = f"{self.ce90_px * self.metres_per_px:.1f} m" if self.metres_per_px else "unknown in metres"
        return (
            f"{self.transform}; {self.agreement.n_agree} of {self.agreement.n_thinned} matches (one per 16 px) agree, "
            f"rmse {self.transform.rmse_px:.2f} px; registration error CE90 {self.ce90_px:.2f} px ({unit})"
        )


# long because every argument is checked before anything is computed, and the files must be open until all is written
def register(
    sar: Source,
    optical: Source,
    output: FilePath,
    model: Model = "affine",
    order: int = 2,
    resampling: Interpolation = "bilinear",
    report: FilePath | None = None,
    error_map: FilePath | None = None,
    gcps: bool = False,
    settings: MatchSettings | None = None,
    **changes: Any,
) -> SceneRegistration:
    """Register one scene onto the other's grid and write it as a cloud-optimised GeoTIFF.

    Args:
        output: the moving image (the optical one, unless `options.to` says otherwise) on the reference's grid, .tif.
        model: `field` is affine and a smooth field of what it leaves.
        order: of the polynomial, 2 or 3.
        report: also write a self-contained HTML page.
        error_map: also write the map of the registration error, .tif: standard deviation an axis and CE90, metres.
        gcps: also write ground control points beside the output, as QGIS' georeferencer reads them (.points).
        settings, changes: `MatchSettings`, and fields of it by name; windows are spread by default, one a 256 px (512
            px on sides beyond 2,048 px).

    Raises:
        SceneRefusal: no common ground, no data, or matches that do not agree; nothing is written.
    """
    settings = dataclasses.replace(settings or MatchSettings(), **changes)
    _check_outputs((sar, optical), (output, error_map) if error_map is not None else (output,), report)
    degree_of(model, order)
    if resampling not in write.RESAMPLING:
        raise ValueError(f"resampling must be one of {', '.join(write.RESAMPLING)}, got {resampling!r}")
    with matched_pair(sar, optical, settings, output, spread=True) as matched:
        matched.refuse()
        pair, own = matched.pair, matched.pair.reference.own
        transform = fit_transform(*matched.ends, model, order, matched.thinned.covariance)
        result = SceneRegistration(
            transform=transform,
            matches=dataclasses.replace(to_files(matched.thinned, pair), overlaps=True),
            agreement=matched.agreement,
            metres_per_px=metres_per_px(pair.grid),
            sigma_px=float(np.sqrt(np.mean(transform.sigma(matched.region.nodes(24)) ** 2))),
            about=_about(pair, settings, transform),
        )

        def to_file(xy: np.ndarray) -> np.ndarray:
            return pair.to_moving(transform((xy + 0.5) / pair.factor - 0.5))

        tags = {f"SARMATCH_{key.upper()}": value for key, value in result.about.items()}
        write.write_registered(output, pair.moving.dataset, own, to_file, tags, resampling, settings.progress)
        if error_map is not None:
            write.write_error_map(error_map, pair.grid, transform.sigma, result.metres_per_px)
        if gcps:
            reference, moving = (xy[transform.inliers] for xy in matched.ends)
            points = Path(output).with_suffix(".points")
            write.write_gcps(points, own, pair.to_reference(reference), pair.to_moving(moving))
        if report is not None:
            write_report(report, result, matched)
    return result


def to_files(matches: Matches, pair: ScenePair) -> Matches:
    """Matches in px of the common grid as px of the two files, with their georeference."""
    reference, moving = pair.ordered(matches.xy_sar, matches.xy_optical)
    sar, optical = pair.ordered(pair.to_reference(reference), pair.to_moving(moving))
    kept = np.isfinite(sar).all(axis=1) & np.isfinite(optical).all(axis=1)
    part, scale = matches.select(kept), np.float32(pair.optical_scale)
    own: dict[str, Any] = {"covariance": part.covariance * scale**2, "radius": part.radius * scale}
    for image, scene in (("sar", pair.sar), ("optical", pair.optical)):
        own[f"{image}_transform"] = None if scene.own.affine.is_identity else scene.own.affine
        own[f"{image}_crs"] = str(scene.dataset.crs) if scene.dataset.crs else None
    return dataclasses.replace(part, xy_sar=sar[kept], xy_optical=optical[kept], **own)


def _check_outputs(inputs: Sequence[Source], images: Sequence[FilePath], report: FilePath | None) -> None:
    """Refuse outputs that could not be written, or would replace an input or one another."""
    outputs = [check_output(path, "registered images", (".tif", ".tiff")).resolve() for path in images]
    if report is not None:
        outputs.append(check_output(report, "reports", (".html",)).resolve())
    for name in map(source_name, inputs):
        if Path(name).resolve() in outputs:
            raise ValueError(f"{name} is an input, and would be replaced by an output; name another file")
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs share a name: {', '.join(path.name for path in outputs)}; name different files")


def _about(pair: ScenePair, settings: MatchSettings, transform: SceneTransform) -> dict[str, str]:
    model = transform.model
    radius = radius_of(pair, settings.search_radius)
    return {
        "version": sarmatch.__version__,
        "weights": "a matcher in memory" if isinstance(settings.weights, Matcher) else str(settings.weights),
        "reference": "/".join(Path(pair.reference.dataset.name).parts[-2:]),
        "moving": "/".join(Path(pair.moving.dataset.name).parts[-2:]),
        "model": f"{model} of order {transform.order}" if model == "polynomial" else model,
        "search_radius": "whole image" if radius is None else f"{radius:g} px",
        "grid": f"{pair.grid.width} x {pair.grid.height} px, {pair.factor} px of the reference each",
        "units": f"SAR {pair.sar.scaling.units}, optical {pair.optical.scaling.units}",
    }
