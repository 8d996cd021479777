"""Registering one scene onto the other: matched, judged, fitted, written, with the expected error."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sarmatch
from sarmatch.io import check_output
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.scenes import write
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.grids import Region
from sarmatch.scenes.locate import radius_of
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.pipeline import MatchSettings, Source, file_positions, matched_pair, source_name, to_files
from sarmatch.scenes.report import REPORTS, write_report
from sarmatch.scenes.transforms import CE90, MODELS, Agreement, Model, SceneTransform, fit_transform


@dataclass(frozen=True, eq=False)
class SceneRegistration:
    """What `register` did.

    Attributes:
        transform: px of the common grid in the reference to px of it in the moving image.
        matches: thinned to one per 16 px, in px of the two files.
        agreement: why the pair was accepted.
        shift: displacement that the windows were read with, px of the common grid.
        metres_per_px: of the common grid; None where nothing is known of the ground.
        sigma_px, ce90_px: root mean square over the common ground of the map of the registration error, px of the
            common grid: standard deviation an axis, and radius that holds 90 %.
        output: the registered raster.
        about: what was done with which weights, for reports.
    """

    transform: SceneTransform
    matches: Matches
    agreement: Agreement
    shift: tuple[int, int]
    metres_per_px: float | None
    sigma_px: float
    output: Path
    about: dict[str, str]

    @property
    def ce90_px(self) -> float:
        return CE90 * self.sigma_px

    def __str__(self) -> str:
        unit = f"{self.ce90_px * self.metres_per_px:.1f} m" if self.metres_per_px else "unknown in metres"
        agreed = self.agreement
        return (
            f"{self.transform}; {agreed.n_agree} of {agreed.n_thinned} matches (one per 16 px) agree, rmse "
            f"{self.transform.rmse_px:.2f} px; registration error CE90 {self.ce90_px:.2f} px ({unit})"
        )


# long because every argument is checked before anything is computed, and the files must be open until all is written
def register(
    sar: Source,
    optical: Source,
    output: str | os.PathLike[str],
    model: Model = "affine",
    order: int = 2,
    resampling: str = "bilinear",
    report: str | os.PathLike[str] | None = None,
    error_map: str | os.PathLike[str] | None = None,
    gcps: bool = False,
    settings: MatchSettings | None = None,
    **changes: Any,
) -> SceneRegistration:
    """Register one scene onto the other's grid and write it as a cloud-optimised GeoTIFF.

    Args:
        sar, optical: paths or open rasterio datasets.
        output: the moving image (the optical one, unless `options.to` says otherwise) on the reference's grid, .tif.
        model: `shift`, `affine`, `polynomial` or `field` (affine and a smooth field of what it leaves).
        order: of the polynomial, 2 or 3.
        resampling: `nearest`, `bilinear` or `cubic`.
        report: also write a self-contained HTML page.
        error_map: also write the map of the registration error, .tif: standard deviation an axis and CE90, metres.
        gcps: also write ground control points beside the output, as QGIS' georeferencer reads them (.points).
        settings, changes: `MatchSettings`, and fields of it by name; windows are spread by default, one a 256 px (512
            px on sides beyond 2,048 px).

    Raises:
        SceneRefusal: no common ground, no data, or matches that do not agree; nothing is written.
        FileNotFoundError, ValueError: files that cannot be read, arguments that make no sense.
        OSError: the output cannot be written.
    """
    settings = dataclasses.replace(settings or MatchSettings(), **changes)
    _check_outputs(sar, optical, output, report, error_map)
    for path in (output, error_map):
        if path is not None:
            check_output(path, "registered images", write.SUFFIXES)
    if report is not None:
        check_output(report, "reports", REPORTS)
    if model not in MODELS or resampling not in write.RESAMPLING:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)} and resampling of {', '.join(write.RESAMPLING)}, got "
            f"{model!r} and {resampling!r}"
        )
    if order not in (2, 3):
        raise ValueError(f"the order of a polynomial must be 2 or 3, got {order}")
    folder = Path(output).with_name(f".{Path(output).name}.windows")
    with matched_pair(sar, optical, settings, folder, spread=True) as matched:
        pair, agreed = matched.pair, matched.agreement
        if not agreed.accepted:
            matched.store.remove()
            raise SceneRefusal(f"{source_name(sar)} and {source_name(optical)}: {agreed.reason}")
        ends = (matched.thinned.xy_sar, matched.thinned.xy_optical)
        transform = fit_transform(*(ends if pair.to == "sar" else ends[::-1]), model, order, matched.thinned.covariance)
        to_reference, to_moving = file_positions(pair)

        def to_file(xy: np.ndarray) -> np.ndarray:
            return to_moving(transform((xy + 0.5) / pair.factor - 0.5))

        result = SceneRegistration(
            transform=transform,
            matches=dataclasses.replace(to_files(matched.thinned, pair), overlaps=True),
            agreement=agreed,
            shift=matched.shift,
            metres_per_px=pair.grid.metres_per_px(),
            sigma_px=_mean_sigma(transform, matched.region),
            output=Path(output),
            about=_about(pair, settings, model, order),
        )
        tags = {f"SARMATCH_{key.upper()}": value for key, value in result.about.items()}
        own = pair.reference.own
        write.write_registered(output, pair.moving.dataset, own, to_file, tags, resampling, settings.progress)
        if error_map is not None:
            write.write_error_map(error_map, pair.grid, transform.sigma, result.metres_per_px)
        if gcps:
            kept = matched.thinned.select(transform.inliers)
            xy = (kept.xy_sar, kept.xy_optical) if pair.to == "sar" else (kept.xy_optical, kept.xy_sar)
            write.write_gcps(Path(output).with_suffix(".points"), own, to_reference(xy[0]), to_moving(xy[1]))
        if report is not None:
            write_report(report, result, matched)
    return result


def _mean_sigma(transform: SceneTransform, region: Region) -> float:
    """Root mean square of the map's standard deviation over the common ground, px an axis."""
    columns = np.linspace(region.x, region.x + region.width - 1, 24)
    rows = np.linspace(region.y, region.y + region.height - 1, 24)
    nodes = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    return float(np.sqrt(np.mean(transform.sigma(nodes) ** 2)))


def _about(pair: ScenePair, settings: MatchSettings, model: str, order: int) -> dict[str, str]:
    weights = "a matcher in memory" if isinstance(settings.weights, Matcher) else settings.weights
    radius = radius_of(pair, settings.search_radius)
    return {
        "version": sarmatch.__version__,
        "weights": weights,
        "reference": "/".join(Path(pair.reference.dataset.name).parts[-2:]),
        "moving": "/".join(Path(pair.moving.dataset.name).parts[-2:]),
        "model": f"{model} of order {order}" if model == "polynomial" else model,
        "search_radius": "whole image" if radius is None else f"{radius:g} px",
        "grid": f"{pair.grid.width} x {pair.grid.height} px, {pair.factor} px of the reference each",
        "units": f"SAR {pair.sar.scaling.units}, optical {pair.optical.scaling.units}",
    }


def _check_outputs(sar: Source, optical: Source, *outputs: str | os.PathLike[str] | None) -> None:
    """Refuse outputs that would replace an input, or one another."""
    given = [Path(path).resolve() for path in outputs if path is not None]
    for path in (sar, optical):
        if Path(source_name(path)).resolve() in given:
            raise ValueError(f"{source_name(path)} is an input, and would be replaced by an output; name another file")
    if len(set(given)) < len(given):
        raise ValueError(f"outputs share a name: {', '.join(path.name for path in given)}; name different files")
