"""Small trainings side by side: what pretraining saves, and what its temperature does (sections 3.3.1 and 5.3)."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from companion.settings import BookConfig
from sarmatch.data.splits import Split
from sarmatch.training.runs import pretrain_or_load, train_or_load

LEVELS = (0.5, 0.75, 0.9)  #: Shares of the best score of training from scratch, at which times are compared.


def study_config(config: BookConfig, seed: int, pretraining: Mapping[str, Any], **own: Mapping[str, Any]) -> BookConfig:
    """A short training of the paper's network at the profile's size, at a rate that is constant after the warm-up.

    The mappings are fields of these sections of `Config` that this training has of its own.
    """
    study, first = config.studies, config.studies.pretraining_steps
    rate = {"cosine": False, "patience": None}
    short = config.replace(
        seed=seed,
        data={"crop_size": min(study.crop_size, config.data.crop_size)},
        model={"oriented_gradients": False},
        pretraining={"max_steps": first, "validate_every": first},
        training={"max_steps": study.steps, "validate_every": study.validate_every} | rate,
    )
    return short.replace(pretraining=pretraining, **own)


def convergence_histories(config: BookConfig, split: Split, runs_dir: str | Path) -> pd.DataFrame:
    """Histories of trainings with and without pretraining where validated, with seed, pretrained (bool) and run."""
    parts = []
    for seed, pretrained in product(config.studies.seeds, (False, True)):
        tasks = {"contrastive": pretrained, "rotation": pretrained}
        run = train_or_load(study_config(config, seed, tasks), runs_dir, "study", split)
        rows = run.history.dropna(subset=["mma_3px"])
        parts.append(rows.assign(seed=seed, pretrained=pretrained, run=run.path.name))
    return pd.concat(parts, ignore_index=True)


def convergence(histories: pd.DataFrame) -> pd.DataFrame:
    """Steps to each of `LEVELS` of the validation MMA within 3 px, with and without pretraining, and their ratio.

    One row a level and seed of `convergence_histories`. A score that the first validation already exceeds counts as
    reached there: the steps are then too many; one that was never reached gives NaN.
    """
    rows = []
    for level, (seed, both) in product(LEVELS, histories.groupby("seed")):
        scratch, pretrained = (both[both["pretrained"] == p] for p in (False, True))
        wanted = level * float(scratch["mma_3px"].max())
        steps = [steps_to_score(history, "mma_3px", wanted) for history in (scratch, pretrained)]
        rows.append((level, seed, wanted, *steps, steps[1] / steps[0]))
    return pd.DataFrame(rows, columns=["level", "seed", "score", "steps_scratch", "steps_pretrained", "ratio"])


def mean_ratio(ratios: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean of positive ratios over seeds with its 95 % interval under the t distribution of their logarithms.

    The interval is NaN where fewer than two different ratios are known.
    """
    logs = np.log(np.asarray(ratios, dtype=float))
    logs = logs[np.isfinite(logs)]
    if len(logs) < 2 or np.ptp(logs) == 0:  # equal ratios come from equal validations, not from certainty
        return (float(np.exp(logs.mean())) if len(logs) else math.nan), math.nan, math.nan
    low, high = scipy.stats.t.interval(0.95, len(logs) - 1, logs.mean(), scipy.stats.sem(logs))
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def contrastive_sweep(config: BookConfig, split: Split, runs_dir: str | Path) -> pd.DataFrame:
    """Contrastive pretraining at several temperatures, over pooled images, and by eq. 4 as printed.

    A row a training: loss of its last step, recalls of `n_pairs` validation pairs.
    """
    own, steps = config.pretraining.temperature, config.studies.sweep_steps
    forms = [("infonce", "cells", t) for t in config.studies.temperatures]
    forms += [("infonce", "image", own), ("printed", "cells", own)]
    n_pairs = min(len(split.validation), config.pretraining.validation_pairs)
    rows = []
    scores = ["loss", "recall_1", "recall_5"]
    for form, over, temperature in forms:
        tasks = {"contrastive": True, "rotation": False, "contrastive_form": form, "contrast_over": over}
        tasks |= {"temperature": temperature, "max_steps": steps, "validate_every": steps}
        run = pretrain_or_load(study_config(config, config.studies.seeds[0], tasks), runs_dir, split)
        found = run.history.iloc[-1][scores].astype(float)
        rows.append((form, over, temperature, *found, n_pairs, run.path.name))
    return pd.DataFrame(rows, columns=["form", "over", "temperature", *scores, "n_pairs", "run"])


def steps_to_score(history: pd.DataFrame, column: str, level: float) -> float:
    """Steps until a validation score (higher is better) first reaches a level, linear between validations, or NaN."""
    rows = history[["step", column]].dropna().sort_values("step")
    steps, scores = rows["step"].to_numpy(float), rows[column].to_numpy(float)
    reached = np.flatnonzero(scores >= level)
    if not len(reached):
        return math.nan
    around = slice(max(reached[0] - 1, 0), reached[0] + 1)
    return float(np.interp(level, scores[around], steps[around]))
