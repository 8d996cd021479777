"""One-pass estimates of epistemic uncertainty beside Monte Carlo passes: cost, agreement and gain (section 5.5).

What is learned for them (the head, the density) is learned on training scenes once and kept with the run.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from companion.cache import cached_table
from companion.studies.calibration import ALL_SCORES, Recipe, logistic
from companion.studies.density import Density
from sarmatch.calibration.calibrators import Isotonic
from sarmatch.config import EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import trained_weights
from sarmatch.evaluation.protocols import evaluation_crops, spread
from sarmatch.geometry import cell_centres
from sarmatch.io import atomic_path, digest
from sarmatch.matching.assignment import Prediction, predict
from sarmatch.matching.epistemic import distilled_information, row_entropy
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.matching.tiling import tile_seed
from sarmatch.model import STRIDE, Encoded, SarOpticalNet, encode_pair
from sarmatch.model.checkpoints import load_weights, save_weights
from sarmatch.training.distillation import CROPS, distil
from sarmatch.training.runs import Run, run_lock

CHEAP = 1.2
"""An estimate that costs at most this many passes counts as one pass."""

ONE_PASS: Mapping[str, Recipe] = {
    "plain softmax": Recipe(Isotonic.fit),
    "no estimate": Recipe(logistic("logit_probability", "aleatoric")),
    "row entropy": Recipe(logistic(*ALL_SCORES), epistemic="row entropy"),
    "feature density": Recipe(logistic(*ALL_SCORES), epistemic="feature density"),
    "distilled": Recipe(logistic(*ALL_SCORES), epistemic="distilled"),
    "passes, doubt only": Recipe(logistic(*ALL_SCORES)),
    "passes": Recipe(logistic(*ALL_SCORES), "mean_probability"),
}
"""Confidences of the chapter on one pass; all but the last two come from one. `passes, doubt only` takes the mutual
information of the passes and nothing else of them: what a perfect estimate of it would give."""
ESTIMATES = ("row entropy", "feature density", "distilled")


@torch.no_grad()
def encode_crops(net: SarOpticalNet, crops: EvaluationCrops) -> tuple[Encoded, Encoded]:
    """Both encoders over the crops of an evaluation protocol, with the fine level, on the network's device."""
    device = next(net.parameters()).device
    images = (crops.sar, crops.optical, crops.sar_valid, crops.optical_valid)
    sar, optical, sar_valid, optical_valid = (image[None].to(device) for image in images)
    return encode_pair(net, (sar, optical, sar_valid, optical_valid))


def monte_carlo_prediction(net: SarOpticalNet, crops: EvaluationCrops, search_radius: float, passes: int) -> Prediction:
    """What passes with dropout say of each SAR cell: `variance` and `mutual_information` are maps (1, h, w).

    The masks are those of a `Matcher` with its own seed.
    """
    sar, optical = encode_crops(net, crops)
    valid, aggregate = (sar.valid, optical.valid), bool(net.config.consensus_cells)
    prefixes = sar.prefix, optical.prefix
    return predict_monte_carlo(net, *prefixes, search_radius, passes, *valid, aggregate, tile_seed(0))


def error_map(crops: EvaluationCrops, xy_sar: np.ndarray, errors_px: np.ndarray) -> np.ndarray:
    """Error of the match of each SAR cell, px, (h, w); NaN where a cell has none."""
    height, width = (side // STRIDE for side in crops.sar.shape[-2:])
    errors = np.full((height, width), np.nan)
    cells = np.rint((np.asarray(xy_sar) - (STRIDE - 1) / 2) / STRIDE).astype(int)
    errors[cells[:, 1], cells[:, 0]] = errors_px
    return errors


def distilled_or_load(run: Run, split: Split, crops: int = CROPS) -> tuple[Run, pd.DataFrame]:
    """The run with a taught `epistemic_head` and the loss curve of its training, see `distillation.distil`.

    Taught once on training scenes and kept as `distilled-<digest>.safetensors` in the run's folder; `load_matcher`
    takes that file too. The network of `run` stays as it is.

    Args:
        crops: of training, to learn from.
    """
    learned_from = _learned_from(run, split, crops)
    weights, curve_path = (run.path / f"distilled-{learned_from}.{suffix}" for suffix in ("safetensors", "parquet"))
    with run_lock(run.path):
        if not (weights.exists() and curve_path.exists()):
            net = copy.deepcopy(run.net)
            curve = distil(net, split.train, run.config, run.config.seed, crops=crops)
            with atomic_path(curve_path) as partial:
                curve.to_parquet(partial)
            save_weights(net, weights)
    return dataclasses.replace(run, net=load_weights(weights)[0]), pd.read_parquet(curve_path)


def density_or_load(run: Run, split: Split, crops: int = CROPS) -> Density:
    """`Density.fit` on training scenes, once; kept as `density-<digest>.safetensors` in the run's folder."""
    path = run.path / f"density-{_learned_from(run, split, crops)}.safetensors"
    if not path.exists():
        density = Density.fit(run.net, split.train, run.config, run.config.seed, crops)
        with atomic_path(path) as partial:
            save_file({"means": density.means.contiguous(), "precisions": density.precisions.contiguous()}, partial)
    return Density(**load_file(path))


def _learned_from(run: Run, split: Split, crops: int) -> str:
    """Digits of all that head and density are learned from."""
    config = run.config
    sizes = [config.seed, crops, config.evaluation.headline_radius]
    return digest(
        [trained_weights(run.net), run.net.config, split.train, dataclasses.replace(config.data, root=None), sizes]
    )


def estimators(net: SarOpticalNet, density: Density) -> dict[str, Callable[[Prediction, Encoded, Encoded], Tensor]]:
    """The one-pass estimates by name: functions of a prediction and the images it was made of, to a map (1, h, w)."""
    return {
        "row entropy": lambda made, *_: row_entropy(made),
        "feature density": lambda made, a, b: density.distance(a.encoding.features, b.encoding.features, made),
        "distilled": lambda made, a, b: distilled_information(net, made, a.descriptors, b.descriptors),
    }


def estimates_or_load(run: Run, density: Density, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """One-pass estimates for all SAR cells of pairs under `shift`, measured once and kept with the run.

    Args:
        run: with a taught head, as `distilled_or_load` returns.

    Returns:
        columns id, x, y (centre of the cell, px) and `ESTIMATES`, to be merged with a match table.
    """
    on = {"net": run.net, "density": density, "pairs": pairs, "config": config}
    return cached_table(run.path, "estimates", on, lambda: _estimates(run.net, density, pairs, config))


def _estimates(net: SarOpticalNet, density: Density, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    parts = []
    for pair in tqdm(spread(pairs, config.max_pairs), "estimates", disable=None):
        encoded, prediction = _predicted(net, evaluation_crops(pair, "shift", config), config.headline_radius)
        maps = {name: estimate(prediction, *encoded) for name, estimate in estimators(net, density).items()}
        height, width = prediction.forward.shape[-2:]
        xy = cell_centres(height, width, STRIDE).flatten(0, 1).numpy()
        columns = {"x": xy[:, 0], "y": xy[:, 1]} | {name: m.flatten().cpu().numpy() for name, m in maps.items()}
        parts.append(pd.DataFrame(columns).assign(id=pair.id))
    return pd.concat(parts, ignore_index=True)


def _predicted(
    net: SarOpticalNet, crops: EvaluationCrops, search_radius: float
) -> tuple[tuple[Encoded, Encoded], Prediction]:
    sar, optical = encode_crops(net, crops)
    valid, aggregate = (sar.valid, optical.valid), bool(net.config.consensus_cells)
    return (sar, optical), predict(net, sar.descriptors, optical.descriptors, search_radius, *valid, aggregate)


def rank_correlations(table: pd.DataFrame, against: str = "epistemic") -> pd.DataFrame:
    """Spearman's correlation of each estimate with the mutual information of the passes, within each pair.

    Within pairs, because a difference between easy and hard images is told by any score.

    Args:
        table: of `shared_matches` with the columns `ESTIMATES`.

    Returns:
        a row a pair and estimate: id, scene, estimate, correlation; NaN where a side is constant.
    """
    rows = []
    for (pair, scene), part in table.groupby(["id", "scene"]):
        for name in ESTIMATES:
            known = part[name].nunique() > 1 and part[against].nunique() > 1
            value = part[name].corr(part[against], method="spearman") if known else np.nan
            rows.append((pair, scene, name, value))
    return pd.DataFrame(rows, columns=["id", "scene", "estimate", "correlation"])


def measure_costs(net: SarOpticalNet, density: Density, pairs: Pairs, config: EvaluationConfig, passes: int = 20,
                  repeats: int = 3) -> pd.DataFrame:  # fmt: skip
    """Seconds of each confidence of `ONE_PASS` but the doubt alone, a row each, in this process and on this machine.

    One pass is everything from images to refined matches. An estimate costs that and its own computation.

    Args:
        pairs: a few; the median over them counts, each the least of `repeats`.
        passes: with dropout.

    Returns:
        columns confidence, seconds, and `passes`: seconds over those of one pass.
    """
    radius, rows = config.headline_radius, []
    for pair in pairs:
        crops = evaluation_crops(pair, "shift", config)

        single, many = (Matcher(net, next(net.parameters()).device, mc_passes=n) for n in (0, passes))
        base = _seconds(partial(single.raw_matches, crops, radius), repeats)
        row = {"plain softmax": base, "no estimate": base}
        encoded, prediction = _predicted(net, crops, radius)
        for name, estimate in estimators(net, density).items():
            row[name] = base + _seconds(partial(estimate, prediction, *encoded), repeats)
        row["passes"] = _seconds(partial(many.raw_matches, crops, radius), repeats)
        rows.append(row)
    seconds = pd.DataFrame(rows)
    relative = seconds.div(seconds["plain softmax"], axis=0).median()
    return pd.DataFrame({"confidence": seconds.columns, "seconds": seconds.median(), "passes": relative}).reset_index(
        drop=True
    )


def _seconds(function: Callable[[], Any], repeats: int) -> float:
    """The least time of a call, waiting for an accelerator."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def kept_gains(verdicts: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Which share of what the passes gain over no estimate each one-pass estimate keeps.

    Args:
        verdicts: of `aurc_verdicts` against `no estimate`.
        costs: of `measure_costs`.

    Returns:
        the verdicts with `passes` (cost) and `kept`, the ratio of the gains in AURC: negative where the estimate harms,
        above 1 where it beats the passes; NaN where the passes do not gain beyond their interval.
    """
    table = verdicts.merge(costs[["confidence", "passes"]], on="confidence", how="left")
    passes = table[table["confidence"] == "passes"].iloc[0]
    gained = passes["better"] == "yes"
    return table.assign(kept=table["difference"] / passes["difference"] if gained else np.nan)


def kept_statement(gains: pd.DataFrame, cheap: float = CHEAP) -> str:
    """In words what `kept_gains` says of the estimates that cost at most so many passes."""
    estimates = gains[gains["confidence"].isin(ESTIMATES)]
    affordable = estimates[estimates["passes"] <= cheap]
    if affordable.empty:
        return f"No estimate costs at most {cheap:g} passes."
    names = ", ".join(f"{row.confidence} ({row.passes:.2f})" for row in affordable.itertuples())
    costs = f"Estimates that cost at most {cheap:g} passes: {names}."
    better = affordable[affordable["better"] == "yes"]["confidence"].tolist()
    gain = f" Better than no estimate beyond the interval: {', '.join(better) or 'none of them'}."
    if affordable["kept"].isna().all():
        return costs + gain + " The passes themselves do not gain beyond their interval: there is no gain to keep."
    affordable = affordable[affordable["better"] == "yes"]
    if affordable.empty:
        return costs + gain
    best = affordable.loc[affordable["kept"].idxmax()]
    return f"{costs}{gain} Of the gain of the passes {best['confidence']} keeps most: {best['kept']:.0%}."
