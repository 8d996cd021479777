"""Weights that come with the package: what they carry, and when they stand for a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import tiny

from companion.shipping import ship, shipped_or_trained
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.matching.matcher import load_matcher
from sarmatch.model.checkpoints import load_weights
from sarmatch.training.runs import Run, confidence_or_load, train_or_load


@pytest.fixture(scope="module")
def split() -> Split:
    config = tiny()
    return split_pairs(open_pairs(config.data, config.seed), config.data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs, split) -> Run:
    run = train_or_load(tiny(), runs, split=split, show_progress=False)
    confidence_or_load(run, split)
    return run


@pytest.fixture
def weights(tmp_path, trained) -> Path:
    """A folder of shipped weights."""
    ship(trained, tmp_path / "smoke.safetensors")
    return tmp_path


def test_weights_travel_with_their_confidence_history_and_provenance(weights, split, trained):
    confidence = confidence_or_load(trained, split)
    shipped = load_matcher(weights / "smoke.safetensors")
    assert shipped.confidence == confidence
    assert all(not b.is_floating_point() or b.dtype == torch.float32 for b in shipped.net.state_dict().values())
    own = trained.net.state_dict()
    assert all(torch.allclose(own[name], t, rtol=1e-3, atol=1e-6) for name, t in shipped.net.state_dict().items())
    _, about = load_weights(weights / "smoke.safetensors")
    assert {name: about[name] for name in ("profile", "seed")} == {"profile": "smoke", "seed": "0"}


def test_they_stand_for_the_run_that_made_them(tmp_path, weights, runs, split, trained):
    again = shipped_or_trained(trained.config, tmp_path / "elsewhere", split, weights)
    assert again.shipped and again.path.name == trained.path.name.replace("matcher", "shipped")
    assert again.history["step"].tolist() == trained.history["step"].tolist()
    assert again.history["loss"].tolist() == pytest.approx(trained.history["loss"].tolist(), abs=1e-5)
    assert again.provenance["commit"] == trained.provenance["commit"] and "come with the package" in str(again)
    assert again.provenance["pretraining"] == trained.provenance["pretraining"]
    assert not {"command", "hardware", "versions"} & set(again.provenance), "those would be of this process"
    for name, tensor in trained.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor.half().float()), name
    assert again.matcher.confidence is not None
    stored = shipped_or_trained(trained.config, runs, split, weights)
    assert stored.path == trained.path, "a stored run comes first"


def test_weights_of_another_config_stand_for_nothing(tmp_path, weights, split, trained):
    other = trained.config.replace(seed=1)
    assert shipped_or_trained(other, tmp_path / "elsewhere", split, weights).path.name.startswith("matcher-")
    assert shipped_or_trained(trained.config, tmp_path / "new", split, tmp_path / "none").path.name == trained.path.name


def test_weights_of_other_data_stand_for_nothing(tmp_path, weights, split, trained):
    """What is tested on these data may have trained the weights."""
    other = Split(split.train.subset(range(1, len(split.train))), split.validation, split.test)
    run = shipped_or_trained(trained.config, tmp_path / "elsewhere", other, weights)
    assert not run.shipped and run.path.name.startswith("matcher-")


def test_every_chapter_takes_its_network_with_that_check():
    """Chapters that match with the profile's network ask `shipping.shipped_or_trained`, none for weights by name."""
    book = Path(__file__).parents[2] / "book"
    for path in sorted(book.glob("*.ipynb")):
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        code = "\n".join("".join(cell["source"]) for cell in cells)
        assert "train_or_load(" not in code.replace("pretrain_or_load(", ""), path.name
        assert "load_weights(" not in code and "WEIGHTS" not in code, path.name
        assert "load_matcher(" not in code, path.name
