"""Tables of a dataset; residual shifts and check points: known ones are found, unrelated images are unreliable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scene_files import texture as grey_texture
from torch import Tensor

from companion.studies import data as module
from companion.studies.data import (
    AGREE_PX,
    RELIABLE_QUALITY,
    CheckPoints,
    ResidualShift,
    band_statistics,
    check_points,
    distribution,
    information_shift,
    peak_shift,
    residual_shift,
    residual_shift_table,
    summarise_shifts,
    windows,
)
from sarmatch.data import Pair, Pairs, synthetic_pairs
from sarmatch.geometry import translation, warp
from sarmatch.model.oriented_gradients import gaussian_blur

SIZE = (112, 128)


def texture(side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_blur(torch.rand((1, side, side), generator=generator), 2.0)
    return (noise - noise.min()) / (noise.max() - noise.min())


def pair_with_shift(dx: float, dy: float, name: str = "pair", seed: int = 0, **labels: str) -> Pair:
    scene = texture(160, seed)
    sar = warp(scene, translation(16, 16), SIZE)
    optical = (1 - warp(scene, translation(16 - dx, 16 - dy), SIZE)).expand(3, -1, -1)
    return Pair(sar.clamp(0, 1), optical.clamp(0, 1), torch.ones(SIZE, dtype=torch.bool), name, **labels)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1.5, -0.75), (-6.25, 4)])
def test_finds_a_known_shift(dx: float, dy: float) -> None:
    shift = residual_shift(pair_with_shift(dx, dy))
    assert (shift.dx, shift.dy) == pytest.approx((dx, dy), abs=0.15)
    assert shift.length == pytest.approx(np.hypot(dx, dy), abs=0.2)
    assert shift.reliable


def test_unrelated_images_are_not_reliable() -> None:
    for seed in range(5):
        a, b = pair_with_shift(0, 0, seed=seed), pair_with_shift(0, 0, seed=seed + 100)
        shift = residual_shift(Pair(a.sar, b.optical, a.valid, "unrelated"))
        assert shift.quality < RELIABLE_QUALITY and not shift.reliable


def test_a_shift_beyond_the_limit_is_not_reliable() -> None:
    assert not residual_shift(pair_with_shift(8, 0), max_shift=4).reliable
    with pytest.raises(ValueError, match="max_shift must be at most 20"):
        residual_shift(pair_with_shift(0, 0), max_shift=21)


def test_invalid_pixels_do_not_count() -> None:
    pair = pair_with_shift(2, 1)
    sar, optical, valid = pair.sar.clone(), pair.optical.clone(), pair.valid.clone()
    stripes = (torch.arange(48) // 6 % 2).float()  # a strong pattern that says shift 0
    sar[:, :, :48], optical[:, :, :48], valid[:, :48] = stripes, stripes, False
    masked = residual_shift(Pair(sar, optical, valid, "masked"))
    assert (masked.dx, masked.dy) == pytest.approx((2, 1), abs=0.2)


def test_quality_is_zero_at_the_limit_and_grows_with_the_peak() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 0.1, (81, 81))
    scores[40, 43] = 1.0
    low = peak_shift(scores, 8)
    scores[40, 43] = 2.0
    high = peak_shift(scores, 8)
    assert round(low.dx) == 3 and round(low.dy) == 0
    assert 8 < low.quality < high.quality
    scores[40, 48] = 9.0
    assert peak_shift(scores, 8).quality == 0


def test_table_and_summary() -> None:
    made = [
        pair_with_shift(1, 0, "a", dataset="x", scene="1"),
        pair_with_shift(0, 3, "b", dataset="x", scene="2"),
        pair_with_shift(0, 0, "c", dataset="y", scene="3"),
    ]
    unrelated = Pair(made[0].sar, texture(160, 9)[:, :112, :128].expand(3, -1, -1), made[0].valid, "d", "y", "4")
    pairs = [*made, unrelated]
    columns = ("id", "dataset", "scene", "season", "land_cover")
    index = pd.DataFrame([{name: getattr(pair, name) for name in columns} for pair in pairs])
    table = residual_shift_table(Pairs(index, lambda row: next(pair for pair in pairs if pair.id == row["id"])))
    assert table["id"].tolist() == ["a", "b", "c", "d"]
    assert table["reliable"].tolist() == [True, True, True, False]
    summary = summarise_shifts(table)
    assert summary.loc["x", "n_pairs"] == 2 and summary.loc["y", "reliable"] == 0.5
    assert summary.loc["x", "median_px"] == pytest.approx(2, abs=0.2)
    assert summary.loc["x", "within_2.3px"] == 0.5 and summary.loc["y", "within_1px"] == 1


def test_windows_reach_from_corner_to_corner() -> None:
    pair = pair_with_shift(0, 0)
    parts = list(windows(pair, (56, 64), 3))
    centres = [centre for centre, _ in parts]
    assert centres[0] == (31.5, 27.5) and centres[-1] == (95.5, 83.5) and len(parts) == 9
    last = parts[-1][1]
    assert torch.equal(last.sar, pair.sar[:, 56:, 64:]) and torch.equal(last.optical, pair.optical[:, 56:, 64:])
    assert len(list(windows(pair, SIZE, 3))) == 1  # all three would be the same


def ground(side: int, seed: int) -> Tensor:
    return torch.from_numpy(grey_texture(side, side, seed)) / 255


def pair_of(sar: Tensor, optical: Tensor) -> Pair:
    valid = torch.ones(sar.shape, dtype=torch.bool)
    return Pair(sar[None], optical.expand(3, -1, -1), valid, "pair", scene="scene")


@pytest.mark.parametrize("reversed_grey", [False, True])
def test_mutual_information_finds_a_shift_whatever_the_grey_values(reversed_grey: bool) -> None:
    scene = ground(240, 0)
    sar, optical = scene[20:220, 20:220], scene[23:223, 15:215]
    optical = (1 - optical) ** 2 if reversed_grey else optical
    found = information_shift(sar[None], optical[None], 10)
    assert (found.dx, found.dy) == pytest.approx((5, -3), abs=0.3)


def test_mutual_information_needs_a_margin() -> None:
    with pytest.raises(ValueError, match="at least 64 px for shifts of 16 px, got 60 x 60"):
        information_shift(torch.rand(1, 60, 60), torch.rand(3, 60, 60), 16)


def test_every_part_of_a_pair_has_its_own_shift() -> None:
    scene = ground(620, 1)
    sar = scene[20:596, 20:596]
    optical = torch.cat([scene[20:596, 16:304], scene[20:596, 314:602]], dim=1)  # +4 px at the left, -6 at the right
    found = check_points(pair_of(sar, optical))
    assert found.n_blocks == 25
    shift = found.xy_optical - found.xy_sar
    left, right = found.xy_sar[:, 0] < 140, found.xy_sar[:, 0] > 430
    assert left.sum() >= 4 and right.sum() >= 4
    np.testing.assert_allclose(shift[left], np.tile([4, 0], (left.sum(), 1)), atol=0.5)
    np.testing.assert_allclose(shift[right], np.tile([-6, 0], (right.sum(), 1)), atol=0.5)


def test_images_of_two_places_have_no_check_points() -> None:
    found = check_points(pair_of(ground(300, 2), ground(300, 3)))
    assert len(found.xy_sar) == 0 and found.xy_optical.shape == (0, 2)
    assert found.nearest(np.zeros((4, 2))).size == 0


def test_a_block_counts_only_where_both_estimates_agree_and_the_gradients_stand_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = ground(300, 4)
    pair = pair_of(scene[20:276, 20:276], scene[20:276, 16:272])
    assert len(check_points(pair).xy_sar) == 1
    for name, estimate in (
        ("information_shift", ResidualShift(4.0 + 2 * AGREE_PX, 0.0, 9.0)),  # clear, and elsewhere
        ("residual_shift", ResidualShift(4.0, 0.0, 0.5 * RELIABLE_QUALITY)),  # the same place, by chance
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, estimate=estimate: estimate)
            assert len(check_points(pair).xy_sar) == 0


def test_the_nearest_check_point() -> None:
    points = CheckPoints(np.array([[0.0, 0], [10, 0], [5, 9]]), np.zeros((3, 2)), 25)
    np.testing.assert_array_equal(points.nearest(np.array([[9.0, 1], [0, 1], [4, 8]])), [1, 0, 2])


def test_chance_agreement_is_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(-16, 17, (2, 400_000, 2))
    share = (np.linalg.norm(first - second, axis=1) <= AGREE_PX).mean()
    assert 1 / share == pytest.approx(87, rel=0.1)


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
