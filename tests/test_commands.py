"""Every command that README, pages, chapters and docstrings print is run as printed, or the table says how or why not.

A command that is printed and does not stand in `command_table.py` fails here, and so does an entry that nothing prints.
Commands of this package are called in this process, so that Python and its libraries start once.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import tyro
from command_table import ELSEWHERE, NAMES, NOT_RUN, OPTIONS, RECIPES, SEQUENCES, Step
from data.make_ombria import write_ombria
from data.serve import serving, write_registry
from printed import PROJECT, printed_commands, python_blocks

from companion import cli as companion_cli
from companion.site.build import chapter_names
from sarmatch import cli, load_matcher
from sarmatch.data.datasets import SCENES
from sarmatch.demo import FOLDER

BIN = Path(sys.executable).parent
STEPS = [step for steps in SEQUENCES.values() for step in steps]
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SARMATCH_PROFILE", "SARMATCH_DATA", "SARMATCH_OUT")


def test_the_table_is_what_is_printed() -> None:
    table = [*(step.printed for step in STEPS), *NAMES, *RECIPES, *OPTIONS, *ELSEWHERE, *NOT_RUN]
    assert len(table) == len(set(table)), "a command has one entry"
    printed = printed_commands()
    missing = {command: places for command, places in printed.items() if command not in table}
    assert not missing, "say in command_table.py how these are tested"
    stale = [command for command in table if command not in printed]
    assert not stale, "nothing prints these any more"


# Sequences, each in a folder of its own


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the two images of the demo, and the variables of a user's shell."""
    for name in OF_MAKE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for name in ("sar.tif", "optical.tif"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def ombria(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, of 128 px: chapters take half the time that they would with 256."""
    return write_ombria(tmp_path_factory.mktemp("served"), size=128)


def test_two_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pairs.csv").write_text("sar,optical,output\nsar.tif,optical.tif,first.tif\n")
    run("two images", capsys)
    assert (folder / "first.tif").read_bytes() == (folder / "registered.tif").read_bytes()
    assert "radius_px" in pd.read_csv(folder / "m.csv")


@pytest.fixture
def download(ombria: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both sets come from this machine, and OMBRIA has the pairs of the miniature only."""
    # By name, because the package's attributes of these names are functions.
    module = importlib.import_module("sarmatch.data.download")
    registries = tmp_path_factory.mktemp("registries")
    scenes = tmp_path_factory.mktemp("scenes")
    for name in ("dataset/sar/003.png", "dataset/opt/003.png"):
        (scenes / name).parent.mkdir(parents=True)
        (scenes / name).write_bytes(name.encode())
    write_registry(registries / "ombria.txt", ombria)
    write_registry(registries / "optical-sar.txt", scenes)
    monkeypatch.setattr(module, "REGISTRIES", registries)
    table = pd.read_csv(SCENES, dtype=str)
    table[[(ombria / name).is_file() for name in table["sar"]]].to_csv(registries / "scenes.csv", index=False)
    monkeypatch.setattr(importlib.import_module("sarmatch.data.datasets"), "SCENES", registries / "scenes.csv")
    with serving(ombria) as one, serving(scenes) as other:
        urls = {"ombria": one.url, "optical-sar": other.url}
        monkeypatch.setattr(module, "_pinned_url", lambda registry: urls[registry.stem])
        yield


def test_a_network_of_ones_own(folder: Path, download: None, capsys: pytest.CaptureFixture[str]) -> None:
    run("a network of one's own", capsys)
    for path in folder.glob("runs/s1s2-smoke/matcher-*"):
        assert load_matcher(path).confidence is not None
        assert {"single", "monte_carlo"} <= set(load_matcher(path).confidence.calibrators)


def test_the_book_on_ombria(folder: Path, ombria: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ombria, folder / "data" / "ombria")
    run("the book on OMBRIA", capsys)
    staged = folder / "build" / "s1s2-smoke" / "book"
    for name in chapter_names(PROJECT / "book"):
        cells = nbformat.read(staged / f"{name}.ipynb", as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), name
        assert "profile s1s2-smoke" in (staged / "_build" / "html" / f"{name}.html").read_text(), name
    assert set(pd.read_csv(staged / "results" / "s1s2-smoke" / "matching.csv")["source"]) == {"OMBRIA"}
    assert (folder / recipe("make serve PROFILE=s1s2-smoke")[0].split()[-2]).is_dir()


@pytest.mark.parametrize("name", ["SEN12MS", "two processes", "tools"])
def test_the_rest(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "tools":
        for entry in ("book", "benchmarks", "tests", "pyproject.toml"):
            (folder / entry).symlink_to(PROJECT / entry)
    run(name, capsys)


def run(sequence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the steps of a sequence, and check what each leaves and says."""
    last = ""
    for step in SEQUENCES[sequence]:
        call(step, last)
        last = capsys.readouterr().out
        missing = [pattern for pattern in step.makes if not list(Path().glob(pattern))]
        silent = [words for words in step.says if words not in last]
        assert not missing and not silent, f"{step.printed}: no {missing or silent}\n{last}"


def call(step: Step, last: str) -> None:
    """Run a step in this process where it is this package's own, else in a shell.

    Args:
        last: what the step before printed; RUN stands for the run's folder in it.
    """
    block = python_blocks().get(step.printed)
    command = replaced(block or step.printed, step) + (f" {step.add}" if step.add else "")
    if "RUN" in command:
        command = command.replace("RUN", next(line for line in last.splitlines() if line.startswith("runs/")))
    if block:
        exec(compile(command, step.printed, "exec"), {"sar": "sar.tif", "optical": "optical.tif"})
        return
    if command.startswith("make "):
        (command,) = recipe(command)
    words = shlex.split(command)
    if words[0] == "sarmatch":
        assert cli.main(words[1:]) == 0, command
    elif words[:3] == ["python", "-m", "companion"]:
        assert companion_cli.main(words[3:]) == 0, command
    elif words[:2] == ["python", "-m"] and words[2].startswith("companion."):
        call_script(words[2:])
    else:
        in_a_shell(command.replace("PROJECT", str(PROJECT)))


def replaced(text: str, step: Step) -> str:
    for printed, instead in step.put.items():
        assert printed in text, f"{step.printed!r} has no {printed!r} to put {instead!r} for"
        text = text.replace(printed, instead)
    return text


def call_script(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_module(words[0], run_name="__main__")


def in_a_shell(command: str) -> None:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    print(done.stdout)


# What is not run


def recipe(command: str) -> list[str]:
    """What make would run, without the folder of the programs and without an installation."""
    words = shlex.split(command)
    words = words if words[0] == "make" else ["make", "book", *words]
    words += ["--dry-run", "--no-print-directory", f"VENV={sys.prefix}", f"--assume-old={sys.prefix}/.stamp"]
    environment = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    lines = [line.removeprefix(f'PYTHONPATH="{PROJECT}/book" ') for line in done.stdout.splitlines()]
    start = f"{sys.prefix}/bin/"
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("command", RECIPES)
def test_what_make_runs(command: str) -> None:
    assert tuple(shlex.join(shlex.split(line)) for line in recipe(command)) == RECIPES[command]


@pytest.mark.parametrize("command", NAMES)
def test_what_is_only_named_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.removesuffix(" --help").split()[1:], "--help"])
    assert ended.value.code == 0 and f"usage: {' '.join(command.split()[:2])}" in capsys.readouterr().out


@pytest.mark.parametrize("command", OPTIONS)
def test_scripts_take_the_options_printed(command: str) -> None:
    words = shlex.split(command.replace("[", "").replace("]", ""))[2:]
    main = importlib.import_module(words[0]).main
    taken = tyro.cli(functools.wraps(main)(lambda *_, **given: given), args=words[1:])
    assert {f"--{name.replace('_', '-')}" for name in taken} >= {word for word in words if word.startswith("--")}


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_tested_elsewhere_is(command: str) -> None:
    file, name = ELSEWHERE[command].split("::")
    assert f"def {name}(" in (PROJECT / "tests" / file).read_text()


def test_extras_that_are_printed_exist() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    printed = next(command for command in NOT_RUN if command.startswith("pip "))
    assert set(printed.split("[")[1].split("]")[0].split(",")) <= set(extras)
