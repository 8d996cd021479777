"""What the measurements share: the data of a profile, the name of the clock, the table with what it was measured on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from companion.timing import interleave
from sarmatch.config import CONFIDENT_PX, Config, EvaluationConfig
from sarmatch.config import profile as named_profile
from sarmatch.data import Pairs, open_pairs, split_pairs
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.splits import Split
from sarmatch.evaluation.metrics import match_errors, mma
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.io import commit
from sarmatch.matching.matches import Matches


def split_of(profile: str, data: Path) -> tuple[Config, Split]:
    """The configuration of a profile and the split of the pairs in a folder by it."""
    config = named_profile(profile, str(data))
    return config, split_pairs(open_pairs(config.data, config.seed), config.data)


def clock(threads: int, device: str = "cpu") -> str:
    """What `companion.timing.interleave` measures with so many threads of PyTorch."""
    return "CPU time" if device == "cpu" and threads == 1 else "wall"


def timed_records(
    matchers: Mapping[str, CropMatcher], pairs: Pairs, config: EvaluationConfig, repeats: int
) -> pd.DataFrame:
    """Every matcher in turns, as by `interleave`, on the same crops under `shift` at the headline radius.

    Args:
        repeats: timed runs of each matcher and pair; one before them does not count.

    Returns:
        a row a matcher and pair: method, id, scene, seconds (median), mma_1px, mma_3px, n_matches, and lists of
        confidences and of outcomes within 3 px.
    """
    found: dict[str, Matches] = {}

    def run(name: str, crops: EvaluationCrops) -> None:
        found[name] = matchers[name].match_crops(crops, config.headline_radius)

    rows = []
    for pair in spread(pairs, config.max_pairs):
        crops = evaluation_crops(pair, "shift", config)
        seconds = interleave({name: partial(run, name, crops) for name in matchers}, repeats)
        for name, matches in found.items():
            errors = match_errors(matches, crops.A_sar_to_optical)
            row: dict[str, Any] = {"method": name, "id": pair.id, "scene": pair.scene}
            row |= {"seconds": float(np.median(seconds[name])), "n_matches": len(matches)}
            row |= {f"mma_{t:g}px": mma(errors, t) for t in (1.0, CONFIDENT_PX)}
            rows.append(row | {"confidence": matches.confidence, "correct": errors <= CONFIDENT_PX})
    return pd.DataFrame(rows)


def report(table: pd.DataFrame, config: Config, out: Path | None, name: str, **about: Any) -> None:
    """Print a table of matchers under `shift` at the headline radius; with `out` write `<name>.csv` and `.json` too."""
    about |= {
        "profile": config.profile,
        "protocol": "shift",
        "search_radius": config.evaluation.headline_radius,
        "crop_size": config.evaluation.crop_size,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    print(json.dumps(about, indent=1))
    print(table.round(4).to_string(index=False))
    if out is not None:
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
        (out / f"{name}.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
