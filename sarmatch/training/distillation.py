"""Distillation of the mutual information over Monte Carlo passes into a head of one pass (section 5.5)."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor
from tqdm import tqdm

from sarmatch.config import Config
from sarmatch.data.crops import TrainingCrops
from sarmatch.data.pairs import Pairs
from sarmatch.matching.assignment import predict
from sarmatch.matching.epistemic import ENTROPY, FLOOR, match_inputs, other_end
from sarmatch.matching.monte_carlo import predict_monte_carlo
from sarmatch.model import Encoded, SarOpticalNet, encode_pair
from sarmatch.model.uncertainty import EpistemicHead

CROPS = 200  #: Training crops for a distillation.


class DistillationTargets(NamedTuple):
    """N cells of training crops."""

    inputs: Tensor  #: `match_inputs`, (N, inputs).
    information: Tensor  #: Mutual information over passes, nats, (N,).
    crop: Tensor  #: Number of the crop, (N,) long.
    scene: Tensor  #: Number of its scene, (N,) long.


def distil(
    net: SarOpticalNet,
    pairs: Pairs,
    config: Config,
    seed: int,
    passes: int = 20,
    cells: int = 256,
    epochs: int = 30,
    crops: int = CROPS,
) -> pd.DataFrame:
    """Train `net.epistemic_head` on passes with dropout over training crops; nothing else of the network changes.

    Args:
        pairs: the training part; whether the estimate holds on other pairs must be measured there.
        seed: of crops, masks, the choice of cells and of held-out scenes, and the head.
        passes: with dropout, at least 2.
        cells: of each crop, at most; chosen at random among those that can have a match.
        crops: at least 2.

    Returns:
        the loss curve of `train_head`.
    """
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes}: a single pass carries no mutual information")
    radius, rng = config.evaluation.headline_radius, np.random.default_rng((seed, 1))
    parts, scenes = [], []
    for sar, optical, scene in training_crops(net, pairs, config, seed, crops, "distil"):
        parts.append(_information(net, sar, optical, radius, passes, cells, rng))
        scenes.append(scene)
    inputs, information = (torch.cat(column) for column in zip(*parts, strict=True))
    crop = torch.cat([torch.full((len(rows),), k) for k, (rows, _) in enumerate(parts)])
    number = torch.from_numpy(pd.factorize(np.array(scenes))[0])
    return train_head(net.epistemic_head, DistillationTargets(inputs, information, crop, number[crop]), seed, epochs)


@torch.no_grad()
def _information(
    net: SarOpticalNet,
    first: Encoded,
    second: Encoded,
    radius: float,
    passes: int,
    cells: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Inputs of the deterministic pass at some cells of a crop, and the mutual information over passes there."""
    sar, optical, valid = first.descriptors, second.descriptors, (first.valid, second.valid)
    aggregate, of_masks = bool(net.config.consensus_cells), int(rng.integers(2**31))
    prediction = predict(net, sar, optical, radius, *valid, aggregate)
    many = predict_monte_carlo(net, first.prefix, second.prefix, radius, passes, *valid, aggregate, [of_masks])
    assert many.mutual_information is not None
    there, on_image = other_end(prediction, sar.coarse, optical.coarse)
    rows = some_cells(valid[0].flatten() & on_image & valid[1].flatten()[there], cells, rng)
    inputs = match_inputs(prediction, sar, optical)[rows]
    return inputs.cpu(), many.mutual_information.flatten()[rows].cpu()


# long because the whole training of the head is one loop, to be read in one place
def train_head(head: EpistemicHead, targets: DistillationTargets, seed: int, epochs: int = 30) -> pd.DataFrame:
    """Fit a head to log(mutual information + `FLOOR`) by smooth L1, from scratch; it changes once, at the end.

    Returns:
        one row an epoch: mean `loss`, and on held-out cells `held_out_loss`, Spearman's `rank_correlation` over all and
        `within_crops`, its mean over crops; `entropy_rank_correlation` and `entropy_within_crops` are the same of the
        row's entropy.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    target = (targets.information + FLOOR).log()
    train, held_out = _hold_out(targets, seed)
    std, mean = torch.std_mean(targets.inputs[train], 0, correction=0)
    std = torch.where(std < 1e-3, 1.0, std)  # constant inputs: the uncertainty of a network without such modules
    inputs = (targets.inputs - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = EpistemicHead((head.hidden.in_features - head.EXTRA) // 2, head.hidden.out_features)
    torch.nn.init.constant_(learner.out.bias, float(target[train].mean()))
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(seed)
    judge = partial(_rank_correlations, target=target[held_out], crop=targets.crop[held_out])
    entropy = judge(targets.inputs[held_out, ENTROPY]).add_prefix("entropy_")
    rows = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in train[torch.randperm(len(train), generator=order)].split(512):
            loss = F.smooth_l1_loss(learner(inputs[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch) / len(train)
        decay.step()
        with torch.no_grad():
            estimate = learner(inputs[held_out])
        held_out_loss = float(F.smooth_l1_loss(estimate, target[held_out]))
        rows.append({"epoch": epoch, "loss": total, "held_out_loss": held_out_loss, **judge(estimate), **entropy})
    learner.absorb(mean, std)
    learner.distilled.fill_(1)
    head.load_state_dict(learner.state_dict())
    return pd.DataFrame(rows)


def _hold_out(targets: DistillationTargets, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and a fifth to evaluate on, of other scenes (of other crops, where all are of one scene)."""
    if not len(targets.inputs):
        raise ValueError("no cell of the crops carries data and a match on the image; check the pairs' valid masks")
    if len(targets.crop.unique()) < 2:
        raise ValueError("a crop must be held out: need cells of at least two, take more crops")
    if float(targets.information.max()) <= FLOOR:
        raise ValueError("the passes agree everywhere: the network has no dropout, so there is nothing to learn")
    groups = targets.scene if len(targets.scene.unique()) > 1 else targets.crop
    splitter = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    train, held_out = next(splitter.split(targets.inputs, groups=groups.numpy()))
    return torch.from_numpy(train), torch.from_numpy(held_out)


def _rank_correlations(estimate: Tensor, target: Tensor, crop: Tensor) -> pd.Series:
    """Spearman's over all cells, and its mean over crops; NaN where either side is constant."""
    table = pd.DataFrame({"estimate": estimate.numpy(), "target": target.numpy(), "crop": crop.numpy()})
    by_crop = [part["estimate"].corr(part["target"], method="spearman") for _, part in table.groupby("crop")]
    overall = table["estimate"].corr(table["target"], method="spearman")
    return pd.Series({"rank_correlation": overall, "within_crops": pd.Series(by_crop).mean()})


def training_crops(
    net: SarOpticalNet, pairs: Pairs, config: Config, seed: int, n: int, name: str
) -> Iterator[tuple[Encoded, Encoded, str]]:
    """Training crops through the deterministic pass without the fine level, SAR first, and the name of the scene.

    Every pair comes once before any comes again.
    """
    if not len(pairs) or n < 1:
        raise ValueError(f"need at least one training pair and one crop, got {len(pairs)} pairs and {n} crops")
    net, crops = copy.deepcopy(net).eval(), TrainingCrops(pairs, config.data, seed)  # the caller's keeps its mode
    device = next(net.parameters()).device
    for k in tqdm(range(n), name, unit="crop", disable=None):
        epoch, position = divmod(k, len(pairs))
        i = int(np.random.default_rng((seed, epoch)).permutation(len(pairs))[position])
        sample = crops[epoch, i]
        images = (sample["sar"], sample["optical"], sample["sar_valid"], sample["optical_valid"])
        sar, optical, *valid = (image[None].to(device) for image in images)
        with torch.no_grad():
            first, second = encode_pair(net, (sar, optical, valid[0], valid[1]), fine=False, whole_cells=False)
        yield first, second, str(pairs.index["scene"].iloc[i])


def some_cells(usable: Tensor, at_most: int, rng: np.random.Generator) -> Tensor:
    """Positions of at most so many true entries of a mask (N,), drawn without replacement."""
    rows = usable.nonzero()[:, 0]
    return rows[torch.from_numpy(rng.permutation(len(rows))[:at_most]).to(rows.device)]
