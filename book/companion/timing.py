"""Seconds of functions that are compared, measured in turns, and tables of such comparisons."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from companion.settings import write_note
from sarmatch.config import Config
from sarmatch.io import commit

Runs = Mapping[str, Callable[[], object]]


def interleave(runs: Runs, repeats: int, device: torch.device | str = "cpu") -> dict[str, list[float]]:
    """Seconds of each function in each repeat, in turn so that drift hits all alike, after a round that does not count.

    On a CPU with one thread of PyTorch the CPU time of the process counts, so that other work hardly enters; otherwise
    time on the wall, waiting for an accelerator.
    """
    on_cpu = torch.device(device).type == "cpu"
    clock = time.process_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter
    # Not torch.utils.benchmark.Timer: it calls a function twice before each measurement, which triples the cost here.
    wait = (lambda: None) if on_cpu else torch.accelerator.synchronize
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            wait()
            start = clock()
            run()
            wait()
            if i:
                seconds[name].append(clock() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """`seconds` (median), `seconds_low` and `seconds_high` (extremes)."""
    return {"seconds": float(np.median(seconds)), "seconds_low": min(seconds), "seconds_high": max(seconds)}


def clock(threads: int, device: str = "cpu") -> str:
    """What `interleave` measures with so many threads of PyTorch."""
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
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
        write_note(out / f"{name}.json", about)
