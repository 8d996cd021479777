"""The run store: train once, load ever after.

`<runs>/<profile>/<name>-<hash of config and data fingerprint>/` holds `config.json`, `metrics.jsonl`, `last.pt`,
`model.safetensors` and `provenance.json`. Until the last says `finished`, the next call goes on with the run.
`records/` holds evaluations of the finished run. Pretraining has a folder of its own, `pretraining-<hash>`, which all
runs share that differ from it in fine-tuning or evaluation alone; it also holds `rotation_heads.safetensors`.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from sarmatch.checkpoints import load_weights, save_weights
from sarmatch.confidence import SPREAD, Confidence, fit_calibrator, fit_overlap, match_table, pair_agreements
from sarmatch.config import Config, EvaluationConfig, Protocol
from sarmatch.data import Pairs, open_pairs
from sarmatch.data.splits import Split, split_pairs
from sarmatch.evaluation import CropMatcher, evaluate, mismatched, spread, validation_scores
from sarmatch.files import atomic_path
from sarmatch.inference import CONFIDENCE_FILE, WEIGHTS, Matcher, read_confidence
from sarmatch.models import SarOpticalNet
from sarmatch.precision import fit_precision
from sarmatch.pretraining import PretrainingObjective, load_rotation_heads, pretraining_scores
from sarmatch.provenance import commit, provenance
from sarmatch.training import ROTATION_HEADS, finetune, pretrain

NOT_PRETRAINING = ("training", "evaluation")
"""Sections of the config that do not matter to pretraining."""
SHIPPED = ("profile", "seed", "config_hash", "data_fingerprint", "commits", "date", "steps")
"""Provenance that travels in the header of shipped weights."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        path: its folder.
        loaded: True where it was found in the store, False where this call trained it (or finished training it).
        history: one row a logged step: step, lr, seconds, losses, and validation scores where measured; without rows
            where the weights came with the package.
        provenance: commit, versions, hardware, seconds, data fingerprint, command (of shipped weights what `SHIPPED`
            names); of a fine-tuning also `pretraining`, the name of the run whose weights it started from, or None.
    """

    path: Path
    config: Config
    net: SarOpticalNet
    loaded: bool
    history: pd.DataFrame
    provenance: dict[str, Any]

    @property
    def matcher(self) -> Matcher:
        """With calibrated confidence where it was fitted."""
        return Matcher(self.net, confidence=read_confidence(self.path))

    @property
    def pretraining_objective(self) -> PretrainingObjective:
        """The network with its rotation heads, of a pretraining with the rotation task."""
        return load_rotation_heads(self.net, self.config.pretraining, self.path / ROTATION_HEADS)

    def __str__(self) -> str:
        if self.history.empty:
            return f"{self.path.name}: {self.provenance['steps']} steps, weights that come with the package"
        what = "loaded" if self.loaded else "trained"
        seconds = self.provenance["training_seconds"]
        return f"{what} {self.path.name}: {int(self.history['step'].max())} steps in {seconds / 60:.1f} min"


def run_path(
    config: Config, fingerprint: str, runs_dir: str | Path, name: str = "matcher", without: Collection[str] = ()
) -> Path:
    """Folder of a run; `without` names the sections of the config that do not matter to it."""
    return Path(runs_dir) / config.profile / f"{name}-{config.hash(fingerprint, without)}"


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

    Where `config.pretraining` is enabled, training starts from the weights of `pretrain_or_load`.

    Args:
        runs_dir: the store.
        name: what the run is called in its folder's name.
        split: the parts to train and validate on; None opens the data that the config names.
        fresh: train again from the start even where a run exists; a stored pretraining is used all the same.
        unlabelled: the parts to pretrain on where these are others than `split`.
    """
    split = split or _open_split(config)
    fingerprint = split_fingerprint(split)
    if config.pretraining.enabled and unlabelled and split_fingerprint(unlabelled) != fingerprint:
        fingerprint += f"-{split_fingerprint(unlabelled)}"
    folder = run_path(config, fingerprint, runs_dir, name)
    loaded = prepare_run(folder, fresh)
    if not loaded:
        first = None
        if config.pretraining.enabled:
            first = pretrain_or_load(config, runs_dir, unlabelled or split, show_progress=show_progress)
        scoring = dataclasses.replace(config.evaluation, max_pairs=config.training.validation_pairs)

        def validate(net: SarOpticalNet) -> dict[str, float]:
            return validation_scores(Matcher(net, next(net.parameters()).device), split.validation, scoring)

        def train() -> None:
            initial = first.path / "model.safetensors" if first else None
            finetune(config, split, folder, validate, initial, show_progress)

        about = provenance(config, fingerprint) | {"pretraining": first.path.name if first else None}
        train_run(config, folder, about, train)
    return _load(config, folder, loaded)


def shipped_or_trained(
    config: Config, runs_dir: str | Path = "runs", split: Split | None = None, weights: Path = WEIGHTS
) -> Run:
    """The run behind the shipped weights, where they are of this very config on these data; else `train_or_load`.

    A stored run comes first. That of shipped weights has half precision, no history, and the folder `shipped-<hash>`
    for what is measured with it.

    Args:
        runs_dir, split: as for `train_or_load`.
        weights: folder of the shipped weights, `<profile>.safetensors`.
    """
    split = split or _open_split(config)
    fingerprint = split_fingerprint(split)
    stored = read_json(run_path(config, fingerprint, runs_dir) / "provenance.json").get("finished", False)
    shipped = weights / f"{config.profile}.safetensors"
    if stored or not shipped.is_file():
        return train_or_load(config, runs_dir, split=split)
    net, about = load_weights(shipped)
    if (about["config_hash"], about["data_fingerprint"]) != (config.hash(fingerprint), fingerprint):
        return train_or_load(config, runs_dir, split=split)
    folder = run_path(config, fingerprint, runs_dir, "shipped")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config.to_dict())
    if "confidence" in about:
        with atomic_path(folder / CONFIDENCE_FILE) as partial:
            partial.write_text(about["confidence"])
    # Only what the header tells: this process, its command and hardware had no part in the training.
    facts: dict[str, Any] = {name: about[name] for name in SHIPPED}
    commits = ast.literal_eval(facts["commits"])
    facts |= {"seed": config.seed, "commits": commits, "commit": commits[-1], "steps": int(facts["steps"])}
    facts |= {"pretraining": None}
    return Run(folder, config, net, True, pd.DataFrame(columns=["step"]), facts)


def pretrain_or_load(
    config: Config,
    runs_dir: str | Path = "runs",
    split: Split | None = None,
    fresh: bool = False,
    show_progress: bool = True,
) -> Run:
    """The finished pretraining of this config on these data: loaded, resumed or trained.

    Validation reads central windows of `config.data.crop_size`.

    Args:
        runs_dir, split, fresh: as for `train_or_load`.

    Raises:
        ValueError: `config.pretraining` has both tasks off.
    """
    split = split or _open_split(config)
    folder = run_path(config, split_fingerprint(split), runs_dir, "pretraining", NOT_PRETRAINING)
    loaded = prepare_run(folder, fresh)
    if not loaded:
        pairs = spread(split.validation, config.pretraining.validation_pairs)

        def validate(objective: PretrainingObjective) -> dict[str, float]:
            return pretraining_scores(objective, pairs, config.data.crop_size)

        about = provenance(config, split_fingerprint(split), NOT_PRETRAINING)
        train_run(config, folder, about, lambda: pretrain(config, split, folder, validate, show_progress))
    return _load(config, folder, loaded)


def _open_split(config: Config) -> Split:
    with PartialState().main_process_first():  # a first scan writes the index that the other processes then read
        return split_pairs(open_pairs(config.data, config.seed), config.data)


def split_fingerprint(split: Split) -> str:
    """Of the pairs that a run is trained and validated on."""
    return f"{split.train.fingerprint()}-{split.validation.fingerprint()}"


def prepare_run(folder: Path, fresh: bool) -> bool:
    """Make the run's folder, empty it where a fresh start is asked for; returns whether it holds a finished run."""
    state = PartialState()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:  # with all that was fitted or measured with the old weights
            shutil.rmtree(folder)
            folder.mkdir()
    state.wait_for_everyone()
    return read_json(folder / "provenance.json").get("finished", False)


def _load(config: Config, folder: Path, loaded: bool) -> Run:
    net, _ = load_weights(folder / "model.safetensors")
    return Run(folder, config, net, loaded, read_history(folder), read_json(folder / "provenance.json"))


def train_run(config: Config, folder: Path, about: dict[str, Any], train: Callable[[], None]) -> None:
    """Train to the end and say so in `provenance.json`."""
    state = PartialState()
    before = read_json(folder / "provenance.json")
    about["commits"] = list(dict.fromkeys([*before.get("commits", []), about["commit"]]))
    state.wait_for_everyone()  # all have read before one writes
    if state.is_main_process:
        _write_json(folder / "config.json", config.to_dict())
        _write_json(folder / "provenance.json", about | {"finished": False})
    train()
    if state.is_main_process:
        history = read_history(folder)
        about |= {"steps": int(history["step"].max()), "training_seconds": float(history["seconds"].max())}
        _write_json(folder / "provenance.json", about | {"finished": True})
    state.wait_for_everyone()


def records_or_load(
    run: Run,
    matcher: CropMatcher,
    name: str,
    pairs: Pairs,
    protocol: Protocol,
    search_radius: float | None,
    config: EvaluationConfig | None = None,
) -> pd.DataFrame:
    """`evaluate` once and keep the records in the run's folder; later calls with the same arguments read them.

    The column `commit` says with which code they were measured.

    Args:
        name: what the matcher is called in the records' column `method`; two matchers need two names.
        config: None takes the run's own.
    """
    config = config or run.config.evaluation
    radius = "none" if search_radius is None else f"{search_radius:g}"
    asked = [name, protocol, search_radius, pairs.fingerprint(), dataclasses.asdict(config)]

    def make() -> pd.DataFrame:
        return evaluate(matcher, pairs, protocol, search_radius, config).assign(method=name, commit=commit())

    return kept_table(run.path, f"{name}-{protocol}-R{radius}", asked, make)


def matches_or_load(
    run: Run, matcher: Matcher, name: str, pairs: Pairs, protocol: Protocol, config: EvaluationConfig
) -> pd.DataFrame:
    """`match_table` at the headline radius, once; later calls with the same arguments read it.

    Args:
        name: what this way of matching is called; with its mode and passes it names the file.
    """
    asked = [name, matcher.mode, matcher.mc_passes, protocol, pairs.fingerprint(), dataclasses.asdict(config), SPREAD]

    def make() -> pd.DataFrame:
        radius = config.headline_radius
        table = match_table(lambda crops: matcher.raw_matches(crops, radius), pairs, protocol, config)
        return table.assign(commit=commit())

    mode = f"{matcher.mode.replace(' ', '-')}{matcher.mc_passes}"
    return kept_table(run.path, f"matches-{name}-{mode}", asked, make)


def kept_table(folder: Path, name: str, asked: Any, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table in the records of a run, made where it is not there yet.

    Args:
        folder: of the run.
        asked: all that the table depends on beside the run, as JSON takes it; with the name it names the file.
    """
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    path = folder / "records" / f"{name}-{key}.parquet"
    if not path.exists():
        table = make()
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as partial:
            table.to_parquet(partial)
    return pd.read_parquet(path)


MC_PASSES = 20
"""Of section 3.2.4."""
MODES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "single": ({}, ("logit_probability", "aleatoric")),
    "distilled": ({"distilled": True}, ("logit_probability", "aleatoric", "epistemic")),
    "monte_carlo": ({"mc_passes": MC_PASSES}, ("logit_probability", "aleatoric", "epistemic")),
}
"""Ways of inference: arguments of `Matcher`, and the raw scores from which their confidence is made."""


def confidence_or_load(run: Run, split: Split) -> Confidence:
    """Calibrators, decisions on overlap and precision of a run, fitted once on validation scenes under `shift`.

    The distilled mode is left out where the head was not distilled.
    """
    taught = bool(run.net.epistemic_head.distilled)
    stored = read_confidence(run.path)
    if stored is not None and stored.precision and ("distilled" in stored.calibrators or not taught):
        return stored
    config = dataclasses.replace(run.config.evaluation, max_pairs=run.config.studies.calibration_pairs)
    calibrators, overlaps, precision = {}, {}, {}
    for mode, (arguments, names) in MODES.items():
        if mode == "distilled" and not taught:
            continue
        matcher = Matcher(run.net, **arguments)
        usable = names if run.config.model.uncertainty else tuple(n for n in names if n != "aleatoric")
        table = matches_or_load(run, matcher, "validation", split.validation, "shift", config)
        calibrators[mode] = fit_calibrator(table, usable)
        if len(table):
            precision[mode] = fit_precision(table, calibrators[mode], partial(fit_calibrator, names=usable))
        if split.validation.index["scene"].nunique() > 1:  # else there are no unrelated pairs
            others = mismatched(split.validation)
            unrelated = matches_or_load(run, matcher, "unrelated", others, "shift", config)
            parts = ((table, split.validation), (unrelated, others))
            of_pairs = (pair_agreements(t, calibrators[mode], spread(p, config.max_pairs)) for t, p in parts)
            overlaps[mode] = fit_overlap(*(a.to_numpy() for a in of_pairs))
    confidence = Confidence(calibrators, overlaps, config.headline_radius, MC_PASSES, precision)
    with atomic_path(run.path / CONFIDENCE_FILE) as temporary:
        temporary.write_text(confidence.to_json())
    return confidence


def ship(run: Run, path: Path) -> None:
    """Write a run's weights in half precision with its confidence and provenance, as `load_matcher` takes them."""
    about = {name: str(run.provenance[name]) for name in SHIPPED}
    confidence = read_confidence(run.path)
    if confidence is not None:
        about["confidence"] = confidence.to_json()
    save_weights(run.net, path, torch.float16, **about)


def read_history(folder: Path) -> pd.DataFrame:
    """Log of a run, one row a logged step."""
    return pd.read_json(folder / "metrics.jsonl", lines=True)


def steps_to_score(history: pd.DataFrame, column: str, level: float) -> float:
    """Steps until a validation score first reaches a level, interpolated linearly between validations.

    Args:
        history: of a run; rows without validation have NaN in the column.
        column: the score, higher being better.

    Returns:
        steps; the first validation's where that already reaches the level, NaN where none does.

    Raises:
        ValueError: the history has no such column.
    """
    if column not in history:
        raise ValueError(f"column {column!r} is not in the history; it has {list(history.columns)}")
    rows = history[["step", column]].dropna().sort_values("step")
    steps, scores = rows["step"].to_numpy(float), rows[column].to_numpy(float)
    reached = np.flatnonzero(scores >= level)
    if not len(reached):
        return float("nan")
    i = int(reached[0])
    return float(steps[i] if i == 0 else np.interp(level, scores[i - 1 : i + 1], steps[i - 1 : i + 1]))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
