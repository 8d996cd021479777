"""What several studies are tried on: the smallest profile, its split, and one training of it."""

from __future__ import annotations

import pytest

from companion.settings import book_profile
from companion.studies.ablation import study_run
from sarmatch.data import Split, open_pairs, split_pairs
from sarmatch.training.runs import Run

SMOKE = book_profile("smoke")


@pytest.fixture(scope="session")
def split() -> Split:
    return split_pairs(open_pairs(SMOKE.data, SMOKE.seed), SMOKE.data)


@pytest.fixture(scope="session")
def run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return study_run(SMOKE, "both", 0, split, tmp_path_factory.mktemp("runs"))
