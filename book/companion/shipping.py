"""Weights that come with the package: written from a finished run, and taken for it where they are of the same run."""

import ast
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sarmatch.calibration.confidence import CONFIDENCE_FILE
from sarmatch.config import Config
from sarmatch.data.splits import Split
from sarmatch.io import atomic_path, read_json, write_json
from sarmatch.matching.matcher import WEIGHTS
from sarmatch.model.checkpoints import load_weights, save_weights
from sarmatch.training.runs import NOT_PRETRAINING, Run, open_split, run_path, split_fingerprint, train_or_load

HEADER = ("profile", "seed", "config_hash", "data_fingerprint", "commits", "date", "steps")  # of shipped weights


def ship(run: Run, path: Path) -> None:
    """Write a run's weights in half precision with its confidence, history and provenance, for `load_matcher`.

    For a new confidence of shipped weights, remove the file `CONFIDENCE_FILE` of the run of `shipped_or_trained`, call
    `cache.confidence_or_load`, and ship that run.
    """
    about = {name: str(run.provenance[name]) for name in HEADER}
    about["history"] = run.history.to_json(orient="records", double_precision=6)
    if (run.path / CONFIDENCE_FILE).is_file():
        about["confidence"] = (run.path / CONFIDENCE_FILE).read_text()
    save_weights(run.net, path, torch.float16, **about)


def shipped_or_trained(
    config: Config, runs_dir: str | Path = "runs", split: Split | None = None, weights: Path = WEIGHTS
) -> Run:
    """A stored run; else the shipped weights, where they are of this very config and data; else `train_or_load`.

    Shipped weights of other data are not taken: what is tested on these data may have trained them. What is measured
    with shipped weights, of half precision, is kept in the folder `shipped-<hash>`.
    """
    split = split or open_split(config)
    fingerprint = split_fingerprint(split)
    stored = read_json(run_path(config, fingerprint, runs_dir) / "provenance.json").get("finished", False)
    shipped = None if stored else _shipped(config, runs_dir, fingerprint, weights)
    return shipped or train_or_load(config, runs_dir, split=split)


def _shipped(config: Config, runs_dir: str | Path, fingerprint: str, weights: Path) -> Run | None:
    """Shipped weights as a run, or None where there are none of this config and these data."""
    path = weights / f"{config.profile}.safetensors"
    if not path.is_file():
        return None
    net, about = load_weights(path)
    if (about["config_hash"], about["data_fingerprint"]) != (config.hash(fingerprint), fingerprint):
        return None
    folder = run_path(config, fingerprint, runs_dir, "shipped")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_dict())
    kept = folder / CONFIDENCE_FILE
    if "confidence" in about and not (kept.is_file() and kept.read_text() == about["confidence"]):
        with atomic_path(kept) as partial:
            partial.write_text(about["confidence"])
    history = pd.DataFrame(json.loads(about.get("history", "[]")) or {"step": []})
    # Only what the header holds: this process, its command and hardware had no part in the training.
    commits = ast.literal_eval(about["commits"])
    first = run_path(config, fingerprint, "", "pretraining", NOT_PRETRAINING).name
    facts: dict[str, Any] = {name: about[name] for name in HEADER} | {"seed": config.seed, "steps": int(about["steps"])}
    facts |= {"commits": commits, "commit": commits[-1]}
    facts["pretraining"] = first if config.pretraining.enabled else None
    return Run(folder, config, net, True, history, facts, shipped=True)
