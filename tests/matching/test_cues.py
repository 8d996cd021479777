"""What betrays a failing match: against a slow reference, by hand, and by what it must not depend on."""

import math

import pytest
import torch

from sarmatch.matching.assignment import CellMatches
from sarmatch.matching.cues import CUES, LARGEST_MARGIN, UNKNOWN_PX, match_cues

BATCH, SIDE, HEIGHT, WIDTH = 2, 5, 12, 14


def some(n: int = 40, seed: int = 0):
    """Log-probabilities, matches at different cells of two pairs, their displacements and covariances."""
    generator = torch.Generator().manual_seed(seed)
    forward = (3 * torch.randn(BATCH, SIDE**2, HEIGHT, WIDTH, generator=generator)).log_softmax(1)
    places = torch.randperm(BATCH * HEIGHT * WIDTH, generator=generator)[:n].sort().values
    pair, y, x = torch.unravel_index(places, (BATCH, HEIGHT, WIDTH))
    index = forward[pair, :, y, x].argmax(1)
    displacement = torch.stack([index % SIDE - SIDE // 2, index // SIDE - SIDE // 2], 1)
    found = CellMatches(pair, torch.stack([x, y], 1), displacement, torch.rand(n, generator=generator))
    moved = 4.0 * displacement + torch.rand(n, 2, generator=generator)
    spread = torch.rand(n, 2, 2, generator=generator)
    return forward, found, moved, spread @ spread.mT


def reference(forward, found, moved, covariance, valid=None) -> list[list[float]]:
    rows = []
    for i, (b, (x, y)) in enumerate(zip(found.pair.tolist(), found.cell.tolist(), strict=True)):
        row = forward[b, :, y, x].tolist()
        dx, dy = found.displacement[i].tolist()
        others = [
            value
            for k, value in enumerate(row)
            if max(abs(k % SIDE - SIDE // 2 - dx), abs(k // SIDE - SIDE // 2 - dy)) > 1
        ]
        around: dict[int, list[int]] = {}
        for side in (5, 9, 25):
            around[side] = [
                j
                for j, (c, (u, v)) in enumerate(zip(found.pair.tolist(), found.cell.tolist(), strict=True))
                if c == b and max(abs(u - x), abs(v - y)) <= side // 2
            ]
        cells = sum(
            (valid is None or bool(valid[b, v, u])) and max(abs(u - x), abs(v - y)) <= 12
            for v in range(HEIGHT)
            for u in range(WIDTH)
        )
        rough = []
        for side in (5, 25):
            rest = [j for j in around[side] if j != i]
            rough.append(float((moved[rest].mean(0) - moved[i]).norm()) if rest else UNKNOWN_PX)
        alike = sum(float((moved[j] - moved[i]).norm()) <= 3 for j in around[9])
        entropy = -sum(math.exp(value) * value for value in row)
        margin = min(max(row) - max(others), LARGEST_MARGIN)
        spread = math.sqrt(float(covariance[i].trace()))
        rows.append([entropy, margin, spread, *rough, (len(around[25]) - 1) / max(cells - 1, 1), alike / 81])
    return rows


@pytest.mark.parametrize("n", [1, 40, 200])
def test_cues_are_those_of_a_slow_reference(n):
    made = some(n)
    valid = torch.rand(BATCH, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.9
    valid[made[1].pair, made[1].cell[:, 1], made[1].cell[:, 0]] = True
    for mask in (None, valid):
        found = match_cues(*made, mask)
        assert found.shape == (n, len(CUES))
        torch.testing.assert_close(found, torch.tensor(reference(*made, mask)), atol=1e-4, rtol=1e-4)


def test_a_match_alone_knows_nothing_of_neighbours():
    forward, found, moved, covariance = some(1)
    cues = dict(zip(CUES, match_cues(forward, found, moved, covariance)[0].tolist(), strict=True))
    assert cues["roughness_5"] == cues["roughness_25"] == UNKNOWN_PX
    assert cues["matched_25"] == 0
    assert cues["agreeing_9"] == pytest.approx(1 / 81)


def test_pairs_of_a_batch_do_not_know_of_each_other():
    forward, found, moved, covariance = some(60)
    together = match_cues(forward, found, moved, covariance)
    for b in range(BATCH):
        own = found.pair == b
        alone = CellMatches(torch.zeros(int(own.sum()), dtype=torch.long), *(values[own] for values in found[1:]))
        torch.testing.assert_close(match_cues(forward[b : b + 1], alone, moved[own], covariance[own]), together[own])


def test_masked_entries_have_no_share_and_an_unrefined_position_no_spread():
    forward, found, moved, _ = some(20)
    masked = torch.cat([forward, torch.full((BATCH, 24, HEIGHT, WIDTH), -1e4)], 1)  # 7 x 7, the last rows unusable
    wide = found._replace(displacement=torch.zeros_like(found.displacement))
    cues = match_cues(masked, wide, moved, torch.full((20, 2, 2), torch.nan))
    assert cues.isfinite().all()
    assert (cues[:, CUES.index("spread")] == 0).all()
    same = match_cues(forward, found, moved, torch.zeros(20, 2, 2))
    torch.testing.assert_close(cues[:, 0], same[:, 0])
    assert match_cues(forward, CellMatches(*(v[:0] for v in found)), moved[:0], moved.new_zeros(0, 2, 2)).shape == (
        0,
        7,
    )
