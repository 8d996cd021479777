"""Windows cover a region once, seams go to the more confident match, and what is finished is not done again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sarmatch.matching.matches import Matches
from sarmatch.matching.tiling import TILE
from sarmatch.scenes import windows
from sarmatch.scenes.grids import Region
from sarmatch.scenes.settings import MatchSettings, SceneOptions
from sarmatch.scenes.windows import Task, TileStore, concatenated, match_tiles, plan_tiles

SETTINGS = MatchSettings(progress=False)
TASK = Task("a.tif", "b.tif", SETTINGS)


@settings(deadline=None, max_examples=30)
@given(st.integers(48, 900), st.integers(48, 900))
def test_cores_cover_each_px_of_a_region_once(width: int, height: int) -> None:
    tiles = plan_tiles(Region(7, -3, width, height))
    rng = np.random.default_rng(0)
    for x, y in rng.uniform((7, -3), (7 + width, -3 + height), (20, 2)):
        assert sum(t.core[0] <= x < t.core[2] and t.core[1] <= y < t.core[3] for t in tiles) == 1
    for tile in tiles:  # starts are multiples of 16, so that the last may reach a little further
        assert tile.region.x >= 7 and tile.region.x + tile.region.width < 7 + width + 16
        assert tile.region.y >= -3 and tile.region.y + tile.region.height < -3 + height + 16


def test_spread_windows_are_as_many_as_the_spacing_says() -> None:
    tiles = plan_tiles(Region(0, 0, 10_980, 10_980), 512)
    assert len(tiles) == 22**2 and {t.region[2:] for t in tiles} == {(TILE, TILE)}
    starts = sorted({t.region.x for t in tiles})
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 16 and starts[0] < 256 and starts[-1] > 10_980 - 512
    assert len(plan_tiles(Region(0, 0, 100, 2000), 512)) == 4


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_spacing_must_be_positive(spacing: float) -> None:
    with pytest.raises(ValueError, match="spacing must be positive"):
        plan_tiles(Region(0, 0, 500, 500), spacing)


def test_too_many_windows_are_an_error() -> None:
    with pytest.raises(ValueError, match="larger spacing"):
        plan_tiles(Region(0, 0, 400_000, 400_000))


def some(xy: Any, confidence: Any) -> Matches:
    return Matches(np.array(xy, float), np.array(xy, float), np.array(confidence))


def test_of_two_matches_of_a_cell_the_more_confident_stays(tmp_path: Path) -> None:
    tiles = plan_tiles(Region(0, 0, 400, 200))
    store = TileStore(tmp_path / "windows", tiles)
    assert len(tiles) == 2
    store.save(tiles[0], some([[1.5, 1.5], [201.5, 9.5], [205.5, 9.5]], [0.5, 0.9, 0.2]))
    store.save(tiles[1], some([[201.5, 9.5], [205.5, 9.5], [301.5, 1.5]], [0.3, 0.8, 0.7]))
    merged = concatenated(list(store))
    kept = {x: round(c, 3) for x, c in zip(merged.xy_sar[:, 0].tolist(), merged.confidence.tolist(), strict=True)}
    assert kept == {1.5: 0.5, 201.5: 0.9, 205.5: 0.8, 301.5: 0.7} and len(merged) == 4


def one_by_one(own: Matches, others: Sequence[Matches]) -> list[bool]:
    """Which matches of a window stay: those that no other window found at the same cell with more confidence."""
    kept = []
    for xy, confidence in zip(own.xy_sar.tolist(), own.confidence, strict=True):
        rivals = [c for o in others for at, c in zip(o.xy_sar.tolist(), o.confidence, strict=True) if at == xy]
        kept.append(all(confidence >= rival for rival in rivals))
    return kept


cells = st.tuples(st.sampled_from([-0.0, 0.0, 1.5, 5.5, 9.5]), st.sampled_from([1.5, 5.5]))
window = st.lists(st.tuples(cells, st.sampled_from([0.0, 0.25, 0.3, 1.0])), max_size=12).map(
    lambda found: some(np.reshape([xy for xy, _ in found], (-1, 2)), [c for _, c in found])
)


@settings(deadline=None)
@given(window, st.lists(window, max_size=4))
def test_seams_are_those_of_a_walk_over_all_matches(own: Matches, others: list[Matches]) -> None:
    """Ties stay on both sides; cells may repeat, windows be empty, and either zero is the same place."""
    kept = windows._best_of_seam(own, others)
    expected = own.select(np.array(one_by_one(own, others), bool))
    for name in ("xy_sar", "xy_optical", "confidence"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(expected, name))


def test_a_seam_takes_as_many_lines_of_python_for_many_matches_as_for_few() -> None:
    def lines(n: int) -> int:
        rng, ran = np.random.default_rng(n), 0
        own, *others = (some(rng.integers(0, 40, (n, 2)) * 4 + 1.5, rng.random(n)) for _ in range(4))

        def count(frame: Any, event: str, _: Any) -> Any:
            nonlocal ran
            ran += event == "line"
            return count if frame.f_code.co_filename == windows.__file__ else None

        before = sys.gettrace()
        sys.settrace(count)
        try:
            windows._best_of_seam(own, others)
        finally:
            sys.settrace(before)
        return ran

    assert lines(1000) == lines(10) > 0


def test_covariances_survive_the_store(tmp_path: Path) -> None:
    tiles = plan_tiles(Region(0, 0, 100, 100))
    store = TileStore(tmp_path, tiles)
    known = Matches(np.ones((2, 2)), np.ones((2, 2)), np.ones(2), covariance=np.tile(np.eye(2), (2, 1, 1)))
    store.save(tiles[0], known)
    np.testing.assert_array_equal(next(iter(store)).covariance, known.covariance)


def test_finished_windows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, done = plan_tiles(Region(0, 0, 600, 600)), []

    def matched(pair: Any, matcher: Any, batch: Any, *_: Any) -> list[Matches]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.extend(tile.number for tile in batch)
        return [some([[1.5, 1.5]], [0.5]) for _ in batch]

    monkeypatch.setattr(windows, "match_windows", matched)
    pair, store, matcher = SimpleNamespace(), TileStore(tmp_path, tiles), SimpleNamespace(at_once=1)
    with pytest.raises(KeyboardInterrupt):
        match_tiles(pair, matcher, store, TASK)  # type: ignore[arg-type]
    done.append(-1)
    match_tiles(pair, matcher, TileStore(tmp_path, tiles), TASK)  # type: ignore[arg-type]
    assert done[:3] == [0, 1, 2] and done[4:] == list(range(3, len(tiles)))


def test_windows_go_through_the_network_as_many_at_once_as_the_device_takes(tmp_path: Path) -> None:
    """Each window's matches are its own, whatever came with it, and windows without data cost nothing."""
    tiles = plan_tiles(Region(0, 0, 900, 300))
    asked: list[list[int]] = []

    def read(region: Region) -> Any:
        return SimpleNamespace(valid=np.array([region.x != tiles[1].region.x]))

    def match_batch(images: Any, search: Any, numbers: Any) -> list[Matches]:
        asked.append(list(numbers))
        return [some([[10.0 + number, 12.0]], [0.5]) for number in numbers]

    pair: Any = SimpleNamespace(
        ordered=lambda a, b: (a, b), sar=SimpleNamespace(read=read), optical=SimpleNamespace(read=read), to="sar"
    )
    matcher: Any = SimpleNamespace(at_once=2, match_batch=match_batch)
    assert len(tiles) > 3
    store = TileStore(tmp_path, tiles)
    match_tiles(pair, matcher, store, TASK)
    assert asked[:2] == [[0], [2, 3]]  # window 1 holds no data
    stored = [store._load(tile.number).xy_sar.tolist() for tile in tiles[:3]]
    assert stored[1] == []
    for tile, found in zip((tiles[0], tiles[2]), (stored[0], stored[2]), strict=True):
        own = [tile.region.x + 10.0 + tile.number, tile.region.y + 12.0]
        inside = all(low - 16 <= v < high + 16 for v, low, high in zip(own, tile.core[:2], tile.core[2:], strict=True))
        assert found == ([own] if inside else [])


def test_other_settings_are_other_windows() -> None:
    region, first, second = Region(0, 0, 100, 100), SimpleNamespace(net=nn.Linear(1, 1)), SimpleNamespace(net=None)
    other = Task("a.tif", "b.tif", MatchSettings(options=SceneOptions(to="optical")))
    cases: list[tuple[Any, ...]] = [(TASK, first, region, None), (TASK, first, region, 512)]
    cases += [(other, first, region, None), (TASK, first, region.moved(1, 0), None), (TASK, second, region, None)]
    assert len({task.key(*how) for task, *how in cases}) == 5


def test_nothing_found_is_no_matches() -> None:
    assert len(concatenated([Matches.empty(), Matches.empty()])) == 0
