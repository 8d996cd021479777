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

from companion.studies.backends import backend_table, backends, crops_of, measure_backends
from companion.timing import clock, report
from sarmatch import load_matcher
from sarmatch.config import profile as named_profile
from sarmatch.training.runs import open_split


def main(data: Path, profile: str = "s1s2", pairs: int = 24, threads: int = 1, out: Path | None = None) -> None:
    """Print the table, medians of three runs on each pair.

    Args:
        data: folder of the data.
        profile: whose shipped weights, split and crops to take.
        pairs: of the test part, evenly spread over its scenes.
        threads: of PyTorch and ONNX Runtime; with one, CPU time is measured.
        out: also write precision_speed.csv and .json there.
    """
    torch.set_num_threads(threads)
    config = named_profile(profile, str(data))
    split, shipped = open_split(config), load_matcher(profile, device="cpu")
    few = dataclasses.replace(config.evaluation, max_pairs=pairs)
    with tempfile.TemporaryDirectory() as folder:
        inputs = crops_of(split.validation, config.evaluation, 8)  # ranges for 8 bits
        matchers = backends(shipped.net, shipped.confidence, Path(folder), inputs)
        records = measure_backends(matchers, split.test, few, repeats=3)
    about = {"clock": clock(threads), "threads": threads, "repeats": 3, "onnxruntime": onnxruntime.__version__}
    test = f"{records['id'].nunique()} pairs, {records['scene'].nunique()} scenes"
    report(backend_table(records), config, out, "precision_speed", test=test, **about)


if __name__ == "__main__":
    tyro.cli(main)
