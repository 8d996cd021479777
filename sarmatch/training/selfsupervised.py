"""Self-supervised pretraining: contrast between modalities and prediction of quarter turns (section 3.3, figure 6)."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn

from sarmatch.config import Config, DataConfig, PretrainingConfig
from sarmatch.data.crops import Sample, TrainingCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import spread
from sarmatch.geometry import central_corner
from sarmatch.io import atomic_path
from sarmatch.model import SarOpticalNet, fill_invalid
from sarmatch.model.layers import evaluating
from sarmatch.training.loop import CACHE_AT_MOST, fit
from sarmatch.training.losses import info_nce, info_nce_printed, over_processes, rotation_loss

ContrastOver: TypeAlias = Literal["cells", "image"]
TURNS = 4  #: Classes of the rotation task: 0, 90, 180 and 270 degrees, counter-clockwise.
ROTATION_HEADS = "rotation_heads.safetensors"
Embeddings: TypeAlias = tuple[Tensor, Tensor, Tensor]


class PretrainingSample(Sample):
    """A sample and whether its two images show one place, () bool; if not, `A_sar_to_optical` is NaN."""

    paired: Tensor


class PretrainingCrops(TrainingCrops):
    """Random crops, a share of which have the optical image of another pair, of another scene if there is one.

    Where contrast goes over cells, both crops of a pair are aligned: all candidates of a cell then lie at its own
    position, and knowing the position helps to choose none of them.
    """

    def __init__(
        self, pairs: Pairs, data: DataConfig, seed: int, config: PretrainingConfig, cache: bool = False
    ) -> None:
        if config.contrast_over == "cells":
            data = dataclasses.replace(
                data, relative_shift_px=0.0, pure_shift_probability=1.0, deformation_probability=0.0
            )
        super().__init__(pairs, data, seed, cache)
        self.unpaired_share = config.unpaired_share
        self._scenes = np.unique(pairs.index["scene"].to_numpy(str), return_inverse=True)[1][self.rows]

    def __getitem__(self, key: tuple[int, int]) -> PretrainingSample:
        epoch, i = key
        sample = super().__getitem__(key)
        rng = np.random.default_rng((self.seed, epoch, i, 1))  # beside the stream of the crops
        paired = len(self) < 2 or rng.random() >= self.unpaired_share
        if not paired:
            other = super().__getitem__((epoch, self._elsewhere(i, rng)))
            sample["optical"], sample["optical_valid"] = other["optical"], other["optical_valid"]
            sample["A_sar_to_optical"] = torch.full((3, 3), torch.nan)
        return PretrainingSample(**sample, paired=torch.tensor(paired))

    def _elsewhere(self, i: int, rng: np.random.Generator) -> int:
        others = np.flatnonzero(self._scenes != self._scenes[i])
        if not len(others):  # all are of one scene
            others = np.delete(np.arange(len(self)), i)
        return int(rng.choice(others))


class RotationHead(nn.Module):
    """Two-layer MLP that tells the quarter turn of an image from its pooled features (section 3.3.2)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, TURNS)

    def forward(self, features: Tensor) -> Tensor:
        """F (B, inputs, H, W) to logits before the softmax, (B, 4)."""
        return self.out(torch.relu(self.hidden(features.mean(dim=(-2, -1)))))


class PretrainingObjective(nn.Module):
    """The network, the rotation heads by modality (none where that task is off) and the losses of both tasks."""

    def __init__(self, net: SarOpticalNet, config: PretrainingConfig) -> None:
        super().__init__()
        self.net, self.config = net, config
        names = ("sar", "optical") if config.rotation else ()
        inputs = net.config.feature_width
        self.rotation_heads = nn.ModuleDict({name: RotationHead(inputs, config.rotation_width) for name in names})

    def forward(self, batch: PretrainingSample, parts: Sequence[Embeddings] = (), own: int = 0) -> dict[str, Tensor]:
        """Scalar losses by name: `loss` is the sum of `contrastive` and `rotation`, or of the one that is on.

        Each image is turned at random, both images of one place alike. The candidates of contrast are the images of
        one optimiser step, of all its accumulation parts on all processes.

        Args:
            parts: `embeddings` of all parts of the step, of which the batch is number `own`; empty where it is alone.
        """
        (sar, optical), turns = self._features(batch)
        with torch.autocast(sar.device.type, enabled=False):
            losses = self._losses(sar, optical, turns, batch["paired"], parts, own)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def embeddings(self, batch: PretrainingSample) -> Embeddings:
        """`embed` of both images (B, D), and which rows are pairs (B,); drawing as `forward` does."""
        features, _ = self._features(batch)
        z_sar, z_optical = (embed(self.net, f, self.config.contrast_over) for f in features)
        return z_sar, z_optical, batch["paired"]

    def _features(self, batch: PretrainingSample) -> tuple[tuple[Tensor, Tensor], Tensor]:
        sar = fill_invalid(batch["sar"], batch["sar_valid"])
        optical = fill_invalid(batch["optical"], batch["optical_valid"])
        turns = torch.randint(TURNS, (2, len(sar))).to(sar.device)  # on the CPU, so that every device draws the same
        turns = torch.stack([turns[0], torch.where(batch["paired"], turns[0], turns[1])])
        return encode(self.net, quarter_turns(sar, turns[0]), quarter_turns(optical, turns[1])), turns

    def _losses(
        self, sar: Tensor, optical: Tensor, turns: Tensor, paired: Tensor, parts: Sequence[Embeddings], own: int
    ) -> dict[str, Tensor]:
        losses = {}
        if self.config.contrastive:
            contrast = info_nce if self.config.contrastive_form == "infonce" else info_nce_printed
            z_sar, z_optical = (embed(self.net, features, self.config.contrast_over) for features in (sar, optical))
            every = [*parts[:own], (z_sar, z_optical, paired), *parts[own + 1 :]]
            z_sar, z_optical, paired = (over_processes(torch.cat(rows)) for rows in zip(*every, strict=True))
            loss = contrast(z_sar, z_optical, self.config.temperature, paired)
            # Each part has the loss of the whole step but the gradient of its own rows, and the step is their mean.
            losses["contrastive"] = loss + (len(every) - 1) * (loss - loss.detach())
        if self.config.rotation:
            logits = self.rotation_heads["sar"](sar), self.rotation_heads["optical"](optical)
            losses["rotation"] = rotation_loss(*logits, turns[0], turns[1])
        return losses


def encode(net: SarOpticalNet, sar: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
    """F of both modalities in 32 bits, each (B, feature_width, H/4, W/4)."""
    return net.sar_encoder.encode(sar).float(), net.optical_encoder.encode(optical).float()


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Images (B, C, H, H), each turned by its own number (B,) of quarter turns, counter-clockwise."""
    # All four and a choice, since numbers of turns on a GPU would have to be waited for.
    every = torch.stack([torch.rot90(images, k, (-2, -1)) for k in range(TURNS)])
    return every[turns.to(images.device), torch.arange(len(images), device=images.device)]


def embed(net: SarOpticalNet, features: Tensor, over: ContrastOver) -> Tensor:
    """One unit vector an image from F (B, C, h, w), whose inner products are the similarities of eq. 3.

    Over `image` the pooled features are projected, (B, descriptor_dim); over `cells` every cell, its descriptors side
    by side, (B, descriptor_dim h w): the similarity of two images is then the mean over cells.
    """
    if over == "image":
        return net.head.embed(features)
    cells = net.head(features)
    return cells.flatten(1) / math.sqrt(cells.shape[-2] * cells.shape[-1])


def embed_pairs(
    net: SarOpticalNet, pairs: Pairs, crop_size: int, over: ContrastOver = "cells"
) -> tuple[Tensor, Tensor]:
    """`embed` of the central windows of `crop_size` px (a multiple of 16) of SAR and optical images, on the CPU."""
    parts = []
    with torch.no_grad(), evaluating(net):
        for windows in _windows(net, pairs, crop_size):
            parts.append([embed(net, features, over).cpu() for features in encode(net, *windows)])
    z_sar, z_optical = (torch.cat(z) for z in zip(*parts, strict=True))
    return z_sar, z_optical


def retrieval_recall(z_sar: Tensor, z_optical: Tensor, k: int) -> float:
    """Share of images whose partner is among the k most similar ones, the mean of both directions, in [0, 1].

    Row i of both embeddings (N, D) belongs together; equal embeddings score k / N, as if ties were broken at random.
    """
    similarity = z_sar @ z_optical.T
    scores = torch.cat([similarity, similarity.T])
    own = similarity.diagonal().repeat(2)[:, None]
    better, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1)  # the partner itself is one of the equal
    return float(((k - better) / equal).clamp(0, 1).mean())


def rotation_accuracy(objective: PretrainingObjective, pairs: Pairs, crop_size: int) -> dict[str, float]:
    """`rotation_sar` and `rotation_optical`: share of the four turns of central windows that is predicted right.

    0.25 is chance; nothing where the objective has no rotation heads.
    """
    if not objective.rotation_heads:
        return {}
    right: dict[str, list[Tensor]] = {"sar": [], "optical": []}
    with torch.no_grad(), evaluating(objective):
        for windows in _windows(objective.net, pairs, crop_size):
            for k in range(TURNS):
                turned = [torch.rot90(images, k, (-2, -1)) for images in windows]
                for name, features in zip(right, encode(objective.net, *turned), strict=True):
                    right[name].append(objective.rotation_heads[name](features).argmax(dim=1) == k)
    return {f"rotation_{name}": float(torch.cat(hits).float().mean()) for name, hits in right.items()}


def pretraining_scores(objective: PretrainingObjective, pairs: Pairs, crop_size: int) -> dict[str, float]:
    """`recall_1`, `recall_5`, and `rotation_accuracy`."""
    embeddings = embed_pairs(objective.net, pairs, crop_size, objective.config.contrast_over)
    recalls = {f"recall_{k}": retrieval_recall(*embeddings, k) for k in (1, 5)}
    return recalls | rotation_accuracy(objective, pairs, crop_size)


def pretrain(config: Config, split: Split, folder: Path, show_progress: bool = True) -> None:
    """Pretrain on `split.train`, or go on where the run in `folder` stopped; validation is for the log only."""
    schedule = config.pretraining
    if not schedule.enabled:
        raise ValueError("pretraining has both tasks off; set contrastive or rotation, or fine-tune from scratch")
    set_seed(config.seed)
    objective = PretrainingObjective(SarOpticalNet(config.model), schedule)
    crops = PretrainingCrops(split.train, config.data, config.seed, schedule, len(split.train) <= CACHE_AT_MOST)
    pairs = spread(split.validation, schedule.validation_pairs)
    validate = partial(pretraining_scores, pairs=pairs, crop_size=config.data.crop_size)
    candidates = objective.embeddings if schedule.contrastive and schedule.accumulation_steps > 1 else None
    fit(objective, crops, schedule, config.seed, folder, validate, None, show_progress, candidates)
    if schedule.rotation and PartialState().is_main_process:
        with atomic_path(folder / ROTATION_HEADS) as temporary:
            save_file(objective.rotation_heads.state_dict(), temporary)


def _windows(net: SarOpticalNet, pairs: Pairs, crop_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Central windows of both images of each pair, (1, C, crop_size, crop_size), on the network's device."""
    device = next(net.parameters()).device
    for pair in pairs:
        x, y = central_corner(pair.size, crop_size, f"pair {pair.id!r}")
        window = (..., slice(y, y + crop_size), slice(x, x + crop_size))
        sar, optical, valid = (part[window][None].to(device) for part in (pair.sar, pair.optical, pair.valid))
        yield fill_invalid(sar, valid), fill_invalid(optical, valid)
