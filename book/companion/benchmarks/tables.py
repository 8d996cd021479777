"""What the measurements share: the data of a profile, the name of the clock, the table with what it was measured on."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sarmatch.config import Config
from sarmatch.config import profile as named_profile
from sarmatch.data import open_pairs, split_pairs
from sarmatch.data.splits import Split
from sarmatch.io import commit


def split_of(profile: str, data: Path) -> tuple[Config, Split]:
    """The configuration of a profile and the split of the pairs in a folder by it."""
    config = named_profile(profile, str(data))
    return config, split_pairs(open_pairs(config.data, config.seed), config.data)


def clock(threads: int, device: str = "cpu") -> str:
    """What `companion.timing.interleave` measures with so many threads of PyTorch."""
    return "CPU time" if device == "cpu" and threads == 1 else "wall"


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
