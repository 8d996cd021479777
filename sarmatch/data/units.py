"""Units of a whole scene, decided once from a sample spread over it, and the scaling of its windows to [0, 1].

`raster.scale_sar` and `scale_optical` decide by the image they get: a window may hold water only or clouds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sarmatch.data.pairs import PairError
from sarmatch.data.raster import REFLECTANCE_KNEE, REFLECTANCE_SCALE, SAR_RANGES_DB, mostly_negative

SarUnits = Literal["byte", "unit", "db", "power", "amplitude"]
"""8 bits; already in [0, 1]; decibel; linear backscatter; linear amplitude, such as the digital numbers of a GRD."""
OpticalUnits = Literal["byte", "unit", "reflectance"]
"""8 bits; already in [0, 1]; reflectance x 10,000."""


@dataclass(frozen=True)
class Scaling:
    """How values in `SarUnits` or `OpticalUnits` become numbers in [0, 1].

    `low` and `high` are the decibels of each band that map to 0 and 1, empty for units without logarithm.
    """

    units: str
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(C, H, W) of any numeric dtype to float32 in [0, 1]; what is not finite comes out as 0."""
        if self.units == "byte":
            return values.astype(np.float32) / np.float32(255)
        if self.units == "reflectance":
            reflectance = np.nan_to_num(values.astype(np.float32)).clip(0, REFLECTANCE_SCALE) / REFLECTANCE_SCALE
            return reflectance * (1 + REFLECTANCE_KNEE) / (reflectance + REFLECTANCE_KNEE)
        if self.units == "unit":
            return np.nan_to_num(values.astype(np.float32)).clip(0, 1)
        low, high = (np.array(end, np.float32)[:, None, None] for end in (self.low, self.high))
        return np.nan_to_num((_decibel(values, self.units) - low) / (high - low), neginf=0.0, posinf=1.0).clip(0, 1)


def sar_scaling(sample: np.ndarray, bands: Sequence[int], units: SarUnits | None = None, what: str = "SAR") -> Scaling:
    """The scaling of a SAR scene from a sample (C, N) of its valid values.

    Args:
        bands: zero-based numbers of the bands: which range of `SAR_RANGES_DB` each takes.
        units: None infers them. Floating point in [0, 1] counts as scaled already where it fills that range; linear
            backscatter crowds at its lower end.
        what: name of the image in errors.

    Raises:
        PairError: complex values, or units that the sample contradicts.
    """
    known = _sar_units(sample, what) if units is None else _known(units, SarUnits, what)
    if known in ("byte", "unit"):
        return Scaling(known)
    low, high = [], []
    for band, values in zip(bands, _decibel(sample, known), strict=True):
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise PairError(f"{what}: band {band} holds no positive value, so {known} has no decibel; choose its units")
        ends, (start, stop) = SAR_RANGES_DB[min(band, 1)], np.percentile(finite, (1, 99))
        calibrated = ends[0] < np.median(finite) < ends[1]  # else the percentiles of the sample map to 0 and 1
        low.append(float(ends[0] if calibrated else start))
        high.append(float(ends[1] if calibrated else max(stop, start + 1)))
    return Scaling(known, tuple(low), tuple(high))


def optical_scaling(sample: np.ndarray, units: OpticalUnits | None = None, what: str = "optical image") -> Scaling:
    """The scaling of an optical scene; arguments as of `sar_scaling`.

    Raises:
        PairError: values that look like SAR, or that no units explain.
    """
    if units is not None:
        return Scaling(_known(units, OpticalUnits, what))
    if sample.dtype == np.uint8:
        return Scaling("byte")
    if np.issubdtype(sample.dtype, np.integer):
        return Scaling("reflectance")
    if not np.issubdtype(sample.dtype, np.floating):
        raise PairError(f"{what}: expected integers or floating point, got {sample.dtype}; convert it first")
    if mostly_negative(sample):
        raise PairError(
            f"{what}: most of its values are negative, as backscatter in dB is; the order is SAR, then optical"
        )
    most = float(np.percentile(sample, 99))
    if 2 < most <= 100:
        raise PairError(
            f"{what}: values up to {most:.3g} are neither in [0, 1] nor reflectance x {REFLECTANCE_SCALE}; say what "
            f"they are (optical_units, one of {', '.join(get_args(OpticalUnits))}) or rescale them"
        )
    return Scaling("unit" if most <= 2 else "reflectance")


def _sar_units(sample: np.ndarray, what: str) -> SarUnits:
    if np.iscomplexobj(sample):
        raise PairError(f"{what}: complex values (single look complex); detect it first, take the amplitude |z|")
    if sample.dtype == np.uint8:
        return "byte"
    if np.issubdtype(sample.dtype, np.integer):
        return "db" if mostly_negative(sample) else "amplitude"
    if np.issubdtype(sample.dtype, np.floating):
        if mostly_negative(sample):
            return "db"
        most, middle = float(np.percentile(sample, 99)), float(np.median(sample))
        if most > 100:
            return "amplitude"
        filled = most >= 0.5 and middle >= 0.1 * most
        return "unit" if filled and sample.max() <= 1 and sample.min() >= 0 else "power"
    raise PairError(f"{what}: expected integers or floating point, got {sample.dtype}; convert it first")


def _decibel(values: np.ndarray, units: str) -> np.ndarray:
    linear = values.astype(np.float32)
    if units == "db":
        return linear
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(linear) * np.float32(10 if units == "power" else 20)


def _known(units: str, kind: object, what: str) -> str:
    if units not in get_args(kind):
        raise PairError(f"{what}: units must be one of {', '.join(get_args(kind))}, got {units!r}")
    return units
