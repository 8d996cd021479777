"""The training loop, in the open: supervised fine-tuning and self-supervised pretraining are two callers of it.

A run folder holds `metrics.jsonl`, `last.pt` (all that resuming needs) and `model.safetensors`. Killed at any moment, a
run loses at most the steps since its last checkpoint; on the same CPU with as many threads it goes on to the same bits.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from sarmatch.config import Schedule
from sarmatch.data.crops import TrainingCrops
from sarmatch.io import atomic_path
from sarmatch.model.checkpoints import save_weights

CACHE_AT_MOST = 5000
"""Pairs that are kept decoded in memory; 5,000 patches of 256 px take 5 GB."""

SCALES = ("log_scale", "log_scales", "log_penalties")
"""How the names of weights end that act through their exponential."""

Validate = Callable[[Any], dict[str, float]]
"""Called with the objective, in evaluation mode, on every process; returns scores by name, the same on each."""


_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class Paused(Exception):
    """A training met its time limit, see `time_limit`; all it did is stored, and it goes on where it is."""


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Within, a training ends with `Paused` at its first checkpoint after so many minutes; None sets no limit."""
    token = _deadline.set(math.inf if minutes is None else time.monotonic() + 60 * minutes)
    try:
        yield
    finally:
        _deadline.reset(token)


def _out_of_time() -> bool:
    """Whether the limit is passed on the main process, the same on all."""
    limit = _deadline.get()
    return limit < math.inf and bool(broadcast_object_list([time.monotonic() > limit])[0])


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) for one process, from a given step on.

    The order depends on the seed and the epoch alone and a global batch is dealt to the processes in turn: resuming
    and more processes give the same samples.
    """

    def __init__(self, n: int, schedule: Schedule, seed: int, start_step: int, rank: int, world: int) -> None:
        micro = schedule.batch_size // schedule.accumulation_steps
        if micro % world:
            raise ValueError(
                f"batch_size / accumulation_steps = {micro} cannot be dealt to {world} processes evenly; "
                f"choose a batch_size that is a multiple of {world * schedule.accumulation_steps}"
            )
        self.n, self.micro, self.seed = n, micro, seed
        self.start = start_step * schedule.accumulation_steps
        self.stop = total_steps(n, schedule) * schedule.accumulation_steps
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


def total_steps(n: int, schedule: Schedule) -> int:
    """Optimiser steps of a whole training on n pairs."""
    steps = schedule.epochs * max(1, n // schedule.batch_size)
    return steps if schedule.max_steps is None else min(steps, schedule.max_steps)


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """Linear warm-up, then constant or a half cosine down to 5 %."""
    rate = schedule.learning_rate * min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    if schedule.cosine:
        rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return rate


def parameter_groups(objective: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Weights at the learning rate; scales, which act through their exponential, faster and without decay.

    Those of a stock backbone learn at `schedule.backbone_rate` of it.
    """
    scales = [p for name, p in objective.named_parameters() if name.endswith(SCALES)]
    stock = [p for name, p in objective.named_parameters() if ".backbone." in name]
    taken = {id(p) for p in [*scales, *stock]}
    weights = [p for p in objective.parameters() if id(p) not in taken]
    groups = [
        {"params": weights, "speed": 1.0, "weight_decay": schedule.weight_decay},
        {"params": scales, "speed": 10.0, "weight_decay": 0.0},
    ]
    if stock:
        groups.append({"params": stock, "speed": schedule.backbone_rate, "weight_decay": schedule.weight_decay})
    return groups


# long because the training loop is to be read in one place: no callbacks, no trainer class
def fit(
    objective: nn.Module,
    crops: TrainingCrops,
    schedule: Schedule,
    seed: int,
    folder: Path,
    validate: Validate,
    score: str | None,
    show_progress: bool = True,
    candidates: Callable[[Any], Any] | None = None,
) -> None:
    """Train an objective in place, or go on where the run in `folder` stopped.

    Args:
        objective: called with a batch of `crops`, returns scalar losses by name, `loss` being what is minimised. Its
            `net` is what `model.safetensors` keeps.
        seed: of the order of samples and, with the step, of everything the objective draws from torch's generator.
        validate: called every `schedule.validate_every` steps and after the last one.
        score: name of the validation score, higher being better, that chooses the weights to keep and stops early
            after `schedule.patience` validations without improvement; None keeps the last weights.
        candidates: what each accumulation part must know of the others, called without gradient with its batch before
            the first; the objective is then called with the batch, the results for all parts, and the part's number.
    """
    if not len(crops):
        raise ValueError("the training part of the split is empty; give more pairs or other split_fractions")
    AcceleratorState._reset_state()  # a second training in one process may ask for another precision
    accelerator = Accelerator(
        mixed_precision=schedule.precision,
        gradient_accumulation_steps=schedule.accumulation_steps,
        # Pretraining has no loss for the uncertainty modules, nor fine-tuning without consensus for the fine level.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    groups = parameter_groups(objective, schedule)
    optimizer = torch.optim.Adam(groups, lr=schedule.learning_rate, betas=schedule.betas)
    state: dict[str, Any] = {"step": 0, "best": -math.inf, "waited": 0, "seconds": 0.0, "data_seconds": 0.0}
    if (folder / "last.pt").exists():
        state = _restore(folder / "last.pt", objective, optimizer, accelerator.scaler)
    if accelerator.is_main_process:
        _cut_log(folder / "metrics.jsonl", state["step"])
    accelerator.wait_for_everyone()
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = DataLoader(
        crops,
        batch_sampler=StepSampler(len(crops), schedule, seed, state["step"], rank, world),
        num_workers=schedule.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    steps = total_steps(len(crops), schedule)
    every = schedule.validate_every or max(1, len(crops) // schedule.batch_size)
    finished = _finished(state, steps, schedule)
    bar = tqdm(total=steps, initial=state["step"], desc=folder.name, disable=None if show_progress else True)
    began = time.perf_counter() - state["seconds"]
    batches = iter(() if finished else loader)
    while not finished:
        rate = learning_rate(state["step"], steps, schedule)
        start = time.perf_counter()
        parts = list(islice(batches, schedule.accumulation_steps))
        state["data_seconds"] = state.get("data_seconds", 0.0) + time.perf_counter() - start  # 0.1 stored none
        losses = _step(accelerator, prepared, optimizer, parts, rate, schedule, (seed, state["step"]), candidates)
        state["step"] += 1
        state["seconds"] = time.perf_counter() - began
        row = {"step": state["step"], "lr": rate, **{key: state[key] for key in ("seconds", "data_seconds")}, **losses}
        bar.update()
        validated = state["step"] % every == 0 or state["step"] == steps
        if validated:
            row |= _validate(accelerator, objective, folder, state, validate, score)
            shown = {score: row.get(score)} if score else {}
            bar.set_postfix(shown | {"waited for data": f"{state['data_seconds'] / state['seconds']:.0%}"})
        if accelerator.is_main_process and (state["step"] % 10 == 0 or validated or steps < 100):
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        finished = _finished(state, steps, schedule)
        if state["step"] % schedule.checkpoint_every == 0 or finished:
            _checkpoint(accelerator, objective, optimizer, folder, state)
            if not finished and _out_of_time():
                bar.close()
                raise Paused(f"{folder.name}: step {state['step']} of {steps}")
    bar.close()
    if score is None and accelerator.is_main_process:
        save_weights(objective.net, folder / "model.safetensors")  # type: ignore[arg-type]
    accelerator.wait_for_everyone()


def _finished(state: dict[str, Any], steps: int, schedule: Schedule) -> bool:
    out_of_patience = schedule.patience is not None and state["waited"] >= schedule.patience
    return state["step"] >= steps or out_of_patience


def _step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Any],
    rate: float,
    schedule: Schedule,
    seeds: tuple[int, int],
    candidates: Callable[[Any], Any] | None,
) -> dict[str, float]:
    """One optimiser step over its accumulated parts; returns the mean losses over parts and processes."""

    def draw_anew(part: int) -> None:
        # Dropout is a function of the step and the process, so that a resumed run draws what it would have drawn.
        torch.manual_seed(((seeds[0] * 1_000_003 + seeds[1]) * 64 + part) * 4096 + accelerator.process_index)

    for group in optimizer.param_groups:
        group["lr"] = group["speed"] * rate
    parts = [{name: v.to(accelerator.device, non_blocking=True) for name, v in batch.items()} for batch in parts]
    of_parts: list[Any] = []
    for part, batch in enumerate(parts if candidates else ()):
        draw_anew(part)
        with torch.no_grad(), accelerator.autocast():
            of_parts.append(candidates(batch))  # type: ignore[misc]  # there are no parts without it
    totals: dict[str, Tensor] = {}
    for part, batch in enumerate(parts):
        draw_anew(part)
        with accelerator.accumulate(objective):
            losses = objective(batch, of_parts, part) if candidates else objective(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(objective.parameters(), schedule.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach() / len(parts)
    means = accelerator.reduce(torch.stack(list(totals.values())), reduction="mean").tolist()  # all in one exchange
    return dict(zip(totals, means, strict=True))


def _validate(
    accelerator: Accelerator,
    objective: nn.Module,
    folder: Path,
    state: dict[str, Any],
    validate: Validate,
    score: str | None,
) -> dict[str, float]:
    """Scores of the current weights; saves them where they are the best so far."""
    # Decided once, on the main process in double precision: compared again elsewhere, a rounded score could keep
    # weights without renewing patience, or the reverse.
    best, waited = state["best"], state["waited"] + 1
    objective.eval()
    scores = validate(objective)
    objective.train()
    if accelerator.is_main_process and score is not None and scores[score] > best:
        save_weights(objective.net, folder / "model.safetensors")  # type: ignore[arg-type]
        best, waited = float(scores[score]), 0  # numpy's would not load from a checkpoint
    if score is not None:
        state["best"], state["waited"] = broadcast_object_list([best, waited])
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
    content = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict(), "state": dict(state)}
    if accelerator.scaler is not None:
        content["scaler"] = accelerator.scaler.state_dict()
    with atomic_path(folder / "last.pt") as path:
        torch.save(content, path)


def _restore(
    path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
) -> dict[str, Any]:
    """Load a checkpoint; returns where the run stood. Those of version 0.1 hold no scale of fp16 gradients."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    objective.load_state_dict(content["objective"])
    optimizer.load_state_dict(content["optimizer"])
    if scaler is not None and "scaler" in content:
        scaler.load_state_dict(content["scaler"])
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
