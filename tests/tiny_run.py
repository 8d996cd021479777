"""A training of two steps on a few generated pairs, for tests of what is kept and shipped of it."""

from __future__ import annotations

from typing import Any

from sarmatch.config import Config
from sarmatch.profiles import profile


def tiny(**sections: Any) -> Config:
    return profile("smoke").replace(
        **{"data": {"n_synthetic": 24}, "training": {"max_steps": 2, "validation_pairs": 1}} | sections
    )
