"""Figures of the chapter on precision draw what their tables say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection

from companion.figures import precision


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_coverage_curves_have_a_line_a_group_and_a_thin_one_a_scene(ax: Axes) -> None:
    asked = {"asked": [0.5, 0.9], "covered": [0.4, 0.8]}
    curves = pd.DataFrame(asked | {"source": "a", "covered_low": [0.3, np.nan], "covered_high": [0.6, np.nan]})
    scenes = pd.concat([pd.DataFrame(asked | {"source": "a", "scene": s}) for s in ("x", "y")])
    precision.coverage_curves(ax, curves, scenes)
    drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 0.5]
    assert len([values for values in drawn if list(values) == [0.4, 0.8]]) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["as asked", "a"]


def test_stated_and_measured(ax: Axes) -> None:
    table = pd.DataFrame({"source": ["a", "a", "b"], "stated_px": [1.0, 2, 1], "measured_px": [1.5, 2.5, 1]})
    precision.stated_and_measured(ax, table)
    assert [list(line.get_ydata()) for line in ax.lines[1:]] == [[1.5, 2.5], [1.0]]
    assert ax.get_xlim()[1] == ax.get_ylim()[1] == pytest.approx(2.5 * 1.05)


def test_ellipses_lie_along_the_larger_variance_and_circles_have_the_radius(ax: Axes) -> None:
    covariance = np.array([[[4.0, 0], [0, 1]], [[1, 0], [0, 9]]])
    xy, radius, covered = np.array([[5.0, 5], [20, 20]]), np.array([3.0, 4]), np.array([True, False])
    precision.error_ellipses(ax, torch.rand(3, 32, 32), xy, covariance, radius, covered)
    ellipses, circles = (c for c in ax.collections if isinstance(c, EllipseCollection))
    np.testing.assert_allclose(ellipses.get_widths(), [4, 6])
    np.testing.assert_allclose(ellipses.get_heights(), [2, 2])
    np.testing.assert_allclose(np.abs(np.sin(np.radians(ellipses.get_angles()))), [0, 1], atol=1e-9)
    np.testing.assert_allclose(circles.get_widths(), [6, 8])
    assert circles.get_edgecolor()[1].tolist()[:3] == [1, 0, 0] and circles.get_edgecolor()[0].tolist()[:3] == [1, 1, 1]
