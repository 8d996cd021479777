"""What the book measures of runs, made once and kept in `records/` of the run's folder under a digest of its inputs.

No table outlives a training, a change of profile, or data of another size, band or origin; after a single file among
many was corrected, remove `records/`. The code that measured is no part of the digest: tables carry their commit.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from sarmatch.calibration.confidence import SPREAD, Confidence
from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import collect_matches
from sarmatch.evaluation.protocols import CropMatcher, evaluate
from sarmatch.io import atomic_path, commit, digest
from sarmatch.matching.cues import CUES
from sarmatch.matching.matcher import Matcher
from sarmatch.training import runs
from sarmatch.training.runs import Run


def cached_table(
    folder: Path, name: str, depends_on: Mapping[str, Any], make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """A table, read from `<folder>/records/<name>-<digest of all it depends on>.parquet`, else made and kept there."""
    path = folder / "records" / f"{name}-{digest(depends_on)}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.stem}.lock"):  # another process may be making the same one
            if not path.exists():
                table = make()
                with atomic_path(path) as partial:
                    table.to_parquet(partial)
    return pd.read_parquet(path)


def records_or_load(
    run: Run,
    matcher: CropMatcher,
    name: str,
    pairs: Pairs,
    protocol: Protocol,
    search_radius: float | None,
    config: EvaluationConfig | None = None,
) -> pd.DataFrame:
    """Records of `evaluate`, measured once; `name` is the file's and that in the column `method`."""
    config = config or run.config.evaluation
    radius = "none" if search_radius is None else f"{search_radius:g}"
    on = {"matcher": matcher, "protocol": protocol, "radius": search_radius, "pairs": pairs, "config": config}
    measure = partial(evaluate, matcher, pairs, protocol, search_radius, config)
    table = cached_table(run.path, f"{name}-{protocol}-R{radius}", on, lambda: measure().assign(commit=commit()))
    return table.assign(method=name)


def matches_or_load(
    run: Run, matcher: Matcher, name: str, pairs: Pairs, config: EvaluationConfig, protocol: Protocol = "shift"
) -> pd.DataFrame:
    """Matches at the headline radius as `confidence_fit.collect_matches` gives them, collected once."""
    on = {"matcher": matcher, "protocol": protocol, "pairs": pairs, "config": config, "columns": [*CUES, *SPREAD]}
    file = f"matches-{name}-{matcher.mode.replace(' ', '-')}{matcher.mc_passes}"
    measure = partial(collect_matches, matcher, name, pairs, config, protocol)
    return cached_table(run.path, file, on, lambda: measure().assign(commit=commit()))


def confidence_or_load(run: Run, split: Split) -> Confidence:
    """`runs.confidence_or_load` from kept matches, which chapters then read too."""
    return runs.confidence_or_load(run, split, partial(matches_or_load, run))
