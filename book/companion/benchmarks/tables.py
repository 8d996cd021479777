"""What the measurements share: the name of the clock, the table with what it was measured on."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from companion.settings import write_note
from sarmatch.config import Config
from sarmatch.io import commit


def clock(threads: int, device: str = "cpu") -> str:
    """What `companion.timing.interleave` measures with so many threads of PyTorch."""
    return "CPU time" if device == "cpu" and threads == 1 else "wall"


def report(table: pd.DataFrame, config: Config, out: Path | None, name: str, **about: Any) -> None:
    """Print a table of matchers under `shift` at the headline radius; with `out` write `<name>.csv` and `.json` too."""
    evaluation = config.evaluation
    about |= {"profile": config.profile, "protocol": "shift", "search_radius": evaluation.headline_radius}
    about |= {"crop_size": evaluation.crop_size, "machine": platform.machine(), "torch": torch.__version__}
    about["commit"] = commit()
    print(json.dumps(about, indent=1))
    print(table.round(4).to_string(index=False))
    if out is not None:
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
        write_note(out / f"{name}.json", about)
