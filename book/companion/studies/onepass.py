"""One-pass estimates of epistemic uncertainty beside Monte Carlo passes: cost, agreement and gain (section 5.5)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from sklearn.covariance import LedoitWolf
from torch import Tensor
from tqdm import tqdm

from companion.cache import cached_table
from companion.studies.calibration import ALL_SCORES, Recipe, logistic
from companion.timing import interleave
from sarmatch.calibration.calibrators import Isotonic
from sarmatch.config import Config, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import trained_weights
from sarmatch.evaluation.protocols import evaluation_crops, spread
from sarmatch.geometry import cell_centres
from sarmatch.io import atomic_path, digest
from sarmatch.matching.assignment import Prediction, predict
from sarmatch.matching.epistemic import by_cell, distilled_information, other_end, row_entropy
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.matching.tiling import tile_seed
from sarmatch.model import STRIDE, Encoded, SarOpticalNet, encode_pair
from sarmatch.model.checkpoints import load_weights, save_weights
from sarmatch.training.distillation import CROPS, distil, some_cells, training_crops
from sarmatch.training.runs import Run, run_lock

ONE_PASS: Mapping[str, Recipe] = {
    "plain softmax": Recipe(Isotonic.fit),
    "no estimate": Recipe(logistic("logit_probability", "aleatoric")),
    "row entropy": Recipe(logistic(*ALL_SCORES), epistemic="row entropy"),
    "feature density": Recipe(logistic(*ALL_SCORES), epistemic="feature density"),
    "distilled": Recipe(logistic(*ALL_SCORES), epistemic="distilled"),
    "passes, doubt only": Recipe(logistic(*ALL_SCORES)),
    "passes": Recipe(logistic(*ALL_SCORES), "mean_probability"),
}
"""Confidences of the chapter on one pass; `passes, doubt only` takes only the mutual information from the passes."""
ESTIMATES = ["row entropy", "feature density", "distilled"]


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """Gaussian of each modality's features F over training cells, after Lee et al. (2018) and Mukhoti et al. (2023).

    Of features, not of descriptors: these lie on a sphere, on which test patterns lie among the images of training.
    """

    means: Tensor  #: Of the SAR and of the optical features, (2, C).
    precisions: Tensor  #: Inverses of their shrunk covariances (Ledoit and Wolf), (2, C, C).

    @classmethod
    def fit(cls, net: SarOpticalNet, pairs: Pairs, config: Config, seed: int, crops: int = CROPS) -> Density:
        """From the deterministic pass over training crops, 256 cells of each image; ValueError where they have none."""
        rng = np.random.default_rng((seed, 1))
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for sar, optical, _ in training_crops(net, pairs, config, seed, crops, "density"):
            for rows, image in zip(parts, (sar, optical), strict=True):
                rows.append(by_cell(image.encoding.features)[some_cells(image.valid.flatten(), 256, rng)].cpu())
        tables = [torch.cat(rows).double().numpy() for rows in parts]
        if min(map(len, tables)) < 2:
            raise ValueError("pairs: fewer than two cells of training crops carry data; check their valid masks")
        fits = [LedoitWolf().fit(table) for table in tables]
        found = (np.stack([getattr(fit, name) for fit in fits]) for name in ("location_", "precision_"))
        return cls(*(torch.from_numpy(values).float() for values in found))

    @torch.no_grad()
    def distance(self, sar: Tensor, optical: Tensor, prediction: Prediction) -> Tensor:
        """How far both ends of each SAR cell's best match lie from training, (1, h, w) >= 0, without unit.

        log(1 + d), d the squared Mahalanobis distances of both ends, with features F (1, C, h, w), summed, per channel
        of both: its mean over training cells is 1. ValueError for features of another network or size.
        """
        there, _ = other_end(prediction, sar, optical)
        if not sar.shape[1] == optical.shape[1] == self.means.shape[1]:
            raise ValueError(
                f"sar, optical: expected features of {self.means.shape[1]} channels, to which the density was fitted, "
                f"got {sar.shape[1]} and {optical.shape[1]}; fit one to this network"
            )
        squared = []
        for features, mean, precision in zip((sar, optical), self.means, self.precisions, strict=True):
            off = by_cell(features) - mean.to(features)
            squared.append(((off @ precision.to(features)) * off).sum(1).clamp(min=0))
        total = (squared[0] + squared[1][there]) / self.means.numel()
        return total.log1p().unflatten(0, (1, *prediction.forward.shape[-2:]))


@torch.no_grad()
def encode_crops(net: SarOpticalNet, crops: EvaluationCrops) -> tuple[Encoded, Encoded]:
    """Both encoders over the crops of an evaluation protocol, with the fine level, on the network's device."""
    images = (crops.sar, crops.optical, crops.sar_valid, crops.optical_valid)
    device = next(net.parameters()).device
    sar, optical, sar_valid, optical_valid = (image[None].to(device) for image in images)
    return encode_pair(net, (sar, optical, sar_valid, optical_valid))


def monte_carlo_prediction(net: SarOpticalNet, crops: EvaluationCrops, search_radius: float, passes: int) -> Prediction:
    """Prediction with maps `variance` and `mutual_information` (1, h, w), masks as in a `Matcher` of seed 0."""
    sar, optical = encode_crops(net, crops)
    how = sar.valid, optical.valid, bool(net.config.consensus_cells), [tile_seed(0)]
    return predict_monte_carlo(net, sar.prefix, optical.prefix, search_radius, passes, *how)


def error_map(crops: EvaluationCrops, xy_sar: np.ndarray, errors_px: np.ndarray) -> np.ndarray:
    """Error of the match of each SAR cell, px, (h, w); NaN where a cell has none."""
    errors = np.full([side // STRIDE for side in crops.sar.shape[-2:]], np.nan)
    column, row = np.rint((np.asarray(xy_sar).T - (STRIDE - 1) / 2) / STRIDE).astype(int)
    errors[row, column] = errors_px
    return errors


def distilled_or_load(run: Run, split: Split, crops: int = CROPS) -> tuple[Run, pd.DataFrame]:
    """The run with a distilled `epistemic_head`, trained once and kept in its folder, and the curve of `distil`."""
    trained_on = _training_digest(run, split, crops)
    weights, curve_path = (run.path / f"distilled-{trained_on}.{suffix}" for suffix in ("safetensors", "parquet"))
    with run_lock(run.path):
        if not (weights.exists() and curve_path.exists()):
            net = copy.deepcopy(run.net)
            curve = distil(net, split.train, run.config, run.config.seed, crops=crops)
            with atomic_path(curve_path) as partial:
                curve.to_parquet(partial)
            save_weights(net, weights)
    return dataclasses.replace(run, net=load_weights(weights)[0]), pd.read_parquet(curve_path)


def density_or_load(run: Run, split: Split, crops: int = CROPS) -> Density:
    """`Density.fit` on training scenes, once; kept in the run's folder."""
    path = run.path / f"density-{_training_digest(run, split, crops)}.safetensors"
    if not path.exists():
        density = Density.fit(run.net, split.train, run.config, run.config.seed, crops)
        with atomic_path(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in vars(density).items()}, partial)
    return Density(**load_file(path))


def _training_digest(run: Run, split: Split, crops: int) -> str:
    """Digest of all that head and density are fitted to."""
    config = run.config
    sizes = [config.seed, crops, config.evaluation.headline_radius]
    data = dataclasses.replace(config.data, root=None)
    return digest([trained_weights(run.net), run.net.config, split.train, data, sizes])


def estimators(
    net: SarOpticalNet, density: Density, crops: EvaluationCrops, search_radius: float
) -> dict[str, Callable[[], Tensor]]:
    """What computes each of `ESTIMATES` after one pass over crops, a map (1, h, w)."""
    sar, optical = encode_crops(net, crops)
    how = sar.valid, optical.valid, bool(net.config.consensus_cells)
    prediction = predict(net, sar.descriptors, optical.descriptors, search_radius, *how)
    return {
        "row entropy": partial(row_entropy, prediction),
        "feature density": partial(density.distance, sar.encoding.features, optical.encoding.features, prediction),
        "distilled": partial(distilled_information, net, prediction, sar.descriptors, optical.descriptors),
    }


def estimates_or_load(run: Run, density: Density, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """`ESTIMATES` for all SAR cells of pairs under `shift` by id, x and y (px), measured once and kept with the run."""

    def measured() -> pd.DataFrame:
        parts = []
        for pair in tqdm(spread(pairs, config.max_pairs), "estimates", disable=None):
            estimates = estimators(run.net, density, evaluation_crops(pair, "shift", config), config.headline_radius)
            maps = {name: estimate().cpu() for name, estimate in estimates.items()}
            height, width = maps["distilled"].shape[-2:]
            x, y = cell_centres(height, width, STRIDE).flatten(0, 1).T.numpy()
            values = {name: values.flatten().numpy() for name, values in maps.items()}
            parts.append(pd.DataFrame({"x": x, "y": y} | values).assign(id=pair.id))
        return pd.concat(parts, ignore_index=True)

    on = {"net": run.net, "density": density, "pairs": pairs, "config": config}
    return cached_table(run.path, "estimates", on, measured)


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of each of `ESTIMATES` with the mutual information of the passes, within each pair."""
    each = table.groupby(["id", "scene"])[[*ESTIMATES, "epistemic"]].corr("spearman")
    found = each["epistemic"].drop("epistemic", level=2).rename("correlation")
    return found.rename_axis(["id", "scene", "estimate"]).reset_index()


def measure_costs(
    net: SarOpticalNet, density: Density, pairs: Pairs, config: EvaluationConfig, passes: int = 20, repeats: int = 3
) -> pd.DataFrame:
    """Seconds of each confidence of `ONE_PASS` with an estimate of its own, and that over one pass, as `passes`.

    One pass is everything from images to refined matches. An estimate costs that and its own computation. The median
    over pairs counts, each the least of `repeats`, see `companion.timing.interleave`.
    """
    radius, device, rows = config.headline_radius, next(net.parameters()).device, []
    single, many = (Matcher(net, device, mc_passes=n) for n in (0, passes))
    for pair in pairs:
        crops = evaluation_crops(pair, "shift", config)
        runs: dict[str, Callable[[], object]] = {"plain softmax": partial(single.raw_matches, crops, radius)}
        runs |= estimators(net, density, crops, radius) | {"passes": partial(many.raw_matches, crops, radius)}
        rows.append({name: min(seconds) for name, seconds in interleave(runs, repeats, device).items()})
    seconds = pd.DataFrame(rows)
    base = seconds["plain softmax"]
    seconds[ESTIMATES] = seconds[ESTIMATES].add(base, axis=0)
    seconds.insert(1, "no estimate", base)
    table = pd.DataFrame({"seconds": seconds.median(), "passes": seconds.div(base, axis=0).median()})
    return table.rename_axis("confidence").reset_index()


def kept_gains(verdicts: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """`aurc_verdicts` against `no estimate` with the cost in `passes` and the share of the passes' gain that is `kept`.

    It is negative where an estimate harms, NaN where the passes do not gain beyond their interval.
    """
    table = verdicts.merge(costs[["confidence", "passes"]], on="confidence", how="left")
    passes = table[table["confidence"] == "passes"].iloc[0]
    gain = passes["difference"] if passes["better"] == "yes" else np.nan
    return table.assign(kept=table["difference"] / gain)


def kept_statement(gains: pd.DataFrame, cheap: float = 1.2) -> str:
    """In words what `kept_gains` holds of the estimates that cost at most `cheap` passes."""
    affordable = gains[gains["confidence"].isin(ESTIMATES) & (gains["passes"] <= cheap)]
    if affordable.empty:
        return f"No estimate costs at most {cheap:g} passes."
    names = ", ".join(f"{row.confidence} ({row.passes:.2f})" for row in affordable.itertuples())
    better = affordable[affordable["better"] == "yes"]
    text = f"Estimates that cost at most {cheap:g} passes: {names}. Better than no estimate beyond the interval: "
    text += f"{', '.join(better['confidence']) or 'none of them'}."
    if affordable["kept"].isna().all():
        return f"{text} The passes themselves do not gain beyond their interval: there is no gain to keep."
    if better.empty:
        return text
    best = better.loc[better["kept"].idxmax()]
    return f"{text} Of the gain of the passes {best['confidence']} keeps most: {best['kept']:.0%}."
