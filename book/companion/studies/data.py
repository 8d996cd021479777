"""What a dataset consists of: pairs by land cover and season (figure 8 of the paper), and values by band."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sarmatch.data.pairs import Pairs

ORDER = {"spring": 0, "summer": 1, "fall": 2, "winter": 3, "unknown": 5}  #: All other names are 4, by alphabet.
PERCENTILES = (1, 25, 50, 75, 99)


def distribution(pairs: Pairs) -> pd.DataFrame:
    """Numbers of pairs by land cover and season, as figure 8; seasons in order, empty as "unknown"."""
    labels = pairs.index[["land_cover", "season"]].replace("", "unknown")
    counts = pd.crosstab(labels["land_cover"], labels["season"])
    for axis in (0, 1):
        counts = counts.sort_index(axis=axis, key=lambda names: names.map(lambda n: ORDER.get(n, 4)), kind="stable")
    return counts


def band_statistics(pairs: Pairs, sample: int = 200, seed: int = 0) -> pd.DataFrame:
    """Mean, standard deviation and percentiles of each band over the valid pixels of a random sample of pairs.

    Args:
        pairs: at least one, all with the same numbers of bands.
        sample: number of pairs to read at most; percentiles are from at most 4,096 pixels of each.

    Returns:
        one row a band ("sar 0", "optical 0", ...), in the units of `Pair`, [0, 1].
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
