"""Supervised fine-tuning: the loss of a batch and the loop around it, in the open.

A run folder holds `config.json`, `metrics.jsonl`, `last.pt` (all that resuming needs) and `model.safetensors` (the best
weights so far). Killed at any moment, a run loses at most the steps since its last checkpoint and goes on to the same
result on the same CPU.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from sarmatch.checkpoints import save_weights
from sarmatch.config import Config, TrainingConfig
from sarmatch.data.splits import Split
from sarmatch.data.transforms import Sample, TrainingCrops
from sarmatch.files import atomic_path
from sarmatch.models import SarOpticalNet
from sarmatch.objective import Objective

SCALES_SPEED = 10.0
"""Learning rate of the scales of similarity over that of the weights."""
LOG_EVERY = 10
CACHE_AT_MOST = 5000
"""Pairs that are kept decoded in memory; 5,000 patches of 256 px take 5 GB."""

Validate = Callable[[SarOpticalNet], dict[str, float]]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) for one process, from a given step on.

    The order depends on the seed and the epoch alone, and a global batch is dealt to the processes in turn, so that
    resuming at a step and training on more processes see the same samples.
    """

    def __init__(self, n: int, training: TrainingConfig, seed: int, start_step: int, rank: int, world: int) -> None:
        micro = training.batch_size // training.accumulation_steps
        if micro % world:
            raise ValueError(
                f"batch_size / accumulation_steps = {micro} cannot be dealt to {world} processes evenly; "
                f"choose a batch_size that is a multiple of {world * training.accumulation_steps}"
            )
        self.n, self.micro, self.seed = n, micro, seed
        self.start = start_step * training.accumulation_steps
        self.stop = total_steps(n, training) * training.accumulation_steps
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=2)(self._order)
        for i in range(self.start, self.stop):
            keys = [divmod(k, self.n) for k in range(i * self.micro, (i + 1) * self.micro)]
            yield [(epoch, order(epoch)[k]) for epoch, k in keys[self.rank :: self.world]]

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.n).tolist()

    def __len__(self) -> int:
        return self.stop - self.start


def total_steps(n: int, training: TrainingConfig) -> int:
    """Optimiser steps of a whole training on n pairs."""
    steps = training.epochs * max(1, n // training.batch_size)
    return steps if training.max_steps is None else min(steps, training.max_steps)


def learning_rate(step: int, steps: int, training: TrainingConfig) -> float:
    """Linear warm-up, then constant or a half cosine down to 5 %."""
    rate = training.learning_rate * min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.cosine:
        rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return rate


def parameter_groups(objective: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """Weights at the learning rate; scales, which act through their exponential, faster and without decay."""
    scales = [p for name, p in objective.named_parameters() if name.endswith(("log_scale", "log_scales"))]
    weights = [p for name, p in objective.named_parameters() if not name.endswith(("log_scale", "log_scales"))]
    return [
        {"params": weights, "speed": 1.0, "weight_decay": training.weight_decay},
        {"params": scales, "speed": SCALES_SPEED, "weight_decay": 0.0},
    ]


def finetune(config: Config, split: Split, folder: Path, validate: Validate, show_progress: bool = True) -> None:
    """Train on `split.train`, or go on where the run in `folder` stopped.

    Args:
        validate: called with the network on the main process, returns scores; `mma_3px` chooses the best weights and
            stops early.

    Raises:
        ValueError: fewer training pairs than one batch needs to be told apart (none at all).
    """
    training = config.training
    if not len(split.train):
        raise ValueError("the training part of the split is empty; give more pairs or other split_fractions")
    AcceleratorState._reset_state()  # a second training in one process may ask for another precision
    accelerator = Accelerator(
        mixed_precision=training.precision,
        gradient_accumulation_steps=training.accumulation_steps,
        # Without consensus the fine level has no loss.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=not config.model.consensus_cells)],
    )
    set_seed(config.seed)
    objective = Objective(SarOpticalNet(config.model))
    optimizer = torch.optim.Adam(parameter_groups(objective, training), lr=training.learning_rate, betas=training.betas)
    state: dict[str, Any] = {"step": 0, "best": -1.0, "waited": 0, "seconds": 0.0}
    if (folder / "last.pt").exists():
        state = _restore(folder / "last.pt", objective, optimizer)
    if accelerator.is_main_process:
        _cut_log(folder / "metrics.jsonl", state["step"])
    accelerator.wait_for_everyone()
    crops = TrainingCrops(split.train, config.data, config.seed, cache=len(split.train) <= CACHE_AT_MOST)
    sampler = StepSampler(
        len(crops), training, config.seed, state["step"], accelerator.process_index, accelerator.num_processes
    )
    loader = DataLoader(
        crops, batch_sampler=sampler, num_workers=training.workers, pin_memory=accelerator.device.type == "cuda"
    )
    objective, optimizer = accelerator.prepare(objective, optimizer)
    _train(accelerator, objective, optimizer, loader, config, folder, state, validate, show_progress)


def _train(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Sample],
    config: Config,
    folder: Path,
    state: dict[str, Any],
    validate: Validate,
    show_progress: bool,
) -> None:
    training = config.training
    n = loader.batch_sampler.n  # type: ignore[union-attr]  # the StepSampler made above
    steps = total_steps(n, training)
    every = training.validate_every or max(1, n // training.batch_size)
    bar = tqdm(total=steps, initial=state["step"], desc="train", disable=None if show_progress else True)
    totals: dict[str, float] = {}
    part = 0  # of the current step, where gradients are accumulated
    finished = state["step"] >= steps or state["waited"] >= training.patience
    began = time.perf_counter() - state["seconds"]
    for batch in () if finished else loader:
        # Dropout is a function of the step and the process, so that a resumed run draws what it would have drawn.
        torch.manual_seed(((config.seed * 1_000_003 + state["step"]) * 64 + part) * 4096 + accelerator.process_index)
        part += 1
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = group["speed"] * learning_rate(state["step"], steps, training)
        with accelerator.accumulate(objective):
            losses = objective(batch, training.window_px)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(objective.parameters(), training.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in losses.items():
            mean = accelerator.reduce(value.detach(), reduction="mean")
            totals[name] = totals.get(name, 0.0) + float(mean) / training.accumulation_steps
        if not accelerator.sync_gradients:
            continue
        state["step"] += 1
        state["seconds"] = time.perf_counter() - began
        row = {"step": state["step"], "lr": optimizer.param_groups[0]["lr"], "seconds": state["seconds"], **totals}
        totals, part = {}, 0
        bar.update()
        if state["step"] % every == 0 or state["step"] == steps:
            row |= _validate(accelerator, objective, folder, state, validate)
            bar.set_postfix(mma_3px=row.get("mma_3px"))
        if accelerator.is_main_process and (state["step"] % LOG_EVERY == 0 or "mma_3px" in row or steps < 100):
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        finished = state["step"] == steps or state["waited"] >= training.patience
        if state["step"] % training.checkpoint_every == 0 or finished:
            _checkpoint(accelerator, objective, optimizer, folder, state)
        if finished:
            break
    bar.close()


def _validate(
    accelerator: Accelerator, objective: nn.Module, folder: Path, state: dict[str, Any], validate: Validate
) -> dict[str, float]:
    """Scores of the current weights; saves them where they are the best so far. All processes learn the outcome."""
    scores: dict[str, float] = {}
    if accelerator.is_main_process:
        net = accelerator.unwrap_model(objective).net
        net.eval()
        scores = validate(net)
        net.train()
        if scores["mma_3px"] > state["best"]:
            save_weights(net, folder / "model.safetensors")
    packed = torch.tensor(scores.get("mma_3px", 0.0), device=accelerator.device)
    score = float(accelerator.reduce(packed, reduction="sum"))
    improved = score > state["best"]
    state["best"], state["waited"] = (score, 0) if improved else (state["best"], state["waited"] + 1)
    return scores


def _checkpoint(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    state: dict[str, Any],
) -> None:
    if not accelerator.is_main_process:
        return
    content = {
        "objective": accelerator.unwrap_model(objective).state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": dict(state),
    }
    with atomic_path(folder / "last.pt") as path:
        torch.save(content, path)


def _restore(path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimiser back to the moment of the checkpoint; returns where the run stood."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    objective.load_state_dict(content["objective"])
    optimizer.load_state_dict(content["optimizer"])
    state: dict[str, Any] = content["state"]
    return state


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines after a step, and a last line that was not written to its end: the steps will be taken again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    with atomic_path(path) as partial:
        partial.write_text("".join(kept))
