"""Weights as safetensors files that explain themselves: the header carries the model's config."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sarmatch.config import ModelConfig, from_dict
from sarmatch.io import atomic_path
from sarmatch.model import SarOpticalNet


def save_weights(net: SarOpticalNet, path: Path, dtype: torch.dtype | None = None, **about: str) -> None:
    """Write weights, with the model's config and `about`, or the header of a file, in the header."""
    tensors = {name: t.detach().cpu().to(dtype or t.dtype).contiguous() for name, t in net.state_dict().items()}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata=about | {"model": json.dumps(dataclasses.asdict(net.config))})


def load_weights(path: Path) -> tuple[SarOpticalNet, dict[str, str]]:
    """The network in a file that `save_weights` wrote, in evaluation mode, and the file's header."""
    about, tensors = read_weights(path)
    if "model" not in about:
        raise ValueError(f"{path}: its header has no model config; expected a file written by this package")
    net = SarOpticalNet(from_dict(ModelConfig, json.loads(about["model"])))
    net.load_state_dict(tensors)
    return net.eval(), about


def read_weights(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors, in float32, of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
