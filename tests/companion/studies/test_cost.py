import dataclasses
import subprocess
import sys

import pandas as pd
import pytest
import torch

from companion.studies.cost import (
    BASE,
    ONE_PASS,
    PARTS,
    Workload,
    _part_runs,
    measure_modes,
    measure_parts,
    prefix_bound,
    workload,
)
from companion.timing import interleave
from sarmatch.config import ModelConfig
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import PROFILES

SMALL = dataclasses.replace(PROFILES["smoke"].model, consensus_cells=(3,))
CPU = torch.device("cpu")


def work(size: int = 32, config: ModelConfig = SMALL, search_radius: float = 8.0) -> Workload:
    torch.manual_seed(0)
    pair = [torch.rand(1, bands, size, size) for bands in (config.sar_channels, config.optical_channels)]
    return workload(SarOpticalNet(config), pair, search_radius)


linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks of resident memory are read from /proc")


@pytest.fixture(scope="module")
def modes():
    return measure_modes(work(), (1, 4), repeats=3)


def test_a_row_a_mode(modes):
    columns = ["mode", "passes", "seconds", "seconds_low", "seconds_high", "ratio", "peak_mb", "device"]
    assert list(modes.columns) == columns
    assert modes["mode"].tolist() == [BASE, ONE_PASS, "Monte Carlo 1", "Monte Carlo 4"]
    assert modes["passes"].tolist() == [0, 0, 1, 4]
    assert (modes["device"] == "cpu").all()


def test_seconds_and_ratios(modes):
    assert (modes["seconds_low"] > 0).all()
    assert (modes["seconds_low"] <= modes["seconds"]).all()
    assert (modes["seconds"] <= modes["seconds_high"]).all()
    ratio = modes.set_index("mode")["ratio"]
    assert ratio[ONE_PASS] == 1
    assert ratio["Monte Carlo 4"] > 1


@linux
def test_peaks_of_a_new_process(modes):
    # A pass holds at least the similarities of all 8 x 8 cells; the rest of so small a network is some megabytes.
    assert modes["peak_mb"].between(64**2 * 4 / 1e6, 200).all()


def fresh_process(code: str) -> list[float]:
    """Numbers that a program prints; this process holds freed memory that a call could take without any peak."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@linux
def test_resident_peak_sees_what_is_freed_again():
    (peak,) = fresh_process(
        "import torch; from companion.studies.cost import resident_peak as p; print(p(lambda: torch.ones(2**24).sum()))"
    )
    assert peak == pytest.approx(4 * 2**24, rel=0.05)


@linux
def test_memory_grows_with_passes_at_once():
    one, four = fresh_process(
        """
import dataclasses
import torch
from sarmatch.matching import monte_carlo
from companion.studies.cost import resident_peak, workload
from sarmatch.profiles import PROFILES
from sarmatch.model import SarOpticalNet

net = SarOpticalNet(dataclasses.replace(PROFILES["smoke"].model, consensus_cells=(3,)))
for at_once in (1, 4):
    work = workload(net, [torch.rand(1, 1, 256, 256), torch.rand(1, 3, 256, 256)], 8.0)
    sar, optical = work.full.sar_encoder.prefix(work.inputs[0]), work.full.optical_encoder.prefix(work.inputs[1])
    monte_carlo.PASSES_AT_ONCE = at_once
    print(resident_peak(lambda: monte_carlo.predict_monte_carlo(work.full, sar, optical, 8.0, 4)))
"""
    )
    volume = 4 * 25 * 64**2  # bytes
    assert four - one > 3 * volume


def test_base_is_the_same_network_without_uncertainty():
    both = work()
    full = both.full.state_dict()
    assert both.base.sar_encoder.uncertainty is None
    assert both.base.source_weights is None
    assert all(torch.equal(value, full[name]) for name, value in both.base.state_dict().items())


def test_parts_are_those_of_one_pass():
    parts = measure_parts(work(), repeats=1)
    assert parts.index.tolist() == list(PARTS)
    assert (parts["seconds"] > 0).all()
    assert parts["share"].sum() == pytest.approx(1)
    assert prefix_bound(parts, 1) > 1  # the trunk runs with and without dropout


@pytest.mark.parametrize("oriented_gradients", [True, False])
def test_parts_one_after_the_other_give_the_matches_of_a_pass(oriented_gradients):
    given = work(48, dataclasses.replace(SMALL, oriented_gradients=oriented_gradients))
    given.inputs[2][0, 16:28, 16:28] = False  # cells without data, next to which there are no gradients
    whole = Matcher(given.full, "cpu").match_tiles(given.inputs, 8.0)[0]
    (of_parts,) = _part_runs(given)["pick"]()
    assert len(whole.xy_sar) > 10
    for one, other in zip(whole, of_parts, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_bound_of_hand_made_parts():
    seconds = {"prefix": 1.0, "trunk": 2.0, "uncertainty": 0.5, "head": 0.25, "coarse": 4.0, "fine": 0.25, "pick": 2.0}
    parts = pd.DataFrame.from_dict(PARTS, orient="index", columns=["once", "per_pass"]).assign(seconds=seconds)
    # Once: 1 + 2 + 0.25 + 2 = 5.25; a pass: 2 + 0.5 + 0.25 + 4 = 6.75; all parts: 10.
    assert prefix_bound(parts, 1) == pytest.approx(1.2)
    assert prefix_bound(parts, 20) == pytest.approx((5.25 + 20 * 6.75) / 10)
    assert prefix_bound(parts.assign(seconds=3 * parts["seconds"]), 20) == pytest.approx(prefix_bound(parts, 20))


def test_runs_alternate():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU)
    assert calls == ["a", "b"] * 3
    assert {name: len(spent) for name, spent in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search_radius": 0.0}, "search_radius must be positive"),
        ({"config": dataclasses.replace(SMALL, uncertainty=False)}, "has uncertainty=False"),
    ],
)
def test_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        work(**change)


@pytest.mark.parametrize(("passes", "repeats", "message"), [((0,), 1, "of at least 1"), ((5, 5), 1, "different")])
def test_rejected_passes(passes, repeats, message):
    with pytest.raises(ValueError, match=message):
        measure_modes(work(), passes, repeats)
