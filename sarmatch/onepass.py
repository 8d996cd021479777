"""Epistemic uncertainty from one pass instead of twenty (future work of section 5.5).

Three estimates of what Monte Carlo dropout measures, none of which draws anything: a head that was taught the mutual
information of passes over training crops, the distance of features from those of training, and, as what these must
beat, the entropy of the softmax itself. Each is a map (1, h, w) >= 0 that `attach` puts in the place of the mutual
information; only the first is in its unit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sarmatch.config import Config
from sarmatch.data.pairs import Pairs
from sarmatch.data.transforms import TrainingCrops
from sarmatch.geometry import cell_valid
from sarmatch.matching import Prediction, predict
from sarmatch.models import STRIDE, DenseEncoder, Descriptors, Prefix, SarOpticalNet, fill_invalid
from sarmatch.models.encoder import Encoding
from sarmatch.models.uncertainty import EpistemicHead
from sarmatch.montecarlo import predict_monte_carlo
from sarmatch.volumes import best

FLOOR = 1e-6
"""Mutual information in nats below which differences do not matter; it keeps the logarithm finite."""
HELD_OUT = 0.2
"""Share of the scenes (of the crops, where all are of one scene) on which a head is judged and not trained."""
CONSTANT = 1e-3
"""An input that deviates less than this is not standardised: the uncertainty of a network without such modules."""
LEARNING_RATE = 3e-3
BATCH = 512
"""Cells in a minibatch."""
ENTROPY = -3
"""Column of `match_inputs` that holds the entropy of the row."""


class Lesson(NamedTuple):
    """What a head learns from, N cells of training crops: `match_inputs` (N, inputs), the mutual information over
    passes in nats (N,), and the numbers of the crop and of its scene, (N,) long."""

    inputs: Tensor
    information: Tensor
    crop: Tensor
    scene: Tensor


class _Crop(NamedTuple):
    """A training crop as the deterministic pass sees it; (SAR, optical) each. `valid` is of cells, (1, h, w) bool."""

    prefixes: tuple[Prefix, Prefix]
    features: tuple[Tensor, Tensor]
    descriptors: tuple[Descriptors, Descriptors]
    valid: tuple[Tensor, Tensor]
    scene: str


def match_inputs(prediction: Prediction, sar: Descriptors, optical: Descriptors) -> Tensor:
    """What an `EpistemicHead` looks at: each SAR cell and the optical cell that its best displacement leads to.

    Returns:
        (h*w, 2 descriptor_dim + 4), rows in the order of the SAR image's cells: descriptors of both ends, log-
        probability of the best displacement, entropy of the row (nats), U_sar and U_opt (0 without such modules). Where
        the best displacement leads off the optical image, the nearest cell stands for the other end.

    Raises:
        ValueError: more than one pair, or descriptors of another size than the prediction.
    """
    there, _ = _other_end(prediction, sar.coarse, optical.coarse)
    log_best = prediction.forward.max(1).values.flatten()
    none = torch.zeros_like(log_best)
    doubts = [none if d.uncertainty is None else d.uncertainty.fused.flatten() for d in (sar, optical)]
    numbers = torch.stack([log_best, row_entropy(prediction).flatten(), doubts[0], doubts[1][there]], 1)
    return torch.cat([_by_cell(sar.coarse), _by_cell(optical.coarse)[there], numbers], 1)


def row_entropy(prediction: Prediction) -> Tensor:
    """Entropy of each SAR cell's displacement, nats, (1, h, w): the total uncertainty of one pass, what any estimate of
    its epistemic part must add to."""
    return -(prediction.forward.exp() * prediction.forward).sum(1)


def row_doubt(prediction: Prediction) -> Tensor:
    """One less the greatest probability of each SAR cell's row, (1, h, w) in [0, 1): the simplest of baselines."""
    return 1 - prediction.forward.max(1).values.exp()


def attach(prediction: Prediction, information: Tensor) -> Prediction:
    """The prediction with an estimate (1, h, w) as its mutual information, which matches then carry as `epistemic`.

    Raises:
        ValueError: the estimate is not one number for each SAR cell.
    """
    if information.shape != (expected := (len(prediction.forward), *prediction.forward.shape[-2:])):
        raise ValueError(f"information must have one number a SAR cell, {expected}, got {tuple(information.shape)}")
    return prediction._replace(mutual_information=information)


@torch.no_grad()
def distilled_information(net: SarOpticalNet, prediction: Prediction, sar: Descriptors, optical: Descriptors) -> Tensor:
    """Estimate of the mutual information that Monte Carlo passes would find, nats, (1, h, w).

    It lies between 0 and the logarithm of the number of displacements, as mutual information does.

    Raises:
        ValueError: the head of the network has learned nothing yet.
    """
    if not net.epistemic_head.distilled:
        raise ValueError("the network's epistemic_head is untrained; teach it with `sarmatch.onepass.distil` first")
    log_information = net.epistemic_head(match_inputs(prediction, sar, optical))
    at_most = math.log(prediction.forward.shape[1])
    return (log_information.exp() - FLOOR).clamp(0, at_most).unflatten(0, (1, *prediction.forward.shape[-2:]))


def distil(
    net: SarOpticalNet,
    pairs: Pairs,
    config: Config,
    seed: int,
    passes: int = 20,
    cells: int = 256,
    epochs: int = 30,
    use_consensus: bool = True,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Teach `net.epistemic_head` what passes with dropout say of training crops; nothing else of the network changes.

    Args:
        pairs: the training part. The network knows these pairs, so it may be surer of them than of others; whether the
            estimate holds on others must be measured there.
        config: `studies.distillation_crops` crops of `data`, searched within `evaluation.headline_radius`.
        seed: of crops, masks, the choice of cells and of held-out scenes, and the head.
        passes: with dropout, at least 2.
        cells: of each crop, at most; chosen at random among those that can have a match.
        epochs: over the collected cells.

    Returns:
        the loss curve of `train_head`.

    Raises:
        ValueError: fewer than two passes or crops, no pairs, no cells with data, or a network without dropout.
    """
    lesson = collect(net, pairs, config, seed, passes, cells, use_consensus, show_progress)
    return train_head(net.epistemic_head, lesson, seed, epochs)


@torch.no_grad()
def collect(
    net: SarOpticalNet,
    pairs: Pairs,
    config: Config,
    seed: int,
    passes: int = 20,
    cells: int = 256,
    use_consensus: bool = True,
    show_progress: bool = True,
) -> Lesson:
    """Mutual information over passes beside the inputs of the deterministic pass; arguments and errors of `distil`."""
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes}: a single pass carries no mutual information")
    radius, parts, scenes = config.evaluation.headline_radius, [], []
    voting = use_consensus and bool(net.config.consensus_cells)
    rng = np.random.default_rng((seed, 1))
    for k, crop in enumerate(_training_crops(net, pairs, config, seed, "distil", show_progress)):
        sar, optical = crop.descriptors
        prediction = predict(net, sar, optical, radius, *crop.valid, voting)
        taught = predict_monte_carlo(
            net, *crop.prefixes, radius, passes, *crop.valid, voting, seed=int(rng.integers(2**31))
        ).mutual_information
        assert taught is not None
        there, on_image = _other_end(prediction, sar.coarse, optical.coarse)
        rows = _some(crop.valid[0].flatten() & on_image & crop.valid[1].flatten()[there], cells, rng)
        inputs = match_inputs(prediction, sar, optical)[rows]
        parts.append((inputs.cpu(), taught.flatten()[rows].cpu(), torch.full((len(rows),), k)))
        scenes.append(crop.scene)
    inputs, information, number = (torch.cat(column) for column in zip(*parts, strict=True))
    return Lesson(inputs, information, number, torch.from_numpy(pd.factorize(np.array(scenes))[0])[number])


def train_head(head: EpistemicHead, lesson: Lesson, seed: int, epochs: int = 30) -> pd.DataFrame:
    """Fit a head to log(mutual information + `FLOOR`) by smooth L1, from scratch; it changes once, at the end.

    A fifth of the scenes is held out, where there are at least two scenes, else a fifth of the crops.

    Returns:
        one row an epoch: `loss` (its mean over the epoch) and on held-out cells `held_out_loss`, Spearman's
        `rank_correlation` over all of them and `within_crops`, its mean over crops, which differences between images
        cannot raise. `entropy_rank_correlation` and `entropy_within_crops` are those of the row's entropy.

    Raises:
        ValueError: no cells, crops too few to hold one out, a target that does not vary, or no epochs.
    """
    _check_lesson(lesson)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    target = (lesson.information + FLOOR).log()
    train, held_out = _hold_out(lesson, seed)
    std, mean = torch.std_mean(lesson.inputs[train], 0, correction=0)
    std = torch.where(std < CONSTANT, 1.0, std)
    inputs = (lesson.inputs - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = EpistemicHead((head.hidden.in_features - head.EXTRA) // 2, head.hidden.out_features)
    torch.nn.init.constant_(learner.out.bias, float(target[train].mean()))
    optimizer = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(seed)
    judge = partial(_rank_correlations, target=target[held_out], crop=lesson.crop[held_out])
    entropy = judge(lesson.inputs[held_out, ENTROPY]).add_prefix("entropy_")
    rows = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in train[torch.randperm(len(train), generator=order)].split(BATCH):
            loss = F.smooth_l1_loss(learner(inputs[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch) / len(train)
        decay.step()
        with torch.no_grad():
            said = learner(inputs[held_out])
        held_out_loss = float(F.smooth_l1_loss(said, target[held_out]))
        rows.append({"epoch": epoch, "loss": total, "held_out_loss": held_out_loss, **judge(said), **entropy})
    learner.absorb(mean, std)
    learner.distilled.fill_(1)
    head.load_state_dict(learner.state_dict())
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Density:
    """Gaussian of each modality's features F over training cells, after Lee et al. (2018) and Mukhoti et al. (2023).

    What lies far from all that was seen in training is what the weights cannot know. Of features, not of descriptors:
    these lie on a sphere, on which the shipped weights put test patterns among the images of training.

    Attributes:
        means: of the SAR and of the optical features, (2, C).
        precisions: inverses of their shrunk covariances (Ledoit and Wolf), (2, C, C).
    """

    means: Tensor
    precisions: Tensor

    @classmethod
    def fit(
        cls, net: SarOpticalNet, pairs: Pairs, config: Config, seed: int, cells: int = 256, show_progress: bool = True
    ) -> Density:
        """From the deterministic pass over as many crops as `distil` takes; nothing is trained.

        Args:
            pairs: the training part.
            seed: of crops and cells.
            cells: of each image of a crop, at most.

        Raises:
            ValueError: no pairs, no crops, or no cells with data.
        """
        rng = np.random.default_rng((seed, 1))
        seen: tuple[list[Tensor], list[Tensor]] = [], []
        for crop in _training_crops(net, pairs, config, seed, "density", show_progress):
            for rows, features, valid in zip(seen, crop.features, crop.valid, strict=True):
                rows.append(_by_cell(features)[_some(valid.flatten(), cells, rng)].cpu())
        tables = [torch.cat(rows).double().numpy() for rows in seen]
        if min(map(len, tables)) < 2:
            raise ValueError("pairs: fewer than two cells of training crops carry data; check their valid masks")
        from sklearn.covariance import LedoitWolf

        fits = [LedoitWolf().fit(table) for table in tables]
        means, precisions = (np.stack([getattr(fit, name) for fit in fits]) for name in ("location_", "precision_"))
        return cls(torch.from_numpy(means).float(), torch.from_numpy(precisions).float())

    @torch.no_grad()
    def distance(self, sar: Tensor, optical: Tensor, prediction: Prediction) -> Tensor:
        """How far both ends of each SAR cell's best match lie from training, (1, h, w) >= 0, without unit.

        log(1 + d), d the squared Mahalanobis distances of both ends summed, per channel of both: its mean over training
        cells is 1 before the logarithm.

        Args:
            sar, optical: features F (1, C, h, w), `Encoding.features`.

        Raises:
            ValueError: features of another network, or of another size than the prediction.
        """
        there, _ = _other_end(prediction, sar, optical)
        if not sar.shape[1] == optical.shape[1] == self.means.shape[1]:
            raise ValueError(
                f"sar, optical: expected features of {self.means.shape[1]} channels, to which the density was fitted, "
                f"got {sar.shape[1]} and {optical.shape[1]}; fit one to this network"
            )
        first, second = (self._squared(i, _by_cell(features)) for i, features in enumerate((sar, optical)))
        total = (first + second[there]) / self.means.numel()
        return total.log1p().unflatten(0, (1, *prediction.forward.shape[-2:]))

    def _squared(self, modality: int, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance of rows (N, C), (N,)."""
        off = x - self.means[modality].to(x)
        return ((off @ self.precisions[modality].to(x)) * off).sum(1).clamp(min=0)


def _by_cell(values: Tensor) -> Tensor:
    """(1, C, h, w) to (h*w, C)."""
    return values[0].flatten(1).T


def _other_end(prediction: Prediction, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
    """Flat optical cell that each SAR cell's best displacement leads to, (h*w,) long, the nearest one where it leads
    off the image, and whether it does not, (h*w,) bool. The images are only checked, (1, C, h, w)."""
    n, (height, width) = len(prediction.forward), prediction.forward.shape[-2:]
    for name, shape in (("sar", tuple(sar.shape)), ("optical", tuple(optical.shape))):
        if n != 1 or (shape[0], *shape[2:]) != (1, height, width):
            raise ValueError(
                f"{name}: expected (1, C, {height}, {width}) beside the prediction of one pair, got {shape} beside {n}"
                "; take one pair at a time and what its prediction was made of"
            )
    displacement = best(prediction.forward)[0][0]
    y, x = torch.meshgrid(*(torch.arange(n, device=displacement.device) for n in (height, width)), indexing="ij")
    x_to, y_to = x + displacement[..., 0], y + displacement[..., 1]
    nearest_x, nearest_y = x_to.clamp(0, width - 1), y_to.clamp(0, height - 1)
    on_image = (nearest_x == x_to) & (nearest_y == y_to)
    return (nearest_y * width + nearest_x).flatten(), on_image.flatten()


def _training_crops(
    net: SarOpticalNet, pairs: Pairs, config: Config, seed: int, name: str, show_progress: bool
) -> Iterator[_Crop]:
    """Crops of training with their descriptors from the deterministic pass; every pair once before any comes again."""
    n = config.studies.distillation_crops
    if not len(pairs) or n < 1:
        raise ValueError(
            f"need at least one training pair and one crop, got {len(pairs)} pairs and studies.distillation_crops={n}"
        )
    net, crops = copy.deepcopy(net).eval(), TrainingCrops(pairs, config.data, seed)  # the caller's keeps its mode
    device = next(net.parameters()).device
    for k in tqdm(range(n), name, unit="crop", disable=None if show_progress else True):
        epoch, position = divmod(k, len(pairs))
        i = int(np.random.default_rng((seed, epoch)).permutation(len(pairs))[position])
        sample = crops[epoch, i]
        masks = sample["sar_valid"][None].to(device), sample["optical_valid"][None].to(device)
        sar = fill_invalid(sample["sar"][None].to(device), masks[0])
        optical = fill_invalid(sample["optical"][None].to(device), masks[1])
        with torch.no_grad():
            prefixes = net.sar_encoder.prefix(sar), net.optical_encoder.prefix(optical)
            first, second = _encode(net.sar_encoder, prefixes[0]), _encode(net.optical_encoder, prefixes[1])
            descriptors = net.describe(first), net.describe(second)
        valid = cell_valid(masks[0], STRIDE), cell_valid(masks[1], STRIDE)
        yield _Crop(prefixes, (first.features, second.features), descriptors, valid, str(pairs.index["scene"].iloc[i]))


def _encode(encoder: DenseEncoder, prefix: Prefix) -> Encoding:
    """Without the fine level, which has no part in the choice of a cell."""
    features = encoder.trunk(prefix.maps)
    return Encoding(features, features[:, :0], encoder.uncertainty(features) if encoder.uncertainty else None)


def _some(usable: Tensor, at_most: int, rng: np.random.Generator) -> Tensor:
    """Positions of at most so many true entries of a mask (N,), drawn without replacement."""
    if at_most < 1:
        raise ValueError(f"cells must be at least 1 a crop, got {at_most}")
    rows = usable.nonzero()[:, 0]
    return rows[torch.from_numpy(rng.permutation(len(rows))[:at_most]).to(rows.device)]


def _check_lesson(lesson: Lesson) -> None:
    if not len(lesson.inputs):
        raise ValueError("no cell of the crops carries data and a match on the image; check the pairs' valid masks")
    if len(lesson.crop.unique()) < 2:
        raise ValueError("a crop must be held out: need cells of at least two, raise studies.distillation_crops")
    if float(lesson.information.max()) <= FLOOR:
        raise ValueError("the passes agree everywhere: the network has no dropout, so there is nothing to learn")


def _hold_out(lesson: Lesson, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to be judged on, of different scenes where there are at least two."""
    from sklearn.model_selection import GroupShuffleSplit

    groups = lesson.scene if len(lesson.scene.unique()) > 1 else lesson.crop
    splitter = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
    train, held_out = next(splitter.split(lesson.inputs, groups=groups.numpy()))
    return torch.from_numpy(train), torch.from_numpy(held_out)


def _rank_correlations(said: Tensor, target: Tensor, crop: Tensor) -> pd.Series:
    """Spearman's over all cells, and its mean over crops; NaN where either side is constant."""
    table = pd.DataFrame({"said": said.numpy(), "target": target.numpy(), "crop": crop.numpy()})
    within = table.groupby("crop").rank()
    by_crop = [part["said"].corr(part["target"]) for _, part in within.groupby(table["crop"])]
    overall = table["said"].corr(table["target"], method="spearman")
    return pd.Series({"rank_correlation": overall, "within_crops": pd.Series(by_crop).mean()})
