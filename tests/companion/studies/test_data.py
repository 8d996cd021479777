"""Distribution tables and statistics by band."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from companion.studies.data import band_statistics, distribution
from sarmatch.data import Pair, Pairs, synthetic_pairs


def test_distribution_by_hand() -> None:
    rows = [("a", "winter", "forest"), ("b", "spring", "forest"), ("c", "spring", "forest"), ("d", "", "urban")]
    index = pd.DataFrame(rows, columns=["id", "season", "land_cover"]).assign(dataset="d", scene="s")
    table = distribution(Pairs(index, lambda row: pytest.fail("no image is needed")))
    assert list(table.columns) == ["spring", "winter", "unknown"] and list(table.index) == ["forest", "urban"]
    assert table.to_numpy().tolist() == [[2, 1, 0], [0, 0, 1]]


def test_band_statistics_use_valid_pixels_only() -> None:
    sar = torch.tensor([[[0.0, 0.5], [1.0, 0.9]]])
    valid = torch.tensor([[True, True], [True, False]])
    optical = torch.stack([sar[0], sar[0] / 2, torch.full((2, 2), 0.25)])
    index = pd.DataFrame([dict(id="a", dataset="", scene="", season="", land_cover="")])
    table = band_statistics(Pairs(index, lambda row: Pair(sar, optical, valid, "a")))
    assert list(table.index) == ["sar 0", "optical 0", "optical 1", "optical 2"]
    np.testing.assert_allclose(table["mean"], [0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(table["std"], np.array([1, 1, 0.5, 0]) * np.std([0, 0.5, 1]))
    np.testing.assert_allclose(table["p50"], [0.5, 0.5, 0.25, 0.25])
    assert (table["pixels"] == 3).all()


def test_band_statistics_of_a_sample() -> None:
    pairs = synthetic_pairs(6, 64, seed=0, sar_bands=(0, 1))
    whole, again = band_statistics(pairs), band_statistics(pairs, sample=100, seed=5)
    pd.testing.assert_frame_equal(whole, again)  # all pairs and all of their pixels: no chance left
    stack = np.concatenate([pair.sar.numpy().reshape(2, -1) for pair in pairs], axis=1)
    np.testing.assert_allclose(whole.loc[["sar 0", "sar 1"], "mean"], stack.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(whole.loc["sar 1", ["p1", "p99"]].astype(float), np.percentile(stack[1], [1, 99]))
    assert band_statistics(pairs, sample=2)["pixels"].iloc[0] == 2 * 64 * 64
    with pytest.raises(ValueError, match="sample=0"):
        band_statistics(pairs, sample=0)
