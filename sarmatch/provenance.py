"""Where a number comes from: commit, config, data, versions, hardware, date and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sarmatch.config import Config

PACKAGES = ("sarmatch", "torch", "timm", "numpy", "accelerate")
SAME_MATCH_PX = 0.01
"""The same images, weights and seed give the same bits on one CPU with one number of threads. Another number of threads
or CPU adds in another order, and most matches move by less than 0.0001 px; positions are float32, which alone rounds
those of a scene of 10,000 px by 0.0005 px. So matches of one cell that lie within this distance count as the same."""
SAME_MATCH_SHARE = 0.999
"""Least share of matches that are the same, within `SAME_MATCH_PX`, with another number of threads or on another CPU.
Where two places are as likely, rounding decides: of 86,685 matches of 24 pairs that was three with other vector
instructions, by up to 0.5 px, and none with another number of threads."""


def provenance(config: Config, fingerprint: str, without: Collection[str] = ()) -> dict[str, Any]:
    """What a number needs beside it: profile, seed, data, commit, versions, hardware, date and command.

    Args:
        without: sections of the config that do not enter its hash.
    """
    return {
        "profile": config.profile,
        "seed": config.seed,
        "config_hash": config.hash(fingerprint, without),
        "data_fingerprint": fingerprint,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": hardware(),
    }


def hardware() -> str:
    """Name of the GPU, or the number of threads on a CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def commit() -> str:
    """Short hash of the checkout's commit, with `+` where tracked files differ; `unknown` outside a checkout."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "--short=9", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
