"""Fine similarities at single cells against the whole volume and its consensus."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarmatch.matching import refinement
from sarmatch.matching.aggregation import consensus
from sarmatch.matching.correlation import fine_volume
from sarmatch.matching.refinement import fine_consensus

CELL, SIDES = 4, (1, 3, 7)


def images(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sar, optical = (torch.randn(1, channels, height, width, generator=generator) for _ in range(2))
    return sar, optical


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([(32, 24), (16, 40)]))
def test_entries_are_those_of_the_whole_volume(seed: int, radius: int, size: tuple[int, int]) -> None:
    sar, optical = images(*size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randint(0, n // CELL, (9,), generator=generator) for n in reversed(size)], -1)
    displacement = torch.randint(-20, 21, (3, 2), generator=generator)[torch.randint(0, 3, (9,), generator=generator)]
    values, valid = fine_consensus(sar, optical, cells, displacement, radius, SIDES, CELL)
    for i in range(9):
        volume = fine_volume(sar, optical, displacement[i : i + 1], radius, CELL)
        for k, one in enumerate([volume, *consensus(volume, SIDES[1:])]):
            at = (0, slice(None), slice(None), cells[i, 1], cells[i, 0])
            assert torch.equal(valid[k, i], one.valid.expand_as(one.values)[at])
            assert torch.allclose(values[k, i], one.values[at] * valid[k, i], atol=1e-4)


def test_displacements_are_worked_off_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sar, optical = images(32, 32)
    cells = torch.tensor([[1, 2], [5, 5], [7, 0], [3, 3]])
    displacement = torch.tensor([[0, 4], [8, -4], [0, 4], [-12, 0]])
    whole = fine_consensus(sar, optical, cells, displacement, 2, SIDES, CELL)
    monkeypatch.setattr(refinement, "AT_ONCE", 1)
    parts = fine_consensus(sar, optical, cells, displacement, 2, SIDES, CELL)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_no_cells_give_nothing() -> None:
    none = torch.zeros(0, 2, dtype=torch.long)
    values, valid = fine_consensus(*images(16, 16), none, none, 4, SIDES, CELL)
    assert values.shape == valid.shape == (3, 0, 9, 9)
