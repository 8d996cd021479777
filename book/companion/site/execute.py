"""Chapters executed by papermill, several at a time where there are cores for it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

FIRST = "matching"  # alone: it trains the network that other chapters load, and shows the first result
LAST = "claims"  # reads the results of all others
# The longest first; they begin before the others, so that none runs on alone at the end.
LONG = ("encoders", "labels", "ablation", "comparison", "selfsupervision", "onepass", "calibration")
MOST_WORKERS = 4  # each holds a kernel with a network and its tables, about 1.5 GB
THREADS = "OMP_NUM_THREADS"


class BookError(RuntimeError):
    """A chapter failed or the site could not be built; the message names the notebook and the cell."""


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
