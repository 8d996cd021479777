"""What other ways to run the encoders cost, on test pairs in turns; makes precision_speed.csv.

    python -m companion.benchmarks.speed --data DATA [--profile s1s2] [--pairs 24] [--out book/results/s1s2]

Needs `pip install 'sarmatch[onnx]'` and, for torch.compile, a C++ compiler.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnxruntime
import torch
import tyro

from companion.benchmarks.tables import clock, report, split_of
from companion.studies.backends import backend_table, backends, crops_of, measure_backends
from sarmatch import load_matcher


def main(
    data: Path,
    profile: str = "s1s2",
    pairs: int = 24,
    repeats: int = 3,
    threads: int = 1,
    folder: Path | None = None,
    out: Path | None = None,
) -> None:
    """Print the table.

    Args:
        data: folder of the data.
        profile: whose shipped weights, split and crops to take.
        pairs: of the test part, evenly spread over its scenes.
        repeats: timed runs of each way on each pair.
        threads: of PyTorch and ONNX Runtime; with one, CPU time is measured.
        folder: keeps the exported encoders for the next time; None writes them anew.
        out: also write precision_speed.csv and .json there.
    """
    torch.set_num_threads(threads)
    config, split = split_of(profile, data)
    shipped = load_matcher(profile, device="cpu")
    few = dataclasses.replace(config.evaluation, max_pairs=pairs)
    with tempfile.TemporaryDirectory() as temporary:
        inputs = crops_of(split.validation, config.evaluation, 8)  # ranges for 8 bits
        matchers = backends(shipped.net, shipped.confidence, folder or Path(temporary), inputs)
        records = measure_backends(matchers, split.test, few, repeats)
    about = {"clock": clock(threads), "threads": threads, "repeats": repeats, "onnxruntime": onnxruntime.__version__}
    test = f"{records['id'].nunique()} pairs, {records['scene'].nunique()} scenes"
    report(backend_table(records), config, out, "precision_speed", test=test, **about)


if __name__ == "__main__":
    tyro.cli(main)
