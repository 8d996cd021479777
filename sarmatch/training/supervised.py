"""Both trainings of the paper as callers of one loop: self-supervised pretraining, then supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

from sarmatch.config import Config
from sarmatch.data.crops import TrainingCrops
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import spread, validation_scores
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights
from sarmatch.training.loop import fit
from sarmatch.training.objective import Objective
from sarmatch.training.selfsupervised import (
    PretrainingCrops,
    PretrainingObjective,
    pretraining_scores,
    save_rotation_heads,
)

SCORE = "mma_3px"
"""Validation score that chooses the weights of fine-tuning and stops it early."""
ROTATION_HEADS = "rotation_heads.safetensors"
CACHE_AT_MOST = 5000
"""Pairs that are kept decoded in memory; 5,000 patches of 256 px take 5 GB."""
THREADS_STEPS = 5
"""Steps over which `THREADS_RTOL` holds."""
THREADS_RTOL = 1e-3
"""Relative tolerance within which the losses of the first `THREADS_STEPS` steps agree between numbers of threads.

With one seed, one number of threads and one CPU a training has the same bits, however often it is stopped. Other
threads sum in another order, and training amplifies the rounding: of 12 seeds of the smallest profile the first losses
differed by 1e-7 at most, the fifth by 2e-4, the thirtieth by 3e-3.
"""


def pretrain(config: Config, split: Split, folder: Path, show_progress: bool = True) -> None:
    """Pretrain on `split.train`, or go on where the run in `folder` stopped.

    Validation reads central windows of `config.data.crop_size`, for the log only: no pretext score is what pretraining
    is for. Leaves the last weights in `model.safetensors` and the rotation heads in `rotation_heads.safetensors`.

    Raises:
        ValueError: both tasks are off, or there are no training pairs.
    """
    schedule = config.pretraining
    if not schedule.enabled:
        raise ValueError("pretraining has both tasks off; set contrastive or rotation, or fine-tune from scratch")
    _check_not_empty(split.train)
    set_seed(config.seed)
    objective = PretrainingObjective(SarOpticalNet(config.model), schedule)
    cache = len(split.train) <= CACHE_AT_MOST
    crops = PretrainingCrops(split.train, config.data, config.seed, schedule, cache)
    pairs = spread(split.validation, schedule.validation_pairs)

    def validate(objective: PretrainingObjective) -> dict[str, float]:
        return pretraining_scores(objective, pairs, config.data.crop_size)

    fit(objective, crops, schedule, config.seed, folder, validate, None, show_progress)
    if schedule.rotation and PartialState().is_main_process:
        save_rotation_heads(objective, folder / ROTATION_HEADS)


def finetune(
    config: Config,
    split: Split,
    folder: Path,
    initial: Mapping[str, Tensor] | Path | None = None,
    show_progress: bool = True,
) -> None:
    """Train on `split.train`, or go on where the run in `folder` stopped; `model.safetensors` keeps the best weights.

    Validation on `split.selection` chooses them and stops early, by `SCORE`.

    Args:
        initial: weights to start from, as `SarOpticalNet.state_dict()` or a file of `save_weights`. What pretraining
            has no loss for (uncertainty, fine level, scales) stands in them as the seed made it.

    Raises:
        ValueError: there are no training pairs, or `initial` is of another network.
    """
    _check_not_empty(split.train)
    set_seed(config.seed)
    objective = Objective(SarOpticalNet(config.model), config.training)
    if initial is not None:
        _hand_over(objective.net, initial)
    crops = TrainingCrops(split.train, config.data, config.seed, cache=len(split.train) <= CACHE_AT_MOST)
    scoring = dataclasses.replace(config.evaluation, max_pairs=config.training.validation_pairs)

    def validate(objective: Objective) -> dict[str, float]:
        net = objective.net
        return validation_scores(Matcher(net, next(net.parameters()).device), split.selection, scoring)

    fit(objective, crops, config.training, config.seed, folder, validate, SCORE, show_progress)


def _hand_over(net: SarOpticalNet, initial: Mapping[str, Tensor] | Path) -> None:
    weights = load_weights(initial)[0].state_dict() if isinstance(initial, Path) else initial
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"initial: the weights do not fit the network of config.model; pretrain with the same model ({error})"
        ) from error


def _check_not_empty(pairs: Pairs) -> None:
    if not len(pairs):
        raise ValueError("the training part of the split is empty; give more pairs or other split_fractions")
