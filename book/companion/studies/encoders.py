"""What a network is made of: its parts, how a forward pass wires them, and what they cost.

Nothing here knows an encoder by name; figures and tables made from it follow whatever the modules do. Everything works
on the meta device too, where a network of any width costs neither memory nor time.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sarmatch.config import ModelConfig
from sarmatch.model import SarOpticalNet

if TYPE_CHECKING:
    from IPython.display import Markdown

INPUT, OUTPUT = "input", "output"
CONTAINERS: tuple[type[nn.Module], ...] = (nn.ModuleList,)
"""Modules that are replaced by what they hold; a `ModuleList` has no forward pass of its own."""


@dataclass(frozen=True)
class Part:
    """A step of a forward pass: the input, a module that was called, or an output.

    Attributes:
        name: of the module, as `named_modules` has it; `input`; `output`, or of a named tuple `<type>.<field>`.
        kind: class of the module; `input` or `output`.
        sources: names of the parts whose results it takes, in the order in which they ran.
        shape: of its result, of the first one where there are several.
        stride: image pixels between neighbouring cells of its result.
        parameters: number of numbers it learns.
        kernel: side of its largest convolution or pooling window; 0 where it has none.
        dilation: largest dilation of its convolutions.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    stride: int
    parameters: int = 0
    kernel: int = 0
    dilation: int = 1


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
    """Parts of a forward pass in the order in which they ran, and what feeds each of them.

    Hooks see the parts run; the graph that autograd keeps tells where their inputs came from, whatever was done to them
    on the way (sums, resampling). A part that hands on its input unchanged, as dropout does in evaluation, is left out.

    Args:
        root: a module that returns a tensor or a (named) tuple of tensors.
        image: its only argument, floating point, (B, C, H, W).
        expand: types of modules to look into.
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
    seen, found = set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
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
    """Parameters and floating point operations of each part in one forward pass.

    FLOP are those of convolutions and matrix products, a multiplication and an addition counted as two. Normalisation,
    activations, resampling and pooling are not counted.

    Args:
        inputs: arguments of the forward pass.

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
    """Parameters and operations of the parts of several networks side by side, for one pair of images.

    Args:
        configs: networks by name.
        size: side of both images, px.

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


def source(*objects: Any) -> Markdown:
    """The code of functions or classes as it runs, for a notebook to show; a method is headed by its full name."""
    from IPython.display import Markdown

    listings = []
    for thing in objects:
        heading = f"# {thing.__qualname__}\n" if "." in thing.__qualname__ else ""
        listings.append(heading + textwrap.dedent(inspect.getsource(thing)).strip())
    return Markdown("```python\n" + "\n\n".join(listings) + "\n```")
