"""What keeps a chapter from being stored as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from companion.settings import _ABSOLUTE_PATH
from companion.site.build import RUN_METADATA


def notebook_problems(path: str | Path) -> list[str]:
    """One line each; empty where it is fine."""
    notebook = nbformat.read(path, as_version=4)
    problems = ["papermill metadata of the notebook"] if "papermill" in notebook.metadata else []
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(parameters) != 1:
        problems.append(f"{len(parameters)} cells tagged 'parameters', expected one")
    for number, cell in enumerate(notebook.cells):
        problems.extend(f"cell {number}: {problem}" for problem in _cell_problems(cell))
    return problems


def _cell_problems(cell: Any) -> list[str]:
    problems = [f"{key} metadata" for key in RUN_METADATA if key in cell.metadata]
    if "injected-parameters" in cell.metadata.get("tags", []):
        problems.append("injected parameters")
    outputs = cell.get("outputs", [])
    problems.extend(f"stored error {output.ename}" for output in outputs if output.output_type == "error")
    paths = (_ABSOLUTE_PATH.search(text) for text in (cell.source, *_texts(outputs)))
    problems.extend(f"absolute path {path.group()!r}" for path in paths if path)
    return problems


def _texts(value: Any) -> Iterator[str]:
    """All strings of nested outputs but the bytes of images."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("image/"):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
