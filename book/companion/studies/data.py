"""What a dataset consists of, and how far the co-registration of its pairs is off, estimated without any network."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy.spatial.distance import cdist
from torch import Tensor
from tqdm import tqdm

from companion.baselines.gradients import oriented_gradients, parabola_peak, shift_scores
from companion.baselines.similarities import equal_bins, mutual_information
from sarmatch.data.pairs import Pair, Pairs
from sarmatch.model.oriented_gradients import OPTICAL_SIGMA_PX, SAR_SIGMA_PX, gaussian_blur

ORDER = {"spring": 0, "summer": 1, "fall": 2, "winter": 3, "unknown": 5}  #: All other names are 4, by alphabet.
PERCENTILES = (1, 25, 50, 75, 99)
MAX_SHIFT_PX = 8  # largest shift along each axis that is looked for
RELIABLE_QUALITY = 4.0  # of 284 pairs of images of two places (OMBRIA, SEN1-2, SEN12MS) none had more than 3.2
AGREE_PX = 2.0  # of two estimates for a check point; drawn at random they agree to this in one of 87 cases
_BACKGROUND_PX = 40  # shifts up to this far show how high the scores of wrong shifts are
_PEAK_HALF_WIDTH = 6
_BINS = 16  # of grey values, for mutual information
_NAMES, _VALUES = ("id", "dataset", "scene"), ("dx", "dy", "length", "quality", "reliable")


def distribution(pairs: Pairs) -> pd.DataFrame:
    """Numbers of pairs by land cover and season, as figure 8; seasons in order, empty as "unknown"."""
    labels = pairs.index[["land_cover", "season"]].replace("", "unknown")
    counts = pd.crosstab(labels["land_cover"], labels["season"])
    for axis in (0, 1):
        counts = counts.sort_index(axis=axis, key=lambda names: names.map(lambda n: ORDER.get(n, 4)), kind="stable")
    return counts


def band_statistics(pairs: Pairs, sample: int = 200, seed: int = 0) -> pd.DataFrame:
    """Mean, standard deviation and percentiles of each band over the valid pixels of a random sample of pairs.

    In the units of `Pair`, [0, 1]; percentiles are from at most 4,096 pixels of each of at most `sample` pairs, which
    all have the same numbers of bands.
    """
    if not len(pairs) or sample < 1:
        raise ValueError(f"need at least one pair and sample >= 1, got {len(pairs)} pairs and sample={sample}")
    rng = np.random.default_rng(seed)
    pixels, total, square, drawn = 0, 0.0, 0.0, []
    for i in np.sort(rng.choice(len(pairs), min(sample, len(pairs)), replace=False)):
        pair = pairs[int(i)]
        bands = np.concatenate([pair.sar.numpy(), pair.optical.numpy()])[:, pair.valid.numpy()].astype(np.float64)
        n = bands.shape[1]
        pixels, total, square = pixels + n, total + bands.sum(axis=1), square + (bands**2).sum(axis=1)
        drawn.append(bands[:, rng.choice(n, min(4096, n), replace=False)])
    names = [f"{image} {b}" for image in ("sar", "optical") for b in range(len(getattr(pair, image)))]
    mean = total / pixels
    table = pd.DataFrame({"mean": mean, "std": np.sqrt(np.maximum(square / pixels - mean**2, 0))}, index=names)
    table[[f"p{p}" for p in PERCENTILES]] = np.percentile(np.hstack(drawn), PERCENTILES, axis=1).T
    return table.assign(pixels=pixels)


@dataclass(frozen=True)
class ResidualShift:
    """One shift for a whole pair: what stands at p in the SAR image stands at p + (dx, dy) in the optical one."""

    dx: float  #: px, sub-pixel, as `dy`.
    dy: float
    quality: float  #: Height of the correlation peak, see `peak_shift`.

    @property
    def length(self) -> float:
        return float(np.hypot(self.dx, self.dy))

    @property
    def reliable(self) -> bool:
        """Whether the peak stands out more than pairs of unrelated images would let it."""
        return self.quality >= RELIABLE_QUALITY


def residual_shift(pair: Pair, max_shift: int = MAX_SHIFT_PX) -> ResidualShift:
    """Shift of at most `max_shift` px on each axis at which the oriented gradients of both images correlate best."""
    if max_shift > _BACKGROUND_PX // 2:
        raise ValueError(f"max_shift must be at most {_BACKGROUND_PX // 2}, got {max_shift}; register such pairs first")
    sar = oriented_gradients(pair.sar, SAR_SIGMA_PX, pair.valid)
    optical = oriented_gradients(pair.optical, OPTICAL_SIGMA_PX, pair.valid)
    return peak_shift(shift_scores(sar, optical, _BACKGROUND_PX), max_shift)


def peak_shift(scores: np.ndarray, max_shift: int) -> ResidualShift:
    """The highest place within `max_shift` of a (2 R + 1, 2 R + 1) surface of scores, refined by parabolas.

    Rows are dy and columns dx; scores -inf where unknown. Its quality is the height above the mean over much larger,
    wrong shifts, in their standard deviations; 0 where the best shift is the largest one allowed, so that the true one
    may lie beyond.
    """
    radius = len(scores) // 2
    near = slice(radius - max_shift, radius + max_shift + 1)
    dy, dx = (int(i) - max_shift for i in np.unravel_index(scores[near, near].argmax(), [2 * max_shift + 1] * 2))
    row, column = dy + radius, dx + radius
    if not np.isfinite(scores[row, column]) or max(abs(dx), abs(dy)) == max_shift:
        return ResidualShift(float(dx), float(dy), 0.0)
    rows, columns = np.indices(scores.shape)
    elsewhere = np.maximum(abs(rows - row), abs(columns - column)) > _PEAK_HALF_WIDTH
    others = scores[elsewhere & np.isfinite(scores)]
    height, spread = float(scores[row, column] - others.mean()), float(others.std())
    return ResidualShift(
        dx + float(parabola_peak(*scores[row, column - 1 : column + 2])),
        dy + float(parabola_peak(*scores[row - 1 : row + 2, column])),
        height / spread if spread > 0 else 0.0,
    )


def cut(pair: Pair, x: int, y: int, height: int, width: int) -> Pair:
    """A window of a pair from its corner (x, y) px on; the pair within it has no georeference."""
    part = (..., slice(y, y + height), slice(x, x + width))
    images = {name: getattr(pair, name)[part] for name in ("sar", "optical", "valid")}
    return dataclasses.replace(pair, **images, transform=None)


def windows(pair: Pair, size: tuple[int, int], per_axis: int) -> Iterator[tuple[tuple[float, float], Pair]]:
    """Overlapping windows (height, width) from corner to corner: the centre (x, y) px of each, and the pair within it.

    There are `per_axis` along each axis, fewer where they would coincide.
    """
    height, width = size
    tops, lefts = (np.unique(np.linspace(0, n, per_axis).astype(int)) for n in np.subtract(pair.size, size))
    for top, left in product(tops.tolist(), lefts.tolist()):
        yield (left + (width - 1) / 2, top + (height - 1) / 2), cut(pair, left, top, height, width)


def residual_shift_table(pairs: Pairs) -> pd.DataFrame:
    """`residual_shift` of every pair: `id`, `dataset`, `scene`, `dx`, `dy`, `length`, `quality`, `reliable`."""
    rows = []
    for pair in tqdm(pairs, "residual shift", len(pairs), disable=None):
        shift = residual_shift(pair)
        rows.append([getattr(pair, name) for name in _NAMES] + [getattr(shift, name) for name in _VALUES])
    return pd.DataFrame(rows, columns=[*_NAMES, *_VALUES])


def summarise_shifts(table: pd.DataFrame) -> pd.DataFrame:
    """Per dataset of a `residual_shift_table`: pairs, share reliable, and over those length, mean and shares."""
    shares = {f"within_{limit:g}px": table["length"] <= limit for limit in (1.0, 2.3)}
    means = {name: (name, "mean") for name in shares}
    reliable = table.assign(**shares)[table["reliable"]].groupby("dataset")
    found = reliable.agg(median_px=("length", "median"), mean_dx=("dx", "mean"), mean_dy=("dy", "mean"), **means)
    return table.groupby("dataset")["reliable"].agg(n_pairs="size", reliable="mean").join(found)


@dataclass(frozen=True)
class CheckPoints:
    """Places (n, 2) px of a SAR image and where they lie in the optical one, of the blocks that were asked for one."""

    xy_sar: np.ndarray
    xy_optical: np.ndarray
    n_blocks: int

    def nearest(self, corners: np.ndarray) -> np.ndarray:
        """For each of some places (k, 2), which check point lies nearest, (k,); none where there are no points."""
        distances = cdist(corners, self.xy_sar)
        return distances.argmin(axis=1) if distances.size else np.empty(0, int)


def check_points(pair: Pair) -> CheckPoints:
    """Overlapping blocks for which two similarities that share little agree within `AGREE_PX`; their mean counts.

    Left out are also blocks whose oriented gradients do not stand out.
    """
    side, max_shift = min(256, *pair.size), 16
    blocks = list(windows(pair, (side, side), 5))
    centres, shifts = [], []
    for centre, part in blocks:
        first, second = residual_shift(part, max_shift), information_shift(part.sar, part.optical, max_shift)
        both = np.array([(first.dx, first.dy), (second.dx, second.dy)])
        if first.reliable and np.hypot(*np.diff(both, axis=0)[0]) <= AGREE_PX:
            centres.append(centre)
            shifts.append(both.mean(axis=0))
    source = np.array(centres, np.float64).reshape(-1, 2)
    return CheckPoints(source, source + np.array(shifts, np.float64).reshape(-1, 2), len(blocks))


def information_shift(sar: Tensor, optical: Tensor, max_shift: int) -> ResidualShift:
    """The shift of a whole pair, of at most `max_shift` px on each axis, of the largest mutual information.

    Of the smoothed grey values of the first SAR band, less a margin of `max_shift`, and of the mean of optical bands.
    """
    height, width = sar.shape[1:]
    if min(height, width) < 4 * max_shift:
        at_least = f"at least {4 * max_shift} px for shifts of {max_shift} px"
        raise ValueError(f"images must be {at_least}, got {height} x {width}")
    grey = gaussian_blur(sar[:1], SAR_SIGMA_PX), gaussian_blur(optical.mean(0, keepdim=True), OPTICAL_SIGMA_PX)
    first, second = (equal_bins(image, _BINS)[0].numpy().astype(np.int64) for image in grey)
    own = first[max_shift : height - max_shift, max_shift : width - max_shift] * _BINS
    counts = [
        [np.bincount((own + window).ravel(), minlength=_BINS**2) for window in row]
        for row in sliding_window_view(second, own.shape)
    ]
    return peak_shift(mutual_information(np.array(counts, np.float32)).astype(np.float64), max_shift)
