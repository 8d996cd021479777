"""The run store with its two kinds of runs, and how fast a history reaches a score."""

import math
import threading

import pandas as pd
import pytest
import torch
from tiny_run import tiny

from companion.studies.selfsupervision import steps_to_score
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.model import SarOpticalNet
from sarmatch.training.runs import pretrain_or_load, run_lock, run_path, split_fingerprint, train_or_load
from sarmatch.training.selfsupervised import rotation_accuracy


@pytest.fixture(scope="module")
def split() -> Split:
    config = tiny()
    return split_pairs(open_pairs(config.data, config.seed), config.data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def matcher(runs, split):
    return train_or_load(tiny(), runs, split=split, show_progress=False)


def test_training_pretrains_first_and_says_from_which_run_it_started(runs, split, matcher):
    pretrained = pretrain_or_load(tiny(), runs, split, show_progress=False)
    assert pretrained.loaded
    assert matcher.provenance["pretraining"] == pretrained.path.name
    assert pretrained.path.name == f"pretraining-{pretrained.provenance['config_hash']}"
    assert matcher.path.name == f"matcher-{matcher.provenance['config_hash']}"
    assert {"contrastive", "rotation", "recall_1", "recall_5", "rotation_sar"} <= set(pretrained.history)
    assert str(pretrained).startswith(f"loaded {pretrained.path.name}: 2 steps")


def test_pretraining_changes_what_it_has_losses_for_and_nothing_else(runs, split, matcher):
    pretrained = pretrain_or_load(tiny(), runs, split, show_progress=False).net.state_dict()
    torch.manual_seed(tiny().seed)
    start = SarOpticalNet(tiny().model).state_dict()
    changed = {name for name in start if not torch.equal(start[name], pretrained[name])}
    assert {"sar_encoder.out.conv.weight", "optical_encoder.out.conv.weight", "head.out.weight"} <= changed
    assert all(name.startswith(("sar_encoder", "optical_encoder", "head")) for name in changed)
    assert not any(".fine." in name or "uncertainty" in name for name in changed)


def test_one_pretraining_serves_all_that_differ_in_fine_tuning(runs, split, matcher):
    other = tiny(training={"max_steps": 3}, evaluation={"max_pairs": 1})
    assert pretrain_or_load(other, runs, split, show_progress=False).loaded
    assert len(list(matcher.path.parent.glob("pretraining-*"))) == 1


def test_from_scratch_there_is_no_pretraining(tmp_path, split, matcher):
    scratch = tiny(pretraining={"contrastive": False, "rotation": False})
    run = train_or_load(scratch, tmp_path, split=split, show_progress=False)
    assert run.provenance["pretraining"] is None
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    assert run.history["loss"].iloc[0] != matcher.history["loss"].iloc[0]  # the weights it started from differ


def test_a_loaded_run_needs_no_pretraining(runs, split, matcher, monkeypatch):
    monkeypatch.setattr("sarmatch.training.runs.pretrain_or_load", None)
    assert train_or_load(tiny(), runs, split=split, show_progress=False).loaded


def test_rotation_accuracy_can_be_measured_again(runs, split, matcher):
    run = pretrain_or_load(tiny(), runs, split, show_progress=False)
    again = rotation_accuracy(run.pretraining_objective, split.validation, run.config.data.crop_size)
    last = run.history.iloc[-1]
    assert again == pytest.approx({name: last[name] for name in again})


def test_another_pretraining_is_the_same(tmp_path, split):
    first, second = (pretrain_or_load(tiny(), tmp_path / name, split, show_progress=False) for name in "ab")
    for name, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name])


HISTORY = pd.DataFrame({"step": [10, 20, 30, 40, 50], "score": [0.1, None, 0.3, 0.2, 0.6], "loss": 1.0})


@pytest.mark.parametrize(
    ("level", "steps"),
    [(0.05, 10.0), (0.1, 10.0), (0.2, 20.0), (0.25, 25.0), (0.3, 30.0), (0.5, 47.5), (0.6, 50.0), (0.7, math.nan)],
)
def test_steps_to_a_score(level, steps):
    assert steps_to_score(HISTORY, "score", level) == pytest.approx(steps, nan_ok=True)


def test_steps_to_a_score_do_not_depend_on_the_order_of_rows():
    assert steps_to_score(HISTORY[::-1], "score", 0.25) == pytest.approx(25.0)


def test_who_asks_for_a_run_that_another_has_waits(tmp_path, split):
    config = tiny(pretraining={"contrastive": False, "rotation": False})
    fingerprint = split_fingerprint(split)
    found = []

    def ask() -> None:
        found.append(train_or_load(config, tmp_path, split=split, show_progress=False))

    with run_lock(run_path(config, fingerprint, tmp_path)):
        waiting = threading.Thread(target=ask)
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive() and not run_path(config, fingerprint, tmp_path).exists()
    waiting.join(timeout=120)
    assert not found[0].loaded
    assert train_or_load(config, tmp_path, split=split, show_progress=False).loaded
