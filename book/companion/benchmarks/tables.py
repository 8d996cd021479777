"""Printing a table of a benchmark with what it was measured on, and keeping both for the book."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sarmatch.config import Config
from sarmatch.io import commit


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
