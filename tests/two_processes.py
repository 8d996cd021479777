"""A script run by two processes that train together on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
START = """
import torch
from accelerate import PartialState
torch.set_num_threads(1)
assert PartialState(cpu=True).num_processes == 2
"""
"""First lines of such a script: without `cpu=True` accelerate takes processes without GPUs for strangers."""


def run_in_two_processes(script: str, folder: Path, *arguments: str) -> None:
    """Run a Python script by two processes of one thread each; fails where one of them fails.

    By torchrun: `accelerate launch --cpu --num_processes 2` starts a single process.

    Args:
        folder: where the script is stored.
        arguments: for its `sys.argv`.
    """
    file = folder / "train.py"
    file.write_text(START + script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(file), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
