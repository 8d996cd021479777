"""What `pip install sarmatch` brings: the package without the companion, enough to match two images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked sources, so that nothing is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without a network")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if name.startswith("sarmatch/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, copy / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
    ]
    subprocess.run([*build, str(copy)], check=True)
    (built,) = out.glob("sarmatch-*.whl")
    return built


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sarmatch"}
    assert not [name for name in names if "companion" in name]
    assert any(name.endswith("weights/s1s2.safetensors") for name in names)


def test_two_images_are_matched_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    home, folder = tmp_path / "installed", tmp_path / "work"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(home)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        f"import sys; sys.path = [p for p in sys.path if p != {str(PROJECT)!r}]\n"
        "import sarmatch, importlib.util\n"
        f"assert sarmatch.__file__.startswith({str(home)!r}), sarmatch.__file__\n"
        "assert importlib.util.find_spec('companion') is None\n"
        "from sarmatch.cli import main\n"
        "from sarmatch.demo import FOLDER\n"
        "sar, optical = (str(FOLDER / name) for name in ('sar.tif', 'optical.tif'))\n"
        "sys.exit(main(['match', sar, optical, '-o', 'matches.csv']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": str(home)
    }
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    assert len((folder / "matches.csv").read_text().splitlines()) > 100
