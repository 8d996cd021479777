"""The engine of two checkouts on the same work, in turns: a pass, passes with dropout, encoders, a training step.

    git worktree add --detach ../before COMMIT
    python -m companion.benchmarks.engine --before ../before --data DATA [--profile s1s2] [--out book/results/s1s2]

CPU time of one thread. Each checkout runs in a process of its own that waits for its turn, so that drift of the machine
hits both alike; times are also given as multiples of a float32 product of two 2048 x 2048 matrices.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from sarmatch.config import ModelConfig, TrainingConfig

PRODUCT = "product of matrices"
TURNS = 5  # timed runs of each; one before them does not count


def works(profile: str, data: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; of names that both checkouts have."""
    from torch.utils.data import default_collate

    from sarmatch import load_matcher
    from sarmatch import profile as named_profile
    from sarmatch.data.crops import TrainingCrops
    from sarmatch.model import SarOpticalNet, encode_pair
    from sarmatch.training.runs import open_split
    from sarmatch.training.supervised import Objective

    config = named_profile(profile, data)
    split, matcher = open_split(config), load_matcher(profile, device="cpu")
    pairs = [split.test[int(i)] for i in np.linspace(0, len(split.test) - 1, 4)]
    crops = TrainingCrops(split.train, config.data, 0)
    batch = default_collate([crops[0, i] for i in range(config.training.batch_size)])
    torch.manual_seed(0)
    objective = Objective(SarOpticalNet(config.model), config.training)
    square, (first, *_, last) = torch.rand(2048, 2048), pairs
    images = (first.sar[None], first.optical[None], first.valid[None], first.valid[None])

    def step() -> None:
        objective.zero_grad()
        objective(batch)["loss"].backward()

    runs: dict[str, Callable[[], object]] = {PRODUCT: lambda: square @ square}
    for pair in pairs:
        runs[f"one pass, {pair.id}"] = lambda p=pair: matcher.match(p.sar, p.optical)  # type: ignore[misc]
    runs["one pass, unrelated images"] = lambda: matcher.match(first.sar, last.optical)
    runs["20 passes"] = lambda: matcher.match(first.sar, first.optical, mc_passes=20)
    runs["both encoders"] = torch.no_grad()(lambda: encode_pair(matcher.net, images))
    runs[f"training step of {config.training.batch_size} crops"] = step
    return runs


def step_memory(model: ModelConfig, training: TrainingConfig, batch: int, precision: torch.dtype, side: int) -> float:
    """What a training step on `batch` crops of `side` px holds when its backward pass begins, GiB.

    Weights, their gradients and the results that the backward pass needs, which grow with the batch and so are counted
    on a single crop; the states of the optimiser and what a device keeps for itself come on top.
    """
    from sarmatch.model import SarOpticalNet
    from sarmatch.training.supervised import Objective

    objective, kept = Objective(SarOpticalNet(model), training), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mask = torch.ones(1, side, side, dtype=torch.bool)
    sample = {"sar": torch.rand(1, model.sar_channels, side, side), "sar_valid": mask, "optical_valid": mask}
    sample |= {"optical": torch.rand(1, model.optical_channels, side, side), "field": torch.zeros(1, 2, side, side)}
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in objective.parameters()}
    mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        loss = objective(sample | {"A_sar_to_optical": torch.eye(3)[None]})["loss"]  # holds what is kept
    results = sum(size for place, size in kept.items() if place not in weights)
    del loss
    return (batch * results + 2 * sum(weights.values())) / 2**30


def serve(profile: str, data: str) -> None:
    """Write the names of all works, then the seconds of each that is asked for, a line each."""
    torch.set_num_threads(1)
    runs, answers = works(profile, data), sys.stdout
    print(json.dumps(list(runs)), file=answers, flush=True)
    for line in sys.stdin:
        start = time.process_time()
        runs[line.strip()]()
        print(time.process_time() - start, file=answers, flush=True)


def _started(checkout: Path, profile: str, data: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(checkout.resolve() / part) for part in ("", "book"))
    command = [sys.executable, str(Path(__file__).resolve()), profile, str(data.resolve())]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen[str], name: str) -> float:
    questions: IO[str] | None = process.stdin
    assert questions is not None and process.stdout is not None
    print(name, file=questions, flush=True)
    return float(process.stdout.readline())


# long because it is the benchmark from start to end, and its help the docstring
def main(before: Path, data: Path, profile: str = "s1s2", out: Path | None = None) -> None:
    """Print the table.

    Args:
        before: another checkout, compared with this one.
        data: folder of the data.
        profile: whose shipped weights, pairs and widths to take.
        out: also write cost_engine.csv and .json there.
    """
    import pandas as pd

    from companion.settings import find_checkout
    from companion.timing import report
    from sarmatch import profile as named_profile

    here = find_checkout(Path.cwd())
    both = {"before": _started(before, profile, data), "after": _started(here, profile, data)}
    named = [json.loads(process.stdout.readline()) for process in both.values() if process.stdout]
    rows: list[dict[str, Any]] = []
    for name in named[0]:
        seconds: dict[str, list[float]] = {which: [] for which in both}
        for _ in range(TURNS + 1):
            for which, process in both.items():
                seconds[which].append(_ask(process, name))
        row: dict[str, Any] = {"work": name}
        row |= {f"{which}_s": float(np.median(times[1:])) for which, times in seconds.items()}
        rows.append(row | {"faster": row["before_s"] / row["after_s"]})
    for process in both.values():
        process.communicate()
    table = pd.DataFrame(rows)
    for which in both:
        table[f"{which}_products"] = table[f"{which}_s"] / table.loc[table["work"] == PRODUCT, f"{which}_s"].iloc[0]
    old = subprocess.run(["git", "-C", str(before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    config = named_profile(profile, str(data))
    precisions, side = {"float32": torch.float32, "bf16": torch.bfloat16}, config.data.crop_size
    memory = {
        f"full_width_batch_32_{name}_gib": round(step_memory(ModelConfig(), TrainingConfig(), 32, precision, side), 2)
        for name, precision in precisions.items()
    }
    about = {"before": old.stdout.strip(), "clock": "CPU time, one thread", "turns": TURNS} | memory
    report(table, config, out, "cost_engine", **about)


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):  # a checkout that is asked
        serve(*sys.argv[1:])
    else:
        import tyro

        tyro.cli(main)
