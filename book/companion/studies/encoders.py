"""What a network is made of, how a forward pass wires it, what it costs, and which pixels and places it responds to."""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sarmatch.config import ModelConfig
from sarmatch.geometry import cell_centres
from sarmatch.model import STRIDE, Descriptors, Encoding, SarOpticalNet

if TYPE_CHECKING:
    from IPython.display import Markdown

INPUT, OUTPUT = "input", "output"
Modules = tuple[type[nn.Module], ...]
CONTAINERS: Modules = (nn.ModuleList,)  # replaced by what they hold: they have no forward pass of their own


@dataclass(frozen=True)
class Part:
    """A step of a forward pass: the input, a module that was called, or an output."""

    name: str  #: Of the module, as `named_modules` has it; `input`; `output`, or of a named tuple `<type>.<field>`.
    kind: str  #: Class of the module; `input` or `output`.
    sources: tuple[str, ...]  #: Names of the parts whose results it takes, in the order in which they ran.
    shape: tuple[int, ...]  #: Of its result, of the first one where there are several.
    stride: int  #: Image pixels between neighbouring cells of its result.
    parameters: int = 0
    kernel: int = 0  #: Side of its largest convolution or pooling window; 0 where it has none.
    dilation: int = 1  #: Largest of these windows.


def parts(root: nn.Module, expand: Modules = CONTAINERS) -> dict[str, nn.Module]:
    """Children of a module by qualified name, those of the types `expand` replaced by their own children."""
    found: dict[str, nn.Module] = {}
    for name, child in root.named_children():
        inside = parts(child, expand) if isinstance(child, expand) else {"": child}
        found |= {f"{name}.{inner}".rstrip("."): module for inner, module in inside.items()}
    return found


def trace(root: nn.Module, image: Tensor, expand: Modules = CONTAINERS, stride: int = 1) -> list[Part]:
    """Parts of a forward pass in the order in which they ran, by hooks, and what feeds each, by autograd's graph.

    A part that hands on its input unchanged, as dropout does in evaluation, is left out. The module takes an image
    (B, C, H, W), or the result of another part of some stride, and returns a tensor or a (named) tuple of tensors.
    """
    start = image.detach().requires_grad_().clone()
    steps = [Part(INPUT, INPUT, (), tuple(image.shape), stride)]
    owner: dict[Any, str] = {start.grad_fn: INPUT}

    def add(name: str, kind: str, inputs: Any, result: Tensor, **about: int) -> None:
        sources, width = _origins(_tensors(inputs), owner), image.shape[-1] * stride
        steps.append(Part(name, kind, sources, tuple(result.shape), width // result.shape[-1], **about))

    def record(name: str, module: nn.Module, inputs: Any, result: Any) -> None:
        new = [t for t in _tensors(result) if t.grad_fn not in owner]
        if new:
            add(name, _kind(module), inputs, new[0], parameters=_parameters(module), **_window(module))
            owner.update((t.grad_fn, name) for t in new)

    hooks = [m.register_forward_hook(partial(record, name)) for name, m in parts(root, expand).items()]
    try:
        with torch.enable_grad():
            outputs = root(start)
    finally:
        for hook in hooks:
            hook.remove()
    named = outputs._asdict() if hasattr(outputs, "_asdict") else {"": outputs}
    for field, output in named.items():
        for tensor in _tensors(output)[:1]:
            add(f"{type(outputs).__name__}.{field}" if field else OUTPUT, OUTPUT, tensor, tensor)
    return steps


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, Iterable) else []


def _origins(tensors: Iterable[Tensor], owner: Mapping[Any, str]) -> tuple[str, ...]:
    """Owners of the nearest known nodes behind these tensors, in the order of `owner`."""
    waiting: list[Any] = [t.grad_fn for t in tensors]
    visited: set[Any] = {None}
    found = set()
    while waiting:
        node = waiting.pop()
        if node in owner:
            found.add(owner[node])
        elif node not in visited:
            waiting.extend(before for before, _ in node.next_functions)
        visited.add(node)
    return tuple(dict.fromkeys(name for name in owner.values() if name in found))


def _kind(module: nn.Module) -> str:
    """Class of a module; a sequence of equals is called after them."""
    kinds = [type(child).__name__ for child in module.children()]
    alike = isinstance(module, nn.Sequential) and len(set(kinds)) == 1
    return f"{len(kinds)} × {kinds[0]}" if alike else type(module).__name__


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _window(module: nn.Module) -> dict[str, int]:
    windows = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    found = {"kernel": [m.kernel_size for m in windows], "dilation": [m.dilation for m in windows]}
    return {name: int(max(map(np.max, values))) for name, values in found.items() if values}


def count(root: nn.Module, inputs: Sequence[Tensor], expand: Modules = CONTAINERS) -> pd.DataFrame:
    """`parameters` and `flops` of convolutions and matrix products (2 a multiply-add) of each part in a forward pass.

    Parts that have neither are left out; the row `own` is what belongs to no part, the last one `total`.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        root(*inputs)
    flops = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    rows = {
        name: (_parameters(module), flops.get(f"{type(root).__name__}.{name}", 0))
        for name, module in parts(root, expand).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "flops"])
    total = pd.Series({"parameters": _parameters(root), "flops": counter.get_total_flops()})
    table.loc["own"], table.loc["total"] = total - table.sum(), total
    return table[(table != 0).any(axis=1)].rename_axis("part")


def on_meta(config: ModelConfig) -> SarOpticalNet:
    """The network of a config without its weights: shapes only."""
    with torch.device("meta"):
        return SarOpticalNet(config)


def compare(configs: Mapping[str, ModelConfig], size: int = 256) -> pd.DataFrame:
    """`count` of several networks side by side for one pair of images of `size` px, in millions and GFLOP.

    Empty where a network lacks the part. The head runs on both images.
    """
    columns = []
    for name, config in configs.items():
        net = on_meta(config)
        images = [torch.empty(1, c, size, size, device="meta") for c in (config.sar_channels, config.optical_channels)]
        counts = count(net, images, (*CONTAINERS, type(net.sar_encoder), type(net.optical_encoder)))
        columns.append((counts / [1e6, 1e9]).set_axis([f"{name}, M parameters", f"{name}, GFLOP"], axis=1))
    table = pd.concat(columns, axis=1)
    stages = table.index.str.partition(".").get_level_values(0)
    table = table.iloc[pd.factorize(stages)[0].argsort(kind="stable")]  # parts of one encoder together
    return table.set_axis(table.index.str.replace("_encoder.", "."), axis=0).rename_axis("part").reset_index()


def receptive_field(encoder: Callable[[Tensor], Encoding], images: Tensor, generator: torch.Generator) -> Tensor:
    """Effective receptive field of the middle cell, (H, W), largest value 1 (Luo et al. 2016).

    The magnitude of the gradient of its features along one random direction an image, mean over images (B, C, H, W)
    and bands.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        features = encoder(images).features
        cell = features[..., features.shape[-2] // 2, features.shape[-1] // 2]
        direction = torch.randn(cell.shape, generator=generator).to(cell)
        (gradient,) = torch.autograd.grad((cell * direction).sum(), images)
    field = gradient.abs().mean(dim=(0, 1))
    return field / field.max()


def field_radius(field: Tensor, share: float = 0.5) -> float:
    """Radius in px around the centre of the middle cell that holds `share` of a field made by `receptive_field`."""
    height, width = field.shape
    centre = cell_centres(height // STRIDE, width // STRIDE, STRIDE)[height // STRIDE // 2, width // STRIDE // 2]
    distance = (cell_centres(height, width, 1) - centre).norm(dim=-1).flatten()
    order = distance.argsort()
    held = field.flatten()[order].double().cumsum(0)
    return float(distance[order[torch.searchsorted(held, share * held[-1])]])


def mean_field_radius(
    encoder: Callable[[Tensor], Encoding], images: Tensor, shares: Sequence[float], directions: int = 8
) -> list[float]:
    """`field_radius` of each share, mean over seeded random directions in feature space, as one scatters widely."""
    fields = [receptive_field(encoder, images, torch.Generator().manual_seed(seed)) for seed in range(directions)]
    return [sum(field_radius(field, share) for field in fields) / directions for share in shares]


def place_similarity(sar: Tensor, optical: Tensor) -> tuple[float, float, float]:
    """Mean cosine of descriptors (B, D, h, w) of one place in two aligned images, that of places half an image apart on
    both axes, and the share of cells where the former is larger."""
    height, width = sar.shape[-2:]
    same = F.cosine_similarity(sar, optical)
    elsewhere = F.cosine_similarity(sar, optical.roll((height // 2, width // 2), (-2, -1)))
    return same.mean().item(), elsewhere.mean().item(), (same > elsewhere).float().mean().item()


@torch.no_grad()
def position_leak(describe: Callable[[Tensor], Descriptors], noise: Tensor) -> Tensor:
    """How far the mean descriptor of each cell lies from that of the middle of the image, over N images of white noise.

    Without absolute position in the features, the mean descriptor is the same everywhere. (H/4, W/4), over the root
    mean square distance of single descriptors to the mean in the middle; by chance about 1 / sqrt(N).
    """
    descriptors = torch.cat([describe(image[None]).coarse for image in noise])
    height, width = descriptors.shape[-2:]
    middle = descriptors[..., height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    mean = middle.mean(dim=(0, 2, 3), keepdim=True)
    spread = (middle - mean).square().sum(dim=1).mean().sqrt()
    return (descriptors.mean(dim=0) - mean[0]).norm(dim=0) / spread


def without_learned_channels(net: SarOpticalNet) -> SarOpticalNet:
    """A copy with zero for the learned channels; ValueError where there are no oriented gradients to be left.

    Reliability weights and scales stay as they were learned.
    """
    if not net.config.oriented_gradients:
        raise ValueError("without its learned channels nothing is left of a network with oriented_gradients=False")
    muted = copy.deepcopy(net)
    for layer in (muted.head.out, muted.sar_encoder.fine.out, muted.optical_encoder.fine.out):
        for parameter in layer.parameters():
            parameter.requires_grad_(False).zero_()
    return muted


def border_profile(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Means of a map (H/4, W/4) over cells equally far from the border, after that distance in px; both (n,)."""
    rows, columns = (torch.arange(n).minimum(torch.arange(n).flip(0)) for n in cells.shape)
    ring = rows[:, None].minimum(columns)
    means = torch.stack([cells[ring == i].mean() for i in ring.unique()])
    return torch.arange(len(means)) * STRIDE + STRIDE / 2, means


def source(*objects: Any) -> Markdown:
    """The code of functions or classes, for a notebook to show; a method is headed by its full name."""
    from IPython.display import Markdown

    listings = []
    for thing in objects:
        heading = f"# {thing.__qualname__}\n" if "." in thing.__qualname__ else ""
        listings.append(heading + textwrap.dedent(inspect.getsource(thing)).strip())
    return Markdown("```python\n" + "\n\n".join(listings) + "\n```")
