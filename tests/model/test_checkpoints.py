"""Headers of weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights, save_weights
from sarmatch.profiles import profile


def test_a_header_is_extended_without_touching_tensors(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_weights(SarOpticalNet(profile("smoke").model), first, torch.float16, seed="0", confidence="old")
    net, about = load_weights(first)
    save_weights(net, second, torch.float16, **(about | {"confidence": "new"}))
    before, after = load_file(first), load_file(second)
    assert before.keys() == after.keys()
    assert all(t.dtype == before[name].dtype and torch.equal(t, before[name]) for name, t in after.items())
    assert load_weights(second)[1] == about | {"confidence": "new"}


def test_what_is_no_file_of_weights_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no model config"):
        load_weights(path)
