"""Commands on scenes: match, register, batch. Like `cli`, thin functions that import what is heavy when called."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.scenes.settings import Interpolation, MatchSettings, Model, SceneOptions, SearchRadius

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Sar = Annotated[Positional[Path], tyro.conf.arg(metavar="SAR", help="SAR image, any raster that rasterio reads.")]
Optical = Annotated[Positional[Path], tyro.conf.arg(metavar="OPTICAL", help="optical image of the same place.")]
Transform = Annotated[Model, tyro.conf.arg(name="model")]
Order = Annotated[int, tyro.conf.arg(help="of the polynomial, 2 or 3.")]
Weights = Annotated[str, tyro.conf.arg(help="shipped weights by name, a run folder, or a .safetensors file.")]

REFUSED = 3  #: Exit status of a pair that can be read, but without common ground, data, or matches that agree.


@dataclass(frozen=True)
class SceneArguments:
    """Which ground and which bands, and on what to compute."""

    search_radius: SearchRadius = "auto"
    """How far the georeferences may disagree, px of the coarser image; None searches everywhere; auto is 64 px, or
    everywhere where an image has no georeference."""
    options: SceneOptions = field(default_factory=SceneOptions)
    workers: int = 1  # processes.
    device: str = "auto"  # auto, cpu, cuda or mps.

    def settings(self, weights: str, spacing: float | None = None, **of_matcher: Any) -> MatchSettings:
        matcher = tuple(({"device": self.device} | of_matcher).items())
        return MatchSettings(weights, self.search_radius, spacing, self.options, matcher, self.workers)


Shared = Annotated[SceneArguments, tyro.conf.OmitArgPrefixes]


# long because the help is generated from the docstring, and imports wait for the command
def match(
    sar: Sar,
    optical: Optical,
    scenes: Shared,
    model: Weights = "s1s2",
    max_rotation_deg: float = 0.0,
    scale_range: tuple[float, float] = (1.0, 1.0),
    spacing: float | None = None,
    mc_passes: int = 0,
    mc_seed: int = 0,
    distilled: bool = False,
    coverage: float = 0.9,
    onnx: Path | None = None,
    force: bool = False,
    output: Output = Path("matches.geojson"),
) -> int:
    """Find points that correspond in a SAR and an optical image of any size, reference system and resolution.

    Exits with 3, and writes nothing, where the images have no ground in common, hold no data, or look unrelated. Run
    again after an interruption, it goes on from the last window.

    Args:
        scenes: which ground and which bands, and on what to compute.
        max_rotation_deg: how far they may be turned against each other; then both must lie on one grid, and be up to
            2048 px large.
        scale_range: smallest and largest size of a thing in the optical image over its size in the SAR image; likewise.
        spacing: match windows spread evenly, one a so many px, instead of everything.
        mc_passes: Monte Carlo passes with dropout for the epistemic uncertainty; the paper takes 20, 0 makes none.
        mc_seed: seed of their dropout masks; the same one gives the same masks on any device.
        distilled: estimate that uncertainty in one pass instead, by the distilled head.
        coverage: share of matches whose true position is to lie within `radius_px`, a column that is written where
            radii are calibrated for this search.
        onnx: encoders of the same model, written by `sarmatch export`, to be run by ONNX Runtime.
        force: write the matches of images that look unrelated too, with `overlaps` false.
        output: .geojson, .csv, .parquet or .gpkg.
    """
    from sarmatch.geometry import Search
    from sarmatch.matching.matcher import load_matcher
    from sarmatch.matching.vector_files import matches_writer
    from sarmatch.scenes.files import SceneRefusal
    from sarmatch.scenes.pipeline import match_scenes

    matches_writer(output)
    if distilled and mc_passes:
        raise ValueError(
            f"--distilled makes one pass, --mc-passes {mc_passes} makes several: both estimate the epistemic "
            "uncertainty, give one of them"
        )
    of_matcher: dict[str, Any] = {"mc_passes": mc_passes, "mc_seed": mc_seed, "distilled": distilled}
    of_matcher |= {"coverage": coverage, "onnx": onnx}
    radius = SEARCH_RADIUS_PX if scenes.search_radius == "auto" else scenes.search_radius
    if Search(radius, max_rotation_deg, scale_range).turned:
        # Nothing is known of how unrelated images then look, so that they are not refused.
        matcher = load_matcher(model, device=scenes.device, **of_matcher)
        turned = matcher.match(str(sar), str(optical), radius, max_rotation_deg, scale_range)
        turned.save(output)
        print(f"{len(turned)} matches -> {output}")
        return 0
    try:
        matches = match_scenes(sar, optical, output, force, scenes.settings(model, spacing, **of_matcher))
    except SceneRefusal as refusal:
        return _refused(refusal)
    print(f"{len(matches.thin(16.0))} matches after thinning to one per 16 px, all -> {output}")
    if matches.overlaps is False:
        print(f"warning: {sar} and {optical} look unrelated; written because of --force", file=sys.stderr)
    return 0


# long because the help is generated from the docstring, and imports wait for the command
def register(
    sar: Sar,
    optical: Optical,
    scenes: Shared,
    transform: Transform = "affine",
    order: Order = 2,
    weights: Weights = "s1s2",
    spacing: float | None = None,
    resampling: Interpolation = "bilinear",
    report: Path | None = None,
    error_map: Path | None = None,
    gcps: bool = False,
    output: Output = Path("registered.tif"),
) -> int:
    """Register one image onto the other's grid and write it as a cloud-optimised GeoTIFF.

    Exits with 3, and writes nothing, where the images have no ground in common, hold no data, or their matches do not
    agree. Run again after an interruption, it goes on from the last window.

    Args:
        scenes: which ground and which bands, and on what to compute.
        transform: shift, affine, polynomial, or field: affine and a smooth field of what it leaves.
        spacing: one window of 256 px a so many px; default 256, or 512 on sides beyond 2048 px.
        resampling: nearest, bilinear or cubic.
        report: also write a self-contained HTML page: what was done, how well, and both images to compare.
        error_map: also write a map of the registration error, .tif: standard deviation an axis and CE90, metres.
        gcps: also write ground control points beside the output, for QGIS' georeferencer (.points).
        output: .tif.
    """
    from sarmatch.scenes.files import SceneRefusal
    from sarmatch.scenes.pipeline import register as register_scenes

    settings = scenes.settings(weights, spacing)
    try:
        done = register_scenes(sar, optical, output, transform, order, resampling, report, error_map, gcps, settings)
    except SceneRefusal as refusal:
        return _refused(refusal)
    print(f"{done}\n{output}")
    return 0


def batch(
    pairs: Positional[Path],
    scenes: Shared,
    transform: Transform = "affine",
    order: Order = 2,
    weights: Weights = "s1s2",
    scheduler: str | None = None,
    output: Output = Path("outcomes.csv"),
) -> int:
    """Register a list of pairs; one that fails is reported and does not stop the rest. Exits with 1 if any failed.

    Args:
        pairs: CSV with columns sar, optical, output; or STAC items (.json) with assets sar and optical. Paths are
            relative to this file.
        scenes: which ground and which bands, and on what to compute; each of the workers has pairs of its own.
        transform: shift, affine, polynomial or field.
        scheduler: address of a Dask scheduler whose workers do the work instead, such as tcp://host:8786.
        output: table of outcomes, .csv or .parquet.
    """
    from sarmatch.io import TABLES, check_output, write_table
    from sarmatch.scenes.batch import read_pairs, register_all

    check_output(output, "outcomes", TABLES)
    outcomes = register_all(read_pairs(pairs), scenes.settings(weights), transform, order, scheduler)
    write_table(outcomes, output, "outcomes")
    failed = outcomes[outcomes["status"] != "registered"]
    for row in failed.itertuples():
        print(f"sarmatch: {row.status}: {row.sar} and {row.optical}: {row.reason}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} pairs registered -> {output}")
    return 1 if len(failed) else 0


def _refused(refusal: Exception) -> int:
    print(f"sarmatch: refused: {refusal}", file=sys.stderr)
    return REFUSED
