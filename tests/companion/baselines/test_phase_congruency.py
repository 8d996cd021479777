"""Phase congruency: features of a step and of a line, whatever their contrast."""

from __future__ import annotations

import numpy as np

from companion.baselines.phase_congruency import N_ORIENTATIONS, phase_congruency


def step(contrast: float) -> np.ndarray:
    """Dark left of column 32, bright from there on, softened a little."""
    return np.broadcast_to(contrast / (1 + np.exp(-(np.arange(64) - 31.5) * 2)), (64, 64)).copy()


def test_a_step_is_congruent_where_it_is_and_nowhere_else() -> None:
    found = phase_congruency(step(1.0))
    assert set(found.edges.argmax(axis=1)) <= {31, 32}
    assert found.edges[20:44, 31:33].min() > 0.4
    assert found.edges[20:44, :22].max() < 0.05
    assert found.edges.max() <= 1.001
    assert (found.amplitude[:, 20:44, 31].argmax(axis=0) == 0).all()  # its gradient runs along x


def test_contrast_and_sign_do_not_matter() -> None:
    strong, weak, inverted = (phase_congruency(step(contrast)) for contrast in (1.0, 0.05, -1.0))
    np.testing.assert_allclose(weak.edges[:, 31], strong.edges[:, 31], atol=0.02)
    np.testing.assert_allclose(inverted.edges, strong.edges, atol=1e-9)


def test_a_quarter_turn_turns_the_maps_and_exchanges_orientations() -> None:
    image = np.random.default_rng(0).normal(size=(47, 47))  # an odd size has no frequency without its negative
    found, turned = phase_congruency(image), phase_congruency(np.rot90(image).copy())
    np.testing.assert_allclose(turned.edges, np.rot90(found.edges), atol=1e-8)
    np.testing.assert_allclose(turned.corners, np.rot90(found.corners), atol=1e-8)
    half = N_ORIENTATIONS // 2
    for i in range(N_ORIENTATIONS):
        expected = np.rot90(found.amplitude[i])
        np.testing.assert_allclose(turned.amplitude[(i + half) % N_ORIENTATIONS], expected, atol=1e-8)


def test_corners_lie_where_two_edges_meet() -> None:
    image = np.zeros((64, 64))
    image[32:, 32:] = 1.0
    corners = phase_congruency(image).corners
    row, column = np.unravel_index(corners.argmax(), corners.shape)
    assert abs(row - 31.5) < 3 and abs(column - 31.5) < 3


def test_a_flat_image_has_no_features() -> None:
    found = phase_congruency(np.full((32, 40), 0.7))
    assert found.edges.max() < 1e-6 and found.corners.max() < 1e-6
    assert found.amplitude.shape == (N_ORIENTATIONS, 32, 40)
