"""`pytest --nbval book` runs chapters on the smallest profile and leaves no runs."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

# Chapters side by side share the cores: with as many threads each, their kernels
# would wait for each other.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("nbval", False) or config.getoption("nbval_lax", False):
        os.environ.setdefault("SARMATCH_PROFILE", "smoke")
        if "SARMATCH_OUT" not in os.environ:
            os.environ["SARMATCH_OUT"] = tempfile.mkdtemp(prefix="sarmatch-nbval-")
            config.add_cleanup(
                lambda: shutil.rmtree(
                    os.environ.pop("SARMATCH_OUT"), ignore_errors=True
                )
            )
