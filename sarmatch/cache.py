"""Tables that were measured once, kept under a digest of all that they depend on.

A network counts by its weights, a matcher by its class, settings and weights, pairs by their index and by what some of
them hold (`Pairs.digest`). So no table outlives a training, a change of profile, or data of another size, band or
origin; a single corrected file among many is not noticed: remove `records/` of the run then. The code that measured is
no part of the digest: tables carry their commit in a column.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

from sarmatch.data.pairs import Pairs
from sarmatch.files import atomic_path

DIGITS = 12
"""Hexadecimal digits of a digest: 48 bits, with which a chance match among a million tables is one in 500."""


def cached_table(
    folder: Path, name: str, depends_on: Mapping[str, Any], make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """A table, read where it was kept, else made and kept.

    Args:
        folder: of a run; the table is `records/<name>-<digest>.parquet` in it.
        name: for people; the digest tells tables apart.
        depends_on: all that decides the table, of kinds that `digest` takes.
    """
    path = folder / "records" / f"{name}-{digest(depends_on)}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.stem}.lock"):  # another process may be making the same one
            if not path.exists():
                table = make()
                with atomic_path(path) as partial:
                    table.to_parquet(partial)
    return pd.read_parquet(path)


def digest(value: Any) -> str:
    """Hexadecimal digits that stand for a value and everything in it, the same in every process.

    Args:
        value: numbers, strings, sequences and mappings of them; networks, tensors and arrays; pairs; objects made of
            these, such as matchers and configs. Devices do not count.

    Raises:
        TypeError: something whose content cannot be told, such as a function.
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
    if isinstance(value, Pairs):
        return value.digest()
    if isinstance(value, Mapping):
        return {str(key): _content(value[key]) for key in sorted(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_content(item) for item in value]
    return _attributes(value)


def _attributes(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        attributes = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "__dict__") and not callable(value):
        attributes = vars(value)
    else:
        raise TypeError(
            f"cannot tell what a {type(value).__name__} holds, so nothing can be kept under it; give numbers, strings, "
            "arrays, networks, pairs or objects made of them"
        )
    kept = {name: v for name, v in attributes.items() if not isinstance(v, torch.device)}
    return [type(value).__name__, {name: _content(v) for name, v in sorted(kept.items())}]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
