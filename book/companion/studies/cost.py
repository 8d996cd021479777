"""What inference costs: time and memory of the modes of table 4 and of the parts of a pass."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.timing import Runs, interleave, summary
from sarmatch.config import SEARCH_RADIUS_PX
from sarmatch.geometry import Search
from sarmatch.matching.assignment import predict
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import pick_matches
from sarmatch.model import PairInput, SarOpticalNet, prepare
from sarmatch.model.encoders import Encoding

BASE = "base"
ONE_PASS = "with uncertainty"
PARTS = {
    "prefix": (1, 0),  # all before the first dropout
    "trunk": (1, 1),  # the rest of both encoders; once more without dropout, for the fine descriptors
    "uncertainty": (0, 1),
    "head": (0, 1),  # the projection to descriptors
    "coarse": (0, 1),  # the volume, its aggregation and softmax
    "fine": (1, 0),  # the full-resolution descriptors
    "pick": (1, 0),  # the mutual matches and their refinement
}
"""How often each part has to run for Monte Carlo passes: in all, and in addition for each pass."""
PROMPT_RELEASE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
"""Makes glibc hand freed memory back at once, so that resident memory is what is in use."""


class Workload(NamedTuple):
    """One pair (images, then masks, SAR first) and the networks without (`base`) and with uncertainty (`full`)."""

    base: SarOpticalNet
    full: SarOpticalNet
    inputs: PairInput
    search_radius: float

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device


def workload(net: SarOpticalNet, pair: Sequence[Tensor], search_radius: float = SEARCH_RADIUS_PX) -> Workload:
    """A network, the same without uncertainty and a pair of images (1, C, H, W), sides multiples of 16, on its device.

    Refinement takes longer the more displacements the matches have: many between random images, few in a real pair.
    """
    if not net.config.uncertainty:
        raise ValueError("the network has uncertainty=False; give one with uncertainty=True, base is made from it")
    Search(search_radius)  # raises ValueError where it is not positive
    with torch.random.fork_rng(devices=[]):
        base = SarOpticalNet(dataclasses.replace(net.config, uncertainty=False))
    base.load_state_dict({name: net.state_dict()[name] for name in base.state_dict()})
    device = next(net.parameters()).device
    sar, optical = (image.to(device) for image in pair)
    sar_valid, optical_valid = (torch.ones_like(image[:, 0], dtype=torch.bool) for image in (sar, optical))
    return Workload(base.to(device).eval(), net.eval(), (sar, optical, sar_valid, optical_valid), search_radius)


def measure_modes(work: Workload, passes: Sequence[int], repeats: int = 5) -> pd.DataFrame:
    """Table 4 as a measurement: encoders, coarse level and refinement of one pair, as the matcher runs them on a tile.

    A row a mode: `passes` is 0 where dropout is off, `ratio` to one pass with uncertainty, `peak_mb` the memory above
    that at the start, 10^6 bytes: on CUDA of tensors, on a CPU resident in a fresh process, NaN elsewhere.
    """
    if any(n < 1 for n in passes) or len(set(passes)) < len(passes):
        raise ValueError(f"passes must be different numbers of at least 1, got {passes}; table 4 takes 20")
    runs = _modes(work, passes)
    seconds = interleave(runs, repeats, work.device)
    if work.device.type == "cpu":
        peaks = _peaks_in_new_process(work, passes)
    else:
        peaks = {mode: _peak_on_cuda(run, work.device) for mode, run in runs.items()}
    rows = []
    for (mode, spent), n in zip(seconds.items(), (0, 0, *passes), strict=True):
        ratio = float(np.median(np.divide(spent, seconds[ONE_PASS])))
        about = {"ratio": ratio, "peak_mb": peaks[mode] / 1e6, "device": str(work.device)}
        rows.append({"mode": mode, "passes": n} | summary(spent) | about)
    return pd.DataFrame(rows)


def measure_parts(work: Workload, repeats: int = 5) -> pd.DataFrame:
    """`timing.summary` and share of each of `PARTS` of one deterministic pass, and how often Monte Carlo needs it."""
    seconds = interleave(_part_runs(work), repeats, work.device)
    table = pd.DataFrame([summary(seconds[part]) for part in PARTS], index=pd.Index(PARTS, name="part"))
    table["share"] = table["seconds"] / table["seconds"].sum()
    table["once"], table["per_pass"] = zip(*PARTS.values(), strict=True)
    return table


def prefix_bound(parts: pd.DataFrame, passes: int) -> float:
    """Time of Monte Carlo passes over that of one deterministic pass, where all that can be shared is shared.

    (prefix + trunk + fine + pick + passes * (trunk + uncertainty + head + coarse)) / the sum of all parts, which are
    those of `measure_parts`; a batch of passes counts as no faster than the passes one by one.
    """
    runs = parts["once"] + passes * parts["per_pass"]
    return float((parts["seconds"] * runs).sum() / parts["seconds"].sum())


def _modes(work: Workload, passes: Sequence[int]) -> Runs:
    matchers = {BASE: Matcher(work.base, work.device), ONE_PASS: Matcher(work.full, work.device)}
    matchers |= {f"Monte Carlo {n}": Matcher(work.full, work.device, mc_passes=n) for n in passes}
    match = {mode: torch.no_grad()(matcher.match_tiles) for mode, matcher in matchers.items()}
    return {mode: partial(run, work.inputs, work.search_radius) for mode, run in match.items()}


def _part_runs(work: Workload) -> Runs:
    """The parts of one pass with uncertainty, each on what the ones before made of the pair."""
    net, (sar, optical, sar_valid, optical_valid) = work.full, work.inputs
    images, valid, masks = zip(prepare(sar, sar_valid), prepare(optical, optical_valid), strict=True)
    encoders, aggregate = (net.sar_encoder, net.optical_encoder), bool(net.config.consensus_cells)

    def each(part: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            return [part(*values) for values in zip(*arguments, strict=True)]

    runs: dict[str, Callable[[], Any]] = {}
    runs["prefix"] = partial(each, lambda e, image, mask: e.prefix(image).masked(mask), encoders, images, masks)
    prefixes = runs["prefix"]()
    runs["trunk"] = partial(each, lambda e, p: (e.trunk(p.maps), e.cell_gradients(p)), encoders, prefixes)
    features, gradients = zip(*runs["trunk"](), strict=True)
    runs["uncertainty"] = partial(each, lambda e, f: e.uncertainty(f), encoders, features)
    runs["fine"] = partial(each, lambda e, p, f: e.full_resolution(p, f), encoders, prefixes, features)
    encodings = each(Encoding, features, runs["fine"](), runs["uncertainty"](), gradients)
    runs["head"] = partial(each, net.describe, encodings)
    first, second = runs["head"]()
    runs["coarse"] = partial(predict, net, first, second, work.search_radius, *valid, aggregate)
    runs["pick"] = partial(pick_matches, net, runs["coarse"](), first.fine, second.fine, *valid, aggregate)
    return runs


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> float:
    """Bytes of tensors above those at the start; NaN on other accelerators."""
    if device.type != "cuda":
        return float("nan")
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return float(torch.cuda.max_memory_allocated(device) - before)


def _peaks_in_new_process(work: Workload, passes: Sequence[int]) -> dict[str, float]:
    """Bytes a mode. A process of its own knows nothing of what this one has held before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pt"
        torch.save((work, tuple(passes), torch.get_num_threads()), path)
        command = [sys.executable, "-m", "companion.studies.cost", str(path)]
        done = subprocess.run(command, env=os.environ | PROMPT_RELEASE, stdout=subprocess.PIPE, check=True, text=True)
    peaks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _print_peaks(path: str) -> None:
    """Run each mode of a saved job and print the peaks of resident memory as JSON."""
    work, passes, threads = torch.load(path, weights_only=False)
    torch.set_num_threads(threads)
    for run in _modes(work, [1]).values():  # what libraries set up in their first call is not the mode's
        run()
    print(json.dumps({mode: resident_peak(run) for mode, run in _modes(work, passes).items()}))


def resident_peak(run: Callable[[], object]) -> float:
    """Peak of resident memory during a call above that at its start, bytes; NaN where there is no Linux /proc.

    The peak is reset first: `ru_maxrss` would hold that of imports, and of the parent process besides.
    """
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _resident("VmRSS")
    except OSError:
        return float("nan")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    _print_peaks(sys.argv[1])
