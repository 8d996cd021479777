"""How all chapters are executed, several at a time where there are cores for it, built into a site and published."""

import base64
import copy
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from companion.settings import PUBLISHED_PROFILE, BookConfig, book_profile, find_checkout
from companion.site.page_numbers import save_page, update
from sarmatch.io import atomic_path

RUN_METADATA = ("papermill", "execution", "ExecuteTime")  # of notebooks and cells
HERE = Path(__file__).parents[3]  # the checkout that this file belongs to
FRONT_PICTURE = "fig-scenes-joined"  # of README and front page
FIRST = "matching"  # alone: it trains the network that other chapters load, and shows the first result
LAST = "claims"  # reads the results of all others
# The longest first; they begin before the others, so that none runs on alone at the end.
LONG = ("encoders", "labels", "ablation", "comparison", "selfsupervision", "onepass", "calibration")
MOST_WORKERS = 4  # each holds a kernel with a network and its tables, about 1.5 GB
THREADS = "OMP_NUM_THREADS"


class BookError(RuntimeError):
    """A chapter failed or the site could not be built; the message names the notebook and the cell."""


def toc_files(book: Path) -> list[str]:
    """Pages of `_toc.yml` in reading order, relative to `book`, without suffix."""
    return re.findall(r"^[ -]*(?:root|file): *(\S+)", (book / "_toc.yml").read_text(), re.M)


def chapter_names(book: Path) -> list[str]:
    """Pages of the table of contents that are notebooks."""
    return [name for name in toc_files(book) if (book / f"{name}.ipynb").is_file()]


# long because it is the public signature with its contract, and the order of the steps
def build_book(
    profile: str = "demo",
    data_root: str | Path | None = None,
    out: str | Path = "build",
    chapters: Sequence[str] | None = None,
    site: bool = True,
    book: str | Path | None = None,
    runs_dir: str | Path = "runs",
    workers: int | None = None,
) -> Path:
    """Execute chapters into a staged copy of the book and build the site there; tracked files stay as they are.

    Args:
        out: the copy, which is returned, is `<out>/<profile>/book`, the site in its `_build/html`.
        chapters: names to execute; the others keep the outputs of the last build, or else the stored ones.
        book: folder of the sources; default the `book` folder of the checkout.
        workers: chapters at a time, in processes that share the cores; None takes `default_workers`.

    Raises:
        BookError: a cell failed (what ran until then stays in the copy), or jupyter-book did.
    """
    book = Path(book or find_checkout(HERE) / "book")
    data = str(Path(data_root).resolve()) if data_root else None
    names = chapter_names(book)
    config = _checked(profile, data, names, chapters, workers)
    staged = Path(out).resolve() / profile / "book"
    results = staged / "results" / profile
    _stage(book, staged, names)
    parameters = dict(profile=profile, data_root=data, runs_dir=str(Path(runs_dir).resolve()), results_dir=str(results))

    def run(some: Sequence[str]) -> None:
        n = workers or default_workers()
        execute_all(book, staged, some, parameters, n, lambda name: save_page(results, name, config))

    first, together, last = in_order(chapters or names)
    run(first)
    if site and first and together:  # something to read while the others run
        print(f"first result: {build_site(staged).with_name(first[0])}.html", flush=True)
    run(together)
    run(last)
    if site:
        print(f"site: {build_site(staged)}", flush=True)
    return staged


def _checked(
    profile: str, data: str | None, names: Sequence[str], chapters: Sequence[str] | None, workers: int | None
) -> BookConfig:
    """The profile's configuration; rejects now what would fail in a kernel."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    config = book_profile(profile, data)
    forced = os.environ.get("SARMATCH_PROFILE", profile)
    if forced != profile:
        raise ValueError(f"SARMATCH_PROFILE={forced} overrides profile {profile!r} in the chapters; unset it")
    if unknown := set(chapters or ()) - set(names):
        raise ValueError(f"no chapter {sorted(unknown)} in _toc.yml; there are {names}")
    return config


def _stage(book: Path, staged: Path, names: Sequence[str]) -> None:
    """Copy the sources; a notebook that an earlier build executed stays until it is executed again."""
    ignored = shutil.ignore_patterns("_build", "*.ipynb", ".*", "__pycache__", "conftest.py", "ruff.toml")
    shutil.copytree(book, staged, ignore=ignored, dirs_exist_ok=True)
    for name in names:
        if not (staged / f"{name}.ipynb").exists():
            shutil.copyfile(book / f"{name}.ipynb", staged / f"{name}.ipynb")


def default_workers() -> int:
    """As many chapters at a time as there are cores, up to `MOST_WORKERS`; one where a GPU does the work."""
    import torch

    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    return 1 if accelerator else max(1, min(MOST_WORKERS, cores()))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Names divided into what is executed first, what may run at the same time, and what is executed last."""
    first, last = ([name for name in names if name == which] for which in (FIRST, LAST))
    together = [name for name in names if name not in (FIRST, LAST)]
    together.sort(key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    return first, together, last


def execute_all(
    book: Path,
    staged: Path,
    names: Sequence[str],
    parameters: Mapping[str, Any],
    workers: int,
    done: Callable[[str], object],
) -> None:
    """Execute chapters into the staged copy: one process each, with an equal share of the cores as threads.

    Two processes that each start as many threads as there are cores slow each other down ten times; so where several
    run at a time, `OMP_NUM_THREADS` is set for them unless the caller has set it. A `BookError` of one is raised after
    those that had begun are finished; no other is begun.
    """
    if workers == 1 or len(names) < 2:
        for name in names:
            execute(book / f"{name}.ipynb", staged / f"{name}.ipynb", parameters)
            done(name)
        return
    threads = os.environ.get(THREADS) or str(max(1, cores() // workers))
    context = multiprocessing.get_context("spawn")
    waiting, running = list(names), dict[Future[None], str]()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_set_threads, initargs=(threads,)) as pool:
        # No more are handed to the pool than run, since what it has taken cannot be called back.
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                paths = book / f"{name}.ipynb", staged / f"{name}.ipynb"
                running[pool.submit(execute, *paths, dict(parameters))] = name
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(job)
                try:
                    job.result()
                except BrokenProcessPool as error:
                    raise BookError(f"{name}: its process was ended, perhaps for memory; try --workers 1") from error
                done(name)


def _set_threads(threads: str) -> None:
    os.environ[THREADS] = threads  # kernels inherit it


def execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    """Execute one chapter; where a cell fails, what ran until then is in the target, and `BookError` names it."""
    import papermill

    start = time.perf_counter()
    try:
        kernel = {"kernel_name": "python3", "language": "python", "cwd": target.parent}
        kernel["extra_arguments"] = ["--IPKernelApp.log_level=ERROR"]  # else each kernel warns of its transport
        progress = {"desc": source.stem, "disable": None}  # None: only where a person watches
        papermill.execute_notebook(source, target, parameters=dict(parameters), progress_bar=progress, **kernel)
    except papermill.PapermillExecutionError as error:
        lines = [line for line in error.source.splitlines() if line.strip()]
        raise BookError(
            f"{source.name}, cell In [{error.exec_count}], which begins {lines[0] if lines else ''!r}: "
            f"{error.ename}: {error.evalue}\nWhat ran is in {target}; mend the cause and run the command again: "
            "stored runs are loaded, not trained anew"
        ) from None
    print(f"{source.name}: executed in {time.perf_counter() - start:.1f} s", flush=True)


def build_site(book: Path) -> Path:
    """Run `jupyter-book build` on a folder of pages and return the site's `index.html`; `BookError` if it fails."""
    command = shutil.which("jupyter-book", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH')}")
    if command is None:
        raise BookError("jupyter-book is not installed; pip install -e '.[book]'")
    log = book.parent / "jupyter-book.log"
    with log.open("w") as stream:
        done = subprocess.run([command, "build", str(book)], stdout=stream, stderr=subprocess.STDOUT)
    index = book / "_build" / "html" / "index.html"
    if done.returncode or not index.is_file():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BookError(f"jupyter-book ended with {done.returncode}, log in {log}:\n{tail}")
    return index


def publish(
    staged: Path,
    profile: str,
    data_root: str | Path | None = None,
    chapters: Sequence[str] | None = None,
    book: str | Path | None = None,
) -> None:
    """Write executed chapters and their result tables back to the tracked book, without paths of this machine.

    `staged` is what `build_book` returned; outputs that print the folder of the data show `DATA` instead.
    """
    import nbformat

    book = Path(book or find_checkout(HERE) / "book")
    private = {str(Path.home()): "~", sys.prefix: "PYTHON", str(book.resolve().parent): ".", str(staged): "."}
    if data_root:
        private |= {str(data_root): "DATA", str(Path(data_root).resolve()): "DATA"}
    for name in chapters or chapter_names(book):
        notebook = nbformat.read(staged / f"{name}.ipynb", as_version=4)
        with atomic_path(book / f"{name}.ipynb") as partial:
            nbformat.write(clean_notebook(notebook, private), partial)
        if picture := _picture(notebook):
            (book / "_static" / "matches.png").write_bytes(picture)
    tables = staged / "results" / profile
    if tables.is_dir():
        shutil.copytree(tables, book / "results" / profile, dirs_exist_ok=True)
    if (tables / "matching.json").is_file() and profile == PUBLISHED_PROFILE:
        update(book.parent / "README.md", tables)
        update(book / "index.md", tables, ("summary", "headline"))


def _picture(notebook: Any) -> bytes | None:
    """The drawing of `FRONT_PICTURE`."""
    cells = [c for c in notebook.cells if c.metadata.get("mystnb", {}).get("figure", {}).get("name") == FRONT_PICTURE]
    drawn = [o["data"]["image/png"] for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    return base64.b64decode(drawn[0]) if drawn else None


def clean_notebook(notebook: Any, private: Mapping[str, str]) -> Any:
    """A copy as it is stored: no injected cell, times or warnings, and `private` text in outputs replaced."""
    import nbformat

    clean, count = copy.deepcopy(notebook), 0
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    clean.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in clean.cells:
        for key in RUN_METADATA:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            shown = json.dumps([o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")])
            for old in sorted(private, key=len, reverse=True):  # longest first: a path before its parent
                shown = shown.replace(json.dumps(old)[1:-1], json.dumps(private[old])[1:-1])
            cell.outputs = nbformat.from_dict(json.loads(shown))
            if cell.source.strip():
                count += 1
                cell.execution_count = count
                for output in cell.outputs:
                    if "execution_count" in output:
                        output.execution_count = count
    return clean
