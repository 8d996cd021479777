"""Fetching public data sets file by file, each file checked against its SHA-256; the command `sarmatch data get`.

`registries/NAME.txt` lists a set: its first line names the repository on GitHub and the commit, each further line a
path and its SHA-256. Files keep the path they have there.
"""

import logging
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from sarmatch.data.datasets import DATASETS

REGISTRIES = Path(__file__).parent / "registries"


class DownloadError(OSError):
    """Files could not be fetched; the same call goes on."""


def download(name: str, root: str | Path | None = None) -> Path:
    """Fetch a public data set into a folder; files that are there and right are not fetched again.

    Args:
        name: `ombria` or `optical-sar`; ValueError for others, with the remedy.
        root: default `data/NAME` in the working directory.

    Raises:
        DownloadError: no connection; or, after all others were fetched, files that the server lacks or whose checksum
            is wrong: of these nothing is left in the folder.
    """
    checksums = _registry(name)
    folder = Path("data", name) if root is None else Path(root)
    store = pooch.create(folder, f"{_pinned_url(checksums)}/", retry_if_failed=2)
    store.load_registry(checksums)
    for parent in {(folder / file).parent for file in store.registry}:  # here, because pooch's threads would race
        parent.mkdir(parents=True, exist_ok=True)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # the progress bar replaces a line a file
    try:
        failures = _fetch_all(store, name)
    finally:
        logger.setLevel(level)
    if failures:
        raise DownloadError(
            f"{name}: {len(failures)} of {len(store.registry)} files could not be fetched; the others are in {folder}. "
            "The same call tries these again, the first of them:\n" + "\n".join(failures[:10])
        )
    return folder


def _registry(name: str) -> Path:
    paths = {path.stem: path for path in REGISTRIES.glob("*.txt")}
    archives = {name: dataset for name, dataset in DATASETS.items() if dataset.archives}
    if name in archives:
        raise ValueError(
            f"{name} cannot be fetched file by file: get its archives from {archives[name].archives} and unpack all "
            f"into one folder, which then has {archives[name].holds}"
        )
    if name not in paths:
        raise ValueError(f"no data set {name!r}; {sorted(paths)} can be fetched, and {sorted(archives)} are explained")
    return paths[name]


def _pinned_url(registry: Path) -> str:
    """Address of the files at the commit in a registry's first line, `# GitHub owner/name, commit 38a4...`."""
    line = registry.read_text(encoding="utf-8").partition("\n")[0]
    match = re.fullmatch(r"# GitHub ([\w.-]+/[\w.-]+), commit ([0-9a-f]{40})\s*", line)
    if match is None:
        raise ValueError(f"{registry}: expected a first line '# GitHub owner/name, commit ...', got {line!r}")
    return f"https://raw.githubusercontent.com/{match[1]}/{match[2]}"


def _fetch_all(store: pooch.Pooch, name: str) -> list[str]:
    """Fetch what is missing or differs, and return which files failed; a lost connection ends it."""
    failures = []
    pool = ThreadPoolExecutor(4)
    try:
        jobs = {pool.submit(store.fetch, file): file for file in store.registry}
        for job in tqdm(as_completed(jobs), f"get {name}", total=len(jobs), unit="file", disable=None):
            try:
                job.result()
            except (requests.ConnectionError, requests.Timeout) as error:
                raise DownloadError(
                    f"{name}: no connection to {store.base_url} ({error}); check the network, then the same "
                    f"call goes on: files already in {store.abspath} are kept"
                ) from error
            except (requests.RequestException, ValueError) as error:  # pooch raises ValueError for a wrong checksum
                failures.append(f"{jobs[job]}: {error}")
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(failures)
