"""Runs that were trained elsewhere: packed, taken into the store, published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from data.make_ombria import write_ombria

from companion import networks
from companion.cli import main
from companion.networks import PROVENANCE, model_card, pack, publish, unpack
from sarmatch.evaluation.protocols import evaluate
from sarmatch.matching.matcher import load_matcher
from sarmatch.profiles import PROFILES, profile
from sarmatch.training.runs import Run, train_or_load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ombria(tmp_path_factory.mktemp("ombria"), size=128)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = profile("s1s2-smoke", str(data))
    return train_or_load(config, tmp_path_factory.mktemp("runs"), show_progress=False)


@pytest.fixture
def packed(trained: Run, tmp_path: Path) -> Path:
    pack(trained, tmp_path / "packed")
    return tmp_path / "packed"


def test_a_run_arrives_as_it_was_in_half_precision(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "SHARD", "50KB")
    pack(trained, tmp_path / "packed")
    shards = list((tmp_path / "packed").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 70_000 for path in shards), "50 KB and a header each"
    run, split = unpack(tmp_path / "packed", data, tmp_path / "runs")
    assert run.loaded and len(split.test) and run.path.name == trained.path.name
    assert run.history.equals(trained.history) and run.provenance == trained.provenance
    for name, tensor in trained.net.state_dict().items():
        assert torch.equal(run.net.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_a_folder_of_the_store_is_taken_where_it_lies(trained, data):
    run, _ = unpack(trained.path, data, trained.path.parents[1])
    assert run.path == trained.path


def test_shards_of_the_profiles_for_gpus_have_at_most_15_megabytes():
    assert networks.SHARD == "15MB"
    assert {"s1s2-gpu", "s1s2-full"} <= set(PROFILES)
    for name in ("s1s2-gpu", "s1s2-full"):
        training = PROFILES[name].training
        assert training.max_steps * training.batch_size == 300_000 and not PROFILES[name].model.oriented_gradients


def test_what_was_not_packed_to_its_end_is_refused(packed, data, tmp_path):
    (packed / PROVENANCE).unlink()
    with pytest.raises(ValueError, match="expected a finished run"):
        unpack(packed, data, tmp_path / "runs")


def test_settings_that_are_not_those_of_the_profile_are_named(packed, data, tmp_path):
    config = json.loads((packed / "config.json").read_text())
    config["training"]["learning_rate"] = 0.5
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"training.learning_rate: 0.002 -> 0.5"):
        unpack(packed, data, tmp_path / "runs")


def test_other_data_are_refused(packed, data, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    next(other.rglob("*seg003*.png"), next(other.rglob("*.png"))).unlink()
    with pytest.raises(ValueError, match="trained on data with fingerprint"):
        unpack(packed, other, tmp_path / "runs")


def test_a_stored_run_is_not_overwritten(packed, data, tmp_path):
    unpack(packed, data, tmp_path / "runs")
    with pytest.raises(ValueError, match="remove it to publish"):
        unpack(packed, data, tmp_path / "runs")


def test_what_is_published(packed, data, tmp_path):
    run, split = unpack(packed, data, tmp_path / "runs")
    (weights := tmp_path / "weights").mkdir()
    table = publish(run, split, weights, tmp_path / "results")
    assert load_matcher(weights / "s1s2-smoke.safetensors").confidence == run.matcher.confidence
    assert list(table["protocol"].unique()) == ["aligned", "shift", "affine", "deform"]
    evaluation = run.config.evaluation
    for row in table.itertuples():
        records = evaluate(run.matcher, split.test, row.protocol, evaluation.headline_radius, evaluation, False)
        assert row.mma_3px == pytest.approx(records["mma_3px"].mean()), row.protocol
        assert row.matches == pytest.approx(records["n_matches"].mean()) and row.pairs == len(records)
    stored = pd.read_csv(tmp_path / "results" / "s1s2-smoke" / "network.csv")
    assert stored["mma_3px"].to_numpy() == pytest.approx(table["mma_3px"].to_numpy(), rel=1e-5)
    about = json.loads((tmp_path / "results" / "s1s2-smoke" / "network.json").read_text())
    assert about["commit"] == run.provenance["commit"]
    card = (weights / "s1s2-smoke.md").read_text()
    assert card == model_card(run, table)
    assert run.provenance["commit"] in card and f"{run.provenance['steps'] * 4:,} crops" in card
    assert card.count("\n| ") == 2 + len(table)


def test_the_command_goes_on_after_its_minutes(data, tmp_path, capsys):
    words = ["networks", "--data", str(data), "--profiles", "s1s2-smoke"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main([*words, "--minutes", "0"]) == 4 and "goes on from there" in capsys.readouterr().out
    while (status := main([*words, "--minutes", "0"])) == 4:
        pass
    assert status == 0 and (tmp_path / "out" / "s1s2-smoke" / PROVENANCE).is_file()
