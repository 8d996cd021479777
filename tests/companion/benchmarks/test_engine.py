"""The memory of a training step, counted on a single crop."""

from __future__ import annotations

import pytest
import torch

from companion.benchmarks.engine import step_memory
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile

SMOKE = profile("smoke")


def test_memory_grows_with_the_batch_and_falls_with_the_precision() -> None:
    one, two, three = (step_memory(SMOKE.model, SMOKE.training, n, torch.float32, 64) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-3)
    weights = sum(p.numel() for p in SarOpticalNet(SMOKE.model).parameters()) * 4 / 2**30
    assert 2 * one - two == pytest.approx(2 * weights, rel=1e-2)  # what does not grow: weights and gradients
    volume = 81 * 16 * 16 * 4 / 2**30  # of a window of 16 px: several of them are kept
    assert two - one > 4 * volume
    assert step_memory(SMOKE.model, SMOKE.training, 1, torch.bfloat16, 64) < one
