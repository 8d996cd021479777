"""Point matches between a SAR and an optical image: the result of our matcher and of every baseline."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio.transform
from rasterio import Affine

from sarmatch.calibration.position_error import raw_covariance
from sarmatch.config import CONFIDENT_PX
from sarmatch.matching.robust_fit import AffineFit, AffineModel, fit_affine
from sarmatch.matching.vector_files import GEOREFERENCE, write_matches

COLUMNS = ("x_sar", "y_sar", "x_optical", "y_optical", "confidence", "aleatoric", "epistemic")
COVARIANCE_COLUMNS = ("var_x", "var_xy", "var_y")  #: Where the covariance of any match is known, px^2.
RADIUS_COLUMN = "radius_px"  #: Where the conformal radius of any match is known.
_ARRAYS = ("xy_sar", "xy_optical", "confidence", "aleatoric", "epistemic", "covariance", "radius")


@dataclass(frozen=True, eq=False)
class Matches:
    """N matches; row i of every array, of float32, belongs to match i. Values that cannot be are a ValueError."""

    xy_sar: np.ndarray  #: (N, 2) positions (x, y), px; the centre of the top-left pixel is (0, 0).
    xy_optical: np.ndarray  #: The same in the optical image.
    confidence: np.ndarray  #: (N,) in [0, 1]; of our matcher the calibrated probability of lying within 3 px.
    #: (N,), at least 0; NaN where unknown, as in the next three (the default).
    aleatoric: np.ndarray = None  # type: ignore[assignment]  # filled with NaN below
    epistemic: np.ndarray = None  # type: ignore[assignment]
    #: (N, 2, 2) px^2, of `xy_optical` given `xy_sar`, if the match is correct (within 3 px).
    covariance: np.ndarray = None  # type: ignore[assignment]
    #: (N,) px, conformal radius: holds the true position with the coverage asked for.
    radius: np.ndarray = None  # type: ignore[assignment]
    sar_transform: Affine | None = None  #: Rasterio's pixel-to-map affine (from the pixel's corner).
    sar_crs: str | None = None  #: Coordinate reference system as rasterio prints it.
    optical_transform: Affine | None = None
    optical_crs: str | None = None
    overlaps: bool | None = None  #: Whether the images show the same ground, by all matches; None where undecided.

    def __post_init__(self) -> None:
        n = len(self.confidence)
        shapes = {"xy_sar": (n, 2), "xy_optical": (n, 2), "covariance": (n, 2, 2)}
        for name in _ARRAYS:
            value, shape = getattr(self, name), shapes.get(name, (n,))
            array = np.full(shape, np.nan, np.float32) if value is None else np.asarray(value, dtype=np.float32)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape} (as long as confidence), got {array.shape}")
            object.__setattr__(self, name, array)
        if not (np.isfinite(self.xy_sar).all() and np.isfinite(self.xy_optical).all()):
            raise ValueError("positions contain NaN or infinity; leave out matches without a position")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError("confidence must lie in [0, 1] and not be NaN")
        variances = np.diagonal(self.covariance, axis1=1, axis2=2)
        not_negative = {"aleatoric": self.aleatoric, "epistemic": self.epistemic, "radius": self.radius}
        for name, values in (not_negative | {"variances of covariance": variances}).items():
            if (values < 0).any():
                raise ValueError(f"{name} must not be negative; use NaN where it is unknown")
        transposed = self.covariance.transpose(0, 2, 1)
        if not np.allclose(self.covariance, transposed, rtol=1e-4, atol=1e-4, equal_nan=True):  # but for rounding
            raise ValueError("covariance must hold symmetric matrices")

    @classmethod
    def empty(cls, **georeference: Any) -> Matches:
        """No matches at all."""
        return cls(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), **georeference)

    def __len__(self) -> int:
        return len(self.confidence)

    def select(self, rows: np.ndarray) -> Matches:
        """The matches where a boolean mask (N,) is true, or those at the given row numbers, in their order."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def above(self, confidence: float) -> Matches:
        """The matches whose confidence exceeds this threshold (M* of eq. 9)."""
        return self.select(self.confidence > confidence)

    def thin(self, spacing_px: float) -> Matches:
        """The most confident match of every square cell of `spacing_px` of the SAR image; the order is kept."""
        if not spacing_px > 0:
            raise ValueError(f"spacing_px must be positive, got {spacing_px}")
        order = np.argsort(-self.confidence, kind="stable")
        cells = np.floor((self.xy_sar[order] + 0.5) / spacing_px)  # the image begins half a pixel before (0, 0)
        _, first = np.unique(cells, axis=0, return_index=True)
        return self.select(np.sort(order[first]))

    def affine(
        self, model: AffineModel = "affine", threshold_px: float = CONFIDENT_PX, min_inliers: int = 8
    ) -> AffineFit:
        """Robust map from SAR to optical pixel coordinates; see `sarmatch.matching.robust_fit.fit_affine`."""
        return fit_affine(self.xy_sar, self.xy_optical, model, threshold_px, min_inliers)

    def map_coordinates(self) -> dict[str, np.ndarray]:
        """Map positions (N,) float64 by name, `map_x_sar` to `map_y_optical`, of those images that have their place."""
        known: dict[str, np.ndarray] = {}
        for image in ("sar", "optical"):
            transform, xy = getattr(self, f"{image}_transform"), getattr(self, f"xy_{image}").astype(np.float64)
            if transform is not None:
                x, y = rasterio.transform.xy(transform, xy[:, 1], xy[:, 0])
                known |= {f"map_x_{image}": x, f"map_y_{image}": y}
        return known

    def to_frame(self) -> pd.DataFrame:
        """One row a match: `COLUMNS`, those of covariance and radius where any is known, and `map_coordinates`."""
        values = [*self.xy_sar.T, *self.xy_optical.T, self.confidence, self.aleatoric, self.epistemic]
        columns = dict(zip(COLUMNS, values, strict=True))
        if not np.isnan(self.covariance).all():
            upper = self.covariance[:, [0, 0, 1], [0, 1, 1]].T
            columns |= dict(zip(COVARIANCE_COLUMNS, upper, strict=True))
        if not np.isnan(self.radius).all():
            columns[RADIUS_COLUMN] = self.radius
        return pd.DataFrame(columns | self.map_coordinates())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a table (.csv, .parquet) or points for a GIS (.geojson, .gpkg), replacing an existing file in one step.

        Parquet keeps the transforms and reference systems, CSV the map coordinates only. `overlaps` is a member of the
        GeoJSON collection; in tables it is a column where it was decided. Another suffix is a ValueError.
        """
        write_matches(path, [self], self.overlaps)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Matches:
        """Read matches from a .csv or .parquet file written by `save`; `overlaps` is None where rows disagree.

        Another suffix or missing columns are a ValueError, no such file a FileNotFoundError.
        """
        readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
        suffix = Path(path).suffix.lower()
        if suffix not in readers:
            raise ValueError(f"{path}: matches are read from {' or '.join(readers)}; got suffix {suffix!r}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file of matches at {path}")
        frame = readers[suffix](path)
        missing = set(COLUMNS) - set(frame.columns)
        if missing:
            raise ValueError(f"{path}: not a table of matches, columns {sorted(missing)} are missing")
        values = frame.reindex(columns=[*COLUMNS, *COVARIANCE_COLUMNS, RADIUS_COLUMN])  # NaN where there are none
        xy_sar, xy_optical = values[["x_sar", "y_sar"]].to_numpy(), values[["x_optical", "y_optical"]].to_numpy()
        known: dict[str, Any] = {name: frame.attrs[name] for name in GEOREFERENCE if name in frame.attrs}
        known = {name: value if isinstance(value, str) else Affine(*value) for name, value in known.items()}
        known |= {name: values[name].to_numpy() for name in COLUMNS[4:]}
        known |= {"covariance": raw_covariance(values), "radius": values[RADIUS_COLUMN].to_numpy()}
        return cls(xy_sar, xy_optical, **known | {"overlaps": _overlaps(frame)})


def _overlaps(frame: pd.DataFrame) -> bool | None:
    if len(frame) == 0:
        return frame.attrs.get("overlaps")
    values = frame["overlaps"].unique() if "overlaps" in frame else []
    return bool(values[0]) if len(values) == 1 and isinstance(values[0], bool | np.bool_) else None
