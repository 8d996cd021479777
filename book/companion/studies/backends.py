"""Other ways to run the encoders: time, accuracy and calibration, where only rounding differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.timing import interleave
from sarmatch.calibration.confidence import Confidence
from sarmatch.calibration.scores import expected_calibration_error
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation.metrics import match_errors, mma
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import Descriptors, PairEncoder, SarOpticalNet
from sarmatch.model.onnx import INPUTS, OnnxEncoders, export

PLAIN = "PyTorch, float32"


def in_bfloat16(net: SarOpticalNet) -> PairEncoder:
    """Encoders under autocast to bfloat16; sums over similarities stay in float32."""

    def encode(
        sar: Tensor, optical: Tensor, sar_valid: Tensor, optical_valid: Tensor
    ) -> tuple[Descriptors, Descriptors]:
        with torch.autocast(sar.device.type, torch.bfloat16):
            return net(sar, optical, sar_valid, optical_valid)

    return encode


def quantise(exported: Path, path: Path, inputs: Iterable[tuple[Tensor, ...]]) -> None:
    """Write a copy of exported encoders whose convolutions compute in 8 bits, each output channel with its own scale.

    The oriented gradients, which have no weights to be learned, stay as they are. Ranges of activations are those of
    the inputs.

    Args:
        inputs: images and masks of some pairs, see `sarmatch.model.onnx.INPUTS`; not of those to be judged.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            values = next(self.left, None)
            return None if values is None else {n: t.numpy() for n, t in zip(INPUTS, values, strict=True)}

    model = onnx.load(exported)
    fixed = [n.name for n in model.graph.node if n.op_type == "Conv" and not re.search(r"encoder\.|head\.", n.input[1])]
    quantize_static(
        exported,
        path,
        Reader(),
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=fixed,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    about = {p.key: p.value for p in model.metadata_props}
    written = onnx.load(path)
    onnx.helper.set_model_props(written, about)
    onnx.save(written, path)


def crops_of(pairs: Pairs, config: EvaluationConfig, at_most: int) -> list[tuple[Tensor, ...]]:
    """Crops of some pairs as `quantise` takes them."""
    found: list[tuple[Tensor, ...]] = []
    for pair in spread(pairs, at_most):
        crops = evaluation_crops(pair, "shift", config)
        found.append((crops.sar[None], crops.optical[None], crops.sar_valid[None], crops.optical_valid[None]))
    return found


def backends(
    net: SarOpticalNet, confidence: Confidence | None, folder: Path, inputs: Iterable[tuple[Tensor, ...]]
) -> dict[str, Matcher]:
    """Matchers that differ in how the encoders are run only, calibration included.

    Args:
        folder: where exported encoders are written, and read where they are.
        inputs: for `quantise`.
    """
    exported, eight_bits = folder / "encoders.onnx", folder / "encoders-int8.onnx"
    if not exported.is_file():
        export(net, exported)
    if not eight_bits.is_file():
        quantise(exported, eight_bits, inputs)
    ways: dict[str, Any] = {
        PLAIN: None,
        "torch.compile": torch.compile(net, dynamic=False),
        "PyTorch, bfloat16": in_bfloat16(net),
        "ONNX Runtime, float32": OnnxEncoders(exported),
        "ONNX Runtime, int8": OnnxEncoders(eight_bits),
    }
    return {name: Matcher(net, "cpu", confidence=confidence, encoders=encoders) for name, encoders in ways.items()}


def measure_backends(
    matchers: Mapping[str, Matcher], pairs: Pairs, config: EvaluationConfig, repeats: int = 3
) -> pd.DataFrame:
    """Every matcher on the same crops under `shift` at the headline radius.

    Args:
        repeats: timed runs of each matcher and pair; one before them does not count.

    Returns:
        a row a matcher and pair: backend, id, scene, seconds (median, see `interleave`), mma_1px, mma_3px, n_matches,
        and lists of confidences and of outcomes within 3 px.
    """
    rows = []
    for pair in spread(pairs, config.max_pairs):
        crops = evaluation_crops(pair, "shift", config)
        for name, (seconds, matches) in timed_matches(matchers, crops, config.headline_radius, repeats).items():
            errors = match_errors(matches, crops.A_sar_to_optical)
            row: dict[str, Any] = {"backend": name, "id": pair.id, "scene": pair.scene, "n_matches": len(matches)}
            row |= {f"mma_{t:g}px": mma(errors, t) for t in (1.0, CONFIDENT_PX)}
            row |= {"confidence": matches.confidence, "correct": errors <= CONFIDENT_PX}
            rows.append(row | {"seconds": float(np.median(seconds))})
    return pd.DataFrame(rows)


def timed_matches(
    matchers: Mapping[str, CropMatcher], crops: EvaluationCrops, search_radius: float, repeats: int
) -> dict[str, tuple[list[float], Matches]]:
    """Seconds of each repeat and the matches of each matcher, in turns as by `interleave`."""
    found: dict[str, Matches] = {}

    def run(name: str) -> None:
        found[name] = matchers[name].match_crops(crops, search_radius)

    seconds = interleave({name: partial(run, name) for name in matchers}, repeats)
    return {name: (seconds[name], found[name]) for name in matchers}


def backend_table(records: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs of `measure_backends`, a row a backend, and the calibration error of all matches together."""
    plain = records[records["backend"] == PLAIN].set_index("id")["seconds"]
    rows = []
    for name, part in records.groupby("backend", sort=False):
        ratio = (part["id"].map(plain) / part["seconds"]).mean()
        means = {c: part[c].mean() for c in ("mma_1px", "mma_3px", "n_matches")}
        confidence, correct = (np.concatenate(part[c].to_list()) for c in ("confidence", "correct"))
        ece = expected_calibration_error(confidence, correct)
        rows.append({"backend": name, "seconds": part["seconds"].mean(), "speed_up": ratio} | means | {"ece": ece})
    return pd.DataFrame(rows)
