"""Sphinx extension: numbers stay together, wide figures scroll before they shrink."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image

INTERVAL = re.compile(r"(<td>-?[\d.]+) (\[-?[\d.]+, -?[\d.]+\])(?=</td>)")
EXPONENT = re.compile(r"<td>(?=-?[\d.]+e[-+]\d+</td>)")
WIDTHS = {"figure-wide": 1000, "figure-broad": 700}
"""Classes of figures by least width, px; `custom.css` says how far each may shrink."""


def keep_together(doctree: nodes.document) -> None:
    for node in doctree.findall(nodes.raw):
        if "dataframe" in node.astext():
            together = r'\1 <span class="interval">\2</span>'
            text = EXPONENT.sub(
                '<td class="number">', INTERVAL.sub(together, node.astext())
            )
            node.children = [nodes.Text(text)]


def mark_figures(app: Any, doctree: nodes.document) -> None:
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for node in doctree.findall(nodes.image):
        path = folder / node["uri"].lstrip("/")
        if path.suffix != ".png" or not path.is_file():
            continue
        with Image.open(path) as picture:
            width = picture.width
        kind = next((name for name, least in WIDTHS.items() if width >= least), None)
        node["classes"] += [kind] if kind else []


def improve(app: Any, doctree: nodes.document) -> None:
    keep_together(doctree)
    mark_figures(app, doctree)


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", improve)
    return {"parallel_read_safe": True}
