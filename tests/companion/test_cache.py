"""Tables are kept under all that they depend on, and served for nothing else."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from companion.baselines import TemplateMatcher
from companion.cache import cached_table
from sarmatch.data import synthetic_pairs
from sarmatch.io import digest, weights_digest
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile

CONFIG = profile("smoke")


def network(seed: int = 0) -> SarOpticalNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SarOpticalNet(CONFIG.model).eval()


NET, PAIRS = network(), synthetic_pairs(4, 96, 0)


def asked(**changes) -> dict:
    """What a table of matches depends on."""
    return {"matcher": Matcher(NET, "cpu"), "radius": 16.0, "pairs": PAIRS, "config": CONFIG.evaluation} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"matcher": Matcher(network(1), "cpu")},  # trained again
        {"matcher": Matcher(NET, "cpu", mc_passes=2)},
        {"matcher": Matcher(NET, "cpu", mc_passes=2, mc_seed=1)},
        {"matcher": Matcher(NET, "cpu", use_consensus=False)},
        {"matcher": TemplateMatcher()},
        {"matcher": TemplateMatcher(template_px=33)},
        {"radius": None},
        {"pairs": PAIRS.subset([0, 1, 2])},
        {"pairs": synthetic_pairs(4, 112, 0)},  # the same ids and strata at another size, as of another profile
        {"config": dataclasses.replace(CONFIG.evaluation, seed=1)},
    ],
)
def test_a_table_is_served_for_one_question_only(tmp_path: Path, changes: dict) -> None:
    def make(value: int):
        return lambda: pd.DataFrame({"n": [value]})

    assert cached_table(tmp_path, "t", asked(), make(1))["n"].item() == 1
    assert cached_table(tmp_path, "t", asked(), make(2))["n"].item() == 1, "measured once"
    assert cached_table(tmp_path, "t", asked(**changes), make(3))["n"].item() == 3
    assert cached_table(tmp_path, "t", asked(**changes), make(4))["n"].item() == 3


def test_all_questions_of_the_test_above_differ() -> None:
    marks = test_a_table_is_served_for_one_question_only.pytestmark[0].args[1]
    found = [digest(asked(**changes)) for changes in [{}, *marks]]
    assert len(set(found)) == len(found)


def test_a_table_that_cannot_be_made_is_not_kept(tmp_path: Path) -> None:
    def fail() -> pd.DataFrame:
        raise KeyError("on the way")

    with pytest.raises(KeyError):
        cached_table(tmp_path, "t", asked(), fail)
    assert cached_table(tmp_path, "t", asked(), lambda: pd.DataFrame({"n": [1]}))["n"].item() == 1


def test_weights_count_and_mode_does_not() -> None:
    same = copy.deepcopy(NET).train()
    assert weights_digest(same) == weights_digest(NET)
    with torch.no_grad():
        same.plain_log_scale += 1e-6
    assert weights_digest(same) != weights_digest(NET)


def test_digests_are_the_same_in_another_process() -> None:
    code = "from test_cache import asked, digest; print(digest(asked()))"
    root = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(asked())


def test_pixels_count_not_only_the_index() -> None:
    def brighter(row: pd.Series):
        pair = PAIRS.read(row)
        return dataclasses.replace(pair, sar=(pair.sar * 0.5).contiguous())

    other = dataclasses.replace(PAIRS, read=brighter)
    assert other.fingerprint() == PAIRS.fingerprint() and other.digest() != PAIRS.digest()


def test_kinds_of_values_are_told_apart() -> None:
    values = [1, 1.5, "1", None, True, [1], {"a": 1}, np.ones(2), np.ones((2, 1)), np.ones(2, np.float32)]
    values += [torch.ones(2), torch.ones(2).double(), pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})]
    found = [digest(value) for value in values]
    assert len({*found}) == len(values) - 2, "tensors count as arrays of the same numbers"
    assert digest(np.float64(1.5)) == digest(1.5)


def test_what_cannot_be_told_is_an_error() -> None:
    with pytest.raises(TypeError, match="cannot tell what a function holds"):
        digest({"matcher": lambda crops: crops})


def test_two_processes_make_a_table_once(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib, pandas as pd\nfrom companion.cache import cached_table\n"
        "def make():\n pathlib.Path(sys.argv[1], f'made {time.time_ns()}').touch(); time.sleep(2)\n"
        " return pd.DataFrame({'n': [1]})\n"
        "print(cached_table(pathlib.Path(sys.argv[1]), 't', {'a': 1}, make)['n'].item())"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [b"1", b"1"]
    assert len(list(tmp_path.glob("made *"))) == 1
