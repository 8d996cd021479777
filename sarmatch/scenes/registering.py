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
from sarmatch.matching.matches import Matches
from sarmatch.scenes import write
from sarmatch.scenes.grids import metres_per_px
from sarmatch.scenes.locate import radius_of
from sarmatch.scenes.pair import ScenePair
from sarmatch.scenes.pipeline import Source, matched_pair, source_name, to_files
from sarmatch.scenes.report import write_report
from sarmatch.scenes.settings import Interpolation, MatchSettings, Model
from sarmatch.scenes.transforms import CE90, Agreement, SceneTransform, degree_of, fit_transform


@dataclass(frozen=True, eq=False)
class SceneRegistration:
    """What `register` did.

    Attributes:
        transform: px of the common grid in the reference to px of it in the moving image.
        matches: thinned to one per 16 px, in px of the two files.
        agreement: why the pair was accepted.
        metres_per_px: of the common grid; None where nothing is known of the ground.
        sigma_px, ce90_px: root mean square over the common ground of the map of the registration error, px of the
            common grid: standard deviation an axis, and radius that holds 90 %.
        about: what was done with which weights, for reports.
    """

    transform: SceneTransform
    matches: Matches
    agreement: Agreement
    metres_per_px: float | None
    sigma_px: float
    about: dict[str, str]

    @property
    def ce90_px(self) -> float:
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
    output: str | os.PathLike[str],
    model: Model = "affine",
    order: int = 2,
    resampling: Interpolation = "bilinear",
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
            write.write_gcps(
                Path(output).with_suffix(".points"), own, pair.to_reference(reference), pair.to_moving(moving)
            )
        if report is not None:
            write_report(report, result, matched)
    return result


def _check_outputs(
    sar: Source,
    optical: Source,
    output: str | os.PathLike[str],
    report: str | os.PathLike[str] | None,
    error_map: str | os.PathLike[str] | None,
) -> None:
    """Refuse outputs that could not be written, or would replace an input or one another."""
    given = [check_output(path, "registered images", (".tif", ".tiff")) for path in (output, error_map) if path]
    given += [check_output(report, "reports", (".html",))] if report else []
    outputs = [path.resolve() for path in given]
    for name in (source_name(sar), source_name(optical)):
        if Path(name).resolve() in outputs:
            raise ValueError(f"{name} is an input, and would be replaced by an output; name another file")
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs share a name: {', '.join(path.name for path in outputs)}; name different files")


def _about(pair: ScenePair, settings: MatchSettings, transform: SceneTransform) -> dict[str, str]:
    model = transform.model
    radius = radius_of(pair, settings.search_radius)
    return {
        "version": sarmatch.__version__,
        "weights": settings.weights if isinstance(settings.weights, str) else "a matcher in memory",
        "reference": "/".join(Path(pair.reference.dataset.name).parts[-2:]),
        "moving": "/".join(Path(pair.moving.dataset.name).parts[-2:]),
        "model": f"{model} of order {transform.order}" if model == "polynomial" else model,
        "search_radius": "whole image" if radius is None else f"{radius:g} px",
        "grid": f"{pair.grid.width} x {pair.grid.height} px, {pair.factor} px of the reference each",
        "units": f"SAR {pair.sar.scaling.units}, optical {pair.optical.scaling.units}",
    }
