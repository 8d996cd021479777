"""Sphinx extension: sphinx-thebe declares its constants twice, which is an error."""

from __future__ import annotations

from typing import Any


def drop_second(
    app: Any, page: str, template: str, context: dict, doctree: Any
) -> None:
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            kept.append(script)
        if body is not None:
            seen.add(body)
    context["script_files"] = kept


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", drop_second, priority=900)
    return {"parallel_read_safe": True}
