"""The training loop: order of samples, resuming after a kill, several processes, and that it learns."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from companion.cache import records_or_load
from sarmatch.config import Config, ModelConfig, TrainingConfig
from sarmatch.data import open_pairs, split_pairs
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile
from sarmatch.training.loop import StepSampler, learning_rate, total_steps
from sarmatch.training.runs import run_path, train_or_load
from sarmatch.training.supervised import THREADS_RTOL, THREADS_STEPS

PROJECT = Path(__file__).parents[2]


def tiny(**training) -> Config:
    """A few steps on a dozen synthetic pairs."""
    settings = {
        "epochs": 100,
        "max_steps": 6,
        "batch_size": 2,
        "checkpoint_every": 2,
        "validate_every": 3,
        "validation_pairs": 1,
    }
    return profile("smoke").replace(
        data={"n_synthetic": 12}, pretraining={"contrastive": False, "rotation": False}, training=settings | training
    )


def test_every_pair_is_seen_once_an_epoch():
    sampler = StepSampler(10, TrainingConfig(batch_size=5, accumulation_steps=1, epochs=2), 0, 0, 0, 1)
    keys = [key for batch in sampler for key in batch]
    assert len(sampler) == 4
    assert sorted(keys) == [(epoch, i) for epoch in range(2) for i in range(10)]
    assert [i for e, i in keys if e == 0] != [i for e, i in keys if e == 1]


def test_resuming_at_a_step_gives_the_samples_that_would_have_come():
    training = TrainingConfig(batch_size=4, accumulation_steps=2, epochs=3)
    whole = list(StepSampler(11, training, 7, 0, 0, 1))
    assert list(StepSampler(11, training, 7, 3, 0, 1)) == whole[3 * 2 :]


def test_processes_share_each_batch_evenly():
    training = TrainingConfig(batch_size=6, accumulation_steps=1, epochs=1)
    whole = list(StepSampler(12, training, 0, 0, 0, 1))
    shares = [list(StepSampler(12, training, 0, 0, rank, 3)) for rank in range(3)]
    for i, batch in enumerate(whole):
        assert sorted(key for share in shares for key in share[i]) == sorted(batch)
        assert {len(share[i]) for share in shares} == {2}


def test_a_batch_that_cannot_be_shared_is_rejected():
    with pytest.raises(ValueError, match="cannot be dealt to 3 processes"):
        StepSampler(12, TrainingConfig(batch_size=4, accumulation_steps=1), 0, 0, 0, 3)


def test_number_of_steps():
    assert total_steps(100, TrainingConfig(batch_size=32, epochs=30)) == 90
    assert total_steps(100, TrainingConfig(batch_size=32, epochs=30, max_steps=7)) == 7
    assert total_steps(3, TrainingConfig(batch_size=32, epochs=2)) == 2


def test_learning_rate_warms_up_and_falls():
    training = TrainingConfig(learning_rate=1.0, warmup_steps=10, cosine=True)
    rates = [learning_rate(step, 100, training) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1.0, rel=0.05)
    assert rates[100] == pytest.approx(0.05)
    assert learning_rate(50, 100, TrainingConfig(learning_rate=1.0)) == 1.0


def test_a_run_is_trained_once_and_loaded_ever_after(tmp_path):
    first = train_or_load(tiny(), tmp_path, show_progress=False)
    second = train_or_load(tiny(), tmp_path, show_progress=False)
    assert (first.loaded, second.loaded) == (False, True)
    assert str(first).startswith("trained")
    for name, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name])
    assert first.history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert first.provenance["steps"] == 6
    assert first.provenance["seed"] == 0
    other = train_or_load(tiny(max_steps=2), tmp_path, show_progress=False)
    assert other.path != first.path


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    runs = [train_or_load(tiny(), tmp_path / name, show_progress=False) for name in "ab"]
    assert np.array_equal(runs[0].history["loss"], runs[1].history["loss"])
    other = train_or_load(tiny().replace(seed=1), tmp_path / "a", show_progress=False)
    assert not np.allclose(runs[0].history["loss"], other.history["loss"])


def test_early_stopping_waits_for_its_patience(tmp_path):
    run = train_or_load(
        tiny(max_steps=40, validate_every=1, patience=2, learning_rate=1e-9), tmp_path, show_progress=False
    )
    assert run.history["step"].max() <= 5  # nothing is learned, so the first score stays the best
    assert train_or_load(run.config, tmp_path, show_progress=False).loaded


def test_without_patience_training_goes_to_the_end(tmp_path):
    run = train_or_load(
        tiny(max_steps=8, validate_every=1, patience=None, learning_rate=1e-9), tmp_path, show_progress=False
    )
    assert run.history["step"].max() == 8


def test_accumulation_is_the_mean_of_its_parts(tmp_path):
    # Dropout would draw other masks for other parts.
    exact = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}
    one, two = (
        train_or_load(
            tiny(batch_size=4, accumulation_steps=parts, max_steps=3).replace(model=exact),
            tmp_path,
            show_progress=False,
        )
        for parts in (1, 2)
    )
    assert np.allclose(one.history["loss"], two.history["loss"], rtol=1e-4)


TRAIN = """
import sys, torch
torch.set_num_threads(1)
from sarmatch.config import Config, from_dict
from sarmatch.training.runs import train_or_load
import json
config = from_dict(Config, json.loads(sys.argv[2]))
train_or_load(config, sys.argv[1], show_progress=False)
"""


def start(config: Config, runs: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", TRAIN, str(runs), json.dumps(config.to_dict())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=PROJECT)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the processes started here have: sums in another order would be other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_five_kills_do_not_change_the_result(tmp_path):
    config = tiny(max_steps=30, checkpoint_every=2, validate_every=10)
    expected = train_or_load(config, tmp_path / "whole", show_progress=False)
    split = split_pairs(open_pairs(config.data, config.seed), config.data)
    folder = run_path(config, f"{split.train.fingerprint()}-{split.validation.fingerprint()}", tmp_path / "killed")
    rng = random.Random(0)
    for _ in range(5):
        process = start(config, tmp_path / "killed")
        wait_for_progress(folder, process, steps=rng.randrange(1, 6))
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(config, tmp_path / "killed")
    _, error = last.communicate(timeout=120)
    assert last.returncode == 0, error.decode()
    resumed = train_or_load(config, tmp_path / "killed", show_progress=False)
    assert resumed.loaded
    assert np.array_equal(resumed.history["loss"], expected.history["loss"])
    for name, value in expected.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name


def wait_for_progress(folder: Path, process: subprocess.Popen, steps: int) -> None:
    """Return when so many more steps were logged, or the process ended."""
    log = folder / "metrics.jsonl"
    before = None
    while process.poll() is None:
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        before = lines if before is None or lines < before else before
        if lines >= before + steps:
            return
        time.sleep(0.01)


@pytest.mark.usefixtures("one_thread")
def test_first_losses_on_other_numbers_of_threads_agree_within_the_stated_tolerance(tmp_path):
    losses = {}
    for threads, seed in ((1, 0), (2, 0), (3, 0), (1, 1)):
        torch.set_num_threads(threads)
        config = tiny(max_steps=THREADS_STEPS).replace(seed=seed)
        run = train_or_load(config, tmp_path / str(threads), show_progress=False)
        losses[threads, seed] = run.history["loss"].to_numpy()
    for threads in (2, 3):
        np.testing.assert_allclose(losses[threads, 0], losses[1, 0], rtol=THREADS_RTOL)
    between_seeds = np.abs(losses[1, 1] / losses[1, 0] - 1)
    assert between_seeds[0] > 10 * THREADS_RTOL  # so the tolerance tells trainings apart


def test_a_torn_log_is_mended(tmp_path):
    run = train_or_load(tiny(), tmp_path, show_progress=False)
    log = run.path / "metrics.jsonl"
    provenance = run.path / "provenance.json"
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"finished": False}))
    log.write_text(log.read_text() + '{"step": 7, "lo')  # killed while writing
    again = train_or_load(tiny(), tmp_path, show_progress=False)
    assert again.history["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("precision", "expected"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_encoders_convolve_in_the_precision_asked_for(tmp_path, monkeypatch, precision, expected):
    computed = {"training": set(), "validation": set()}

    def note(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        computed["training" if module.training else "validation"].add(output.dtype)

    def hooked(config: ModelConfig) -> SarOpticalNet:
        net = SarOpticalNet(config)
        for module in (*net.sar_encoder.modules(), *net.optical_encoder.modules()):
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(note)
        return net

    monkeypatch.setattr("sarmatch.training.supervised.SarOpticalNet", hooked)
    run = train_or_load(tiny(precision=precision, max_steps=2), tmp_path, show_progress=False)
    assert computed == {"training": {expected}, "validation": {torch.float32}}
    assert np.isfinite(run.history["loss"]).all()
    assert all(value.dtype == torch.float32 for value in load_file(run.path / "model.safetensors").values())


def test_records_are_measured_once_and_read_ever_after(tmp_path, monkeypatch):
    run = train_or_load(tiny(), tmp_path, show_progress=False)
    split = split_pairs(open_pairs(run.config.data), run.config.data)
    once = records_or_load(run, Matcher(run.net, "cpu"), "consensus", split.test, "shift", 16.0)
    assert (once["method"] == "consensus").all()

    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("companion.cache.evaluate", never)
    again = records_or_load(run, Matcher(run.net, "cpu"), "consensus", split.test, "shift", 16.0)
    assert once.equals(again)
    with pytest.raises(AssertionError, match="evaluated again"):
        records_or_load(run, Matcher(run.net, "cpu"), "consensus", split.test, "shift", None)
