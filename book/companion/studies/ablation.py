"""Trainings side by side that differ in one thing each: table 3, data efficiency, transfer, sensitivity (section 4.5).

All are short trainings of a profile (`selfsupervision.study_config`), kept in the run store with what they match, so
that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from companion.cache import matches_or_load
from companion.settings import BookConfig
from companion.studies.selfsupervision import study_config
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.calibration.position_error import CONFIDENT_PX
from sarmatch.calibration.scores import BINS
from sarmatch.config import EvaluationConfig
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.intervals import crossed_sums
from sarmatch.evaluation.metrics import mma, rmse
from sarmatch.evaluation.protocols import spread
from sarmatch.matching.matcher import Matcher
from sarmatch.training.runs import Run, train_or_load

NO_DROPOUT = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}
CALIBRATION = ("ece", "ece_raw", "brier")
BOTH_TASKS = {"contrastive": True, "rotation": True}


@dataclass(frozen=True)
class Variant:
    """What one training of a study changes in the short training of the paper's network.

    Attributes:
        name: of the row.
        model, data, training, pretraining: fields of these sections of `Config`; with no tasks there is no pretraining.
        passes: whether it matches by Monte Carlo passes, whose mutual information is part of its confidence.
        share: of the training pairs that are labelled; pretraining sees all of them. Contrast over cells learns from
            their co-registration too, so that only what fine-tuning sees grows with the share.
        datasets: of the training and validation pairs; empty takes all.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    passes: bool = False
    share: float = 1.0
    datasets: tuple[str, ...] = ()


ABLATION = (
    Variant("baseline", {"uncertainty": False, **NO_DROPOUT}),
    Variant("aleatoric", NO_DROPOUT),
    Variant("epistemic", {"uncertainty": False}, passes=True),
    Variant("both", passes=True),
    Variant("contrastive", pretraining={"contrastive": True}, passes=True),
    Variant("rotation", pretraining=BOTH_TASKS, passes=True),
)
"""Rows of table 3 in its order, each with all that the rows before it have, but for the single uncertainties."""
SHARES = (0.1, 0.25, 0.5, 1.0)
DATA_EFFICIENCY = tuple(
    Variant(f"{share:.0%} {start}", share=share, pretraining=tasks)
    for start, tasks in (("from scratch", {}), ("pretrained", BOTH_TASKS))
    for share in SHARES
)
"""Fewer labelled pairs, with and without pretraining on all of them (section 5.3)."""
TRANSFER = (
    Variant("all data"),
    Variant("ombria", datasets=("ombria",)),
    Variant("ombria, bands as they are", data={"band_mixing": 0.0}, datasets=("ombria",)),
)
"""Trained on one source, whose optical images are in false colour, and measured on all."""
SETTINGS = (
    Variant("group norm"),
    Variant("batch norm", {"norm": "batch"}),
)
"""Choices that the paper leaves open and that need a training, one changed at a time."""
STUDIES = {"ablation": ABLATION, "data": DATA_EFFICIENCY, "transfer": TRANSFER, "settings": SETTINGS}
"""What `python -m companion study` runs."""


def studied(config: BookConfig, study: str) -> BookConfig:
    """The config that a study of `STUDIES` trains with: all but the ablation have `studies.label_steps` a training.

    Raises:
        ValueError: no such study.
    """
    if study not in STUDIES:
        raise ValueError(f"study must be one of {sorted(STUDIES)}, got {study!r}")
    if study == "ablation":
        return config
    short, steps = config.studies, config.studies.label_steps
    shorter = {"steps": steps, "validate_every": min(short.validate_every, steps)}
    return config.replace(studies=shorter, training={"warmup_steps": short.label_warmup_steps})


def study_run(config: BookConfig, variant: Variant | str, seed: int, split: Split, runs_dir: str | Path) -> Run:
    """The finished short training of a variant: loaded, resumed or trained.

    Args:
        variant: or the name of a row of `ABLATION`.
    """
    if isinstance(variant, str):
        variant = ablation_row(variant)
    tasks = dict(contrastive=False, rotation=False) | dict(variant.pretraining)
    own = study_config(config, seed, tasks, variant.model, variant.data, variant.training)
    return train_or_load(own, runs_dir, "study", labelled(split, variant, seed), unlabelled=split)


def ablation_row(name: str) -> Variant:
    """Raises ValueError where `ABLATION` has no such row."""
    found = [variant for variant in ABLATION if variant.name == name]
    if not found:
        raise ValueError(f"no row {name!r} in the ablation; there are {[variant.name for variant in ABLATION]}")
    return found[0]


def labelled(split: Split, variant: Variant, seed: int) -> Split:
    """The split with only those pairs for training and validation that the variant may learn from.

    Smaller shares of one seed lie within larger ones.
    """
    train, validation = split.train, split.validation
    if variant.datasets:
        train, validation = (part.subset(part.index["dataset"].isin(variant.datasets)) for part in (train, validation))
    if variant.share < 1:
        n = max(1, round(variant.share * len(train)))
        train = train.subset(np.sort(np.random.default_rng((seed, 2)).permutation(len(train))[:n]))
    return Split(train, validation, split.test)


def study_matches(
    config: BookConfig,
    variants: Sequence[Variant],
    split: Split,
    runs_dir: str | Path,
    test: Pairs | None = None,
    show_progress: bool = True,
) -> pd.DataFrame:
    """All matches of all variants and seeds of a study under `shift`, with calibrated confidence; resumable.

    Confidence is fitted on validation pairs of each training by itself. The bar counts trainings with their
    measurement and says how long the rest will take.

    Args:
        test: what to match, at most `studies.test_pairs` of it; None takes the test part.

    Returns:
        one row a match: row, seed, voting (bool: neighbours vote, or each cell by itself), id, dataset, scene,
        error_px, probability (as the softmax gives it) and confidence (NaN without voting), run.
    """
    measured = dataclasses.replace(config.evaluation, max_pairs=config.studies.test_pairs)
    fitted = dataclasses.replace(config.evaluation, max_pairs=config.studies.fit_pairs)
    _check(config, variants, split)
    parts = []
    for seed, variant in _progress(variants, config.studies.seeds, show_progress):
        run = study_run(config, variant, seed, split, runs_dir)
        matcher = Matcher(run.net, mc_passes=config.studies.ablation_passes if variant.passes else 0)
        own = labelled(split, variant, seed).calibration
        validation = matches_or_load(run, matcher, "study validation", own, "shift", fitted)
        calibrator = fit_calibrator(validation, _scores(run, variant))
        pairs = split.test if test is None else test
        voted = matches_or_load(run, matcher, "study", pairs, "shift", measured)
        per_cell = Matcher(run.net, use_consensus=False)
        alone = matches_or_load(run, per_cell, "study per cell", pairs, "shift", measured)
        for table, voting in ((voted.assign(confidence=calibrator(voted)), True), (alone, False)):
            parts.append(table.assign(row=variant.name, seed=seed, voting=voting, run=run.path.name))
    names = ["row", "seed", "voting", "id", "dataset", "scene", "error_px", "probability", "confidence", "run"]
    return pd.concat(parts, ignore_index=True)[[*names, "commit"]]


def _check(config: BookConfig, variants: Sequence[Variant], split: Split) -> None:
    """Reject before the first training what a later one could not do."""
    for variant in variants:
        study_config(config, 0, {}, variant.model, variant.data, variant.training)
        part = labelled(split, variant, 0)
        if len(part.train) < config.training.batch_size or not len(part.validation):
            raise ValueError(
                f"row {variant.name!r} has {len(part.train)} training and {len(part.validation)} validation pairs, "
                f"fewer than a batch ({config.training.batch_size}); leave it out or give more data"
            )


def _progress(variants: Sequence[Variant], seeds: Sequence[int], show_progress: bool) -> Iterator[tuple[int, Variant]]:
    jobs = [(seed, variant) for seed in seeds for variant in variants]  # a study that was stopped has whole seeds
    for seed, variant in (bar := tqdm(jobs, "study", unit="training", disable=None if show_progress else True)):
        bar.set_postfix_str(f"{variant.name}, seed {seed}")
        yield seed, variant


def _scores(run: Run, variant: Variant) -> tuple[str, ...]:
    names = ["logit_probability"]
    if run.net.config.uncertainty:
        names.append("aleatoric")
    if variant.passes:
        names.append("epistemic")
    return tuple(names)


def pair_scores(matches: pd.DataFrame, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """The metrics of section 4.3 for each training and pair.

    Args:
        matches: as `study_matches` returns.
        pairs: that were matched; those without a match count with an accuracy of 0.

    Returns:
        row, seed, voting, the columns of `INDEX_COLUMNS`, mma_<t>px, rmse_px (NaN without matches), n_matches.

    Raises:
        ValueError: matches of other pairs.
    """
    strange = set(matches["id"]) - set(pairs.index["id"])
    if strange:
        raise ValueError(f"matches are of {len(strange)} pairs that are not among `pairs`, e.g. {min(strange)}")
    index, rows = pairs.index[list(INDEX_COLUMNS)].to_dict("records"), []
    for (row, seed, voting), found in matches.groupby(["row", "seed", "voting"], sort=False):
        errors = {name: part.to_numpy() for name, part in found.groupby("id")["error_px"]}
        for pair in index:
            own = errors.get(pair["id"], np.empty(0))
            accuracy = {f"mma_{t:g}px": mma(own, t) for t in config.thresholds_px}
            rest = {"rmse_px": rmse(own), "n_matches": float(len(own))}
            rows.append({"row": row, "seed": seed, "voting": voting} | pair | accuracy | rest)
    return pd.DataFrame(rows)


def measured_pairs(config: BookConfig, split: Split) -> Pairs:
    """The test pairs that `study_matches` takes."""
    return spread(split.test, config.studies.test_pairs)


def calibration_score(
    found: pd.DataFrame, score: str, levels: Sequence[Sequence[Any]] | None = None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """A calibration score of one row's matches as sums and a statistic of them, as `intervals.crossed` takes them.

    Args:
        found: matches with a confidence, as `study_matches` returns.
        score: `ece` (eq. 8, 15 bins), `ece_raw` (of the softmax as it is) or `brier`.
        levels: all seeds and all scenes of a table of several rows, so that each row sees the same draws.

    Raises:
        ValueError: unknown score.
    """
    if score not in CALIBRATION:
        raise ValueError(f"score must be among {CALIBRATION}, got {score!r}")
    x = found["probability" if score == "ece_raw" else "confidence"].to_numpy(float)
    right = (found["error_px"] <= CONFIDENT_PX).to_numpy(float)
    place = np.zeros(len(x), int) if score == "brier" else np.minimum((x * BINS).astype(int), BINS - 1)
    missed = (x - right) ** 2 if score == "brier" else right - x
    columns = {f"bin {i}": np.where(place == i, missed, 0.0) for i in range(BINS)}
    table = pd.DataFrame({"seed": found["seed"], "scene": found["scene"], "n": 1.0} | columns)
    return crossed_sums(table, [*columns, "n"], levels=levels), lambda s: np.abs(s[:, :-1]).sum(1) / s[:, -1]
