"""The training loop on a toy regression: which weights are kept, what a checkpoint holds, what processes exchange."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from companion.baselines.learned import PeerSize
from sarmatch.config import Schedule
from sarmatch.training import loop
from sarmatch.training.loop import fit


class Points(Dataset):
    """Points of a line, by (epoch, position)."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        x = torch.tensor([float(key[1])]) / 8
        return {"x": x, "y": 3 * x + 1}


class Regression(nn.Module):
    """A line behind the interface of an objective, with two losses of which the first is minimised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.net.config = PeerSize()  # any dataclass: it goes into the header of the weights

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = self.net(batch["x"]) - batch["y"]
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}


def schedule(**changes: object) -> Schedule:
    settings = {
        "learning_rate": 0.1,
        "batch_size": 4,
        "accumulation_steps": 2,
        "max_steps": 4,
        "validate_every": 1,
        "checkpoint_every": 1,
    }
    return Schedule(**settings | changes)


def train(folder: Path, scores: Iterable[float], **changes: object) -> list[dict[str, Tensor]]:
    """Train a line whose validations have these scores; returns the weights at each."""
    folder.mkdir(exist_ok=True)
    given, states = iter(scores), []

    def validate(objective: Regression) -> dict[str, float]:
        states.append({name: value.clone() for name, value in objective.net.state_dict().items()})
        return {"score": np.float64(next(given))}

    fit(Regression(), Points(), schedule(**changes), 0, folder, validate, "score", show_progress=False)
    return states


def position(kept: Path, weights: list[dict[str, Tensor]]) -> int:
    """Which of the weights a file holds."""
    stored = load_file(kept)
    (index,) = [i for i, w in enumerate(weights) if all(torch.equal(w[name], stored[name]) for name in w)]
    return index


SCORE = 0.7
"""Smaller in single precision than in double: rounded on the way, the same score would look better the second time."""


def test_an_equal_score_keeps_the_earlier_weights(tmp_path: Path) -> None:
    weights = train(tmp_path, [SCORE] * 4)
    assert position(tmp_path / "model.safetensors", weights) == 0


def test_a_score_that_is_better_by_less_than_single_precision_keeps_its_weights_and_renews_patience(
    tmp_path: Path,
) -> None:
    weights = train(tmp_path, [SCORE, SCORE - 0.1, SCORE + 1e-12, 0.0, 0.0, 0.0], max_steps=6, patience=2)
    assert position(tmp_path / "model.safetensors", weights) == 2
    assert len(weights) == 5
    state = torch.load(tmp_path / "last.pt", weights_only=True)["state"]
    assert (state["best"], state["waited"]) == (SCORE + 1e-12, 2)


class ScaledAccelerator(Accelerator):
    """One with a scaler of gradients, which accelerate itself only makes for fp16 on an accelerator."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pt", weights_only=True)


def test_the_scale_of_gradients_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Accelerator", ScaledAccelerator)
    train(tmp_path / "whole", [SCORE] * 5, max_steps=5)
    train(tmp_path / "resumed", [SCORE] * 4, max_steps=4)  # its scale grew at step 3, and one step counts already
    train(tmp_path / "resumed", [SCORE], max_steps=5)
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "resumed")
    assert (whole["scaler"]["scale"], whole["scaler"]["_growth_tracker"]) == (8.0, 2)
    assert resumed["scaler"] == whole["scaler"]
    assert all(torch.equal(value, resumed["objective"][name]) for name, value in whole["objective"].items())


def test_a_checkpoint_from_before_scales_were_kept_still_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Accelerator", ScaledAccelerator)
    train(tmp_path, [SCORE] * 2, max_steps=2)
    content = checkpoint(tmp_path)
    del content["scaler"]
    torch.save(content, tmp_path / "last.pt")
    train(tmp_path, [SCORE], max_steps=3)
    assert checkpoint(tmp_path)["scaler"]["_growth_tracker"] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_gathers_its_losses_in_one_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    exchanged = []

    class Counting(Accelerator):
        def reduce(self, tensor: Tensor, *arguments: object, **options: object) -> Tensor:
            exchanged.append(tensor.clone())
            return super().reduce(tensor, *arguments, **options)

    monkeypatch.setattr(loop, "Accelerator", Counting)
    train(tmp_path, [SCORE] * 4, accumulation_steps=parts)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(exchanged) == 4
    assert [[row["loss"], row["absolute"]] for row in rows] == [tensor.tolist() for tensor in exchanged]
