"""From pixel values in any usual units to float32 in [0, 1] (section 4.1 only says "normalizing pixel values").

`scale_sar` and `scale_optical` decide the units of an image by the image itself; `sar_scaling` and `optical_scaling`
decide once for a whole scene, whose windows may hold water only or clouds only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sarmatch.data.pairs import PairError

SarUnits = Literal["byte", "unit", "db", "power", "amplitude"]
"""8 bits; in [0, 1]; decibel; linear backscatter; linear amplitude, such as the digital numbers of a GRD."""
OpticalUnits = Literal["byte", "unit", "reflectance"]  # 8 bits; in [0, 1]; reflectance x 10,000
SAR_RANGES_DB = ((-25.0, 0.0), (-32.5, -5.0))
"""Backscatter that maps to 0 and 1, for VV (band 0) and VH (band 1); Meraner et al. (2020) end VH at 0 dB."""
REFLECTANCE_SCALE = 10_000
KNEE = 0.3  # k of the tone curve x (1 + k) / (x + k), which spreads low reflectances and saturates nothing


@dataclass(frozen=True)
class Scaling:
    """How values in `SarUnits` or `OpticalUnits` become numbers in [0, 1]."""

    units: str
    ranges: tuple[tuple[float, float], ...] = ()  # decibels of each band that map to 0 and 1

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(C, H, W) of any numeric dtype to float32 in [0, 1]; what is not finite comes out as 0 or 1."""
        if self.units == "byte":
            return values.astype(np.float32) * np.float32(1 / 255)
        if self.units in ("unit", "reflectance"):
            scale = 1 if self.units == "unit" else REFLECTANCE_SCALE
            image = np.nan_to_num(values.astype(np.float32), copy=False).clip(0, scale) / scale
            return image if self.units == "unit" else image / (image + KNEE) * (1 + KNEE)
        low, high = np.array(self.ranges, np.float32).T[..., None, None]
        image = (_decibel(values, self.units) - low) / (high - low)
        return np.nan_to_num(image, copy=False, neginf=0.0, posinf=1.0).clip(0, 1)


def scale_sar(
    values: np.ndarray, bands: Sequence[int] = (0,), valid: np.ndarray | None = None, what: str = "SAR image"
) -> tuple[Tensor, Tensor]:
    """Scale SAR values (C, H, W) in 8 bits, dB or [0, 1] to [0, 1]; image (C, H, W) float32 and valid (H, W) bool.

    Values count as dB where most of the valid ones are negative; NaN and infinity become invalid. PairError for other
    units, no valid pixel, or a constant.

    Args:
        bands: which range of `SAR_RANGES_DB` each channel takes.
        valid: (H, W) bool, the pixels known to be valid; None is all.
        what: name of the image in errors.
    """
    valid, known = _valid_values(values, valid, what)
    low, high = known.min(), known.max()
    scaled = np.issubdtype(values.dtype, np.floating) and 0 <= low <= high <= 1
    units = "unit" if scaled else _sar_units(known, what)
    if units not in ("byte", "unit", "db"):
        raise PairError(
            f"{what}: expected 8 bits, dB (mostly negative) or values in [0, 1], got {values.dtype} in [{low:.3g}, "
            f"{high:.3g}]; calibrate it to dB first, linear backscatter with 10 log10"
        )
    return _masked(values, valid, Scaling(units, tuple(SAR_RANGES_DB[min(band, 1)] for band in bands)))


def scale_optical(
    values: np.ndarray, valid: np.ndarray | None = None, what: str = "optical image"
) -> tuple[Tensor, Tensor]:
    """Scale optical values (C, H, W) as `optical_scaling` decides; results and other errors as of `scale_sar`.

    Of integers other than 8 bits, 0 in all bands is nodata.
    """
    if np.issubdtype(values.dtype, np.integer) and values.dtype != np.uint8:
        filled = (values != 0).any(axis=0)
        valid = filled if valid is None else valid & filled
    valid, known = _valid_values(values, valid, what)
    return _masked(values, valid, optical_scaling(known, what=what))


def sar_scaling(sample: np.ndarray, bands: Sequence[int], units: SarUnits | None = None, what: str = "SAR") -> Scaling:
    """The scaling of a SAR scene from a sample (C, N) of its valid values.

    Args:
        bands: zero-based numbers of the bands: which range of `SAR_RANGES_DB` each takes. Where the sample does not
            lie in it, as without calibration, the sample's 1st and 99th percentiles take its place.
        units: None infers them. Floating point in [0, 1] counts as scaled already where it fills that range; linear
            backscatter crowds at its lower end.
        what: name of the image in errors: PairError for complex values, or units that the sample contradicts.
    """
    known = _named(units, SarUnits, what) or _sar_units(sample, what)
    if known in ("byte", "unit"):
        return Scaling(known)
    ranges = []
    for band, values in zip(bands, _decibel(sample, known), strict=True):
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise PairError(f"{what}: band {band} holds no positive value, so {known} has no decibel; choose its units")
        low, high = SAR_RANGES_DB[min(band, 1)]
        if not low < np.median(finite) < high:
            low, high = (float(end) for end in np.percentile(finite, (1, 99)))
            high = max(high, low + 1)
        ranges.append((low, high))
    return Scaling(known, tuple(ranges))


def optical_scaling(sample: np.ndarray, units: OpticalUnits | None = None, what: str = "optical image") -> Scaling:
    """The scaling of an optical scene as `sar_scaling`; PairError for values like SAR, or that no units explain."""
    if known := _named(units, OpticalUnits, what):
        return Scaling(known)
    if np.issubdtype(sample.dtype, np.integer):
        return Scaling("byte" if sample.dtype == np.uint8 else "reflectance")
    if _mostly_negative(sample, what):
        raise PairError(f"{what}: most values are negative, as backscatter in dB is; the order is SAR, then optical")
    most = float(np.percentile(sample, 99))
    if 2 < most <= 100:
        raise PairError(
            f"{what}: values up to {most:.3g} are neither in [0, 1] nor reflectance x {REFLECTANCE_SCALE}; say what "
            f"they are (optical_units, one of {', '.join(get_args(OpticalUnits))}) or rescale them"
        )
    return Scaling("unit" if most <= 2 else "reflectance")


def _valid_values(values: np.ndarray, valid: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The mask without NaN and infinity, and the values under it; no value, or a constant, is an error."""
    if valid is None:
        valid = np.ones(values.shape[-2:], bool)
    if np.issubdtype(values.dtype, np.floating):
        valid = valid & np.isfinite(values).all(axis=0)
    if not valid.any():
        raise PairError(f"{what}: no valid pixel, all are nodata or NaN; leave the file out")
    known = values.reshape(len(values), -1) if valid.all() else values[:, valid]
    if (known.min(axis=1) == known.max(axis=1)).all():
        raise PairError(f"{what}: constant ({known.flat[0]}), there is nothing to match; leave the file out")
    return valid, known


def _masked(values: np.ndarray, valid: np.ndarray, scaling: Scaling) -> tuple[Tensor, Tensor]:
    image, mask = torch.from_numpy(scaling(values)), torch.from_numpy(valid)
    return (image if valid.all() else torch.where(mask, image, 0.0)), mask


def _mostly_negative(sample: np.ndarray, what: str) -> bool:
    """Whether more than half of the values are negative, as backscatter in dB is; complex ones are an error."""
    if np.iscomplexobj(sample):
        raise PairError(f"{what}: complex values (single look complex); detect it first, take the amplitude |z|")
    return bool(np.count_nonzero(sample < 0) * 2 > sample.size)


def _sar_units(sample: np.ndarray, what: str) -> SarUnits:
    if sample.dtype == np.uint8:
        return "byte"
    if _mostly_negative(sample, what):
        return "db"
    most, middle = float(np.percentile(sample, 99)), float(np.median(sample))
    if most > 100 or np.issubdtype(sample.dtype, np.integer):
        return "amplitude"
    filled = most >= 0.5 and middle >= 0.1 * most
    return "unit" if filled and sample.max() <= 1 and sample.min() >= 0 else "power"


def _decibel(values: np.ndarray, units: str) -> np.ndarray:
    linear = values.astype(np.float32)
    if units == "db":
        return linear
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(linear) * np.float32(10 if units == "power" else 20)


def _named(units: str | None, kind: object, what: str) -> str | None:
    if units is not None and units not in get_args(kind):
        raise PairError(f"{what}: units must be one of {', '.join(get_args(kind))}, got {units!r}")
    return units
