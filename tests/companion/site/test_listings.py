"""Listings of code that chapters store, by `source(...)`, are the code as it is, and what chapters call exists."""

from __future__ import annotations

import ast
import types
from pathlib import Path
from typing import Any

import nbformat
import pytest

BOOK = Path(__file__).parents[3] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb"))


def code_cells(name: str) -> list[Any]:
    return [cell for cell in nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]


def imported(cells: list[Any]) -> dict[str, Any]:
    """What the imports of a chapter bring."""
    names: dict[str, Any] = {}
    for cell in cells:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), "chapter", "exec"), names)
    return names


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_a_chapter_calls_exists(name: str) -> None:
    cells = code_cells(name)
    names = imported(cells)
    used = [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Attribute)]
    of_modules = [
        n for n in used if isinstance(n.value, ast.Name) and isinstance(names.get(n.value.id), types.ModuleType)
    ]
    assert not [f"{n.value.id}.{n.attr}" for n in of_modules if not hasattr(names[n.value.id], n.attr)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_stored_listings_are_the_code(name: str) -> None:
    cells = code_cells(name)
    names = imported(cells)
    for cell in cells:
        if cell.source.startswith(("source(", "encoders.source(")) and len(ast.parse(cell.source).body) == 1:
            stored = [output["data"]["text/markdown"] for output in cell.outputs]
            assert stored == [eval(cell.source, names).data], "execute the cell again and store its output"
