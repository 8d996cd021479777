"""Notebooks as they are stored: outputs kept, everything that differs from run to run or machine to machine removed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from companion.settings import _ABSOLUTE_PATH

_RUN_METADATA = ("papermill", "execution", "ExecuteTime")


def clean_notebook(notebook: Any, private: Mapping[str, str] | None = None) -> Any:
    """A copy as it is stored: no injected cell, times or warnings, and `private` text in outputs replaced."""
    import nbformat

    clean = copy.deepcopy(notebook)
    clean.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in clean.cells:
        for key in _RUN_METADATA:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            cell.outputs = [nbformat.from_dict(_replace_text(dict(o), private or {})) for o in outputs]
    for count, cell in enumerate((c for c in clean.cells if c.cell_type == "code" and c.source.strip()), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return clean


def _replace_text(value: Any, replacements: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for old in sorted(replacements, key=len, reverse=True):  # longest first: a path before its parent
            value = value.replace(old, replacements[old])
        return value
    if isinstance(value, dict):
        return {key: _replace_text(item, replacements) for key, item in value.items()}
    return [_replace_text(item, replacements) for item in value] if isinstance(value, list) else value


def notebook_problems(path: str | Path) -> list[str]:
    """What keeps a chapter from being stored as it is: one line each, empty where it is fine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    problems = ["papermill metadata of the notebook"] if "papermill" in notebook.metadata else []
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(parameters) != 1:
        problems.append(f"{len(parameters)} cells tagged 'parameters', expected one")
    for number, cell in enumerate(notebook.cells):
        problems.extend(f"cell {number}: {problem}" for problem in _cell_problems(cell))
    return problems


def _cell_problems(cell: Any) -> list[str]:
    problems = [f"{key} metadata" for key in _RUN_METADATA if key in cell.metadata]
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
