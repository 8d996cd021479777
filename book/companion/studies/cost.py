"""What inference costs: time and memory of the modes of table 4 and of the parts of a pass."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.timing import Runs, interleave, summary
from sarmatch.config import ModelConfig
from sarmatch.evaluation.intervals import check_columns
from sarmatch.matching.assignment import predict
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import pick_matches
from sarmatch.matching.tiling import MULTIPLE, TILE
from sarmatch.model import PairInput, SarOpticalNet, prepare
from sarmatch.model.encoders import DenseEncoder, Encoding, Prefix

BASE = "base"
ONE_PASS = "with uncertainty"
MODE_COLUMNS = ("mode", "passes", "seconds", "seconds_low", "seconds_high", "ratio", "peak_mb", "device")
PARTS = {
    "prefix": (1, 0),
    "trunk": (1, 1),  # once more without dropout, for the fine descriptors
    "uncertainty": (0, 1),
    "head": (0, 1),
    "coarse": (0, 1),
    "fine": (1, 0),
    "pick": (1, 0),
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


def workload(
    net_config: ModelConfig,
    size: int = 256,
    device: str = "cpu",
    search_radius: float = 32.0,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    pair: tuple[Tensor, Tensor] | None = None,
) -> Workload:
    """Seeded random images and networks, or a given pair and trained weights.

    Refinement takes longer the more displacements the matches have: many between random images, few in a real pair.

    Args:
        net_config: of the network with uncertainty.
        size: side of random images, px; a multiple of 16 up to one tile.
        weights: state of the network with uncertainty; None draws weights.
        pair: SAR and optical image (1, C, H, W) in [0, 1] instead of random ones, of sides as for `size`.

    Raises:
        ValueError: a config without uncertainty, sides that are no single tile, a search radius that is not positive.
    """
    if not net_config.uncertainty:
        raise ValueError("net_config has uncertainty=False; give one with uncertainty=True, base is made from it")
    if not search_radius > 0:
        raise ValueError(f"search_radius must be positive, got {search_radius} px; the usual one is 32")
    generator = torch.Generator().manual_seed(seed)
    channels = (net_config.sar_channels, net_config.optical_channels)
    images = pair or tuple(torch.rand(1, c, size, size, generator=generator) for c in channels)
    for image, n in zip(images, channels, strict=True):
        sides = image.shape[-2:]
        if image.shape[:-2] != (1, n) or any(s % MULTIPLE or not MULTIPLE <= s <= TILE for s in sides):
            raise ValueError(
                f"size: expected images (1, {n}, H, W) with sides that are multiples of {MULTIPLE} up to {TILE} px, "
                f"got {tuple(image.shape)}; cut or pad them"
            )
    base, full = (net.to(device).eval() for net in _networks(net_config, seed, weights))
    masks = [torch.ones(1, *image.shape[-2:], dtype=torch.bool) for image in images]
    sar, optical, *valid = (t.to(device) for t in (*images, *masks))
    return Workload(base, full, (sar, optical, valid[0], valid[1]), search_radius)


def _networks(
    config: ModelConfig, seed: int, weights: Mapping[str, Tensor] | None
) -> tuple[SarOpticalNet, SarOpticalNet]:
    """The same network without and with uncertainty."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        full = SarOpticalNet(config)
        base = SarOpticalNet(dataclasses.replace(config, uncertainty=False))
    full.load_state_dict(weights or full.state_dict())
    base.load_state_dict({name: full.state_dict()[name] for name in base.state_dict()})
    return base, full


def measure_modes(
    work: Workload, passes: int | Sequence[int] = (1, 2, 5, 10, 20, 50), repeats: int = 5
) -> pd.DataFrame:
    """Table 4 as a measurement: encoders, coarse level and refinement of one pair, as the matcher runs them on a tile.

    Args:
        passes: numbers of Monte Carlo passes, one row each.
        repeats: runs of each mode after one that does not count.

    Returns:
        `MODE_COLUMNS`, a row a mode: `passes` (0 where dropout is off), `seconds` (median) with its extremes, `ratio`
        to one pass with uncertainty (median over repeats), `peak_mb`, memory above that at the start, 10^6 bytes: on
        CUDA of tensors, on a CPU resident in a fresh process (NaN where the system does not tell).

    Raises:
        ValueError: passes or repeats below 1, or passes that occur twice.
    """
    counts = _checked_passes(passes)
    runs = _modes(work, counts)
    seconds = interleave(runs, repeats, work.device)
    if work.device.type == "cpu":
        peaks = _peaks_in_new_process(work, counts)
    else:
        peaks = {mode: _peak_on_cuda(run, work.device) for mode, run in runs.items()}
    rows = []
    for (mode, spent), n in zip(seconds.items(), (0, 0, *counts), strict=True):
        ratio = float(np.median(np.divide(spent, seconds[ONE_PASS])))
        about = {"ratio": ratio, "peak_mb": peaks[mode] / 1e6, "device": str(work.device)}
        rows.append({"mode": mode, "passes": n} | summary(spent) | about)
    return pd.DataFrame(rows, columns=list(MODE_COLUMNS))


def measure_parts(work: Workload, repeats: int = 5) -> pd.DataFrame:
    """Where the time of one deterministic pass goes.

    Returns:
        indexed by part of `PARTS`: `seconds` (median) with its extremes, `share` of their sum, and `once` and
        `per_pass`, how often Monte Carlo passes need the part. `prefix` is all before the first dropout, `trunk` the
        rest of both encoders, `head` the projection to descriptors, `coarse` the volume, its aggregation and softmax,
        `fine` the full-resolution descriptors, `pick` the mutual matches and their refinement.

    Raises:
        ValueError: repeats below 1.
    """
    seconds = interleave(_part_runs(work), repeats, work.device)
    table = pd.DataFrame([summary(seconds[part]) for part in PARTS], index=pd.Index(PARTS, name="part"))
    table["share"] = table["seconds"] / table["seconds"].sum()
    table["once"], table["per_pass"] = zip(*PARTS.values(), strict=True)
    return table


def prefix_bound(parts: pd.DataFrame, passes: int) -> float:
    """Time of Monte Carlo passes over that of one deterministic pass, where all that can be shared is shared.

    (prefix + trunk + fine + pick + passes * (trunk + uncertainty + head + coarse)) / the sum of all parts; a batch of
    passes counts as no faster than the passes one by one.

    Args:
        parts: of `measure_parts`.

    Raises:
        ValueError: fewer than one pass, columns that lack, or seconds that are not positive in sum.
    """
    (n,) = _checked_passes(passes)
    check_columns(parts, ("seconds", "once", "per_pass"))
    one_pass = parts["seconds"].sum()
    if not one_pass > 0:
        raise ValueError(f"parts: seconds must be positive in sum, got {one_pass}; measure them with measure_parts")
    return float((parts["seconds"] * (parts["once"] + n * parts["per_pass"])).sum() / one_pass)


def _modes(work: Workload, passes: Sequence[int]) -> Runs:
    matchers = {BASE: Matcher(work.base, work.device), ONE_PASS: Matcher(work.full, work.device)}
    matchers |= {f"Monte Carlo {n}": Matcher(work.full, work.device, mc_passes=n) for n in passes}
    return {mode: partial(_match, matcher, work) for mode, matcher in matchers.items()}


@torch.no_grad()
def _match(matcher: Matcher, work: Workload) -> None:
    matcher.match_tiles(work.inputs, work.search_radius)


def _part_runs(work: Workload) -> Runs:
    """The parts of one pass with uncertainty, each on what the ones before made of the pair."""
    net, (sar, optical, sar_valid, optical_valid) = work.full, work.inputs
    images, valid, masks = zip(prepare(sar, sar_valid), prepare(optical, optical_valid), strict=True)
    encoders, aggregate = (net.sar_encoder, net.optical_encoder), bool(net.config.consensus_cells)

    def each(part: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            return [part(*values) for values in zip(*arguments, strict=True)]

    steps: dict[str, tuple[Any, ...]] = {}
    prefixes = each(*steps.setdefault("prefix", (_prefix, encoders, images, masks)))
    trunks = each(*steps.setdefault("trunk", (_trunk, encoders, prefixes)))
    features, gradients = zip(*trunks, strict=True)
    uncertainties = each(*steps.setdefault("uncertainty", (lambda e, f: e.uncertainty(f), encoders, features)))
    fine = each(*steps.setdefault("fine", (lambda e, *known: e.full_resolution(*known), encoders, prefixes, features)))
    encodings = each(Encoding, features, fine, uncertainties, gradients)
    first, second = each(*steps.setdefault("head", (net.describe, encodings)))
    level = partial(predict, net, first, second, work.search_radius, *valid, aggregate)
    runs: dict[str, Callable[[], object]] = {name: partial(each, *step) for name, step in steps.items()}
    runs["coarse"] = level
    runs["pick"] = partial(pick_matches, net, level(), first.fine, second.fine, *valid, aggregate)
    return runs


def _prefix(encoder: DenseEncoder, image: Tensor, valid: Tensor) -> Prefix:
    return encoder.prefix(image).masked(valid)


def _trunk(encoder: DenseEncoder, prefix: Prefix) -> tuple[Tensor, Tensor | None]:
    return encoder.trunk(prefix.maps), encoder.cell_gradients(prefix)


def _checked_passes(passes: int | Sequence[int]) -> tuple[int, ...]:
    counts = (passes,) if isinstance(passes, int) else tuple(passes)
    if any(n < 1 for n in counts) or len(set(counts)) < len(counts):
        raise ValueError(f"passes must be different numbers of at least 1, got {counts}; table 4 takes 20")
    return counts


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
    job = {
        "config": dataclasses.asdict(work.full.config),
        "weights": work.full.state_dict(),
        "pair": work.inputs[:2],
        "passes": list(passes),
        "search_radius": work.search_radius,
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pt"
        torch.save(job, path)
        command = [sys.executable, "-m", "companion.studies.cost", str(path)]
        done = subprocess.run(command, env=os.environ | PROMPT_RELEASE, stdout=subprocess.PIPE, check=True, text=True)
    peaks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _print_peaks(path: str) -> None:
    """Run each mode of a saved job and print the peaks of resident memory as JSON."""
    job = torch.load(path, weights_only=True)
    torch.set_num_threads(job["threads"])
    given = {name: job[name] for name in ("search_radius", "weights", "pair")}
    work = workload(ModelConfig(**job["config"]), **given)
    for run in _modes(work, [1]).values():  # what libraries set up in their first call is not the mode's
        run()
    print(json.dumps({mode: resident_peak(run) for mode, run in _modes(work, job["passes"]).items()}))


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
