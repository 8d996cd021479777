"""Short trainings that differ in one thing each (section 4.5), kept in the run store with their matches; table 3."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from companion.cache import matches_or_load
from companion.intervals import Crossed, crossed, crossed_bootstrap, crossed_sums, intervals, paired_t_test, verdict
from companion.settings import BookConfig
from companion.studies.selfsupervision import study_config
from sarmatch.calibration.confidence import fit_calibrator
from sarmatch.calibration.scores import BINS
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.metrics import rmse
from sarmatch.matching.matcher import Matcher
from sarmatch.training.runs import Run, train_or_load

NO_DROPOUT = {"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0}
BOTH_TASKS = {"contrastive": True, "rotation": True}


@dataclass(frozen=True)
class Variant:
    """What one training of a study changes in the short training of the paper's network."""

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)  #: Fields of this section of `Config`, as the next two.
    data: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Any] = field(default_factory=dict)  #: With no tasks there is no pretraining.
    passes: bool = False  #: Whether it matches by Monte Carlo passes and has their mutual information as a score.
    share: float = 1.0  #: Of the training pairs that are labelled; pretraining takes all, and their co-registration.
    datasets: tuple[str, ...] = ()  #: Of the training and validation pairs; empty takes all.


ABLATION = (
    Variant("baseline", {"uncertainty": False, **NO_DROPOUT}),
    Variant("aleatoric", NO_DROPOUT),
    Variant("epistemic", {"uncertainty": False}, passes=True),
    Variant("both", passes=True),
    Variant("contrastive", pretraining={"contrastive": True}, passes=True),
    Variant("rotation", pretraining=BOTH_TASKS, passes=True),
)
"""Rows of table 3 in its order, each with all that the rows before it have, but for the single uncertainties."""
BY_NAME = {variant.name: variant for variant in ABLATION}
DATA_EFFICIENCY = tuple(
    Variant(f"{share:.0%} {start}", share=share, pretraining=tasks)
    for start, tasks in (("from scratch", {}), ("pretrained", BOTH_TASKS))
    for share in (0.1, 0.25, 0.5, 1.0)
)
"""Fewer labelled pairs, with and without pretraining on all of them (section 5.3)."""
TRANSFER = (
    Variant("all data"),
    Variant("ombria", datasets=("ombria",)),
    Variant("ombria, bands as they are", data={"band_mixing": 0.0}, datasets=("ombria",)),
)
"""Trained on one source, whose optical images are in false colour, and measured on all."""
SETTINGS = (Variant("group norm"), Variant("batch norm", {"norm": "batch"}))
"""Choices that the paper leaves open and that need a training, one changed at a time."""
STUDIES = {"ablation": ABLATION, "data": DATA_EFFICIENCY, "transfer": TRANSFER, "settings": SETTINGS}
"""What `python -m companion study` runs."""
PAPER = pd.DataFrame(
    {
        "row": list(BY_NAME),
        "paper_mma_1px": [0.128, 0.136, 0.132, 0.139, 0.142, 0.145],
        "paper_ece": [np.nan, 0.13, 0.14, 0.11, 0.10, 0.09],
        "paper_n_matches": [1156.2, 1198.5, 1180.4, 1225.7, 1256.4, 1298.3],
    }
)
"""Table 3 as printed, MMA as a share."""


def studied(config: BookConfig, study: str) -> BookConfig:
    """The config that a study of `STUDIES` trains with: all but the ablation have `studies.label_steps` a training."""
    if study == "ablation":
        return config
    short, steps = config.studies, config.studies.label_steps
    shorter = {"steps": steps, "validate_every": min(short.validate_every, steps)}
    return config.replace(studies=shorter, training={"warmup_steps": short.label_warmup_steps})


def study_run(config: BookConfig, variant: Variant | str, seed: int, split: Split, runs_dir: str | Path) -> Run:
    """The finished short training of a variant, or of a row of `ABLATION` by name: loaded, resumed or trained."""
    variant = BY_NAME[variant] if isinstance(variant, str) else variant
    tasks = {"contrastive": False, "rotation": False, **variant.pretraining}
    own = study_config(config, seed, tasks, model=variant.model, data=variant.data)
    return train_or_load(own, runs_dir, "study", labelled(split, variant, seed), unlabelled=split)


def study_runs(config: BookConfig, variants: Sequence[Variant], split: Split, runs_dir: str | Path) -> pd.DataFrame:
    """Where the numbers of a study come from, a row a training."""
    rows, about = [], ("commit", "date", "hardware", "steps", "training_seconds")
    for variant, seed in product(variants, config.studies.seeds):
        run = study_run(config, variant, seed, split, runs_dir)
        rows.append((variant.name, seed, run.path.name, *(run.provenance[name] for name in about)))
    return pd.DataFrame(rows, columns=["row", "seed", "run", *about])


def labelled(split: Split, variant: Variant, seed: int) -> Split:
    """The split with only the training and validation pairs of a variant; smaller shares of a seed lie in larger."""
    train, validation = split.train, split.validation
    if variant.datasets:
        train, validation = (part.subset(part.index["dataset"].isin(variant.datasets)) for part in (train, validation))
    if variant.share < 1:
        n = max(1, round(variant.share * len(train)))
        train = train.subset(np.sort(np.random.default_rng((seed, 2)).permutation(len(train))[:n]))
    return Split(train, validation, split.test)


def study_matches(
    config: BookConfig, variants: Sequence[Variant], split: Split, runs_dir: str | Path, test: Pairs | None = None
) -> pd.DataFrame:
    """All matches of a study under `shift`, a row a match, in at most `studies.test_pairs` pairs of `test`; resumable.

    Each training matches twice: with local aggregation (`voting`), and each cell by itself, without `confidence`.
    """
    for variant in variants:  # before the first training, what a later one could not do
        study_config(config, 0, {}, model=variant.model, data=variant.data)
        part = labelled(split, variant, 0)
        if len(part.train) < config.training.batch_size or not len(part.validation):
            raise ValueError(
                f"row {variant.name!r} has {len(part.train)} training and {len(part.validation)} validation pairs, "
                f"fewer than a batch ({config.training.batch_size}); leave it out or give more data"
            )
    pairs = split.test if test is None else test
    jobs = [(seed, variant) for seed in config.studies.seeds for variant in variants]  # whole seeds, where stopped
    parts = []
    for seed, variant in (bar := tqdm(jobs, "study", unit="training", disable=None)):
        bar.set_postfix_str(f"{variant.name}, seed {seed}")
        run = study_run(config, variant, seed, split, runs_dir)
        aggregated, alone = _run_matches(config, run, variant, labelled(split, variant, seed).calibration, pairs)
        both = pd.concat([aggregated.assign(voting=True), alone.assign(voting=False)])
        parts.append(both.assign(row=variant.name, seed=seed, run=run.path.name))
    names = ["row", "seed", "voting", "id", "dataset", "scene", "error_px", "probability", "confidence", "run"]
    return pd.concat(parts, ignore_index=True)[[*names, "commit"]]


def _run_matches(
    config: BookConfig, run: Run, variant: Variant, known: Pairs, pairs: Pairs
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Matches of one training with local aggregation, their confidence fitted on `known` pairs, and without."""
    measured = dataclasses.replace(config.evaluation, max_pairs=config.studies.test_pairs)
    fitted = dataclasses.replace(config.evaluation, max_pairs=config.studies.fit_pairs)
    has = {"logit_probability": True, "aleatoric": run.net.config.uncertainty, "epistemic": variant.passes}
    matcher = Matcher(run.net, mc_passes=config.studies.ablation_passes if variant.passes else 0)
    validation = matches_or_load(run, matcher, "study validation", known, fitted)
    calibrator = fit_calibrator(validation, tuple(name for name, there in has.items() if there))
    aggregated = matches_or_load(run, matcher, "study", pairs, measured)
    per_cell = Matcher(run.net, use_consensus=False)
    alone = matches_or_load(run, per_cell, "study per cell", pairs, measured)
    return aggregated.assign(confidence=calibrator(aggregated)), alone.assign(confidence=np.nan)


def pair_scores(matches: pd.DataFrame, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """The metrics of section 4.3, a row a training and pair; a pair without a match has an accuracy of 0."""
    strange = set(matches["id"]) - set(pairs.index["id"])
    if strange:
        raise ValueError(f"matches are of {len(strange)} pairs that are not among `pairs`, e.g. {min(strange)}")
    training = ["row", "seed", "voting"]
    scores = matches[training].drop_duplicates().merge(pairs.index[list(INDEX_COLUMNS)], how="cross")
    accuracy = {f"mma_{t:g}px": matches["error_px"] <= t for t in config.thresholds_px}
    found = matches[[*training, "id"]].assign(**accuracy, rmse_px=matches["error_px"], n_matches=1.0)
    rest = {"rmse_px": lambda errors: rmse(errors.to_numpy()), "n_matches": "sum"}
    means = found.groupby([*training, "id"]).agg(dict.fromkeys(accuracy, "mean") | rest)
    scores = scores.merge(means.reset_index(), on=[*training, "id"], how="left")
    return scores.fillna(dict.fromkeys([*accuracy, "n_matches"], 0.0))


def metrics_table(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric in each row of `pair_scores` of one way of matching, with intervals over seeds and scenes."""
    by_row = scores.groupby("row", sort=False)
    counts = by_row.agg(n_seeds=("seed", "nunique"), n_pairs=("id", "nunique"), n_scenes=("scene", "nunique"))
    found = [intervals(part, metrics, crossed_bootstrap) for _, part in by_row]
    return counts.reset_index().join(pd.DataFrame(found))


def gains(scores: pd.DataFrame, metric: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a metric of which more is better between rows of `pair_scores` of one way of matching.

    A step is a row and the one it is compared with; ValueError where these have not the same seeds and pairs. The
    interval resamples seeds and scenes. The paper's t-test (section 4.4) takes the means over seeds of each pair as
    independent, which overstates the evidence. `relative` is over the mean of `against`, NaN where that is zero.
    """
    parts = {name: part.set_index(["seed", "id"]).sort_index() for name, part in scores.groupby("row")}
    rows = []
    for name, against in steps:
        one, other = parts[name], parts[against]
        if not one.index.is_unique or not one.index.equals(other.index):
            raise ValueError(f"rows {name!r} and {against!r} were not measured once with the same seeds and pairs")
        difference = one[["scene"]].assign(difference=one[metric] - other[metric]).reset_index()
        found = crossed_bootstrap(difference, "difference")
        means = [part.groupby("id")[metric].mean().reset_index() for part in (one, other)]
        test = paired_t_test(means[0], means[1], metric)
        row = {"row": name, "against": against} | found.named("difference", "")
        row["verdict"] = verdict(found.low, found.high, found.n_clusters, difference["seed"].nunique())
        before = other[metric].mean()
        row["relative"] = found.mean / before if before else np.nan
        rows.append(row | {"t": float(test.statistic), "p": float(test.pvalue)})
    return pd.DataFrame(rows)


def calibration_score(found: pd.DataFrame, score: str, levels: Sequence[Sequence[Any]] | None = None) -> Crossed:
    """A calibration score of one row's matches: `ece` (eq. 8, 15 bins), `ece_raw` (of the softmax as it is) or `brier`.

    Rows have the same draws where `levels` are all seeds and all scenes of their table.
    """
    column = {"ece": "confidence", "ece_raw": "probability", "brier": "confidence"}[score]
    x, right = found[column].astype(float), found["error_px"].le(CONFIDENT_PX).astype(float)
    if score == "brier":
        missed = ((x - right) ** 2).to_frame("missed")
    else:
        missed = pd.get_dummies((x * BINS).astype(int).clip(upper=BINS - 1)).mul(right - x, axis=0)
    sums = crossed_sums(found[["seed", "scene"]].assign(n=1.0).join(missed), [*missed, "n"], levels=levels)
    return crossed(sums, lambda s: np.abs(s[:, :-1]).sum(1) / s[:, -1])


def calibration_table(matches: pd.DataFrame) -> pd.DataFrame:
    """Each score of `calibration_score` for each row of `study_matches` with confidences, with crossed intervals."""
    rows = []
    for name, found in matches.dropna(subset=["confidence"]).groupby("row", sort=False):
        row = {"row": name, "matches": len(found)}
        for score in ("ece", "ece_raw", "brier"):
            measured = calibration_score(found, score)
            low, high = measured.interval()
            row |= {score: measured.value, f"{score}_low": max(low, 0.0), f"{score}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def calibration_gains(matches: pd.DataFrame, score: str, steps: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences of a calibration score between rows under the same draws of scenes; negative is better calibrated."""
    known = matches.dropna(subset=["confidence"])
    levels = [sorted(known[factor].unique()) for factor in ("seed", "scene")]
    found = {name: calibration_score(part, score, levels) for name, part in known.groupby("row")}
    rows = []
    for name, against in steps:
        apart = minus(found[name], found[against])
        low, high = apart.interval()
        rows.append((name, against, apart.value, low, high, verdict(-high, -low, apart.n_second, len(levels[0]))))
    return pd.DataFrame(rows, columns=["row", "against", "difference", "low", "high", "verdict"])


def minus(a: Crossed, b: Crossed) -> Crossed:
    """The difference of two statistics under the same draws."""
    return Crossed(a.value - b.value, a.by_first - b.by_first, a.by_draw - b.by_draw, min(a.n_second, b.n_second))
