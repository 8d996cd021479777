"""What tells related from unrelated images."""

from __future__ import annotations

import numpy as np
import pytest

from sarmatch.matching.matches import Matches
from sarmatch.scenes.transforms import Agreement, groups, judge, required_share


def grid_of(n: int, moved: np.ndarray) -> Matches:
    xy = np.stack(np.meshgrid(np.arange(n) * 16.0, np.arange(n) * 16.0), -1).reshape(-1, 2)
    return Matches(xy, xy + moved, np.full(len(xy), 0.9))


def judged(matches: Matches) -> Agreement:
    return judge(matches.xy_sar, matches.xy_optical, [len(matches)])


def some_agree(share: float) -> np.ndarray:
    """Displacements (256, 2) of which this share is one and the same and the others are random."""
    moved = np.random.default_rng(0).uniform(-32, 32, (256, 2))
    moved[: round(share * 256)] = (5, 3)
    return moved


def test_the_larger_the_images_the_less_must_agree() -> None:
    shares = [required_share(n) for n in (0, 40, 117, 182, 4096, 10**6)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == pytest.approx(0.25, abs=0.01)
    assert groups(256) == pytest.approx(6.55, abs=0.01)  # 256 px square at one per 16 px


def test_matches_that_move_alike_are_accepted() -> None:
    matches = grid_of(16, np.array([5.0, 3.0]))
    agreed = judged(matches)
    assert agreed.accepted and agreed.share == 1 and agreed.n_agree == 256


@pytest.mark.parametrize(
    ("matches", "reason"),
    [
        (Matches.empty(), "only 0 of 0"),
        (grid_of(16, np.random.default_rng(0).uniform(-32, 32, (256, 2))), "only 0 of 256"),
        (grid_of(16, some_agree(0.3)), "of their matches agree on one map, as of unrelated images; 54% are needed"),
        (grid_of(6, np.array([5.0, 3.0])), "too few to tell"),
    ],
)
def test_others_are_refused_with_a_reason(matches: Matches, reason: str) -> None:
    agreed = judged(matches)
    assert not agreed.accepted and reason in agreed.reason


def test_a_map_that_distorts_is_refused() -> None:
    matches = grid_of(16, np.zeros(2))
    stretched = Matches(matches.xy_sar, matches.xy_sar * 1.5, matches.confidence)
    assert "distorts by 50%" in judged(stretched).reason
