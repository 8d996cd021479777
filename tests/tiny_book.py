"""A book of one page and two chapters, written by the tests that execute it."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

LITERALS = 'profile = "demo"\ndata_root = None\nruns_dir = None\nresults_dir = None'


def write_chapter(path: Path, *sources: str) -> None:
    parameters = new_code_cell(LITERALS, metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[new_markdown_cell(f"# {path.stem}"), parameters, *map(new_code_cell, sources)]), path
    )


def write_book(book: Path) -> Path:
    """A book of one page and two chapters."""
    (book / "_static").mkdir(parents=True)
    (book / "_static" / "custom.css").write_text("p {}")
    (book / "_config.yml").write_text("title: Tiny\nexecute: {execute_notebooks: 'off'}\nonly_build_toc_files: true\n")
    (book / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: first\n- file: second\n")
    (book / "index.md").write_text("# Tiny\n")
    write_chapter(book / "first.ipynb", "print(profile, data_root)")
    write_chapter(
        book / "second.ipynb",
        "from pathlib import Path\nimport sys\nPath(results_dir).mkdir(parents=True, exist_ok=True)",
        "Path(results_dir, 'table.csv').write_text('a')\nprint('at', Path.cwd())\nprint('warn', file=sys.stderr)",
    )
    return book
