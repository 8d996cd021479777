"""Sphinx extension: a chapter ends with where its stored outputs come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes

from companion.settings import PUBLISHED_PROFILE
from companion.site.page_numbers import page_file, page_lines


def add_provenance(app: Any, doctree: nodes.document) -> None:
    results = Path(app.srcdir) / "results"
    note = page_file(results, app.env.docname, PUBLISHED_PROFILE)
    if note is None or not doctree.children:
        return
    app.env.note_dependency(str(note))
    items = nodes.bullet_list()
    for heading, words in page_lines(note):
        line = nodes.paragraph(
            "", "", nodes.literal("", heading), nodes.Text(f": {words}")
        )
        items += nodes.list_item("", line)
    title = nodes.paragraph(
        "", "Where these numbers come from", classes=["provenance-title"]
    )
    doctree.children[-1] += nodes.container(
        "", title, items, classes=["page-provenance"]
    )


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", add_provenance)
    return {"parallel_read_safe": True}
