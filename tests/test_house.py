"""The layout of the two packages: which module may import which, and how long files and functions are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
HOMES = {"sarmatch": PROJECT / "sarmatch", "companion": PROJECT / "book" / "companion"}
LAYERS = {
    "sarmatch": (
        {"config"},
        {"io", "geometry", "profiles"},
        {"calibration"},
        {"data", "model"},
        {"matching"},
        {"evaluation", "visualize"},
        {"training", "scenes", "demo"},
        {"cli"},
        {"__init__", "__main__"},
    ),
    "companion": (
        {"settings", "cache", "timing", "intervals"},
        {"baselines", "shipping", "networks"},
        {"studies"},
        {"figures"},
        {"claims", "site", "benchmarks"},
        {"cli"},
        {"__init__", "__main__"},
    ),
}
"""From the lowest; rooms of one layer may import each other, as long as there is no circle of modules."""
MOST_LINES = {"sarmatch": 10985, "companion": 8398}
FILE_LINES = 350
FUNCTION_LINES = 40


def modules(package: str) -> dict[str, Path]:
    """Dotted name of every module of a package, and its file."""
    home, found = HOMES[package], {}
    for path in sorted(home.rglob("*.py")):
        parts = [package, *path.relative_to(home).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


ALL = modules("sarmatch") | modules("companion")


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a source imports, and whether it does so when it is imported itself."""
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.Lambda) or _for_types(outer)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in ALL else node.module, id(node) not in lazy
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def room(module: str) -> str:
    """The folder or file directly below the package that a module lies in."""
    return [*module.split("."), "__init__"][1]


def layer(module: str) -> int:
    package = module.split(".")[0]
    return next(i for i, rooms in enumerate(LAYERS[package]) if room(module) in rooms)


@pytest.mark.parametrize("package", HOMES)
def test_no_import_runs_up(package):
    """Nor, in a function, around the layers; the core knows nothing of the companion."""
    wrong = []
    for module, path in modules(package).items():
        for other, _ in imported(ast.parse(path.read_text())):
            if other.split(".")[0] == package and other in ALL and layer(other) > layer(module):
                wrong.append(f"{module} imports {other}")
            elif package == "sarmatch" and other.split(".")[0] == "companion":
                wrong.append(f"{module} of the core imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", HOMES)
def test_no_circle_of_imports(package):
    graph = {
        module: {other for other, now in imported(ast.parse(path.read_text())) if now and other in ALL} - {module}
        for module, path in modules(package).items()
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", HOMES)
def test_the_package_is_small(package):
    sizes = {str(path.relative_to(PROJECT)): path.read_text().count("\n") for path in modules(package).values()}
    assert not {path: n for path, n in sizes.items() if n > FILE_LINES}
    assert sum(sizes.values()) <= MOST_LINES[package]


@pytest.mark.parametrize("package", HOMES)
def test_a_long_function_says_why_it_is(package):
    """By a comment `long because ...` on the line above it or within it."""
    silent = []
    for path in modules(package).values():
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                around = "\n".join(text.splitlines()[first - 3 : node.end_lineno])
                if not re.search(r"# .*\blong because\b", around):
                    silent.append(f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}")
    assert not silent, "\n".join(silent)
