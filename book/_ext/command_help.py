"""Sphinx extension: `{command-help} train` shows `sarmatch train --help`.

After `companion` stands a command of the book: `{command-help} companion study`.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from companion.cli import main as companion_main
from sarmatch.cli import main

WIDTH = "76"  # columns that the page holds


class CommandHelp(Directive):
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        command = self.arguments[0].split() if self.arguments else []
        of_book = command[:1] == ["companion"]
        text, columns = io.StringIO(), os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = WIDTH
        try:
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                (companion_main if of_book else main)([*command[of_book:], "--help"])
        finally:
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns
        block = nodes.literal_block(text.getvalue(), text.getvalue(), language="text")
        return [nodes.container("", block, classes=["command-help"])]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
