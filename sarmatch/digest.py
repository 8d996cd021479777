"""Digests of content: hexadecimal digits that name what something was measured or fitted on.

A network counts by its weights, a matcher by its class, settings and weights, pairs by their index and by what some of
them hold (`Pairs.digest`). A single corrected file among many is not noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sarmatch.data.pairs import Pairs

DIGITS = 12
"""Hexadecimal digits of a digest: 48 bits, with which a chance match among a million tables is one in 500."""


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
        fields = [field.name for field in dataclasses.fields(value) if field.metadata.get("digest", True)]
        attributes = {name: getattr(value, name) for name in fields}
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
