"""The encoders as an ONNX file, and back: `sarmatch export`, and matching that runs them in ONNX Runtime.

The file holds both encoders, the projection head, fine descriptors and uncertainty maps, for images of any size that is
a multiple of 16. What depends on the data (search windows, mutual matches) stays in PyTorch, as do Monte Carlo passes.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarmatch.io import atomic_path, check_output, optional_package, weights_digest
from sarmatch.model import Descriptors, SarOpticalNet
from sarmatch.model.uncertainty import Uncertainty

#: Images (1, C, H, W) in [0, 1], of equal size, and which of their pixels carry data, (1, H, W) bool.
INPUTS = ("sar", "optical", "sar_valid", "optical_valid")
TOLERANCE = 1e-4  #: Greatest difference of any output of the file from PyTorch's that export accepts.


# long because the file must be written, read back and checked before it takes its place
def export(net: SarOpticalNet, path: Path, optimize: bool = True) -> float:
    """Write the encoders of a network, checked on a size that the graph was not made with.

    Args:
        optimize: simplify the graph, which takes as long as writing it does; without, it runs a fifth slower.

    Returns:
        the greatest difference of any output from PyTorch's.

    Raises:
        ValueError: ONNX is not installed, outputs differ by more than `TOLERANCE`, or the path cannot be written.
    """
    path = check_output(path, "encoders", (".onnx",))
    onnx = optional_package("onnx", "onnx")
    optional_package("onnxscript", "onnx")
    net = net.cpu().eval()
    parts = ["coarse", "fine", *(Uncertainty._fields if net.config.uncertainty else ())]
    # Declared as multiples of 16, so that the exporter knows that sides divide without a rest.
    height, width = (16 * torch.export.Dim(name, min=2, max=1024) for name in ("rows", "columns"))
    image, mask = {2: height, 3: width}, {1: height, 2: width}
    with atomic_path(path) as partial, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own workings
        torch.onnx.export(
            net,
            example(net, (96, 128)),
            partial,
            input_names=list(INPUTS),
            output_names=[f"{name}_{part}" for name in INPUTS[:2] for part in parts],
            dynamic_shapes=(image, image, mask, mask),
            dynamo=True,
            external_data=False,
            optimize=optimize,
            verbose=False,
        )
        model = onnx.load(partial)
        onnx.helper.set_model_props(model, {"weights": weights_digest(net)})
        onnx.checker.check_model(model)
        onnx.save(model, partial)
        difference = largest_difference(net, partial, (64, 160))
        if not difference <= TOLERANCE:
            raise ValueError(f"outputs of the exported encoders differ from PyTorch's by {difference:.1e}; not written")
    return difference


def example(net: SarOpticalNet, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Random `INPUTS` for a size (height, width), a corner of the optical image without data."""
    generator = torch.Generator().manual_seed(seed)
    channels = net.config.sar_channels, net.config.optical_channels
    sar, optical = (torch.rand(1, c, *size, generator=generator) for c in channels)
    sar_valid, optical_valid = torch.ones(2, 1, *size, dtype=torch.bool)
    optical_valid[:, :16, :16] = False
    return sar, optical, sar_valid, optical_valid


@torch.no_grad()
def largest_difference(net: SarOpticalNet, path: Path, size: tuple[int, int]) -> float:
    """Of any output of an exported file from PyTorch's, on random images of a size."""
    inputs = example(net, size, seed=1)
    expected = [t for one in net.cpu().eval()(*inputs) for t in (one.coarse, one.fine, *(one.uncertainty or ()))]
    found = OnnxEncoders(path).run(*inputs)
    return max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))


class OnnxEncoders:
    """Both encoders from what `export` wrote, or a quantised copy, run by ONNX Runtime on the CPU."""

    def __init__(self, path: str | Path) -> None:
        runtime = optional_package("onnxruntime", "onnx")
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no exported encoders at {path}; write them with `sarmatch export MODEL -o {path}`"
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, which derive from Exception alone
            raise ValueError(f"{path}: not a readable ONNX file ({str(error)[:120]})") from error
        self.path, self.weights = path, self.session.get_modelmeta().custom_metadata_map.get("weights")
        if self.weights is None:
            raise ValueError(
                f"{path}: not written by `sarmatch export`; its header does not say of which weights it is"
            )

    def check(self, net: SarOpticalNet) -> None:
        """Raises ValueError where the file is of other weights than the network."""
        if weights_digest(net) != self.weights:
            raise ValueError(f"{self.path} was exported from other weights; export these, or load the others")

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs for `INPUTS`: coarse and fine descriptors and uncertainty of the SAR image, then the other's."""
        fed = {name: value.detach().cpu().numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in self.session.run(None, fed)]

    def __call__(self, *inputs: Tensor) -> tuple[Descriptors, Descriptors]:
        """Descriptors of a pair, see `INPUTS`."""
        found = self.run(*inputs)
        half = len(found) // 2
        sar, optical = (
            Descriptors(coarse, fine, Uncertainty(*maps) if maps else None)
            for coarse, fine, *maps in (found[:half], found[half:])
        )
        return sar, optical
