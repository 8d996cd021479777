"""What a dataset consists of: pairs by land cover and season (figure 8 of the paper), and values by band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sarmatch.data.pairs import Pairs

SEASONS = ("spring", "summer", "fall", "winter")
UNKNOWN = "unknown"
PERCENTILES = (1, 25, 50, 75, 99)


def distribution(pairs: Pairs, rows: str = "land_cover", columns: str = "season") -> pd.DataFrame:
    """Numbers of pairs by two columns of the index, as figure 8; seasons in order, empty as "unknown"."""
    for name in (rows, columns):
        if name not in pairs.index:
            raise ValueError(f"the index has no column {name!r}; it has {list(pairs.index.columns)}")
    labels = {name: pairs.index[name].astype(str).replace("", UNKNOWN) for name in (rows, columns)}
    counts = pd.crosstab(labels[rows], labels[columns], rownames=[rows], colnames=[columns])
    return _in_order_of_the_year(_in_order_of_the_year(counts).T).T


def _in_order_of_the_year(table: pd.DataFrame) -> pd.DataFrame:
    """Columns sorted: seasons first, then others by name, unknown last."""
    rank = {name: i for i, name in enumerate(SEASONS)} | {UNKNOWN: len(SEASONS) + 1}
    return table[sorted(table.columns, key=lambda name: (rank.get(name, len(SEASONS)), name))]


def band_statistics(pairs: Pairs, sample: int = 200, seed: int = 0) -> pd.DataFrame:
    """Mean, standard deviation and percentiles of each band over the valid pixels of a random sample of pairs.

    Args:
        pairs: at least one, all with the same numbers of bands.
        sample: number of pairs to read at most.

    Returns:
        one row a band ("sar 0", "optical 0", ...), in the units of `Pair`, [0, 1]. Mean and standard deviation are
        exact over the sample; percentiles from at most 4,096 pixels a pair.
    """
    if not len(pairs) or sample < 1:
        raise ValueError(f"need at least one pair and sample >= 1, got {len(pairs)} pairs and sample={sample}")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(pairs), min(sample, len(pairs)), replace=False))
    moments, drawn = [], []
    for i in chosen:
        pair = pairs[int(i)]
        bands = np.concatenate([pair.sar.numpy(), pair.optical.numpy()])[:, pair.valid.numpy()].astype(np.float64)
        moments.append((bands.shape[1], bands.sum(axis=1), (bands**2).sum(axis=1)))
        drawn.append(bands[:, rng.choice(bands.shape[1], min(4096, bands.shape[1]), replace=False)])
    names = [f"sar {b}" for b in range(len(pair.sar))] + [f"optical {b}" for b in range(len(pair.optical))]
    return _summary(names, moments, np.concatenate(drawn, axis=1))


def _summary(
    names: Sequence[str], moments: list[tuple[int, np.ndarray, np.ndarray]], drawn: np.ndarray
) -> pd.DataFrame:
    pixels = sum(count for count, _, _ in moments)
    mean = sum(total for _, total, _ in moments) / pixels
    square = sum(total for _, _, total in moments) / pixels
    table = pd.DataFrame({"mean": mean, "std": np.sqrt(np.maximum(square - mean**2, 0))}, index=list(names))
    for p, values in zip(PERCENTILES, np.percentile(drawn, PERCENTILES, axis=1), strict=True):
        table[f"p{p}"] = values
    return table.assign(pixels=pixels)
