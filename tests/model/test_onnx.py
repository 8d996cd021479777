"""Exported encoders give what PyTorch gives, on any size, and are refused where they do not belong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sarmatch import cli, load_matcher
from sarmatch.io import weights_digest
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet, onnx
from sarmatch.model.checkpoints import save_weights
from sarmatch.profiles import profile

pytest.importorskip("onnxruntime", reason="the optional dependencies `sarmatch[onnx]` are not installed")
pytest.importorskip("onnxscript", reason="the optional dependencies `sarmatch[onnx]` are not installed")

from companion.benchmarks.speed import quantise
from sarmatch.model.onnx import OnnxEncoders, example, export, largest_difference


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "net.safetensors"
    save_weights(SarOpticalNet(profile("smoke").model), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    path = weights.with_name("net.onnx")
    export(load_matcher(weights, device="cpu").net, path, optimize=False)
    return path


@pytest.mark.parametrize("size", [(64, 64), (112, 80)])
def test_outputs_are_those_of_pytorch_on_other_sizes(weights: Path, exported: Path, size: tuple[int, int]) -> None:
    net = load_matcher(weights, device="cpu").net
    assert largest_difference(net, exported, size) < 1e-4


def test_matches_are_those_of_pytorch(weights: Path, exported: Path) -> None:
    rng = np.random.default_rng(0)
    sar, optical = rng.random((90, 70)), rng.random((90, 70, 3))
    sar[:, :20] = np.nan  # no data: the masks have to reach the encoders
    expected = load_matcher(weights, device="cpu").match(sar, optical, 8.0)
    found = load_matcher(weights, device="cpu", onnx=exported).match(sar, optical, 8.0)
    assert len(expected) > 20 and len(found) == len(expected)
    np.testing.assert_allclose(found.xy_optical, expected.xy_optical, atol=1e-3)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)


def test_encoders_of_other_weights_are_refused(weights: Path, exported: Path) -> None:
    net = load_matcher(weights, device="cpu").net
    assert OnnxEncoders(exported).weights == weights_digest(net)
    with torch.no_grad():
        net.coarse_log_scales += 1e-3
    with pytest.raises(ValueError, match="exported from other weights"):
        OnnxEncoders(exported).check(net)
    with pytest.raises(ValueError, match="exported from other weights"):
        load_matcher("s1s2", device="cpu", onnx=exported)


def test_passes_with_dropout_need_pytorch(weights: Path, exported: Path) -> None:
    with pytest.raises(ValueError, match="mc_passes=2 draw dropout inside the encoders"):
        load_matcher(weights, device="cpu", onnx=exported, mc_passes=2)
    matcher = load_matcher(weights, device="cpu", onnx=exported)
    with pytest.raises(ValueError, match="mc_passes=2"):
        matcher.match(np.zeros((64, 64)), np.zeros((64, 64, 3)), 8.0, mc_passes=2)


def test_files_that_are_not_exported_encoders(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="sarmatch export MODEL"):
        OnnxEncoders(tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        OnnxEncoders(tmp_path / "other.onnx")
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "model.txt")]) == 2
    assert "encoders are saved as .onnx" in capsys.readouterr().err
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "no" / "model.onnx")]) == 2


def test_an_export_that_differs_is_not_written(
    weights: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_other(encoders: object, inputs: object, path: Path, **options: object) -> None:
        shutil.copyfile(exported, path)

    monkeypatch.setattr(torch.onnx, "export", write_other)
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "model.onnx")]) == 0
    assert "outputs differ from PyTorch's by" in capsys.readouterr().out
    (tmp_path / "model.onnx").unlink()
    net = load_matcher(weights, device="cpu").net
    with torch.no_grad():
        net.head.out.bias += 0.1
    with pytest.raises(ValueError, match="differ from PyTorch's"):
        export(net, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_matcher_takes_any_pair_of_encoders() -> None:
    matcher = Matcher(SarOpticalNet(profile("smoke").model), "cpu")
    asked = []

    def encode(*inputs: torch.Tensor) -> object:
        asked.append([tuple(x.shape) for x in inputs])
        return matcher.net(inputs[0], inputs[1])

    rng = np.random.default_rng(0)
    Matcher(matcher.net, "cpu", encoders=encode).match(rng.random((64, 64)), rng.random((64, 64, 3)), 8.0)
    assert asked == [[(1, 1, 64, 64), (1, 3, 64, 64), (1, 64, 64), (1, 64, 64)]]


def test_eight_bits_change_little_and_keep_the_header(weights: Path, exported: Path, tmp_path: Path) -> None:
    net = load_matcher(weights, device="cpu").net
    path = tmp_path / "int8.onnx"
    quantise(exported, path, [example(net, (64, 64), seed) for seed in range(2)])
    OnnxEncoders(path).check(net)
    assert 1e-4 < largest_difference(net, path, (80, 64)) < 1.5  # of vectors of length one and more
    images = example(net, (80, 64), 3)
    with torch.no_grad():
        expected = net(*images)[1]
    gradients = OnnxEncoders(path)(*images)[1].coarse[:, 32:]
    # Not computed in 8 bits, but of an image that is rounded to them.
    torch.testing.assert_close(gradients, expected.coarse[:, 32:], atol=0.05, rtol=0)


def test_the_command_exports_the_named_model(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exports = []
    monkeypatch.setattr(onnx, "export", lambda net, path: exports.append((net, path)) or 1e-7)
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "net.onnx")]) == 0
    ((net, path),) = exports
    assert weights_digest(net) == weights_digest(load_matcher(weights, device="cpu").net)
    assert path == tmp_path / "net.onnx"
    assert f"encoders of {weights} -> {path}" in capsys.readouterr().out
