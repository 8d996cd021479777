"""The files that describe the environment agree with each other."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import sarmatch

PROJECT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
ENVIRONMENT = yaml.safe_load((PROJECT / "environment.yml").read_text())


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0].lower()


def _conda() -> list[str]:
    return [item for item in ENVIRONMENT["dependencies"] if isinstance(item, str)]


def _pip() -> list[str]:
    return next(item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict))


def test_environment_has_only_keys_that_conda_reads() -> None:
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}


def test_environment_installs_this_package_with_all_extras_but_peers() -> None:
    # Those need packages beside them that must be installed without their own dependencies.
    extras = ",".join(name for name in PYPROJECT["project"]["optional-dependencies"] if name != "peers")
    assert _pip() == [f"-e .[{extras}]"]
    assert "pip" in _conda()


def test_nothing_is_listed_twice() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    names = [_name(r) for group in (project["dependencies"], *extras) for r in group]
    assert len(names) == len(set(names))
    assert not set(names) & {_name(item) for item in _conda()}


def test_python_of_both_files_agrees() -> None:
    python = next(item for item in _conda() if _name(item) == "python")
    assert python.removeprefix("python") == PYPROJECT["project"]["requires-python"]


def test_every_requirement_states_a_floor_and_why() -> None:
    lines = [line for line in (PROJECT / "pyproject.toml").read_text().splitlines() if re.match(r'\s+"[\w-]+>=', line)]
    groups = [PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"].values()]
    assert len(lines) == sum(map(len, groups)), "a requirement has no floor"
    assert all("  # " in line for line in lines)


@pytest.mark.parametrize("name", ["_config.yml", "_toc.yml"])
def test_book_links_to_the_root(name: str) -> None:
    link = PROJECT / "book" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (PROJECT / name).resolve()


def test_citation_and_changelog_name_the_version() -> None:
    released = PYPROJECT["project"]["version"]
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == released
    assert f"## {released}" in (PROJECT / "CHANGELOG.md").read_text()


def test_installed_metadata_is_of_this_version() -> None:
    """The provenance line of every chapter reads it."""
    assert version("sarmatch") == sarmatch.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("name", ["Dockerfile", ".binder/postBuild", "Makefile"])
def test_every_way_to_install_names_extras_that_exist(name: str) -> None:
    named = re.findall(r"-e '\.\[([\w,]+)\]'", (PROJECT / name).read_text())
    assert named, "nothing is installed"
    assert set(named[0].split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def test_binder_has_the_torch_that_the_project_asks_for() -> None:
    packages = yaml.safe_load((PROJECT / ".binder" / "environment.yml").read_text())["dependencies"]
    floor = next(r for r in PYPROJECT["project"]["dependencies"] if _name(r) == "torch").removeprefix("torch")
    assert f"pytorch-cpu{floor}" in packages


def test_readme_promises_the_tolerances_that_are_tested() -> None:
    from sarmatch.io import SAME_MATCH_PX, SAME_MATCH_SHARE
    from sarmatch.training.supervised import THREADS_RTOL, THREADS_STEPS

    text = " ".join((PROJECT / "README.md").read_text().split())
    assert f"at least {100 * SAME_MATCH_SHARE:g} % of the matches are the same within {SAME_MATCH_PX:g} px" in text
    assert f"agree within {100 * THREADS_RTOL:g} % over its first {THREADS_STEPS} steps" in text


def test_nothing_but_the_code_sets_a_number_of_threads() -> None:
    for name in ("Makefile", ".ci/run", ".github/workflows/ci.yml", "Dockerfile"):
        assert "NUM_THREADS" not in (PROJECT / name).read_text(), name
