"""Conditions of a pair by rules of ours, measured without any network (section 4.6, figure 10), and given doses."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from companion.studies.data import residual_shift, windows
from sarmatch.data.crops import haze, speckle
from sarmatch.data.pairs import INDEX_COLUMNS, Pair, Pairs
from sarmatch.data.raster import RED_GREEN_BLUE
from sarmatch.evaluation.protocols import spread
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, eroded, gaussian_blur

WATER_SHARE = 0.1  # of pixels, from which a pair has open water
WHITE, WHITE_SHARE = 0.8, 0.01  # value of all bands of a cloud-like pixel, and share of such pixels
LOOKS_DARKEST = 0.05  # 8 bits leave darker windows too few grey levels
ONE_LOOK_VARIATION = 4 / np.pi - 1  # squared, of the amplitude of fully developed speckle (Goodman 1976)
MISFIT_GRID = 3  # windows a side
FEWEST_WINDOWS = 4  # below which neither misfit nor speckle is given
ECHO, SHADOW = 0.15, 0.10  # above and below the surroundings, as shares of the range of values
ECHO_TO_SHADOW_PX = 10  # along the row: Sentinel-1 looks sideways from near-polar orbits


class Condition(NamedTuple):
    """A condition and its rule in words; `levels` name the thirds of a number, empty for text."""

    name: str
    measure: str
    levels: tuple[str, ...]
    rule: str


CONDITIONS = (
    Condition("season", "season", (), "as the data state it"),
    Condition("land cover", "land_cover", (), "as the data state it"),
    Condition(
        "water", "water", (), f"B3 > B11 (MNDWI > 0) on {WATER_SHARE:.0%} of the pixels or more; not in true colour"
    ),
    Condition(
        "texture (proxy of land cover)",
        "texture",
        ("smooth", "middle", "textured"),
        "mean gradient of the optical image over its standard deviation",
    ),
    Condition(
        "local misfit (proxy of distortion)",
        "misfit_px",
        ("low", "middle", "high"),
        f"scatter of the residual shifts of {MISFIT_GRID} x {MISFIT_GRID} windows, px; where {FEWEST_WINDOWS} or more "
        "are reliable",
    ),
    Condition(
        "echo by shadow (proxy of relief)",
        "layover",
        ("low", "middle", "high"),
        f"share of SAR pixels {ECHO:g} above their surroundings with one {SHADOW:g} below within "
        f"{ECHO_TO_SHADOW_PX} px along the row",
    ),
    Condition("haze", "haze", ("clear", "middle", "bright"), "mean of the dark channel; bright ground raises it too"),
    Condition(
        "cloud-like", "cloud", (), f"all bands above {WHITE:g} on {WHITE_SHARE:.0%} of the pixels or more; snow too"
    ),
    Condition(
        "speckle",
        "speckle",
        ("weak", "middle", "strong"),
        "1 / equivalent number of looks where the optical image is most even, values taken for amplitudes",
    ),
)
DISTORTION = {c.measure: c.name for c in CONDITIONS if c.measure in ("misfit_px", "layover")}
"""The two proxies of geometric distortion; claims are tested with the first."""
Kind = Literal["speckle", "haze"]
AUGMENTATION_DOSES: Mapping[str, tuple[float, ...]] = {
    "speckle": (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    "haze": (0.0, 0.2, 0.4, 0.6, 0.8),
}
"""1 / looks of the speckle, and the largest opacity of the haze; 0 leaves the image as it is."""


def measure_conditions(pairs: Pairs) -> pd.DataFrame:
    """All measures of `CONDITIONS` over the whole of each pair: "" or NaN where unknown; one row a pair."""
    rows = []
    for pair in tqdm(pairs, desc="conditions", total=len(pairs), disable=None):
        measured = {
            "water": _at_least(water_share(pair), WATER_SHARE),
            "texture": texture(pair),
            "misfit_px": local_misfit(pair),
            "layover": echo_by_shadow(pair),
            "haze": haze_index(pair.optical, pair.valid),
            "cloud": _at_least(_mean((pair.optical > WHITE).all(dim=0), pair.valid), WHITE_SHARE),
            "speckle": speckle_strength(pair),
        }
        rows.append({name: getattr(pair, name) for name in INDEX_COLUMNS} | measured)
    return pd.DataFrame(rows)


def _at_least(share: float, limit: float) -> str:
    return "" if np.isnan(share) else "yes" if share >= limit else "no"


def _mean(values: Tensor, where: Tensor) -> float:
    return float(values[where].double().mean())


def water_share(pair: Pair) -> float:
    """Share of valid pixels with green above short-wave infrared (MNDWI > 0, Xu 2006); NaN for images without B11."""
    if len(pair.optical) == 3 and pair.dataset != "ombria":
        return math.nan
    places = {3: (2, 0), 13: (2, 11)}[len(pair.optical)]  # of B3 and B11
    green, swir = (pair.optical[band] for band in places)
    return _mean(green > swir, pair.valid)


def texture(pair: Pair) -> float:
    """Mean gradient of the optical image over its standard deviation, 1 / px; NaN of a flat image."""
    grey = gaussian_blur(pair.optical.mean(dim=0)[None], OPTICAL_SIGMA_PX)[0]
    dy, dx = torch.gradient(grey)
    inner = eroded(pair.valid, 4)  # px over which smoothing and gradient extend
    if not bool(inner.any()):
        return math.nan
    spread = float(grey[inner].double().std(correction=0))
    return _mean(torch.hypot(dx, dy), inner) / spread if spread > 1e-6 else math.nan


def local_misfit(pair: Pair) -> float:
    """How differently the parts of a pair are shifted: root mean square distance (px) of shifts from their median.

    They are the `residual_shift` of overlapping windows of half its size; NaN where too few are reliable.
    """
    height, width = pair.size
    found = [residual_shift(part) for _, part in windows(pair, (height // 2, width // 2), MISFIT_GRID)]
    shifts = [(shift.dx, shift.dy) for shift in found if shift.reliable]
    if len(shifts) < FEWEST_WINDOWS:
        return math.nan
    apart = np.array(shifts) - np.median(shifts, axis=0)
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def echo_by_shadow(pair: Pair) -> float:
    """Share of valid SAR pixels much brighter than the mean over 31 px around them, with a shadow beside them."""
    weight = pair.valid.float()[None]
    side = 31
    total, count = (F.avg_pool2d(x, side, 1, side // 2) for x in (pair.sar[:1] * weight, weight))
    rise = gaussian_blur(pair.sar[:1], SAR_SIGMA_PX) - total / count.clamp(min=1e-6)
    shadow = ((rise < -SHADOW) & pair.valid).float()
    near = F.max_pool2d(shadow, (1, 2 * ECHO_TO_SHADOW_PX + 1), 1, (0, ECHO_TO_SHADOW_PX)) > 0
    return _mean(((rise > ECHO) & near)[0], pair.valid)


def speckle_strength(pair: Pair) -> float:
    """1 / equivalent number of looks of the first SAR band, its values taken for amplitudes.

    Median squared coefficient of variation over windows, over that of one look. NaN where too few windows are full,
    unclipped and bright enough. Of images in decibels only the order means something.
    """
    sar, optical, valid = (_windows(image) for image in (pair.sar[:1], pair.optical, pair.valid.float()[None]))
    sar_mean, known = sar[0].mean(dim=-1), valid[0].mean(dim=-1) == 1
    usable = known & (sar[0].amin(dim=-1) > 0) & (sar[0].amax(dim=-1) < 1) & (sar_mean >= LOOKS_DARKEST)
    n_even = int(usable.sum()) // 4
    if n_even < FEWEST_WINDOWS:
        return math.nan
    # Evenness of the optical image: windows chosen by the SAR image itself would have little noise by chance.
    unevenness = optical.var(dim=-1).mean(dim=0)[usable]
    variation = (sar[0].var(dim=-1) / sar_mean**2)[usable]
    even = torch.argsort(unevenness, stable=True)[:n_even]
    return float(np.median(variation[even].numpy())) / ONE_LOOK_VARIATION


def _windows(image: Tensor, side: int = 8) -> Tensor:
    """Windows of `side` px side by side of (C, H, W), their pixels last: (C, n, side ** 2) float64."""
    tiles = image.double().unfold(1, side, side).unfold(2, side, side)
    return tiles.reshape(len(image), -1, side * side)


def classify(measures: pd.DataFrame) -> pd.DataFrame:
    """Levels of all conditions that are known; the terciles are those of `measures`."""
    parts = []
    for condition in CONDITIONS:
        values, cuts = measures[condition.measure], _cuts(measures, condition)
        if condition.levels:
            thirds = np.where(values.isna() | np.isnan(cuts[0]), -1, np.searchsorted(cuts, values))
            level = pd.Categorical.from_codes(thirds, condition.levels)
        else:
            level = pd.Categorical(values.where(values != ""))  # its levels are sorted
        known = pd.DataFrame({"id": measures["id"], "condition": condition.name, "level": level}).dropna()
        parts.append(known.sort_values("level", kind="stable").astype({"level": str}))
    return pd.concat(parts, ignore_index=True)


def _cuts(measures: pd.DataFrame, condition: Condition) -> np.ndarray:
    """The terciles of a number that takes at least three values; else NaN."""
    values = measures[condition.measure]
    can_be_cut = condition.levels and values.nunique() >= 3
    return values.quantile([1 / 3, 2 / 3]).to_numpy() if can_be_cut else np.full(2, np.nan)


def rules(measures: pd.DataFrame) -> pd.DataFrame:
    """Rule of each condition, ends of its middle third (`below`, `above`), and on how many pairs it is known."""
    rows = [(c.name, c.rule, *_cuts(measures, c)) for c in CONDITIONS]
    table = pd.DataFrame(rows, columns=["condition", "rule", "below", "above"]).set_index("condition")
    known = classify(measures).merge(measures[["id", "scene"]], on="id").groupby("condition")
    counts = known.agg(n_pairs=("id", "size"), n_scenes=("scene", "nunique"))
    return table.join(counts.reindex(table.index, fill_value=0)).reset_index()


def absent(levels: pd.DataFrame) -> list[str]:
    """Conditions of which the part holds fewer than two levels, so that nothing can be compared."""
    counts = levels.groupby("condition")["level"].nunique()
    return [c.name for c in CONDITIONS if counts.get(c.name, 0) < 2]


def distortion_parts(levels: pd.DataFrame, measure: str) -> dict[str, list[str]]:
    """Ids of the most distorted third by a measure of `DISTORTION`, and of the rest; {} where it is absent."""
    own = levels[levels["condition"] == DISTORTION[measure]]
    if own.empty:
        return {}
    high = own["level"] == "high"
    return {"distorted": own["id"][high].tolist(), "rest": own["id"][~high].tolist()}


def judged_pairs(pairs: Pairs, levels: pd.DataFrame, at_most: int) -> Pairs:
    """At most so many pairs, half of the most distorted third, half of the rest, spread over scenes; possibly none."""
    parts: dict[str, list[str]] = next(filter(None, (distortion_parts(levels, name) for name in DISTORTION)), {})
    n, ids = min(len(parts.get("distorted", [])), at_most // 2), pairs.index["id"]
    chosen = [spread(pairs.subset(ids.isin(part)), n).index["id"] for part in parts.values()]
    return pairs.subset(ids.isin([name for part in chosen for name in part]))


def later_pairs(pairs: Pairs) -> Pairs:
    """Pairs that have a later SAR image, with that image in place of their own and the same id; possibly none."""
    has_later = [pairs.later_sar(i) is not None for i in range(len(pairs))]
    kept = pairs.subset(np.array(has_later, dtype=bool))

    def read(row: pd.Series) -> Pair:
        return dataclasses.replace(kept.read(row), sar=cast(Tensor, kept.read_later(row)))

    # The partner enters the fingerprint, so that no stored record takes these for the pairs themselves.
    return Pairs(kept.index.assign(partner=changed(kept, "later SAR image")), read)


def with_dose(pair: Pair, kind: Kind, dose: float, rng: np.random.Generator) -> Pair:
    """The pair under speckle (dose 1 / looks) on its SAR or haze (largest opacity) on its optical image."""
    if kind == "haze":
        return dataclasses.replace(pair, optical=haze(pair.optical, dose, rng).clamp(0, 1))
    return dataclasses.replace(pair, sar=speckle(pair.sar, 1 / dose, rng).clamp(0, 1)) if dose else pair


def dosed_pairs(pairs: Pairs, kind: Kind, dose: float, seed: int = 0) -> Pairs:
    """The same pairs `with_dose`, on top of the image's own; `seed` and the id of a pair determine the noise."""
    if kind not in AUGMENTATION_DOSES or not 0 <= dose <= 1:
        raise ValueError(f"{kind=} must be one of {sorted(AUGMENTATION_DOSES)}, and {dose=} lie in [0, 1]")
    if dose == 0:
        return pairs

    def read(row: pd.Series) -> Pair:
        pair = pairs.read(row)
        return with_dose(pair, kind, dose, np.random.default_rng([seed, zlib.crc32(f"{kind}/{pair.id}".encode())]))

    return Pairs(pairs.index.assign(partner=changed(pairs, f"{kind} {dose:g}, seed {seed}")), read)


def changed(pairs: Pairs, how: str) -> pd.Series | str:
    """The `partner` of pairs that were changed, after what was changed before."""
    return pairs.index["partner"] + ", " + how if "partner" in pairs.index else how


def haze_index(optical: Tensor, valid: Tensor) -> float:
    """Mean over valid pixels of the dark channel (He et al. 2011): the least of red, green and blue within 15 px.

    Snow, clouds and bright ground raise it like haze: compare within one season and land cover. NaN without pixels.
    """
    least = (optical if len(optical) == 3 else optical[list(RED_GREEN_BLUE)]).amin(0)
    least = least.masked_fill(~valid, 1.0)  # no data is not dark
    dark = -F.max_pool2d(-least[None, None], 15, 1, 7)[0, 0]
    return float(dark[valid].mean())
