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
ESTIMATES = ("row entropy", "feature density", "distilled")


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """Gaussian of each modality's features F over training cells, after Lee et al. (2018) and Mukhoti et al. (2023).

    Of features, not of descriptors: these lie on a sphere, on which test patterns lie among the images of training.

    Attributes:
        means: of the SAR and of the optical features, (2, C).
        precisions: inverses of their shrunk covariances (Ledoit and Wolf), (2, C, C).
    """

    means: Tensor
    precisions: Tensor

    @classmethod
    def fit(
        cls,
        net: SarOpticalNet,
        pairs: Pairs,
        config: Config,
        seed: int,
        crops: int = CROPS,
        cells: int = 256,
        show_progress: bool = True,
    ) -> Density:
        """From the deterministic pass over training crops.

        Args:
            cells: of each image of a crop, at most.

        Raises:
            ValueError: no pairs, no crops, or no cells with data.
        """
        rng = np.random.default_rng((seed, 1))
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for sar, optical, _ in training_crops(net, pairs, config, seed, crops, "density", show_progress):
            for rows, image in zip(parts, (sar, optical), strict=True):
                rows.append(by_cell(image.encoding.features)[some_cells(image.valid.flatten(), cells, rng)].cpu())
        tables = [torch.cat(rows).double().numpy() for rows in parts]
        if min(map(len, tables)) < 2:
            raise ValueError("pairs: fewer than two cells of training crops carry data; check their valid masks")
        fits = [LedoitWolf().fit(table) for table in tables]
        means, precisions = (np.stack([getattr(fit, name) for fit in fits]) for name in ("location_", "precision_"))
        return cls(torch.from_numpy(means).float(), torch.from_numpy(precisions).float())

    @torch.no_grad()
    def distance(self, sar: Tensor, optical: Tensor, prediction: Prediction) -> Tensor:
        """How far both ends of each SAR cell's best match lie from training, (1, h, w) >= 0, without unit.

        log(1 + d), d the squared Mahalanobis distances of both ends summed, per channel of both: its mean over training
        cells is 1.

        Args:
            sar, optical: features F (1, C, h, w), `Encoding.features`.

        Raises:
            ValueError: features of another network, or of another size than the prediction.
        """
        there, _ = other_end(prediction, sar, optical)
        if not sar.shape[1] == optical.shape[1] == self.means.shape[1]:
            raise ValueError(
                f"sar, optical: expected features of {self.means.shape[1]} channels, to which the density was fitted, "
                f"got {sar.shape[1]} and {optical.shape[1]}; fit one to this network"
            )
        first, second = (self._squared(i, by_cell(features)) for i, features in enumerate((sar, optical)))
        total = (first + second[there]) / self.means.numel()
        return total.log1p().unflatten(0, (1, *prediction.forward.shape[-2:]))

    def _squared(self, modality: int, x: Tensor) -> Tensor:
        off = x - self.means[modality].to(x)
        return ((off @ self.precisions[modality].to(x)) * off).sum(1).clamp(min=0)


@torch.no_grad()
def encode_crops(net: SarOpticalNet, crops: EvaluationCrops) -> tuple[Encoded, Encoded]:
    """Both encoders over the crops of an evaluation protocol, with the fine level, on the network's device."""
    device = next(net.parameters()).device
    images = (crops.sar, crops.optical, crops.sar_valid, crops.optical_valid)
    sar, optical, sar_valid, optical_valid = (image[None].to(device) for image in images)
    return encode_pair(net, (sar, optical, sar_valid, optical_valid))


def monte_carlo_prediction(net: SarOpticalNet, crops: EvaluationCrops, search_radius: float, passes: int) -> Prediction:
    """Prediction with maps `variance` and `mutual_information` (1, h, w), masks as in a `Matcher` of seed 0."""
    sar, optical = encode_crops(net, crops)
    how = sar.valid, optical.valid, bool(net.config.consensus_cells), tile_seed(0)
    return predict_monte_carlo(net, sar.prefix, optical.prefix, search_radius, passes, *how)


def error_map(crops: EvaluationCrops, xy_sar: np.ndarray, errors_px: np.ndarray) -> np.ndarray:
    """Error of the match of each SAR cell, px, (h, w); NaN where a cell has none."""
    height, width = (side // STRIDE for side in crops.sar.shape[-2:])
    errors = np.full((height, width), np.nan)
    cells = np.rint((np.asarray(xy_sar) - (STRIDE - 1) / 2) / STRIDE).astype(int)
    errors[cells[:, 1], cells[:, 0]] = errors_px
    return errors


def distilled_or_load(run: Run, split: Split, crops: int = CROPS) -> tuple[Run, pd.DataFrame]:
    """The run with a distilled `epistemic_head`, trained once, and the loss curve of its training, see `distil`.

    Kept as `distilled-<digest>.safetensors` in the run's folder; the network of `run` stays as it is.
    """
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
    """`Density.fit` on training scenes, once; kept as `density-<digest>.safetensors` in the run's folder."""
    path = run.path / f"density-{_training_digest(run, split, crops)}.safetensors"
    if not path.exists():
        density = Density.fit(run.net, split.train, run.config, run.config.seed, crops)
        with atomic_path(path) as partial:
            save_file({"means": density.means.contiguous(), "precisions": density.precisions.contiguous()}, partial)
    return Density(**load_file(path))


def _training_digest(run: Run, split: Split, crops: int) -> str:
    """Digest of all that head and density are fitted to."""
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
    how = sar.valid, optical.valid, bool(net.config.consensus_cells)
    return (sar, optical), predict(net, sar.descriptors, optical.descriptors, search_radius, *how)


def rank_correlations(table: pd.DataFrame, against: str = "epistemic") -> pd.DataFrame:
    """Spearman's correlation of each estimate with the mutual information of the passes, within each pair.

    Args:
        table: of `shared_matches` with the columns `ESTIMATES`.
    """
    rows = []
    for (pair, scene), part in table.groupby(["id", "scene"]):
        for name in ESTIMATES:
            known = part[name].nunique() > 1 and part[against].nunique() > 1
            value = part[name].corr(part[against], method="spearman") if known else np.nan
            rows.append((pair, scene, name, value))
    return pd.DataFrame(rows, columns=["id", "scene", "estimate", "correlation"])


def measure_costs(
    net: SarOpticalNet, density: Density, pairs: Pairs, config: EvaluationConfig, passes: int = 20, repeats: int = 3
) -> pd.DataFrame:
    """Seconds of each confidence of `ONE_PASS` with an estimate of its own, a row each.

    One pass is everything from images to refined matches. An estimate costs that and its own computation.

    Args:
        pairs: a few; the median over them counts, each the least of `repeats`, see `companion.timing.interleave`.
        passes: with dropout.

    Returns:
        columns confidence, seconds, and `passes`: seconds over those of one pass.
    """
    radius, device, rows = config.headline_radius, next(net.parameters()).device, []
    single, many = (Matcher(net, device, mc_passes=n) for n in (0, passes))
    for pair in pairs:
        crops = evaluation_crops(pair, "shift", config)
        encoded, prediction = _predicted(net, crops, radius)
        runs: dict[str, Callable[[], object]] = {"plain softmax": partial(single.raw_matches, crops, radius)}
        for name, estimate in estimators(net, density).items():
            runs[name] = partial(estimate, prediction, *encoded)
        runs["passes"] = partial(many.raw_matches, crops, radius)
        least = {name: min(seconds) for name, seconds in interleave(runs, repeats, device).items()}
        base = least["plain softmax"]
        with_base = {name: base + least[name] for name in ESTIMATES}
        rows.append({"plain softmax": base, "no estimate": base} | with_base | {"passes": least["passes"]})
    seconds = pd.DataFrame(rows)
    relative = seconds.div(seconds["plain softmax"], axis=0).median()
    table = pd.DataFrame({"seconds": seconds.median(), "passes": relative})
    return table.rename_axis("confidence").reset_index()


def kept_gains(verdicts: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Which share of what the passes gain over no estimate each one-pass estimate keeps.

    Args:
        verdicts: of `aurc_verdicts` against `no estimate`.
        costs: of `measure_costs`.

    Returns:
        the verdicts with `passes` (cost) and `kept`, the ratio of the gains in AURC: negative where the estimate harms,
        NaN where the passes do not gain beyond their interval.
    """
    table = verdicts.merge(costs[["confidence", "passes"]], on="confidence", how="left")
    passes = table[table["confidence"] == "passes"].iloc[0]
    gained = passes["better"] == "yes"
    return table.assign(kept=table["difference"] / passes["difference"] if gained else np.nan)


def kept_statement(gains: pd.DataFrame, cheap: float = 1.2) -> str:
    """In words what `kept_gains` holds of the estimates that cost at most `cheap` passes."""
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
