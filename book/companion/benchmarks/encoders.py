"""Forward time of each encoder against the time its FLOP would take at the rate of a matrix product.

    python -m companion.benchmarks.encoders [--profiles s1s2 sen12ms] [--size 256] [--rounds 5] [--threads 1]

Both alternate in one process on one image. FLOP are those of convolutions and matrix products, 2 for a multiplication
with addition.
"""

from __future__ import annotations

import statistics
from functools import partial

import pandas as pd
import torch
import tyro

from companion.studies.encoders import count, on_meta
from companion.timing import clock, interleave
from sarmatch.config import PROFILES
from sarmatch.model import SarOpticalNet

GEMM_SIDE = 1024


def main(profiles: tuple[str, ...] = ("s1s2", "sen12ms"), size: int = 256, rounds: int = 5, threads: int = 1) -> None:
    """Print median seconds of each encoder and of the product, and their ratio at equal FLOP.

    Args:
        profiles: whose widths to take; `sen12ms` has the paper's.
        size: side of the image, px.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    matrix = torch.rand(GEMM_SIDE, GEMM_SIDE)
    rows = []
    for name in profiles:
        config = PROFILES[name].model
        net, shapes = SarOpticalNet(config).eval(), on_meta(config)
        for kind, channels in (("sar", config.sar_channels), ("optical", config.optical_channels)):
            encoder, image = net.get_submodule(f"{kind}_encoder"), torch.rand(1, channels, size, size)
            flop = count(shapes.get_submodule(f"{kind}_encoder"), [image.to("meta")]).loc["total", "flops"]
            runs = {"forward": partial(encoder, image), "product": partial(torch.mm, matrix, matrix)}
            with torch.inference_mode():
                forward, product = (statistics.median(seconds) for seconds in interleave(runs, rounds).values())
            at_rate = product * flop / (2 * GEMM_SIDE**3)
            row = {"profile": name, "encoder": kind, "gflop": flop / 1e9}
            rows.append(row | {"forward_s": forward, "at_gemm_rate_s": at_rate, "ratio": forward / at_rate})
    print(f"{threads} thread(s), {clock(threads)}, median of {rounds}, batch 1, {size} px, fp32")
    print(pd.DataFrame(rows).round(4).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
