"""The commands that README, pages, chapters and docstrings print, found as a reader would: by how they look."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PROGRAMS = "sarmatch|make|jupyter|jupyter-book|pytest|accelerate|docker|conda|pip|python|papermill|git"
BEGINS = rf"(?:[A-Z]+=\S+ )*(?:{PROGRAMS}) "
"""How a command begins: variables of the environment, a program, and something for it."""
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.M | re.S)


def printed_commands() -> dict[str, list[str]]:
    """Every printed command with the places that print it; a block of Python is named by its first own line."""
    found: dict[str, list[str]] = {}
    for place, text, is_code in _texts():
        for command in _of_docstring(text) if is_code else _of_markdown(text):
            found.setdefault(command, []).append(place)
    return found


def python_blocks() -> dict[str, str]:
    """Every printed block of Python by its first own line."""
    texts = (text for _, text, is_code in _texts() if not is_code)
    blocks = [body for text in texts for kind, body in FENCE.findall(text) if kind == "python"]
    return {first_line(body): body for body in blocks}


def first_line(block: str) -> str:
    """The first line of a block of Python that is no import, without its comment."""
    own = (line for line in block.splitlines() if line and not re.match(r"import |from .* import ", line))
    return next(own).split("  #")[0]


def _texts() -> Iterator[tuple[str, str, bool]]:
    """Place, text, and whether it is a docstring or a comment at the head of a file."""
    for page in [PROJECT / "README.md", *sorted((PROJECT / "book").glob("*.md"))]:
        yield page.name, page.read_text(), False
    yield "weights/README.md", (PROJECT / "sarmatch" / "weights" / "README.md").read_text(), False
    for chapter in sorted((PROJECT / "book").glob("*.ipynb")):
        cells = json.loads(chapter.read_text())["cells"]
        words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        yield chapter.name, "\n\n".join(words), False
    for module in sorted([*PROJECT.glob("sarmatch/**/*.py"), *PROJECT.glob("book/companion/**/*.py")]):
        yield module.name, ast.get_docstring(ast.parse(module.read_text()), clean=False) or "", True
    head = (PROJECT / "Dockerfile").read_text().splitlines()[0]
    yield "Dockerfile", "    " + head.removeprefix("# "), True


def _of_markdown(text: str) -> Iterator[str]:
    for kind, body in FENCE.findall(text):
        if kind == "python":
            yield first_line(body)
        else:
            yield from _lines(body, "")
    prose = FENCE.sub("", text)
    yield from _lines(prose, "    ")
    for span in re.findall(r"`([^`\n]+)`", prose):
        if re.match(rf"{BEGINS}|[A-Z]+=", span):
            yield span


def _of_docstring(text: str) -> Iterator[str]:
    """Lines that are indented, as literal blocks are."""
    yield from _lines(text, "    ")


def _lines(text: str, indent: str) -> Iterator[str]:
    """Lines that are a command, without their comment, and the command that a comment names instead."""
    for line in re.findall(rf"^{indent}({BEGINS}.*)$", text, re.M):
        command, _, comment = line.partition("  # ")
        yield command.rstrip()
        if comment.strip().startswith("or: "):
            yield comment.strip().removeprefix("or: ")
