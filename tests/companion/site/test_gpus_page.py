"""The page on GPUs states numbers: they are those of the profile and of the published count of operations."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from companion.claims.ledger import paper_split
from sarmatch.profiles import profile
from sarmatch.training.loop import StepSampler, total_steps

BOOK = Path(__file__).parents[3] / "book"
PAGE = (BOOK / "gpus.md").read_text()
CONFIG = profile("sen12ms", "data")
COSTS = pd.read_csv(BOOK / "results" / "s1s2" / "encoder_costs.csv").set_index("part").loc["total"]


def test_steps_and_operations() -> None:
    pairs = paper_split()[0]
    pretraining, finetuning = total_steps(pairs, CONFIG.pretraining), total_steps(pairs, CONFIG.training)
    steps = pretraining + finetuning
    for number in (pairs, pairs // 32, pretraining, finetuning, steps):
        assert f"{number:,}" in PAGE
    passes = COSTS["full width, GFLOP"]
    trained = passes * (CONFIG.data.crop_size / 256) ** 2 * 3
    assert f"{passes:.1f} / 4 × 3 = {trained:.1f} GFLOP" in PAGE
    assert f"{trained * 32 / 1000:.2f} TFLOP" in PAGE
    total = trained * 32 * steps * 1e9
    assert f"{total / 1e15:.0f} PFLOP" in PAGE
    for rate, hours in (("1", ".0f"), ("5", ".0f"), ("20", ".1f")):
        assert f"* - {rate}\n  - {total / float(rate) / 1e12 / 3600:{hours}}\n" in PAGE


def test_settings_of_both_profiles() -> None:
    published = profile("s1s2", "data")
    for widths in (published.model.sar_widths, published.model.optical_widths, CONFIG.model.sar_widths):
        assert f"  - {', '.join(map(str, widths))}\n" in PAGE
    assert f"{COSTS['full width, M parameters']:.2f} million" in PAGE
    assert f"{COSTS['profile s1s2, M parameters']:.2f} million" in PAGE
    assert f"{published.training.max_steps} steps of {published.training.batch_size} pairs" in PAGE
    assert f"every {CONFIG.training.checkpoint_every} steps" in PAGE
    assert (CONFIG.training.epochs, CONFIG.training.patience, CONFIG.pretraining.epochs) == (30, 5, 50)
    assert published.model.oriented_gradients and not CONFIG.model.oriented_gradients


def test_numbers_of_processes() -> None:
    for world in (1, 2, 4, 8):
        StepSampler(100, CONFIG.training, 0, 0, 0, world)
    for world in (3, 16):
        with pytest.raises(ValueError, match="choose a batch_size"):
            StepSampler(100, CONFIG.training, 0, 0, 0, world)
