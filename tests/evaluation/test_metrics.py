"""Metrics on hand-computed cases, their invariances and bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sarmatch.evaluation import metrics
from sarmatch.matching.matches import Matches

IDENTITY = np.eye(3)
SIZE = (64, 96)

coordinates = st.floats(-200, 200, width=32)
points = arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=coordinates)
errors_of_a_pair = arrays(np.float64, st.integers(0, 30), elements=st.floats(0, 50))


def shift(x: float, y: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = x, y
    return matrix


def test_errors_by_hand_are_measured_in_the_optical_image() -> None:
    A = np.array([[2.0, 0, 1], [0, 2.0, 0], [0, 0, 1]])
    matches = Matches(np.array([[1, 1], [0, 0]]), np.array([[3, 2], [4, 4]]), np.array([1.0, 0.5]))
    np.testing.assert_allclose(metrics.match_errors(matches, A), [0, 5])
    np.testing.assert_allclose(metrics.match_errors(matches, torch.from_numpy(A)), [0, 5])
    with pytest.raises(ValueError, match=r"\(3, 3\) matrix"):
        metrics.match_errors(matches, A[:2])


@given(points, coordinates, coordinates)
def test_errors_do_not_change_when_both_images_move_together(xy: np.ndarray, dx: float, dy: float) -> None:
    A = np.array([[1.1, 0.2, 3.0], [-0.1, 0.9, -2.0], [0, 0, 1]])
    optical = xy[::-1] + 1.0
    expected = metrics.match_errors((xy, optical), A)
    offset = np.array([dx, dy])
    moved = metrics.match_errors((xy + offset, optical + offset), shift(dx, dy) @ A @ shift(-dx, -dy))
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@given(errors_of_a_pair, st.floats(0, 60), st.floats(0, 60))
def test_mma_is_a_share_that_grows_with_the_threshold(errors: np.ndarray, t1: float, t2: float) -> None:
    low, high = sorted((t1, t2))
    assert 0 <= metrics.mma(errors, low) <= metrics.mma(errors, high) <= 1


def test_mma_by_hand() -> None:
    assert metrics.mma(np.array([0.5, 1.0, 1.5, 9.0]), 1.0) == 0.5
    assert metrics.mma(np.zeros(0), 1.0) == 0.0


def test_eq_6_by_hand() -> None:
    errors = np.array([0.5, 9.0, 0.8])
    assert metrics.maximum_mean_accuracy(errors, 4) == 0.5
    assert metrics.maximum_mean_accuracy(np.zeros(0), 4) == 0.0
    assert metrics.maximum_mean_accuracy(np.zeros(5), 4) == 1.0
    with pytest.raises(ValueError, match="n_ground_truth must be positive"):
        metrics.maximum_mean_accuracy(errors, 0)


@given(errors_of_a_pair, st.integers(30, 60), st.integers(0, 2**31))
def test_eq_6_agrees_with_the_formula_and_is_a_recall(errors: np.ndarray, n: int, seed: int) -> None:
    confidences = np.random.default_rng(seed).integers(0, 5, len(errors)) / 4  # with ties
    by_definition = max([np.sum((errors <= 3) & (confidences >= j)) / n for j in confidences], default=0.0)
    assert metrics.maximum_mean_accuracy(errors, n, threshold=3) == pytest.approx(by_definition)


def test_visible_keypoints_by_hand() -> None:
    assert metrics.visible_keypoints(IDENTITY, SIZE) == 16 * 24
    assert metrics.visible_keypoints(shift(8, 0), SIZE) == 16 * 22
    assert metrics.visible_keypoints(shift(500, 0), SIZE) == 0


def test_rmse_by_hand() -> None:
    assert metrics.rmse(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(metrics.rmse(np.zeros(0)))


@given(errors_of_a_pair.filter(len))
def test_rmse_lies_between_the_mean_and_the_largest_error(errors: np.ndarray) -> None:
    assert errors.mean() - 1e-9 <= metrics.rmse(errors) <= errors.max() + 1e-9


def test_corner_error_by_hand() -> None:
    assert metrics.corner_error(shift(3, 4), IDENTITY, SIZE) == pytest.approx(5)
    scale = np.diag([2.0, 1.0, 1.0])  # the two right corners move by their x, 95 px
    assert metrics.corner_error(scale, IDENTITY, SIZE) == pytest.approx(95 / 2)


def grid_matches(error: float = 0.0) -> Matches:
    x, y = np.meshgrid(np.arange(1.5, SIZE[1], 4), np.arange(1.5, SIZE[0], 4))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    return Matches(xy, xy + np.array([error, 0]), np.full(len(xy), 0.75))


def test_record_of_perfect_matches() -> None:
    record = metrics.pair_record(grid_matches(), IDENTITY, SIZE)
    assert record["n_matches"] == record["n_correct_1px"] == record["n_confident"] == 384
    assert record["mma_1px"] == record["mma_eq6_1px"] == record["mma_thinned_5px"] == 1.0
    assert record["n_thinned_16px"] == 4 * 6
    assert record["corner_error_px"] < 1e-4 and record["rmse_px"] == 0


def test_record_of_matches_two_and_a_half_px_off() -> None:
    record = metrics.pair_record(grid_matches(2.5), IDENTITY, SIZE, thresholds=(2, 2.5, 3))
    assert record["mma_2px"] == 0 and record["mma_2.5px"] == record["mma_3px"] == 1
    assert record["corner_error_px"] == pytest.approx(2.5, abs=1e-4)
    assert record["median_error_px"] == record["rmse_px"] == record["rmse_inlier_px"] == pytest.approx(2.5)
    assert record["rmse_normalised"] == pytest.approx(2.5 / math.hypot(*SIZE))
    assert record["mma_eq6_1px"] == 0


def test_record_separates_all_errors_from_those_within_5_px() -> None:
    matches = Matches(np.zeros((2, 2)), np.array([[3.0, 0], [30.0, 40]]), np.array([0.2, 0.9]))
    record = metrics.pair_record(matches, IDENTITY, SIZE)
    assert record["rmse_inlier_px"] == 3.0
    assert record["rmse_px"] == pytest.approx(math.sqrt((9 + 2500) / 2))
    assert record["n_confident"] == 1 and record["corner_error_px"] == math.inf


def test_record_without_matches_has_the_same_columns() -> None:
    empty, full = (metrics.pair_record(m, IDENTITY, SIZE) for m in (Matches.empty(), grid_matches()))
    assert list(empty) == list(full)
    assert empty["n_matches"] == empty["mma_5px"] == empty["mma_eq6_1px"] == empty["n_thinned_16px"] == 0
    assert math.isnan(empty["rmse_px"]) and math.isnan(empty["rmse_inlier_px"]) and math.isnan(empty["median_error_px"])
    assert empty["corner_error_px"] == math.inf


@settings(max_examples=25, deadline=None)
@given(points)
def test_record_shares_are_bounded(xy: np.ndarray) -> None:
    record = metrics.pair_record(Matches(xy, xy[::-1], np.linspace(0, 1, len(xy))), IDENTITY, SIZE)
    assert all(0 <= value <= 1 for name, value in record.items() if name.startswith("mma"))
    assert record["n_thinned_16px"] <= record["n_matches"]
