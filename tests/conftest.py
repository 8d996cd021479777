"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Processes side by side share the cores: with as many threads each they would wait for each other most of the time.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # those of tests of several threads sleep while they wait

PROJECT = Path(__file__).parents[1]
# Processes that tests start find the companion as the tests themselves do, by `pythonpath` in pyproject.toml.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT / "book"), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real pairs with a `manifest.csv`: SARMATCH_DATA, or `shared/data` beside the project."""
    root = Path(os.environ.get("SARMATCH_DATA", PROJECT.parent / "shared" / "data"))
    if not (root / "manifest.csv").is_file():
        pytest.skip(f"no real pairs: {root} holds no manifest.csv; name their folder in SARMATCH_DATA")
    return root.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: of processes side by side the others then fill the time that it takes."""
    items.sort(key=lambda item: item.name != "test_the_book_on_ombria")
