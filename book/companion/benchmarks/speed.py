"""What other ways to run the encoders cost, on test pairs in turns, where only rounding differs; precision_speed.csv.

    python -m companion.benchmarks.speed --data DATA [--profile s1s2] [--pairs 24] [--out book/results/s1s2]

Needs `pip install 'sarmatch[onnx]'` and, for torch.compile, a C++ compiler.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor

from companion.timing import clock, interleave, report
from sarmatch import load_matcher
from sarmatch.calibration.confidence import Confidence
from sarmatch.calibration.scores import expected_calibration_error
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import Pairs
from sarmatch.evaluation.metrics import match_errors, mma
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import Descriptors, PairEncoder, PairInput, SarOpticalNet
from sarmatch.model.onnx import INPUTS, OnnxEncoders, export
from sarmatch.profiles import profile as named_profile
from sarmatch.training.runs import open_split

PLAIN = "PyTorch, float32"


def timed_records(
    matchers: Mapping[str, CropMatcher], pairs: Pairs, config: EvaluationConfig, repeats: int
) -> pd.DataFrame:
    """Every matcher in turns, as by `interleave`, on the same crops under `shift` at the headline radius.

    A row a matcher and pair: method, id, scene, seconds (median), mma_1px, mma_3px, n_matches, and lists of confidences
    and of outcomes within 3 px.
    """
    found: dict[str, Matches] = {}

    def run(name: str, crops: EvaluationCrops) -> None:
        found[name] = matchers[name].match_crops(crops, config.headline_radius)

    rows = []
    for pair in spread(pairs, config.max_pairs):
        crops = evaluation_crops(pair, "shift", config)
        seconds = interleave({name: partial(run, name, crops) for name in matchers}, repeats)
        for name, matches in found.items():
            errors = match_errors(matches, crops.A_sar_to_optical)
            row: dict[str, Any] = {"method": name, "id": pair.id, "scene": pair.scene}
            row |= {"seconds": float(np.median(seconds[name])), "n_matches": len(matches)}
            row |= {f"mma_{t:g}px": mma(errors, t) for t in (1.0, CONFIDENT_PX)}
            rows.append(row | {"confidence": matches.confidence, "correct": errors <= CONFIDENT_PX})
    return pd.DataFrame(rows)


def in_bfloat16(net: SarOpticalNet) -> PairEncoder:
    """Encoders under autocast to bfloat16; sums over similarities stay in float32."""

    def encode(*inputs: Tensor) -> tuple[Descriptors, Descriptors]:
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return net(*inputs)

    return encode


def quantise(exported: Path, path: Path, inputs: Iterable[tuple[Tensor, ...]]) -> None:
    """Write a copy of exported encoders whose learned convolutions compute in 8 bits, each channel with its own scale.

    Ranges of activations are those of `inputs`: images and masks (`sarmatch.model.onnx.INPUTS`) of pairs not judged.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            values = next(self.left, None)
            return None if values is None else {n: t.numpy() for n, t in zip(INPUTS, values, strict=True)}

    model = onnx.load(exported)
    fixed = [n.name for n in model.graph.node if n.op_type == "Conv" and not re.search(r"encoder\.|head\.", n.input[1])]
    types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    which = {"op_types_to_quantize": ["Conv"], "nodes_to_exclude": fixed}
    quantize_static(exported, path, Reader(), per_channel=True, **which, **types)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {p.key: p.value for p in model.metadata_props})
    onnx.save(written, path)


def crops_of(pairs: Pairs, config: EvaluationConfig, at_most: int) -> list[PairInput]:
    """Crops of some pairs as `quantise` takes them."""
    found = (evaluation_crops(pair, "shift", config) for pair in spread(pairs, at_most))
    return [(c.sar[None], c.optical[None], c.sar_valid[None], c.optical_valid[None]) for c in found]


def backends(
    net: SarOpticalNet, confidence: Confidence | None, folder: Path, inputs: Iterable[tuple[Tensor, ...]]
) -> dict[str, Matcher]:
    """Matchers that differ in how the encoders are run only, calibration included; `inputs` are for `quantise`."""
    exported, eight_bits = folder / "encoders.onnx", folder / "encoders-int8.onnx"
    export(net, exported)
    quantise(exported, eight_bits, inputs)
    ways: dict[str, Any] = {
        PLAIN: None,
        "torch.compile": torch.compile(net, dynamic=False),
        "PyTorch, bfloat16": in_bfloat16(net),
        "ONNX Runtime, float32": OnnxEncoders(exported),
        "ONNX Runtime, int8": OnnxEncoders(eight_bits),
    }
    return {name: Matcher(net, "cpu", confidence=confidence, encoders=encoders) for name, encoders in ways.items()}


def backend_table(records: pd.DataFrame) -> pd.DataFrame:
    """Means over the pairs of `timed_records`, a row a backend, and the calibration error of all matches together."""
    plain = records[records["method"] == PLAIN].set_index("id")["seconds"]
    by_backend = records.assign(speed_up=records["id"].map(plain) / records["seconds"]).groupby("method", sort=False)
    table = by_backend[["seconds", "speed_up", "mma_1px", "mma_3px", "n_matches"]].mean()
    eces = []
    for _, part in by_backend:
        confidence, correct = (np.concatenate(part[name].tolist()) for name in ("confidence", "correct"))
        eces.append(expected_calibration_error(confidence, correct))
    return table.assign(ece=eces).reset_index(names="backend")


def main(data: Path, profile: str = "s1s2", pairs: int = 24, threads: int = 1, out: Path | None = None) -> None:
    """Print the table, medians of three runs on each test pair; with `out` also write precision_speed.csv and .json."""
    torch.set_num_threads(threads)
    config = named_profile(profile, str(data))
    split, shipped = open_split(config), load_matcher(profile, device="cpu")
    few = dataclasses.replace(config.evaluation, max_pairs=pairs)
    with tempfile.TemporaryDirectory() as folder:
        inputs = crops_of(split.validation, config.evaluation, 8)  # ranges for 8 bits
        matchers = backends(shipped.net, shipped.confidence, Path(folder), inputs)
        records = timed_records(matchers, split.test, few, repeats=3)
    about = {"clock": clock(threads), "threads": threads, "repeats": 3, "onnxruntime": version("onnxruntime")}
    test = f"{records['id'].nunique()} pairs, {records['scene'].nunique()} scenes"
    report(backend_table(records), config, out, "precision_speed", test=test, **about)


if __name__ == "__main__":
    tyro.cli(main)
