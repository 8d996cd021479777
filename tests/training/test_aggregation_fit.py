"""The fit of the scales of aggregation after fine-tuning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import tiny

from sarmatch.config import AggregationConfig, Config
from sarmatch.training.runs import Run, train_or_load

FIT = {"deformable_cells": (9,), "crop_size": 80, "max_steps": 3, "validate_every": 3, "batch_size": 2}


def config() -> Config:
    return tiny(aggregation=FIT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def fitted(runs: Path) -> Run:
    return train_or_load(config(), runs, show_progress=False)


def test_scales_alone_learn(fitted, runs):
    before = train_or_load(config().replace(aggregation=AggregationConfig()), runs, show_progress=False)
    assert before.loaded and fitted.provenance["finetuning"]["steps"] == before.provenance["steps"] == 2
    assert fitted.net.config.deformable_cells == (9,) and before.net.config.deformable_cells == ()
    after, changed = fitted.net.state_dict(), set()
    for name, tensor in before.net.state_dict().items():
        if not torch.equal(tensor, after[name]):
            changed.add(name)
    assert changed == {"plain_log_scale", "coarse_log_scales", "fine_log_scales", "vote_log_scale"}
    assert after["deformable_log_scales"].exp().item() != pytest.approx(30, rel=1e-4)
    assert after["deformable_log_penalties"].exp().item() != pytest.approx(0.005, rel=1e-4)


def test_it_is_a_run_that_is_found_again(fitted, runs):
    again = train_or_load(config(), runs, show_progress=False)
    assert again.loaded and not fitted.loaded and again.path == fitted.path
    assert again.provenance["pretraining"] == fitted.provenance["pretraining"] is not None
    (run,) = fitted.path.parent.glob(fitted.path.name)
    other = run.parents[1] / "other" / run.parent.name
    other.mkdir(parents=True)
    shutil.copytree(run, other / run.name)
    moved = train_or_load(config(), other.parent, show_progress=False)
    assert moved.loaded and not list(other.glob("pretraining-*")), "a finished run needs nothing that came before it"
    assert int(fitted.history["step"].max()) == FIT["max_steps"] and "mma_3px" in fitted.history


def test_configs_without_it_keep_their_names():
    assert tiny().hash("x") == tiny(aggregation={"max_steps": 7}).hash("x") != config().hash("x")


@pytest.mark.parametrize("cells", [(8,), (12,), (1,)])
def test_sides_that_have_no_middle_box_are_refused(cells):
    with pytest.raises(ValueError, match="deformable_cells must be 3, 9, 15"):
        tiny(model={"deformable_cells": cells})


def test_deformable_neighbourhoods_need_rigid_ones():
    with pytest.raises(ValueError, match="beside consensus_cells"):
        tiny(model={"deformable_cells": (9,), "consensus_cells": ()})
