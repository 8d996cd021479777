"""Sphinx extension: an interval in a table of results stays on one line."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

CELL = re.compile(r"(<td>-?[\d.]+) (\[-?[\d.]+, -?[\d.]+\])(?=</td>)")


def keep_together(app: Any, doctree: nodes.document) -> None:
    for node in doctree.findall(nodes.raw):
        if "dataframe" in node.rawsource or "dataframe" in node.astext():
            shown = CELL.sub(r'\1 <span class="interval">\2</span>', node.astext())
            node.children = [nodes.Text(shown)]


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", keep_together)
    return {"parallel_read_safe": True}
