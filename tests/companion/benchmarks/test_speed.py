"""Ways to run the encoders side by side: what is counted, and that rounding is all that changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from patch_net import PatchNet

from companion.benchmarks.speed import PLAIN, backend_table, crops_of, in_bfloat16, timed_records
from sarmatch.data.synthetic import synthetic_pairs
from sarmatch.matching.matcher import Matcher
from sarmatch.model import SarOpticalNet
from sarmatch.profiles import profile


def test_bfloat16_is_close_and_not_the_same() -> None:
    torch.manual_seed(0)
    net = SarOpticalNet(profile("smoke").model).eval()
    inputs = crops_of(synthetic_pairs(1, 96, seed=3), profile("smoke").evaluation, 1)[0]
    with torch.no_grad():
        expected, found = net(*inputs), in_bfloat16(net)(*inputs)
    for a, b in zip(expected, found, strict=True):
        assert b.coarse.dtype == b.fine.dtype == torch.float32
        assert 0 < float((a.coarse - b.coarse).abs().max()) < 0.2


def test_all_take_turns_on_the_same_crops() -> None:
    pairs, config = synthetic_pairs(3, 96, seed=3), profile("smoke").evaluation
    asked: list[str] = []

    class Spy(Matcher):
        def match_crops(self, crops, search_radius):  # type: ignore[no-untyped-def]
            asked.append(self.name)
            return super().match_crops(crops, search_radius)

    matchers = {name: Spy(PatchNet(), "cpu") for name in (PLAIN, "other")}
    for name, matcher in matchers.items():
        matcher.name = name
    records = timed_records(matchers, pairs, config, repeats=1)
    assert asked == [PLAIN, "other"] * 2 * 2, "two pairs (max_pairs), a turn that does not count and one that does"
    assert len(records) == 4 and (records["seconds"] > 0).all()
    same = records.groupby("method")[["mma_1px", "mma_3px", "n_matches"]].mean()
    assert same.loc[PLAIN].equals(same.loc["other"])


def test_table_by_hand() -> None:
    sure, right = np.array([1.0, 1.0]), np.array([True, False])
    rows = [
        (PLAIN, "a", 2.0, 0.5, 1.0, 10, sure, right),
        ("fast", "a", 1.0, 0.5, 0.5, 20, sure, ~right),
        (PLAIN, "b", 4.0, 0.5, 1.0, 30, sure, np.array([True, True])),
        ("fast", "b", 1.0, 0.5, 0.5, 20, sure, right),
    ]
    columns = ["method", "id", "seconds", "mma_1px", "mma_3px", "n_matches", "confidence", "correct"]
    table = backend_table(pd.DataFrame(rows, columns=columns)).set_index("backend")
    assert table.index.tolist() == [PLAIN, "fast"]
    assert table.loc["fast", "speed_up"] == 3.0 and table.loc[PLAIN, "speed_up"] == 1.0
    assert table.loc[PLAIN, "ece"] == pytest.approx(0.25) and table.loc["fast", "ece"] == pytest.approx(0.5)
    assert table.loc["fast", ["seconds", "mma_3px", "n_matches"]].tolist() == [1.0, 0.5, 20.0]
