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
    _part_runs,
    measure_modes,
    measure_parts,
    prefix_bound,
    workload,
)
from companion.timing import interleave
from sarmatch.config import PROFILES
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet

SMALL = dataclasses.replace(PROFILES["smoke"].model, consensus_cells=(3,))
CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks of resident memory are read from /proc")


@pytest.fixture(scope="module")
def modes():
    return measure_modes(workload(SMALL, 32, search_radius=8.0), (1, 4), repeats=3)


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
from sarmatch.matching import monte_carlo
from companion.studies.cost import resident_peak, workload
from sarmatch.config import PROFILES

net = dataclasses.replace(PROFILES["smoke"].model, consensus_cells=(3,))
for at_once in (1, 4):
    work = workload(net, 256, search_radius=8.0)
    sar, optical = work.full.sar_encoder.prefix(work.inputs[0]), work.full.optical_encoder.prefix(work.inputs[1])
    monte_carlo.PASSES_AT_ONCE = at_once
    print(resident_peak(lambda: monte_carlo.predict_monte_carlo(work.full, sar, optical, 8.0, 4)))
"""
    )
    similarities = 4 * 64**4
    assert four - one > 2 * similarities


def test_base_is_the_same_network_without_uncertainty():
    work = workload(SMALL, 32)
    full = work.full.state_dict()
    assert work.base.sar_encoder.uncertainty is None
    assert work.base.source_weights is None
    assert all(torch.equal(value, full[name]) for name, value in work.base.state_dict().items())


def test_weights_and_pair_are_taken():
    drawn = workload(SMALL, 32)
    assert torch.equal(drawn.inputs[0], workload(SMALL, 32).inputs[0])
    drawn = drawn._replace(full=SarOpticalNet(SMALL).eval(), inputs=tuple(x.flip(-1) for x in drawn.inputs))
    given = workload(SMALL, weights=drawn.full.state_dict(), pair=drawn.inputs[:2])
    one, other = (Matcher(w.full, "cpu").match_tile(w.inputs, 8.0) for w in (drawn, given))
    assert torch.equal(one.xy_optical, other.xy_optical)


def test_parts_are_those_of_one_pass():
    work = workload(SMALL, 32, search_radius=8.0)
    parts = measure_parts(work, repeats=1)
    assert parts.index.tolist() == list(PARTS)
    assert (parts["seconds"] > 0).all()
    assert parts["share"].sum() == pytest.approx(1)
    assert prefix_bound(parts, 1) > 1  # the trunk runs with and without dropout


@pytest.mark.parametrize("oriented_gradients", [True, False])
def test_parts_one_after_the_other_give_the_matches_of_a_pass(oriented_gradients):
    work = workload(dataclasses.replace(SMALL, oriented_gradients=oriented_gradients), 48, search_radius=8.0)
    work.inputs[2][0, 16:28, 16:28] = False  # cells without data, next to which there are no gradients
    whole = Matcher(work.full, "cpu").match_tile(work.inputs, 8.0)
    of_parts = _part_runs(work)["pick"]()
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
        ({"net_config": dataclasses.replace(SMALL, uncertainty=False)}, "net_config has uncertainty=False"),
    ],
)
def test_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        workload(**{"net_config": SMALL, "size": 32} | change)


@pytest.mark.parametrize(
    ("passes", "repeats", "message"), [((0,), 1, "of at least 1"), ((5, 5), 1, "different"), ((1,), 0, "repeats")]
)
def test_rejected_passes(passes, repeats, message):
    with pytest.raises(ValueError, match=message):
        measure_modes(workload(SMALL, 32), passes, repeats)
