"""Two processes that train together: pretraining, then fine-tuning from its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_in_two_processes

from sarmatch.config import Config
from sarmatch.evaluation.protocols import spread, validation_scores
from sarmatch.matching.matcher import Matcher
from sarmatch.profiles import profile
from sarmatch.training.runs import Run, open_split, train_or_load

STEPS = 3
TRAIN = """
import json, os, sys
from sarmatch.evaluation import protocols
from sarmatch.training import loop, selfsupervised, supervised
from sarmatch.config import Config, from_dict
from sarmatch.training.runs import train_or_load
from sarmatch.training.supervised import Objective
from sarmatch.training.selfsupervised import PretrainingObjective

measured = []
evaluate = protocols.evaluate
def noted_pairs(matcher, pairs, *rest, **options):
    measured.append(list(pairs.index["id"]))
    return evaluate(matcher, pairs, *rest, **options)
protocols.evaluate = noted_pairs

losses = []
for kind in (PretrainingObjective, Objective):
    def noted(self, batch, forward=kind.forward):
        result = forward(self, batch)
        losses.append(result["loss"].item())
        return result
    kind.forward = noted

fit = loop.fit
def fit_and_keep(objective, crops, schedule, seed, folder, *rest):
    losses.clear()
    fit(objective, crops, schedule, seed, folder, *rest)
    stage = folder.name.split("-")[0]
    left = {"losses": losses, "net": objective.net.state_dict(), "measured": measured}
    torch.save(left, f"{sys.argv[1]}/{stage}-{os.environ['RANK']}.pt")
supervised.fit = selfsupervised.fit = fit_and_keep

train_or_load(from_dict(Config, json.loads(sys.argv[2])), sys.argv[1], show_progress=False)
"""
"""Trains into a folder and leaves there, of each stage and process, its own losses and its last weights."""


@pytest.fixture(scope="module")
def config() -> Config:
    schedule = {"max_steps": STEPS, "batch_size": 4, "accumulation_steps": 1, "checkpoint_every": 2}
    return profile("smoke").replace(
        data={"n_synthetic": 24},
        pretraining=schedule | {"epochs": 9, "validation_pairs": 4},
        training=schedule | {"epochs": 9, "validation_pairs": 2},
    )


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(TRAIN, folder, str(folder), json.dumps(config.to_dict()))
    return folder


@pytest.fixture(scope="module")
def run(config: Config, folder: Path) -> Run:
    return train_or_load(config, folder, show_progress=False)


def test_the_run_of_two_processes_is_found_by_one(run: Run) -> None:
    assert run.loaded and run.provenance["pretraining"].startswith("pretraining-")
    assert run.history["step"].tolist() == list(range(1, STEPS + 1))


@pytest.mark.parametrize("stage", ["pretraining", "matcher"])
def test_the_logged_loss_is_the_mean_of_both_and_each_learned_from_its_own_part(
    run: Run, folder: Path, stage: str
) -> None:
    first, second = (torch.load(folder / f"{stage}-{rank}.pt")["losses"] for rank in (0, 1))
    history = [json.loads(line) for line in stage_of(run, stage).joinpath("metrics.jsonl").read_text().splitlines()]
    assert len(first) == len(second) == STEPS
    assert not np.isclose(first, second, rtol=1e-3).any()
    np.testing.assert_allclose([row["loss"] for row in history], np.mean([first, second], axis=0), rtol=1e-6)


@pytest.mark.parametrize("stage", ["pretraining", "matcher"])
def test_both_end_with_the_weights_that_are_kept(run: Run, folder: Path, stage: str) -> None:
    first, second = (torch.load(folder / f"{stage}-{rank}.pt")["net"] for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    if stage == "pretraining":  # fine-tuning keeps its best
        kept = load_file(stage_of(run, stage) / "model.safetensors")
        assert all(torch.equal(value, kept[name]) for name, value in first.items())


def stage_of(run: Run, stage: str) -> Path:
    return run.path if stage == "matcher" else run.path.parent / run.provenance["pretraining"]


def test_processes_share_the_pairs_of_validation_and_have_one_score(run: Run, folder: Path, config: Config) -> None:
    shares = [torch.load(folder / f"matcher-{rank}.pt")["measured"] for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 1  # after the last step
    pairs = spread(open_split(config).selection, config.training.validation_pairs)
    assert sorted(shares[0][0] + shares[1][0]) == sorted(pairs.index["id"])
    alone = validation_scores(Matcher(run.net), pairs, config.evaluation)
    assert run.history["mma_3px"].dropna().tolist() == pytest.approx([alone["mma_3px"]], abs=1e-6)
