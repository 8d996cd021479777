"""Sphinx extension: two habits of docstrings written for readers of the source mean something else to Sphinx."""

from __future__ import annotations

from typing import Any


def keep_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace("|", r"\|") for line in lines]  # |G| is the size of a set, not a substitution
    if what == "attribute" and lines:
        lines[0] = f": {lines[0]}"  # an empty type: napoleon takes what stands before the first colon for the type


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", keep_text, priority=400)  # napoleon has 500
    return {"parallel_read_safe": True}
