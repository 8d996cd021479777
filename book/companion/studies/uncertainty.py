"""Responses of uncertainty maps to nuisances dosed one at a time, and the claims of section 5.2 on real pairs."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from companion.intervals import cluster_bootstrap, summarise
from companion.studies.conditions import AUGMENTATION_DOSES, Kind, haze_index, with_dose
from companion.studies.data import cut
from sarmatch.data.pairs import INDEX_COLUMNS, Pair, Pairs
from sarmatch.data.synthetic import Nuisance, Rendering, render
from sarmatch.geometry import central_corner
from sarmatch.model import STRIDE
from sarmatch.model.uncertainty import SOURCES, UncertaintyMaps

Measure = Callable[[Tensor, Tensor], UncertaintyMaps]
"""SAR (B, 1|2, H, W) and optical images (B, C, H, W) to maps of 4 px cells, as by `SarOpticalNet.uncertainty_maps`."""
MEASURED = [*SOURCES, "sar", "optical", "total"]  #: The six sources, U_sar, U_opt and the mean of the last two.
RESOLUTION = 1e-6  #: Uncertainties closer than this are equal: single precision and batches differ by as much.
CALM = Nuisance(looks=16.0, layover_px=0.0, double_bounce=0.5, relief=0.0, haze=0.0, shadow=0.2, illumination=0.0)
"""What all nuisances but one are held at; every ladder of `DOSES` starts from it."""
Ladder = Mapping[float, Nuisance]  #: What to render at each dose, rising.


def ladder(field: str, *values: float) -> Ladder:
    """The calm scene with values of one field of `Nuisance`, rising in dose: the value, but 1 / looks for `looks`."""
    return {1 / v if field == "looks" else v: dataclasses.replace(CALM, **{field: v}) for v in values}


DOSES: Mapping[str, Ladder] = {
    "speckle": ladder("looks", 16.0, 8.0, 4.0, 2.0, 1.0),
    "layover": ladder("layover_px", 0.0, 2.0, 4.0, 6.0, 8.0),
    "relief": ladder("relief", 0.0, 0.25, 0.5, 0.75, 1.0),
    "haze": ladder("haze", 0.0, 0.2, 0.4, 0.6, 0.8),
    "cloud": ladder("cloud", 0.0, 0.2, 0.4, 0.6, 0.8),
    "illumination": ladder("illumination", 0.0, 0.2, 0.4, 0.6, 0.8),
    "snow": ladder("snow", 0.0, 0.25, 0.5, 0.75, 1.0),
}
WITHIN: Mapping[str, tuple[Nuisance, Callable[[Rendering], np.ndarray]]] = {
    "speckle": (dataclasses.replace(CALM, looks=1.0), lambda made: np.ones_like(made.speckle)),
    "layover": (dataclasses.replace(CALM, layover_px=6.0), lambda made: abs(made.layover - 1)),
    "double_bounce": (dataclasses.replace(CALM, double_bounce=2.0), lambda made: made.double_bounce),
    "haze": (dataclasses.replace(CALM, haze=0.4), lambda made: made.haze),
    "cloud": (dataclasses.replace(CALM, cloud=0.3), lambda made: made.cloud),
    "shading": (dataclasses.replace(CALM, relief=1.0), lambda made: abs(made.shading - 1)),
    "illumination": (dataclasses.replace(CALM, illumination=0.5), lambda made: abs(made.illumination - 1)),
    "snow": (dataclasses.replace(CALM, snow=0.4), lambda made: made.snow),
}
"""Of each nuisance that covers part of an image: the calm scene with it, and the map (H, W) of where it is."""


def dose_response(
    measure: Measure, n_scenes: int, size: int, seed: int, doses: Mapping[str, Ladder] = DOSES
) -> pd.DataFrame:
    """The same synthetic scenes under rising doses of one nuisance at a time, all others as in `CALM`.

    A row per nuisance, dose, scene and source in `MEASURED`: `value`, the mean over cells. The side `size` is at least
    32 px and a multiple of 4.
    """
    steps = {(name, dose): nuisance for name, rising in doses.items() for dose, nuisance in rising.items()}
    distinct = list(dict.fromkeys(steps.values()))  # all ladders start at the same image
    rows = []
    for scene in range(n_scenes):
        scene_seed = int(np.random.SeedSequence([seed, scene]).generate_state(1)[0])
        maps, _ = _measured(measure, [render(scene_seed, size, nuisance).pair for nuisance in distinct])
        means = dict(zip(distinct, maps.mean(axis=(2, 3)), strict=True))
        rows += [(*step, scene, *means[nuisance]) for step, nuisance in steps.items()]
    return _melted(rows, ["nuisance", "dose", "scene"])


def augmented_dose_response(measure: Measure, pairs: Pairs, kind: Kind, crop_size: int, seed: int = 0) -> pd.DataFrame:
    """Central crops of real pairs under the `AUGMENTATION_DOSES` of artificial speckle or haze, see `with_dose`.

    As `dose_response`, over cells with data in all their pixels (NaN where there is none); `scene` is the id of a pair,
    `cluster` its scene. Speckle of one look darkens an amplitude image by 11 %, to which brightness alone responds.
    """
    rows, doses = [], AUGMENTATION_DOSES[kind]
    for i, (pair, full) in enumerate(_crops(pairs, crop_size)):
        maps, _ = _measured(measure, [with_dose(pair, kind, d, np.random.default_rng((seed, i))) for d in doses])
        means = zip(doses, _mean(maps[:, :, full]), strict=True)
        rows += [(kind, dose, pair.id, pair.scene or pair.id, *values) for dose, values in means]
    return _melted(rows, ["nuisance", "dose", "scene", "cluster"])


def _melted(rows: Sequence[Any], labels: list[str]) -> pd.DataFrame:
    """From labels and values of all of `MEASURED` to one row a value."""
    table = pd.DataFrame(rows, columns=[*labels, *MEASURED])
    table = table.melt(labels, var_name="source", value_name="value", ignore_index=False)
    return table.sort_index(kind="stable", ignore_index=True)


def _clustered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a value, with a column `cluster`."""
    return table.assign(cluster=table.get("cluster", table["scene"])).dropna(subset=["value"])


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of dose and value within each scene, averaged over scenes, for each nuisance and source.

    A source that does not move at all has 0. Intervals resample scenes (clusters of pairs where `table` has them).
    `change` is that of the mean from the lowest to the highest dose, `effect` the change over the standard deviation
    between scenes at the lowest dose (NaN where scenes do not differ).
    """
    rows = []
    for (nuisance, source), group in _clustered(table).groupby(["nuisance", "source"], sort=False):
        wide = group.pivot(index=["cluster", "scene"], columns="dose", values="value").dropna()
        each = wide.index.to_frame(index=False).assign(rho=_spearman(wide.columns.to_numpy(), wide.to_numpy()))
        rho = cluster_bootstrap(each, "rho", "cluster")
        first, last = wide.iloc[:, 0], wide.iloc[:, -1]
        change, spread = float((last - first).mean()), float(first.std())
        row = {"nuisance": nuisance, "source": source, **rho.named("rho")}
        row |= {"change": change, "effect": change / spread if spread > RESOLUTION else float("nan")}
        rows.append(row | {"n_scenes": rho.n_pairs, "n_clusters": rho.n_clusters})
    return pd.DataFrame(rows)


def summary_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Mean response over each scene's lowest dose with its 95 % interval: nuisance, dose, source, value, low, high."""
    table = _clustered(table).sort_values("dose", kind="stable")
    table["value"] -= table.groupby(["nuisance", "source", "scene"])["value"].transform("first")
    found = summarise(table, ["nuisance", "dose", "source"], ["value"], "cluster")
    return found.rename(columns={"value_low": "low", "value_high": "high"}).drop(columns=["n_pairs", "n_clusters"])


def backscatter_relation(measure: Measure, pairs: Pairs, crop_size: int) -> pd.DataFrame:
    """Relation of the SAR uncertainty to backscatter, the mean of the first SAR band over a cell (section 5.2).

    `rho_sar` is Spearman's correlation of U_sar over cells with the backscatter (NaN in an image without contrast, 0 of
    a map without), `ratio_sar` the mean of U_sar over the brightest tenth of the cells over that of the rest.
    """
    rows = []
    for pair, full in _crops(pairs, crop_size):
        maps, _ = _measured(measure, [pair])
        values, bright = maps[0, MEASURED.index("sar")][full], _pool(pair.sar[0].numpy())[full]
        brightest = np.argsort(-bright, kind="stable")[: max(1, round(len(bright) / 10))]
        ratio = _mean(values[brightest]) / _mean(np.delete(values, brightest))
        rows.append(_labels(pair) | {"rho_sar": _spearman(bright, values[None])[0], "ratio_sar": ratio})
    return pd.DataFrame(rows)


def group_levels(measure: Measure, pairs: Pairs, crop_size: int) -> pd.DataFrame:
    """Mean of each of `MEASURED` and weight of each source, a row a pair, beside season, land cover and haze index."""
    rows = []
    for pair, full in _crops(pairs, crop_size):
        maps, weights = _measured(measure, [pair])
        row = _labels(pair) | {"haze_index": haze_index(pair.optical, pair.valid)}
        row |= {f"mean_{name}": value for name, value in zip(MEASURED, _mean(maps[0, :, full].T), strict=True)}
        rows.append(row | {f"weight_{name}": value for name, value in zip(SOURCES, weights[0], strict=True)})
    return pd.DataFrame(rows)


def within_image_relation(measure: Measure, seeds: Sequence[int], size: int) -> pd.DataFrame:
    """Spearman's correlation over cells of each uncertainty map with the map of where a nuisance of `WITHIN` is.

    `rho_change` is with the rise over the same scene without the nuisance. NaN where there is none, 0 of a flat map.
    """
    rows = []
    for seed in seeds:
        calm = render(seed, size, CALM).pair
        images, causes = [calm], []
        for name, (nuisance, where) in WITHIN.items():
            made = render(seed, size, nuisance)
            pair, cause = made.pair, where(made)
            if name == "speckle":  # the same everywhere in a rendering: two quadrants of its image stay calm
                noisy = _quadrants(size, bool(seed % 2))
                cause = cause * noisy
                pair = dataclasses.replace(pair, sar=torch.where(torch.from_numpy(noisy), pair.sar, calm.sar))
            images.append(pair)
            causes.append(_pool(cause).ravel())
        maps, _ = _measured(measure, images)
        flat = maps.reshape(*maps.shape[:2], -1)
        for name, cause, values in zip(WITHIN, causes, flat[1:], strict=True):
            rhos = zip(MEASURED, _spearman(cause, values), _spearman(cause, values - flat[0]), strict=True)
            rows += [(name, seed, *row) for row in rhos]
    return pd.DataFrame(rows, columns=["nuisance", "scene", "source", "rho", "rho_change"])


def _quadrants(size: int, mirrored: bool) -> np.ndarray:
    """Two opposite quadrants, (size, size) bool: no gradient from edge to edge or to the middle follows them."""
    high = np.arange(size) >= size // 2 // STRIDE * STRIDE
    return (high[:, None] ^ high[None]) ^ mirrored


def _measured(measure: Measure, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Maps of pairs of one size in the order of `MEASURED`, (N, 9, h, w), and weights (N, 6), both float64."""
    maps, weights = [], []
    with torch.inference_mode():
        for some in (pairs[i : i + 8] for i in range(0, len(pairs), 8)):
            made = measure(torch.stack([pair.sar for pair in some]), torch.stack([pair.optical for pair in some]))
            every = torch.cat([made.sources, made.sar, made.optical, (made.sar + made.optical) / 2], 1)
            expected = (len(every), len(MEASURED), *(side // STRIDE for side in some[0].size))
            if tuple(every.shape) != expected or not bool(every.isfinite().all()):
                raise ValueError(f"measure: expected finite maps {expected} in all, got {tuple(every.shape)}")
            maps.append(every.double().cpu())
            weights.append(made.weights.double().cpu())
    return torch.cat(maps).numpy(), torch.cat(weights).numpy()


def _labels(pair: Pair) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in INDEX_COLUMNS}


def _crops(pairs: Pairs, crop_size: int) -> Iterator[tuple[Pair, np.ndarray]]:
    """Central windows of each pair, and the cells (h, w) that have data in all their pixels."""
    for pair in pairs:
        x, y = central_corner(pair.size, crop_size, f"pair {pair.id!r}")
        window = cut(pair, x, y, crop_size, crop_size)
        yield window, _pool(window.valid.numpy()) == 1


def _pool(image: np.ndarray) -> np.ndarray:
    """Means over cells, (H, W) to (h, w) float64."""
    height, width = (side // STRIDE for side in image.shape)
    return image.astype(np.float64).reshape(height, STRIDE, width, STRIDE).mean(axis=(1, 3))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where it is empty."""
    return values.mean(axis=-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)


def _spearman(cause: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Spearman's correlation of (n,) with each row of (m, n), ties averaged: NaN of a flat cause, 0 of a flat row."""
    if len(np.unique(cause)) < 2:
        return np.full(len(responses), np.nan)
    ranks = rankdata(cause), rankdata(np.round(responses / RESOLUTION), axis=1)
    x, y = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    norm = np.sqrt((x**2).sum() * (y**2).sum(axis=1))
    return np.divide(y @ x, norm, out=np.zeros(len(y)), where=norm > 0)
