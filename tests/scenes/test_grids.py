"""Grids on the ground: conversions against hand-computed places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasterio.crs import CRS
from scene_files import TRANSFORM, UTM

from sarmatch.data.pairs import PairError
from sarmatch.scenes.grids import Region, between, coarser, extent, metres_per_px, scale_ratio

GRID = GeoBox((80, 100), TRANSFORM, UTM)
MAP = GeoBox((1, 1), Affine.translation(0.5, 0.5), UTM)  # whose px are metres


def test_the_first_px_s_centre_lies_half_a_px_from_the_corner() -> None:
    assert between(GRID, MAP, np.array([[0.0, 0.0]])).tolist() == [[500_004.0, 4_999_994.0]]


@given(st.floats(-180, 180), st.floats(0.1, 50), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_positions_come_back_from_turned_grids(angle: float, size: float, x: float, y: float) -> None:
    grid = GeoBox((10, 10), TRANSFORM @ Affine.rotation(angle) @ Affine.scale(size), UTM)
    xy = np.array([[x, y]])
    np.testing.assert_allclose(between(GRID, grid, between(grid, GRID, xy)), xy, atol=1e-4)


def test_a_coarser_grid_shows_the_same_ground() -> None:
    coarse = coarser(GRID, 4)
    assert coarse.shape == (20, 25) and coarser(GRID, 3).shape == (26, 33) and coarser(GRID, 1) == GRID
    np.testing.assert_allclose(between(coarse, GRID, np.array([[-0.5, -0.5]])), [[-0.5, -0.5]], atol=1e-6)
    assert scale_ratio(coarse, GRID) == pytest.approx(4)


def test_metres_are_those_of_the_ground_not_of_the_map() -> None:
    assert metres_per_px(GRID) == pytest.approx(10, rel=2e-3)
    mercator = GeoBox((10, 10), Affine(10, 0, 0, 0, -10, 8_362_698), "EPSG:3395")  # 60 degrees north
    assert metres_per_px(mercator) == pytest.approx(5, rel=0.01)
    degrees = GeoBox((10, 10), Affine(1e-3, 0, 10, 0, -1e-3, 60), "EPSG:4326")
    assert metres_per_px(degrees) == pytest.approx(111.2 * np.sqrt(0.5), rel=0.01)
    assert metres_per_px(GeoBox((10, 10), Affine.identity(), None)) is None


def test_a_point_in_two_systems() -> None:
    degrees = GeoBox((100, 100), Affine(1e-4, 0, 3, 0, -1e-4, 45.15), "EPSG:4326")
    xy = np.array([[3.0, 7.0]])
    np.testing.assert_allclose(between(degrees, GRID, between(GRID, degrees, xy)), xy, atol=1e-6)


def test_extent_encloses_all_px() -> None:
    shifted = GeoBox((10, 20), TRANSFORM @ Affine.translation(5, -3), UTM)
    assert extent(shifted, GRID) == Region(5, -3, 20, 10)
    turned = GeoBox((10, 20), TRANSFORM @ Affine.rotation(90), UTM)
    assert extent(turned, GRID) == Region(-10, 0, 10, 20)


def test_systems_without_a_way_between_are_an_error() -> None:
    local = GeoBox((10, 10), TRANSFORM, CRS.from_wkt('LOCAL_CS["a drawing board",UNIT["metre",1]]'))
    with pytest.raises(PairError, match="one system"):
        between(local, GRID, np.zeros((1, 2)))


def test_regions() -> None:
    assert Region(0, 0, 10, 10).intersection(Region(4, -2, 10, 5)) == Region(4, 0, 6, 3)
    assert Region(0, 0, 10, 10).intersection(Region(20, 0, 5, 5)).width == 0
    assert Region(3, 5, 11, 21).nodes(3)[[0, 1, 3]].tolist() == [[3, 5], [8, 5], [3, 15]]
