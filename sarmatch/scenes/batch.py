"""Pairs in a list, registered in parallel here or by workers of a Dask scheduler; failures do not stop the rest."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import pandas as pd
from tqdm import tqdm

from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pipeline import register
from sarmatch.scenes.settings import MatchSettings, Model
from sarmatch.scenes.windows import processes


class PairFiles(NamedTuple):
    sar: str
    optical: str
    output: str


COLUMNS = PairFiles._fields
OUTCOME = (*COLUMNS, "status", "reason", "n_agree", "share", "rmse_px", "ce90_px", "ce90_m", "seconds")
"""Columns of the table of outcomes; status is `registered`, `refused` or `failed`."""


def read_pairs(path: str | os.PathLike[str]) -> list[PairFiles]:
    """The pairs of a CSV (columns sar, optical, output), or of STAC items (assets sar and optical; output ID.tif).

    Relative paths within are relative to its folder.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no list of pairs at {path}; check the path")
    try:
        if source.suffix.lower() in (".json", ".geojson"):
            pairs = list(_stac_pairs(json.loads(source.read_text(encoding="utf-8")), source))
        else:
            pairs = list(_csv_pairs(source))
    except (UnicodeDecodeError, json.JSONDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: neither a CSV nor STAC items ({error})") from error
    if not pairs:
        raise ValueError(f"{path}: lists no pairs")
    if twice := sorted(output for output, n in Counter(pair.output for pair in pairs).items() if n > 1):
        raise ValueError(f"{path}: names the output {twice[0]} more than once; give each pair its own")
    return pairs


def _csv_pairs(source: Path) -> Iterator[PairFiles]:
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    if missing := set(COLUMNS) - set(table.columns):
        raise ValueError(f"{source}: expected the columns {', '.join(COLUMNS)}; {sorted(missing)} are missing")
    for row in table[list(COLUMNS)].itertuples(index=False):
        if not all(row):
            raise ValueError(f"{source}: a row has an empty {', '.join(COLUMNS)}: {tuple(row)}")
        yield PairFiles(*(str(source.parent / value) for value in row))


def _stac_pairs(content: Any, source: Path) -> Iterator[PairFiles]:
    """Items of a FeatureCollection, a list of items, or one item."""
    items = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise ValueError(f"{source}: expected a STAC item, a list of them or a FeatureCollection")
    for item in items:
        try:
            sar, optical = (_path(item["assets"][name]["href"], source.parent) for name in ("sar", "optical"))
            yield PairFiles(sar, optical, str(source.parent / f"{Path(str(item['id'])).name}.tif"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{source}: a STAC item needs an id and the assets sar and optical with href") from error


def _path(href: str, folder: Path) -> str:
    """A local path of an asset's href; what GDAL reads from a server stays as it is."""
    parts = urlparse(href)
    if parts.scheme == "file":
        return unquote(parts.path)
    return href if len(parts.scheme) > 1 or href.startswith("/vsi") else str(folder / href)


def register_all(
    pairs: Iterable[PairFiles],
    settings: MatchSettings,
    model: Model = "affine",
    order: int = 2,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Register all pairs, each in one process; a table of outcomes (`OUTCOME`) in their order.

    Args:
        settings: of each pair; its workers are processes here that register pairs of their own.
        scheduler: address of a Dask scheduler, whose workers do the work instead, on the same paths.
    """
    jobs = [(pair, replace(settings, progress=False, workers=1), model, order) for pair in pairs]
    with _pool(settings.workers, scheduler) as pool:
        rows = dict(tqdm(_outcomes(jobs, pool), "pairs", len(jobs), disable=None if settings.progress else True))
    return pd.DataFrame([rows[i] for i in range(len(jobs))], columns=list(OUTCOME))


def _outcomes(jobs: list[tuple[Any, ...]], pool: Executor | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and outcomes of jobs as they are done."""
    if pool is None:
        yield from ((number, register_one(*job)) for number, job in enumerate(jobs))
        return
    waiting = {pool.submit(register_one, *job): number for number, job in enumerate(jobs)}
    for done in as_completed(waiting):
        number, error = waiting[done], done.exception()
        # A process that was killed, for memory for instance, takes the pool with it.
        yield number, _failed(jobs[number][0], error) if error else done.result()


@contextmanager
def _pool(workers: int, scheduler: str | None) -> Iterator[Executor | None]:
    """What runs jobs; None is this process."""
    if scheduler is not None:
        try:
            from distributed import Client

            client = Client(scheduler, timeout=5)
        except ImportError as error:
            raise ValueError("a Dask scheduler needs the package distributed: pip install 'sarmatch[gis]'") from error
        except (OSError, ValueError, TimeoutError) as error:
            why = f"({error}); start one with `dask scheduler`"
            raise ValueError(f"no Dask scheduler answers at {scheduler} {why}") from error
        with client:
            yield client.get_executor(pure=False)
    elif workers > 1:
        with processes(workers) as pool:
            yield pool
    else:
        yield None


def register_one(pair: PairFiles, settings: MatchSettings, model: Model, order: int) -> dict[str, Any]:
    """Register one pair; what happened, also where it failed."""
    start = time.perf_counter()
    try:
        done = register(*pair, model, order, settings=settings)
        row = pair._asdict() | {"status": "registered", "reason": "", "n_agree": done.agreement.n_agree}
        row |= {"share": done.agreement.share, "rmse_px": done.transform.rmse_px, "ce90_px": done.ce90_px}
        row["ce90_m"] = done.ce90_px * done.metres_per_px if done.metres_per_px else None
    except Exception as error:  # one pair must not stop the rest, whatever happens to it
        row = _failed(pair, error)
    return row | {"seconds": time.perf_counter() - start}


def _failed(pair: PairFiles, error: BaseException) -> dict[str, Any]:
    status = "refused" if isinstance(error, SceneRefusal) else "failed"
    known = isinstance(error, ValueError | OSError)
    return pair._asdict() | {"status": status, "reason": str(error) if known else f"{type(error).__name__}: {error}"}
