"""Sphinx extension: three habits of our docstrings that Sphinx would take otherwise."""

from __future__ import annotations

from typing import Any


def keep_text(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    # |G| is the size of a set, not a substitution.
    lines[:] = [line.replace("|", r"\|") for line in lines]
    if what in ("attribute", "data") and lines:
        # Napoleon takes the text before the first colon for a type: give an empty one.
        lines[0] = f": {lines[0]}"


def skip_alias(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    # Fields of a named tuple are described in the docstring of its class.
    text = getattr(obj, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    # Before napoleon, which has priority 500.
    app.connect("autodoc-process-docstring", keep_text, priority=400)
    app.connect("autodoc-skip-member", skip_alias)
    return {"parallel_read_safe": True}
