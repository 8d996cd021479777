"""Table 4 as a measurement: time and memory of base inference, with uncertainty, and of Monte Carlo passes.

    python -m companion.benchmarks.inference [--profile s1s2] [--size 256] [--passes 1 5 20] [--device cpu]

Random images and weights, or those of `--weights`. `bound` is the ratio that sharing between passes allows.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from companion.studies.cost import measure_modes, measure_parts, prefix_bound, workload
from companion.timing import clock
from sarmatch.config import PROFILES, SEARCH_RADIUS_PX
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import load_weights


def main(
    profile: str = "s1s2",
    size: int = 256,
    passes: tuple[int, ...] = (1, 2, 5, 10, 20, 50),
    device: str = "cpu",
    threads: int = 1,
    weights: Path | None = None,
) -> None:
    """Print the modes and the parts, medians of five runs.

    Args:
        profile: whose widths to take; `sen12ms` has the paper's.
        size: side of both images, px.
        passes: numbers of Monte Carlo passes.
        device: cpu or cuda.
        weights: a .safetensors file, whose config then counts instead of the profile's.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = SarOpticalNet(PROFILES[profile].model) if weights is None else load_weights(weights)[0]
    pair = [torch.rand(1, bands, size, size) for bands in (net.config.sar_channels, net.config.optical_channels)]
    work = workload(net.to(device), pair, SEARCH_RADIUS_PX)
    modes, parts = measure_modes(work, passes), measure_parts(work)
    modes["bound"] = [prefix_bound(parts, n) if n else 1.0 for n in modes["passes"]]
    modes.loc[modes["mode"] == "base", "bound"] = float("nan")
    print(f"{weights or profile}, {size} px, {threads} thread(s), {clock(threads, device)}")
    print(modes.assign(over_bound=modes["ratio"] / modes["bound"]).round(3).to_string(index=False))
    print(parts.round(4).to_string())


if __name__ == "__main__":
    tyro.cli(main)
