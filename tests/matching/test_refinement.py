"""Fine similarities at single cells against the whole volume and its consensus."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarmatch.matching import refinement
from sarmatch.matching.aggregation import aggregate
from sarmatch.matching.correlation import fine_volume
from sarmatch.matching.refinement import _Planes, window_logits

CELL, SIDES, SCALES = 4, (3, 7), torch.tensor([2.0, 3.0, 4.0])


def images(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sar, optical = (torch.randn(2, channels, height, width, generator=generator) for _ in range(2))
    return sar, optical


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([(32, 16), (16, 48)]))
def test_entries_are_those_of_the_whole_volume(seed: int, radius: int, size: tuple[int, int]) -> None:
    sar, optical = images(*size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randint(0, 2, (9,), generator=generator)
    cells = torch.stack([torch.randint(0, n // CELL, (9,), generator=generator) for n in reversed(size)], -1)
    displacement = torch.randint(-20, 21, (3, 2), generator=generator)[torch.randint(0, 3, (9,), generator=generator)]
    found = window_logits((sar, optical), pair, cells, displacement, SIDES, SCALES, 20, radius, CELL)
    for i, b in enumerate(pair.tolist()):
        volume = fine_volume(sar[b : b + 1], optical[b : b + 1], displacement[i : i + 1], radius, CELL)
        whole = aggregate(volume, SIDES, SCALES)
        at = (0, slice(None), slice(None), cells[i, 1], cells[i, 0])
        expected = whole.values[at].masked_fill(~whole.valid[at], -torch.inf)
        assert torch.allclose(found[i], expected, atol=1e-4)


def some_cells() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs, cells and displacements, of which two are the same."""
    cells = torch.tensor([[1, 2], [5, 5], [7, 0], [3, 3]])
    return torch.tensor([0, 1, 0, 0]), cells, torch.tensor([[0, 4], [8, -4], [0, 4], [-12, 0]])


def test_displacements_are_worked_off_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = window_logits(images(32, 32), *some_cells(), SIDES, SCALES, 12, 2, CELL)
    monkeypatch.setattr(refinement, "AT_ONCE", 1)
    parts = window_logits(images(32, 32), *some_cells(), SIDES, SCALES, 12, 2, CELL)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_gathered_windows_give_what_slices_give() -> None:
    planes = _Planes(*images(32, 32), 14, CELL)
    pair, _, displacement = some_cells()
    needed = torch.cat([pair[:, None], displacement], 1)
    gathered = planes.gathered(needed[:, 0], needed[:, 1:] + planes.margin)
    assert torch.allclose(gathered, planes.similarity(needed), atol=1e-5)


def test_no_cells_give_nothing() -> None:
    none = torch.zeros(0, 2, dtype=torch.long)
    assert window_logits(images(16, 16), none[:, 0], none, none, SIDES, SCALES, 4, 4, CELL).shape == (0, 9, 9)
