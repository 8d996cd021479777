"""What the book measures of runs, made once and kept in `records/` of the run's folder."""

from __future__ import annotations

import numpy as np
import pandas as pd

from companion.cache import cached_table
from sarmatch.calibration.confidence import SPREAD, Confidence
from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import collect_matches
from sarmatch.evaluation.protocols import CropMatcher, evaluate
from sarmatch.io import commit
from sarmatch.matching.matcher import Matcher
from sarmatch.training import runs
from sarmatch.training.runs import Run


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
        name: what the matcher is called in the records' column `method`, and the file.
        config: None takes the run's own.
    """
    config = config or run.config.evaluation
    radius = "none" if search_radius is None else f"{search_radius:g}"
    on = {"matcher": matcher, "protocol": protocol, "radius": search_radius, "pairs": pairs, "config": config}

    def make() -> pd.DataFrame:
        return evaluate(matcher, pairs, protocol, search_radius, config).assign(commit=commit())

    return cached_table(run.path, f"{name}-{protocol}-R{radius}", on, make).assign(method=name)


def matches_or_load(
    run: Run, matcher: Matcher, name: str, pairs: Pairs, protocol: Protocol, config: EvaluationConfig
) -> pd.DataFrame:
    """`confidence_fit.match_table` at the headline radius, once; later calls with the same arguments read it.

    Args:
        name: of the file, with the matcher's mode and passes.
    """
    on = {"matcher": matcher, "protocol": protocol, "pairs": pairs, "config": config, "columns": SPREAD}

    def make() -> pd.DataFrame:
        return collect_matches(matcher, name, pairs, config, protocol).assign(commit=commit())

    mode = f"{matcher.mode.replace(' ', '-')}{matcher.mc_passes}"
    return cached_table(run.path, f"matches-{name}-{mode}", on, make)


def confidence_or_load(run: Run, split: Split) -> Confidence:
    """`runs.confidence_or_load` from kept matches, which chapters then read too."""

    def collect(matcher: Matcher, name: str, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
        return matches_or_load(run, matcher, name, pairs, "shift", config)

    return runs.confidence_or_load(run, split, collect)


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
