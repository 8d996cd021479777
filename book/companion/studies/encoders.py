"""What a network is made of, how a forward pass wires it and what it costs, on the meta device too; what it sees."""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

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
CONTAINERS: tuple[type[nn.Module], ...] = (nn.ModuleList,)
"""Modules that are replaced by what they hold; a `ModuleList` has no forward pass of its own."""


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
    dilation: int = 1  #: Largest of its convolutions.


def parts(root: nn.Module, expand: Sequence[type[nn.Module]] = CONTAINERS) -> dict[str, nn.Module]:
    """Children of a module by qualified name, those of the types `expand` replaced by their own children."""
    found: dict[str, nn.Module] = {}
    for name, child in root.named_children():
        if isinstance(child, tuple(expand)):
            found |= {f"{name}.{inner}": module for inner, module in parts(child, expand).items()}
        else:
            found[name] = child
    return found


def trace(
    root: nn.Module, image: Tensor, expand: Sequence[type[nn.Module]] = CONTAINERS, stride: int = 1
) -> list[Part]:
    """Parts of a forward pass in the order in which they ran, by hooks, and what feeds each, by autograd's graph.

    A part that hands on its input unchanged, as dropout does in evaluation, is left out.

    Args:
        root: a module that returns a tensor or a (named) tuple of tensors.
        image: its only argument, floating point, (B, C, H, W).
        stride: of the argument, where it is no image but the result of another part.
    """
    start = image.detach().requires_grad_().clone()
    width = image.shape[-1] * stride
    steps = [Part(INPUT, INPUT, (), tuple(image.shape), stride)]
    owner: dict[Any, str] = {start.grad_fn: INPUT}

    def record(name: str, module: nn.Module, inputs: Any, result: Any) -> None:
        sources = _origins(_tensors(inputs), owner)
        new = [t for t in _tensors(result) if t.grad_fn not in owner]
        if new:
            shape = tuple(new[0].shape)
            learned = (_parameters(module), _kernel(module), _dilation(module))
            steps.append(Part(name, _kind(module), sources, shape, width // shape[-1], *learned))
            owner.update((t.grad_fn, name) for t in new)

    hooks = [m.register_forward_hook(partial(record, name)) for name, m in parts(root, expand).items()]
    try:
        with torch.enable_grad():
            outputs = root(start)
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in _named(outputs).items():
        tensor = next(_tensors(output), None)
        if tensor is not None:
            shape = tuple(tensor.shape)
            steps.append(Part(name, OUTPUT, _origins([tensor], owner), shape, width // shape[-1]))
    return steps


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterable):
        for item in value:
            yield from _tensors(item)


def _named(outputs: Any) -> dict[str, Any]:
    if not hasattr(outputs, "_asdict"):
        return {OUTPUT: outputs}
    return {f"{type(outputs).__name__}.{field}": value for field, value in outputs._asdict().items()}


def _origins(tensors: Iterable[Tensor], owner: Mapping[Any, str]) -> tuple[str, ...]:
    """Owners of the nearest known nodes behind these tensors, in the order of `owner`."""
    waiting = [t.grad_fn for t in tensors]
    visited, found = set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node in owner:
            found.add(owner[node])
        else:
            waiting.extend(before for before, _ in node.next_functions)
    return tuple(dict.fromkeys(name for name in owner.values() if name in found))


def _kind(module: nn.Module) -> str:
    """Class of a module; a sequence of equals is called after them."""
    kinds = {type(child).__name__ for child in module.children()}
    if isinstance(module, nn.Sequential) and len(kinds) == 1:
        return f"{len(module)} × {kinds.pop()}"
    return type(module).__name__


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kernel(module: nn.Module) -> int:
    windows = (m.kernel_size for m in module.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d))
    return max((w if isinstance(w, int) else max(w) for w in windows), default=0)


def _dilation(module: nn.Module) -> int:
    return max((max(m.dilation) for m in module.modules() if isinstance(m, nn.Conv2d)), default=1)


def count(root: nn.Module, inputs: Sequence[Tensor], expand: Sequence[type[nn.Module]] = CONTAINERS) -> pd.DataFrame:
    """Parameters and FLOP of convolutions and matrix products (2 a multiply-add) of each part in one forward pass.

    Returns:
        a table indexed by part with integer columns `parameters` and `flops`, parts that have neither left out; the
        row `own` holds parameters that belong to no part, the last row is `total`.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        root(*inputs)
    flops = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    rows = {
        name: (_parameters(module), flops.get(f"{type(root).__name__}.{name}", 0))
        for name, module in parts(root, expand).items()
    }
    total = (_parameters(root), counter.get_total_flops())
    rows["own"] = (total[0] - sum(n for n, _ in rows.values()), total[1] - sum(n for _, n in rows.values()))
    rows["total"] = total
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "flops"])
    return table[(table != 0).any(axis=1)].rename_axis("part")


def on_meta(config: ModelConfig) -> SarOpticalNet:
    """The network of a config without its weights: shapes only."""
    with torch.device("meta"):
        return SarOpticalNet(config)


def compare(configs: Mapping[str, ModelConfig], size: int = 256) -> pd.DataFrame:
    """Parameters and operations of the parts of several networks side by side, for one pair of images of `size` px.

    Returns:
        column `part`, then for each name `<name>, M parameters` (millions) and `<name>, GFLOP`; empty where a network
        lacks the part. The head runs on both images.
    """
    columns = []
    for name, config in configs.items():
        net = on_meta(config)
        images = [torch.empty(1, c, size, size, device="meta") for c in (config.sar_channels, config.optical_channels)]
        encoders = (type(net.sar_encoder), type(net.optical_encoder))
        counts = count(net, images, (*CONTAINERS, *encoders))
        scaled = counts.assign(parameters=counts["parameters"] / 1e6, flops=counts["flops"] / 1e9)
        columns.append(scaled.set_axis([f"{name}, M parameters", f"{name}, GFLOP"], axis=1))
    table = pd.concat(columns, axis=1)
    stages = list(dict.fromkeys(part.partition(".")[0] for part in table.index))  # parts of one encoder together
    order = sorted(table.index, key=lambda part: stages.index(part.partition(".")[0]))
    table = table.loc[order].rename_axis("part").reset_index()
    return table.assign(part=table["part"].str.replace("_encoder.", "."))


def receptive_field(
    encoder: Callable[[Tensor], Encoding], images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Effective receptive field of the middle cell: how strongly each pixel moves its features (Luo et al. 2016).

    Args:
        images: (B, C, H, W).
        generator: of the random direction in feature space, one an image, along which features are differentiated.

    Returns:
        magnitude of the gradient, mean over images and bands, (H, W), largest value 1.
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
    return float(distance[order][(held >= share * held[-1]).nonzero()[0, 0]])


def mean_field_radius(
    encoder: Callable[[Tensor], Encoding], images: Tensor, shares: Sequence[float], directions: int = 8
) -> list[float]:
    """`field_radius` of each share, mean over seeded random directions in feature space, as one scatters widely."""
    fields = [receptive_field(encoder, images, torch.Generator().manual_seed(seed)) for seed in range(directions)]
    return [sum(field_radius(field, share) for field in fields) / directions for share in shares]


def place_similarity(sar: Tensor, optical: Tensor) -> tuple[float, float, float]:
    """Cosine of descriptors of one place in two aligned images, and of places half an image apart on both axes.

    Args:
        sar, optical: descriptors of any length, (B, D, h, w).

    Returns:
        mean cosine at the same place, mean cosine elsewhere, and the share of cells where the former is larger.
    """
    height, width = sar.shape[-2:]
    sar, optical = F.normalize(sar, dim=1), F.normalize(optical, dim=1)
    same = (sar * optical).sum(dim=1)
    elsewhere = (sar * optical.roll((height // 2, width // 2), (-2, -1))).sum(dim=1)
    return same.mean().item(), elsewhere.mean().item(), (same > elsewhere).float().mean().item()


def position_leak(describe: Callable[[Tensor], Descriptors], noise: Tensor) -> Tensor:
    """How far the mean descriptor of each cell lies from that of the middle of the image, over images of white noise.

    Without absolute position in the features, the mean descriptor is the same everywhere.

    Args:
        describe: an image (1, C, H, W) to its descriptors, of which the coarse ones count.
        noise: independent images (N, C, H, W), N > 1.

    Returns:
        (H/4, W/4), in units of the spread of a single descriptor (root of the mean squared distance to the mean) in
        the middle. Chance gives about 1 / sqrt(N).
    """
    with torch.no_grad():
        descriptors = torch.cat([describe(image[None]).coarse for image in noise])
    height, width = descriptors.shape[-2:]
    middle = descriptors[..., height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    mean = middle.mean(dim=(0, 2, 3), keepdim=True)
    spread = (middle - mean).square().sum(dim=1).mean().sqrt()
    return (descriptors.mean(dim=0) - mean[0]).norm(dim=0) / spread


def without_learned_channels(net: SarOpticalNet) -> SarOpticalNet:
    """A copy of a network with zero for its learned channels; ValueError where it has no oriented gradients.

    Reliability weights and scales stay as they were learned.
    """
    if not net.config.oriented_gradients:
        raise ValueError("without its learned channels nothing is left of a network with oriented_gradients=False")
    muted = copy.deepcopy(net)
    for layer in (muted.head.out, muted.sar_encoder.fine.out, muted.optical_encoder.fine.out):
        layer.requires_grad_(False).weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    return muted


def border_profile(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Means of a map (H/4, W/4) over cells equally far from the border, after that distance in px; both (n,)."""
    height, width = cells.shape
    rows = torch.minimum(torch.arange(height), torch.arange(height).flip(0))
    columns = torch.minimum(torch.arange(width), torch.arange(width).flip(0))
    ring = torch.minimum(rows[:, None], columns[None, :])
    means = torch.stack([cells[ring == i].mean() for i in range(int(ring.max()) + 1)])
    return torch.arange(len(means)) * STRIDE + STRIDE / 2, means


def source(*objects: Any) -> Markdown:
    """The code of functions or classes, for a notebook to show; a method is headed by its full name."""
    from IPython.display import Markdown

    listings = []
    for thing in objects:
        heading = f"# {thing.__qualname__}\n" if "." in thing.__qualname__ else ""
        listings.append(heading + textwrap.dedent(inspect.getsource(thing)).strip())
    return Markdown("```python\n" + "\n\n".join(listings) + "\n```")
