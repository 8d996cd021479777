"""Headers of weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sarmatch.config import profile
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights, save_weights, update_header


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def test_a_header_is_extended_without_touching_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(SarOpticalNet(profile("smoke").model), path, torch.float16, seed="0", confidence="old")
    before, size = tensors(path), path.stat().st_size
    update_header(path, confidence="new", more="x" * 1000)
    after = tensors(path)
    assert before.keys() == after.keys() and path.stat().st_size >= size + 1000
    assert all(t.dtype == before[name].dtype and torch.equal(t, before[name]) for name, t in after.items())
    _, about = load_weights(path)
    assert about["seed"] == "0" and about["confidence"] == "new" and len(about["more"]) == 1000


def test_what_is_no_file_of_weights_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        update_header(path, seed="1")
    assert path.read_bytes() == b"not weights"
