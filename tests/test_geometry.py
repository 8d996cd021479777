"""Affine maps, grids and resampling against hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sarmatch.geometry import (
    MAX_SLOPE,
    TrueMap,
    cell_centres,
    cell_valid,
    coverage,
    field_at,
    inside,
    pixel_valid,
    rotation_scale,
    smooth_field,
    transform_points,
    translation,
    warp,
)

angles = st.floats(-180, 180)
shifts = st.floats(-50, 50)
scales = st.floats(0.5, 2.0)


def test_cell_centres_follow_the_pixel_convention():
    centres = cell_centres(2, 3, stride=4)
    assert centres.shape == (2, 3, 2)
    assert centres[0, 0].tolist() == [1.5, 1.5]
    assert centres[1, 2].tolist() == [9.5, 5.5]  # x from the column, y from the row


def test_rotation_turns_x_towards_y():
    turned = transform_points(rotation_scale(90.0), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(turned, torch.tensor([[0.0, 1.0]], dtype=torch.float64), atol=1e-12)


def test_flip_mirrors_x_about_the_centre():
    moved = transform_points(rotation_scale(0.0, 1.0, (2.0, 2.0), flip=True), torch.tensor([[0.0, 1.0]]).double())
    assert moved.tolist() == [[4.0, 1.0]]


@given(angles, scales, shifts, shifts)
def test_centre_of_rotation_stays(angle, scale, x, y):
    point = torch.tensor([[x, y]], dtype=torch.float64)
    assert torch.allclose(transform_points(rotation_scale(angle, scale, (x, y)), point), point, atol=1e-9)


@given(angles, scales, shifts, shifts)
def test_maps_scale_distances_and_invert(angle, scale, x, y):
    affine = translation(x, y) @ rotation_scale(angle, scale)
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    moved = transform_points(affine, points)
    assert math.isclose(float((moved[1] - moved[0]).norm()), 5 * scale, rel_tol=1e-9)
    assert torch.allclose(transform_points(torch.linalg.inv(affine), moved), points, atol=1e-8)


def test_batched_maps_act_on_their_own_points():
    maps = torch.stack([translation(1, 0), translation(0, 2)]).float()
    points = torch.zeros(2, 3, 2)
    moved = transform_points(maps, points)
    assert moved[0].tolist() == [[1.0, 0.0]] * 3
    assert moved[1].tolist() == [[0.0, 2.0]] * 3


def test_warp_by_a_whole_pixel_moves_the_image():
    image = torch.arange(20.0).reshape(1, 4, 5)
    moved = warp(image, translation(1, 2), (2, 3))
    assert torch.equal(moved, image[:, 2:4, 1:4])


def test_warp_interpolates_between_pixels_and_is_zero_outside():
    image = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert float(warp(image, translation(0.5, 0.5), (1, 1))) == pytest.approx(1.5)
    assert float(warp(image, translation(5, 0), (1, 1))) == 0.0


def test_warp_agrees_with_transform_points_under_rotation():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    affine = translation(6, 4) @ rotation_scale(20.0, 0.9, (10, 10))
    moved = warp(torch.stack([x, y]), affine, (20, 20))
    points = transform_points(affine, cell_centres(20, 20, 1).double()).permute(2, 0, 1)
    seen = inside(points.permute(1, 2, 0), (40, 50))
    assert seen.sum() > 300
    assert torch.allclose(moved.double()[:, seen], points[:, seen], atol=1e-3)


def test_warp_takes_one_map_an_image():
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([translation(0, 0), translation(1, 1)])
    moved = warp(images, maps, (5, 5))
    assert torch.allclose(moved[1], images[1, :, 1:, 1:], atol=1e-6)
    assert torch.allclose(moved[0], images[0, :, :5, :5], atol=1e-6)


def test_coverage_marks_what_reads_valid_pixels_only():
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[0, 0] = False
    seen = coverage(valid, translation(0.5, 0.0), (4, 4))
    assert not seen[0, 0]  # touches the invalid pixel
    assert not seen[:, 3].any()  # reads beyond the border
    assert seen[1:, :3].all()


def test_a_cell_with_an_invalid_pixel_is_invalid():
    pixels = torch.ones(1, 8, 8, dtype=torch.bool)
    pixels[0, 3, 4] = False
    assert cell_valid(pixels, 4)[0].tolist() == [[True, False], [True, True]]
    back = pixel_valid(cell_valid(pixels, 4), 4)
    assert back.shape == pixels.shape
    assert back[0, 0].tolist() == [True] * 4 + [False] * (pixels.shape[-1] - 4)


def test_inside_includes_the_outer_pixel_centres():
    points = torch.tensor([[0.0, 0.0], [4.0, 2.0], [4.01, 2.0], [0.0, -0.01]])
    assert inside(points, (3, 5)).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("largest", "sigma"), [(8.0, 24.0), (2.0, 6.0), (10.0, 20.0), (8.0, 96.0)])
def test_a_smooth_field_has_its_size_its_largest_component_and_no_fold(largest, sigma):
    field = smooth_field((80, 100), largest, sigma, np.random.default_rng(3))
    assert field.shape == (2, 80, 100)
    assert float(field.abs().max()) == pytest.approx(largest)
    slope = max(float(field.diff(dim=axis).abs().max()) for axis in (1, 2))
    assert slope < 1.5 * largest / sigma
    rougher = smooth_field((80, 100), largest / 4, sigma / 3, np.random.default_rng(3))  # small, so that it never folds
    assert max(float(rougher.diff(dim=axis).abs().max()) for axis in (1, 2)) > 1.5 * slope / 4


def test_a_field_that_would_fold_an_image_is_smaller_and_still_inverted():
    for seed in range(5):
        field = smooth_field((64, 64), 30.0, 8.0, np.random.default_rng(seed))
        assert float(field.abs().max()) < 29
        slopes = torch.stack([field.diff(dim=axis)[:, :63, :63] for axis in (1, 2)]).square().sum((0, 1)).sqrt()
        assert float(slopes.max()) == pytest.approx(MAX_SLOPE, abs=1e-4)
        truth = TrueMap(torch.eye(3, dtype=torch.float64)[None], field[None])
        points = cell_centres(16, 16, 4).reshape(1, -1, 2).double()
        assert (truth.to_sar(truth.to_optical(points)) - points).norm(dim=-1).max() < 0.05


def test_values_of_a_field_are_bilinear_and_constant_beyond_the_border():
    field = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[0.0, 0.0], [1.0, 1.0]]])[None]
    points = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [9.0, -3.0]]])
    assert torch.allclose(field_at(field, points), torch.tensor([[[3.0, 0.5], [2.0, 0.0], [2.0, 0.0]]]))


@given(shift=shifts, angle=angles, seed=st.integers(0, 50))
def test_a_true_map_and_its_inverse_cancel(shift, angle, seed):
    rng = np.random.default_rng(seed)
    field = torch.stack([smooth_field((64, 64), 6.0, 16.0, rng) for _ in range(2)])
    affine = torch.stack([translation(shift, -shift), rotation_scale(angle, 1.1, (31.5, 31.5))])
    truth = TrueMap(affine, field)
    points = cell_centres(16, 16, 4).reshape(1, -1, 2).double().expand(2, -1, -1)
    assert (truth.to_sar(truth.to_optical(points)) - points).norm(dim=-1).max() < 1e-3
    assert (truth.to_optical(truth.to_sar(points)) - points).norm(dim=-1).max() < 1e-3


def test_without_a_field_a_true_map_is_affine_and_a_constant_field_moves_it():
    affine = rotation_scale(20.0, 0.9, (10.0, 10.0))[None]
    points = cell_centres(8, 8, 4).reshape(1, -1, 2).double()
    straight = TrueMap(affine)
    assert torch.allclose(straight.to_optical(points), transform_points(affine, points))
    assert torch.equal(straight.nearest_affine((32, 32)), affine[0])
    moved = TrueMap(affine, torch.tensor([3.0, -1.0])[None, :, None, None].expand(1, 2, 32, 32))
    assert torch.allclose(moved.to_optical(points), straight.to_optical(points) - torch.tensor([3.0, -1.0]).double())
    assert torch.allclose(moved.nearest_affine((32, 32)), translation(-3.0, 1.0) @ affine[0], atol=1e-5)


def test_an_image_bent_by_a_field_shows_places_as_the_true_map_says():
    rng = np.random.default_rng(0)
    places = cell_centres(96, 96, 1).movedim(-1, 0)  # each pixel holds its own position
    fields = torch.stack([smooth_field((64, 64), 5.0, 12.0, rng) for _ in range(2)])
    to_places = torch.stack([translation(14.0, 18.0), translation(16.0, 16.0) @ rotation_scale(10.0)])
    bent = warp(places.expand(2, -1, -1, -1), to_places, (64, 64), field=fields)
    truth = TrueMap(torch.linalg.inv(to_places), fields)
    cells = cell_centres(16, 16, 4).reshape(1, -1, 2).expand(2, -1, -1) + 24
    there = truth.to_optical(cells)
    seen = inside(there, (64, 64))
    assert seen.float().mean() > 0.4
    assert (field_at(bent, there) - cells)[seen].norm(dim=-1).max() < 1e-3
    alone = warp(places, to_places[1], (64, 64), field=fields[1])
    assert torch.equal(alone, bent[1])
