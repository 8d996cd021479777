"""What surrounds a result on disk: output paths, files that are never half written, digests and provenance."""

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sarmatch.config import Config, counted

PACKAGES = ("sarmatch", "torch", "timm", "numpy", "accelerate")
SAME_MATCH_PX = 0.01
"""Matches of one cell this near count as the same: another CPU or number of threads adds in another order."""
SAME_MATCH_SHARE = 0.999
"""Least share of such matches there: where two places are as likely, rounding decides (3 of 86,685 matches did so)."""
TABLES = (".csv", ".parquet")


def check_output(path: str | os.PathLike[str], what: str, suffixes: Collection[str]) -> Path:
    """Refuse a file that could not be written, before anything is computed: suffix, folder, permission.

    `what` is written, in the plural; `suffixes` are in small letters, with their dots.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {what} are saved as {', '.join(suffixes)}; got suffix {target.suffix!r}")
    _check_folder(target)
    if target.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {target.parent} is read-only; choose another")
    return target


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")


def optional_package(name: str, extra: str) -> Any:
    """A package that only some features need; a ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"this needs the package {name}: pip install 'sarmatch[{extra}]'") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is synchronised to disk and renamed to `path`.

    On an exception the temporary file is removed and `path` keeps what it held before.
    """
    target = Path(path)
    _check_folder(target)
    # The suffix stays last because many writers choose their format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield temporary
        mask = os.umask(0)  # which can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # some writers leave a file that only its owner can read
        _synchronise(temporary)
        os.replace(temporary, target)
        _synchronise(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_table(table: pd.DataFrame, path: str | os.PathLike[str], what: str = "tables") -> None:
    """Write a table without its index, .csv or .parquet by the suffix; an existing file is replaced in one step."""
    target = check_output(path, what, TABLES)
    with atomic_path(target) as partial:
        if target.suffix.lower() == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; an existing one is replaced in one step."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def provenance(config: Config, fingerprint: str, without: Collection[str] = ()) -> dict[str, Any]:
    """What a number needs beside it; sections `without` of the config do not enter its hash."""
    return {
        "profile": config.profile,
        "seed": config.seed,
        "config_hash": config.hash(fingerprint, without),
        "data_fingerprint": fingerprint,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": hardware(),
    }


def hardware() -> str:
    """Name of the GPU, or the number of threads on a CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def commit() -> str:
    """Short hash of the checkout's commit, with `+` where tracked files differ; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=9", "--dirty=+"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def digest(value: Any) -> str:
    """Hexadecimal digits that stand for a value and everything in it but devices, the same in every process.

    It is made of numbers, strings, arrays, tensors, networks, sequences, mappings, objects of these, and what has a
    `digest` of its own, such as pairs; others, such as functions, are a TypeError.
    """
    return _hash(json.dumps(_content(value)).encode())


def weights_digest(net: nn.Module) -> str:
    """Digits that stand for the class, the config and the tensors of a network; mode and device do not count."""
    about = [type(net).__name__, _content(getattr(net, "config", None))]
    tensors = {name: _content(tensor) for name, tensor in net.state_dict().items()}
    return _hash(json.dumps([about, tensors]).encode())


def _content(value: Any) -> Any:
    """What JSON can write of a value, such that equal JSON means equal content."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return weights_digest(value)
    if isinstance(value, Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), _hash(np.ascontiguousarray(value).tobytes())]
    if isinstance(value, pd.DataFrame):
        return _hash(value.to_csv(index=False).encode())
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "digest"):
        return value.digest()
    if isinstance(value, Mapping):
        return {str(key): _content(value[key]) for key in sorted(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_content(item) for item in value]
    return [type(value).__name__, {name: _content(v) for name, v in sorted(_attributes(value).items())}]


def _attributes(value: Any) -> dict[str, Any]:
    """All that decides what an object does, but for devices."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {field.name for field in dataclasses.fields(value) if field.metadata.get("digest", True)}
        names = [name for name in counted(value) if name in kept]
    elif hasattr(value, "__dict__") and not callable(value):
        names = list(vars(value))
    else:
        raise TypeError(
            f"cannot tell what a {type(value).__name__} holds, so nothing can be kept under it; give numbers, strings, "
            "arrays, networks, pairs or objects made of them"
        )
    return {name: v for name in names if not isinstance(v := getattr(value, name), torch.device)}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]  # 48 bits; a chance match among a million tables is one in 500
