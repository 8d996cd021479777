"""Commands on scenes: match, register, batch. Like `cli`, thin functions that import what is heavy when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro
from tyro.conf import Positional

from sarmatch.config import SEARCH_RADIUS_PX

if TYPE_CHECKING:
    from sarmatch.geometry import Search
    from sarmatch.scenes.pipeline import MatchSettings

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Sar = Annotated[Positional[Path], tyro.conf.arg(metavar="SAR")]
Optical = Annotated[Positional[Path], tyro.conf.arg(metavar="OPTICAL")]
ImageName = Literal["sar", "optical"]
ModelName = Literal["shift", "affine", "polynomial", "field"]
ResamplingName = Literal["nearest", "bilinear", "cubic"]
SarUnitsName = Literal["byte", "unit", "db", "power", "amplitude"]
OpticalUnitsName = Literal["byte", "unit", "reflectance"]

SearchRadius: TypeAlias = float | Literal["auto"] | None

REFUSED = 3
"""Exit status of a pair that can be read but is refused: no common ground, no data, or matches that do not agree."""


def match(
    sar: Sar,
    optical: Optical,
    model: str = "s1s2",
    search_radius: SearchRadius = "auto",
    max_rotation_deg: float = 0.0,
    scale_range: tuple[float, float] = (1.0, 1.0),
    spacing: float | None = None,
    to: ImageName = "sar",
    sar_bands: tuple[int, ...] | None = None,
    optical_bands: tuple[int, ...] | None = None,
    sar_units: SarUnitsName | None = None,
    optical_units: OpticalUnitsName | None = None,
    mc_passes: int = 0,
    mc_seed: int = 0,
    distilled: bool = False,
    coverage: float = 0.9,
    onnx: Path | None = None,
    workers: int = 1,
    force: bool = False,
    device: str = "auto",
    output: Output = Path("matches.geojson"),
) -> int:
    """Find points that correspond in a SAR and an optical image of any size, reference system and resolution.

    Exits with 3, and writes nothing, where the images have no ground in common, hold no data, or look unrelated. Run
    again after an interruption, it goes on from the last window.

    Args:
        sar: SAR image, any raster that rasterio reads.
        optical: optical image of the same place.
        model: shipped weights by name, a run folder, or a .safetensors file.
        search_radius: how far the georeferences may disagree, px of the coarser image; None searches everywhere; auto
            is 64 px, or everywhere where an image has no georeference.
        max_rotation_deg: how far they may be turned against each other; then both must lie on one grid, and be up to
            2048 px large.
        scale_range: smallest and largest size of a thing in the optical image over its size in the SAR image; likewise.
        spacing: match windows spread evenly, one a so many px, instead of everything.
        to: whose grid the windows lie on.
        sar_bands: bands to use, counted from 0; default the first.
        optical_bands: default red, green and blue.
        sar_units: what the numbers mean; default told from samples.
        optical_units: likewise.
        mc_passes: Monte Carlo passes with dropout for the epistemic uncertainty; the paper takes 20, 0 makes none.
        mc_seed: seed of their dropout masks; the same one gives the same masks on any device.
        distilled: estimate that uncertainty in one pass instead, by the head that was taught to.
        coverage: share of matches whose true position is to lie within `radius_px`, a column that is written where
            radii are calibrated for this search.
        onnx: encoders of the same model, written by `sarmatch export`, to be run by ONNX Runtime.
        workers: processes.
        force: write the matches of images that look unrelated too, with `overlaps` false.
        device: auto, cpu, cuda or mps.
        output: .geojson, .csv, .parquet or .gpkg.
    """
    from sarmatch.geometry import Search
    from sarmatch.matching.vector_files import matches_writer
    from sarmatch.scenes.files import SceneRefusal
    from sarmatch.scenes.pipeline import match_scenes

    matches_writer(output)
    if distilled and mc_passes:
        raise ValueError(
            f"--distilled makes one pass, --mc-passes {mc_passes} makes several: both estimate the epistemic "
            "uncertainty, give one of them"
        )
    of_matcher = {"device": device, "mc_passes": mc_passes, "mc_seed": mc_seed, "distilled": distilled}
    of_matcher["coverage"] = coverage
    of_matcher["onnx"] = None if onnx is None else str(onnx)
    search = Search(SEARCH_RADIUS_PX if search_radius == "auto" else search_radius, max_rotation_deg, scale_range)
    if search.turned:
        return _match_turned(sar, optical, model, search, of_matcher, output)
    bands = {"to": to, "sar_bands": sar_bands, "optical_bands": optical_bands}
    settings = _settings(model, search_radius, spacing, workers, of_matcher, bands | _units(sar_units, optical_units))
    try:
        matches = match_scenes(sar, optical, output, force, settings)
    except SceneRefusal as refusal:
        return _refused(refusal)
    print(f"{len(matches.thin(16.0)) if len(matches) else 0} matches after thinning to one per 16 px, all -> {output}")
    if matches.overlaps is False:
        print(f"warning: {sar} and {optical} look unrelated; written because of --force", file=sys.stderr)
    return 0


def register(
    sar: Sar,
    optical: Optical,
    to: ImageName = "sar",
    transform: Annotated[ModelName, tyro.conf.arg(name="model")] = "affine",
    order: int = 2,
    weights: str = "s1s2",
    search_radius: SearchRadius = "auto",
    spacing: float | None = None,
    resampling: ResamplingName = "bilinear",
    report: Path | None = None,
    error_map: Path | None = None,
    gcps: bool = False,
    sar_bands: tuple[int, ...] | None = None,
    optical_bands: tuple[int, ...] | None = None,
    sar_units: SarUnitsName | None = None,
    optical_units: OpticalUnitsName | None = None,
    workers: int = 1,
    device: str = "auto",
    output: Output = Path("registered.tif"),
) -> int:
    """Register one image onto the other's grid and write it as a cloud-optimised GeoTIFF.

    Exits with 3, and writes nothing, where the images have no ground in common, hold no data, or their matches do not
    agree. Run again after an interruption, it goes on from the last window.

    Args:
        sar: SAR image, any raster that rasterio reads.
        optical: optical image of the same place.
        to: whose grid counts; the other image is moved onto it.
        transform: shift, affine, polynomial, or field: affine and a smooth field of what it leaves.
        order: of the polynomial, 2 or 3.
        weights: shipped weights by name, a run folder, or a .safetensors file.
        search_radius: how far the georeferences may disagree, px of the coarser image; None searches everywhere; auto
            is 64 px, or everywhere where an image has no georeference.
        spacing: one window of 256 px a so many px; default 256, or 512 on sides beyond 2048 px.
        resampling: nearest, bilinear or cubic.
        report: also write a self-contained HTML page: what was done, how well, and both images to compare.
        error_map: also write a map of the registration error, .tif: standard deviation an axis and CE90, metres.
        gcps: also write ground control points beside the output, for QGIS' georeferencer (.points).
        sar_bands: bands to use, counted from 0; default the first.
        optical_bands: default red, green and blue.
        sar_units: what the numbers mean; default told from samples.
        optical_units: likewise.
        workers: processes.
        device: auto, cpu, cuda or mps.
        output: .tif.
    """
    from sarmatch.scenes.files import SceneRefusal
    from sarmatch.scenes.registering import register as register_scenes

    bands = {"to": to, "sar_bands": sar_bands, "optical_bands": optical_bands}
    settings = _settings(
        weights, search_radius, spacing, workers, {"device": device}, bands | _units(sar_units, optical_units)
    )
    try:
        done = register_scenes(sar, optical, output, transform, order, resampling, report, error_map, gcps, settings)
    except SceneRefusal as refusal:
        return _refused(refusal)
    print(f"{done}\n{output}")
    return 0


def batch(
    pairs: Positional[Path],
    transform: Annotated[ModelName, tyro.conf.arg(name="model")] = "affine",
    order: int = 2,
    to: ImageName = "sar",
    weights: str = "s1s2",
    search_radius: SearchRadius = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    output: Output = Path("outcomes.csv"),
) -> int:
    """Register a list of pairs; one that fails is reported and does not stop the rest. Exits with 1 if any failed.

    Args:
        pairs: CSV with columns sar, optical, output; or STAC items (.json) with assets sar and optical. Paths are
            relative to this file.
        transform: shift, affine, polynomial or field.
        order: of the polynomial, 2 or 3.
        to: whose grid counts.
        weights: shipped weights by name, a run folder, or a .safetensors file.
        search_radius: how far the georeferences may disagree, px; None searches everywhere; auto as for `register`.
        workers: processes, each with pairs of its own.
        scheduler: address of a Dask scheduler whose workers do the work instead, such as tcp://host:8786.
        output: table of outcomes, .csv or .parquet.
    """
    from sarmatch.io import TABLES, check_output, write_table
    from sarmatch.scenes.batch import read_pairs, register_all

    check_output(output, "outcomes", TABLES)
    settings = _settings(weights, search_radius, None, 1, {}, {"to": to})
    outcomes = register_all(read_pairs(pairs), settings, transform, order, workers, scheduler)
    write_table(outcomes, output, "outcomes")
    failed = outcomes[outcomes["status"] != "registered"]
    for row in failed.itertuples():
        print(f"sarmatch: {row.status}: {row.sar} and {row.optical}: {row.reason}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} pairs registered -> {output}")
    return 1 if len(failed) else 0


def _match_turned(
    sar: Path, optical: Path, model: str, search: Search, of_matcher: dict[str, Any], output: Path
) -> int:
    """Match images on one grid that may be turned or scaled; nothing is known of how unrelated ones then look."""
    from sarmatch.matching.matcher import load_matcher

    matcher = load_matcher(model, **of_matcher)
    matches = matcher.match(str(sar), str(optical), search.radius, search.max_rotation_deg, search.scale_range)
    matches.save(output)
    print(f"{len(matches)} matches -> {output}")
    return 0


def _settings(
    model: str,
    search_radius: SearchRadius,
    spacing: float | None,
    workers: int,
    of_matcher: dict[str, Any],
    options: dict[str, Any],
) -> MatchSettings:
    from sarmatch.scenes.pair import SceneOptions
    from sarmatch.scenes.pipeline import MatchSettings

    return MatchSettings(model, search_radius, spacing, SceneOptions(**options), tuple(of_matcher.items()), workers)


def _units(sar: str | None, optical: str | None) -> dict[str, Any]:
    return {"sar_units": sar, "optical_units": optical}


def _refused(refusal: Exception) -> int:
    print(f"sarmatch: refused: {refusal}", file=sys.stderr)
    return REFUSED
