"""The run store: train once, load ever after.

`<runs>/<profile>/<name>-<hash of config and data fingerprint>/` holds `config.json`, `metrics.jsonl`, `last.pt`,
`model.safetensors` and `provenance.json`; until the last is `finished`, the next call goes on with the run. Runs that
differ in fine-tuning or evaluation alone share a `pretraining-<hash>`, which also holds `rotation_heads.safetensors`. A
run with a fit of aggregation holds that fit, and begins with the run of the same config without it.
"""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from filelock import FileLock
from safetensors.torch import load_file

from sarmatch.calibration.confidence import CONFIDENCE_FILE, Confidence, read_confidence, warn_of_missing_confidence
from sarmatch.config import AggregationConfig, Config
from sarmatch.data import open_pairs
from sarmatch.data.splits import Split, split_pairs
from sarmatch.evaluation.confidence_fit import Collect, collect_matches, fit_confidence, fitted_on
from sarmatch.io import atomic_path, provenance, read_json, write_json
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights
from sarmatch.training.selfsupervised import ROTATION_HEADS, PretrainingObjective, pretrain
from sarmatch.training.supervised import finetune, fit_aggregation

NOT_PRETRAINING = (
    "training",
    "aggregation",
    "evaluation",
)  #: Sections of the config that do not matter to pretraining.


@dataclass(frozen=True)
class Run:
    """A finished training."""

    path: Path  #: Its folder.
    config: Config
    net: SarOpticalNet
    loaded: bool  #: True where it was found in the store, False where this call trained it (or finished training it).
    #: One row a logged step: step, lr, seconds, losses, and validation scores where measured; no rows for weights that
    #: were shipped without it.
    history: pd.DataFrame
    #: Commit, versions, hardware, seconds, data fingerprint, command; of a fine-tuning also `pretraining`, the name of
    #: the run it started from, or None, and `selected_on`, the fingerprint of the pairs that chose its weights.
    provenance: dict[str, Any]
    shipped: bool = False  #: True where the weights came with the package.

    @property
    def matcher(self) -> Matcher:
        """With calibrated confidence where it was fitted; with a warning where it was not."""
        confidence = read_confidence(self.path)
        if confidence is None:
            warn_of_missing_confidence(str(self.path))
        return Matcher(self.net, confidence=confidence)

    @property
    def pretraining_objective(self) -> PretrainingObjective:
        """The network with its rotation heads, of a pretraining with the rotation task."""
        objective = PretrainingObjective(self.net, self.config.pretraining)
        objective.rotation_heads.load_state_dict(load_file(self.path / ROTATION_HEADS))
        return objective.eval()

    def __str__(self) -> str:
        if self.shipped:
            return f"{self.path.name}: {self.provenance['steps']} steps, weights that come with the package"
        what = "loaded" if self.loaded else "trained"
        seconds = self.provenance["training_seconds"]
        return f"{what} {self.path.name}: {int(self.history['step'].max())} steps in {seconds / 60:.1f} min"


def run_path(
    config: Config, fingerprint: str, runs_dir: str | Path, name: str = "matcher", without: Collection[str] = ()
) -> Path:
    """Folder of a run; `without` names the sections of the config that do not matter to it."""
    return Path(runs_dir) / config.profile / f"{name}-{config.hash(fingerprint, without)}"


# long because it is the order of the three trainings, with documented arguments
def train_or_load(
    config: Config,
    runs_dir: str | Path = "runs",
    name: str = "matcher",
    split: Split | None = None,
    fresh: bool = False,
    show_progress: bool = True,
    unlabelled: Split | None = None,
) -> Run:
    """The finished run of this config on these data: loaded, resumed or trained.

    Where `config.pretraining` is enabled, training starts from the weights of `pretrain_or_load`. The same config, data
    and number of threads give the same weights on the same CPU, bit by bit, however often a training is stopped; of
    another number of threads see `supervised.THREADS_RTOL`. A second process that asks for the same run waits for it.

    Args:
        split: the parts to train and validate on; None opens the data that the config names.
        fresh: train again from the start even where a run exists; a stored pretraining is used all the same.
        unlabelled: the parts to pretrain on where these are others than `split`.
    """
    split = split or open_split(config)
    fingerprint = split_fingerprint(split)
    if config.pretraining.enabled and unlabelled and split_fingerprint(unlabelled) != fingerprint:
        fingerprint += f"-{split_fingerprint(unlabelled)}"
    folder = run_path(config, fingerprint, runs_dir, name)
    first = _pretraining_path(config, unlabelled or split, runs_dir) if config.pretraining.enabled else None

    before = config.replace(aggregation=AggregationConfig())  # the same where there is no fit of aggregation

    def train() -> dict[str, Any]:
        if config.aggregation.enabled:
            tuned = train_or_load(before, runs_dir, name, split, fresh, show_progress, unlabelled)
            fit_aggregation(config, split, folder, tuned.path / "model.safetensors", show_progress)
            return {"finetuning": {key: tuned.provenance[key] for key in ("steps", "training_seconds")}}
        if first is not None:
            pretrain_or_load(config, runs_dir, unlabelled or split, show_progress=show_progress)
        finetune(config, split, folder, first and first / "model.safetensors", show_progress)
        return {}

    about = {"pretraining": first and first.name, "selected_on": split.selection.fingerprint()}
    stored = stored_training(folder, config, provenance(config, fingerprint) | about, train, fresh)
    return Run(folder, config, load_weights(folder / "model.safetensors")[0], *stored)


def pretrain_or_load(
    config: Config, runs_dir: str | Path = "runs", split: Split | None = None, show_progress: bool = True
) -> Run:
    """The finished pretraining of this config on these data: loaded, resumed or trained; see `train_or_load`."""
    split = split or open_split(config)
    folder = _pretraining_path(config, split, runs_dir)
    about = provenance(config, split_fingerprint(split), NOT_PRETRAINING)
    stored = stored_training(folder, config, about, lambda: pretrain(config, split, folder, show_progress))
    return Run(folder, config, load_weights(folder / "model.safetensors")[0], *stored)


def _pretraining_path(config: Config, split: Split, runs_dir: str | Path) -> Path:
    return run_path(config, split_fingerprint(split), runs_dir, "pretraining", NOT_PRETRAINING)


def confidence_or_load(run: Run, split: Split, collect: Collect = collect_matches) -> Confidence:
    """The confidence of a run, see `fit_confidence`: fitted once on `split.calibration` and kept with the run.

    Weights that come with the package keep the confidence that came with them.
    """
    distilled = bool(run.net.epistemic_head.distilled)
    with run_lock(run.path):
        stored = read_confidence(run.path)
        complete = stored is not None and ("distilled" in stored.calibrators or not distilled)
        key = fitted_on(run.net, run.config, split.calibration)
        if stored is not None and complete and (run.shipped or stored.fitted_on == key):
            return stored
        confidence = fit_confidence(run.net, run.config, split.calibration, collect)
        with atomic_path(run.path / CONFIDENCE_FILE) as temporary:
            temporary.write_text(confidence.to_json())
    return confidence


def open_split(config: Config) -> Split:
    with PartialState().main_process_first():  # a first scan writes the index that the other processes then read
        return split_pairs(open_pairs(config.data, config.seed), config.data)


def split_fingerprint(split: Split) -> str:
    return f"{split.train.fingerprint()}-{split.validation.fingerprint()}"


def stored_training(
    folder: Path, config: Config, about: dict[str, Any], train: Callable[[], dict[str, Any] | None], fresh: bool = False
) -> tuple[bool, pd.DataFrame, dict[str, Any]]:
    """Run `train`, which goes on where the run in a folder stopped, unless that is finished; `about` is its provenance.

    What `train` returns is added to it.

    Returns whether it was finished before, its history and what is kept of its provenance.
    """
    state, record, log = PartialState(), folder / "provenance.json", folder / "metrics.jsonl"
    with run_lock(folder):
        if state.is_main_process:
            if fresh and folder.exists():  # with all that was fitted or measured with the old weights
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        state.wait_for_everyone()
        before = read_json(record)
        loaded = before.get("finished", False)
        if not loaded:
            about = about | {"commits": list(dict.fromkeys([*before.get("commits", []), about["commit"]]))}
            state.wait_for_everyone()  # all have read before one writes
            if state.is_main_process:
                write_json(folder / "config.json", config.to_dict())
                write_json(record, about | {"finished": False})
            about |= train() or {}
            if state.is_main_process:
                last = pd.read_json(log, lines=True).max()
                about |= {"steps": int(last["step"]), "training_seconds": float(last["seconds"])}
                write_json(record, about | {"finished": True})
            state.wait_for_everyone()
    return loaded, pd.read_json(log, lines=True), read_json(record)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a run for this process (with the others of one training); others wait until it or the process ends."""
    if not PartialState().is_main_process:
        yield
        return
    place = folder.parent.parent / ".locks"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f"{folder.parent.name}-{folder.name}.lock"):
        yield
