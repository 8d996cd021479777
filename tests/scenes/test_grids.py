"""Grids on the ground: conversions against hand-computed places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS
from scene_files import TRANSFORM, UTM

from sarmatch.data.pairs import PairError
from sarmatch.scenes.grids import Grid, Region, between, extent, scale_ratio

GRID = Grid(100, 80, TRANSFORM, CRS.from_string(UTM))


def test_the_first_px_s_centre_lies_half_a_px_from_the_corner() -> None:
    assert GRID.to_map(np.array([[0.0, 0.0]])).tolist() == [[500_005.0, 4_999_995.0]]


@given(st.floats(-180, 180), st.floats(0.1, 50), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_from_map_inverts_to_map_on_turned_grids(angle: float, size: float, x: float, y: float) -> None:
    grid = Grid(10, 10, TRANSFORM @ Affine.rotation(angle) @ Affine.scale(size), GRID.crs)
    xy = np.array([[x, y]])
    np.testing.assert_allclose(grid.from_map(grid.to_map(xy)), xy, atol=1e-4)


def test_a_coarser_grid_shows_the_same_ground() -> None:
    coarse = GRID.coarser(4)
    assert (coarse.width, coarse.height) == (25, 20)
    np.testing.assert_allclose(coarse.to_map(np.array([[-0.5, -0.5]])), GRID.to_map(np.array([[-0.5, -0.5]])))
    assert scale_ratio(coarse, GRID) == pytest.approx(4)


def test_metres_are_those_of_the_ground_not_of_the_map() -> None:
    assert GRID.metres_per_px() == pytest.approx(10, rel=2e-3)
    mercator = Grid(10, 10, Affine(10, 0, 0, 0, -10, 8_362_698), CRS.from_epsg(3395))  # 60 degrees north
    assert mercator.metres_per_px() == pytest.approx(5, rel=0.01)
    degrees = Grid(10, 10, Affine(1e-3, 0, 10, 0, -1e-3, 60), CRS.from_epsg(4326))
    assert degrees.metres_per_px() == pytest.approx(111.2 * np.sqrt(0.5), rel=0.01)
    assert Grid(10, 10).metres_per_px() is None


def test_a_point_in_two_systems() -> None:
    degrees = Grid(100, 100, Affine(1e-4, 0, 3, 0, -1e-4, 45.15), CRS.from_epsg(4326))
    xy = np.array([[3.0, 7.0]])
    np.testing.assert_allclose(between(degrees, GRID, between(GRID, degrees, xy)), xy, atol=1e-6)


def test_extent_encloses_all_px() -> None:
    shifted = Grid(20, 10, TRANSFORM @ Affine.translation(5, -3), GRID.crs)
    assert extent(shifted, GRID) == Region(5, -3, 20, 10)
    turned = Grid(20, 10, TRANSFORM @ Affine.rotation(90), GRID.crs)
    assert extent(turned, GRID) == Region(-10, 0, 10, 20)


def test_systems_without_a_way_between_are_an_error() -> None:
    local = Grid(10, 10, TRANSFORM, CRS.from_wkt('LOCAL_CS["a drawing board",UNIT["metre",1]]'))
    with pytest.raises(PairError, match="one system"):
        between(local, GRID, np.zeros((1, 2)))


def test_intersection_of_regions() -> None:
    assert Region(0, 0, 10, 10).intersection(Region(4, -2, 10, 5)) == Region(4, 0, 6, 3)
    assert Region(0, 0, 10, 10).intersection(Region(20, 0, 5, 5)).width == 0
