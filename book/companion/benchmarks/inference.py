"""Table 4 as a measurement: time and memory of base inference, with uncertainty, and of Monte Carlo passes.

    python -m companion.benchmarks.inference [--profile s1s2] [--size 256] [--passes 1 5 20] [--device cpu]

Random images and weights, or those of `--weights`. `bound` is the ratio that sharing between passes allows. The last
table holds each encoder against the time that its FLOP take at the rate of a matrix product.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from torch import Tensor

from companion.studies.cost import measure_modes, measure_parts, prefix_bound, workload
from companion.studies.encoders import count, on_meta
from companion.timing import clock, interleave
from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights
from sarmatch.profiles import PROFILES


def encoder_rates(net: SarOpticalNet, pair: Sequence[Tensor], side: int = 1024) -> pd.DataFrame:
    """Seconds of each encoder, and those of its FLOP as a product of square matrices of this side runs them."""
    matrix, rows = torch.rand(side, side, device=pair[0].device), []
    for name, image in zip(("sar_encoder", "optical_encoder"), pair, strict=True):
        flop = count(on_meta(net.config).get_submodule(name), [image.to("meta")]).loc["total", "flops"]
        runs = {"forward": partial(net.get_submodule(name), image), "product": partial(torch.mm, matrix, matrix)}
        with torch.inference_mode():
            forward, product = map(statistics.median, interleave(runs, 5, image.device).values())
        at_rate = product * flop / (2 * side**3)
        rows.append((name, flop / 1e9, forward, at_rate, forward / at_rate))
    return pd.DataFrame(rows, columns=["encoder", "gflop", "forward_s", "at_product_rate_s", "ratio"])


def main(
    profile: str = "s1s2",
    size: int = 256,
    passes: tuple[int, ...] = (1, 2, 5, 10, 20, 50),
    device: str = "cpu",
    threads: int = 1,
    weights: Path | None = None,
) -> None:
    """Print the modes, the parts and the encoders, medians of five runs.

    Args:
        profile: whose widths to take; `sen12ms` has the paper's.
        weights: a .safetensors file, whose config then counts instead of the profile's.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = SarOpticalNet(PROFILES[profile].model) if weights is None else load_weights(weights)[0]
    net = net.to(device).eval()
    pair = [torch.rand(1, n, size, size).to(device) for n in (net.config.sar_channels, net.config.optical_channels)]
    work = workload(net, pair, SEARCH_RADIUS_PX)
    modes, parts = measure_modes(work, passes), measure_parts(work)
    modes["bound"] = [prefix_bound(parts, n) if n else 1.0 for n in modes["passes"]]
    modes.loc[modes["mode"] == "base", "bound"] = float("nan")
    print(f"{weights or profile}, {size} px, {threads} thread(s), {clock(threads, device)}")
    print(modes.assign(over_bound=modes["ratio"] / modes["bound"]).round(3).to_string(index=False))
    print(parts.round(4).to_string())
    print(encoder_rates(net, pair).round(4).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
