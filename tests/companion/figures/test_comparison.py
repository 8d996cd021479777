"""Figures of the comparison and on conditions: what is drawn is what the table says."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from companion.figures import comparison
from companion.figures.comparison import condition_points, dose_curves


def test_the_front_joins_methods_that_no_other_beats_in_both() -> None:
    table = pd.DataFrame({"method": list("abcd"), "seconds": [1.0, 2.0, 3.0, 4.0], "mma_3px": [0.3, 0.2, 0.6, 0.6]})
    ax = comparison.accuracy_against_time(Figure().subplots(), table)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 3])
    assert len(ax.lines) == 5 and ax.get_xscale() == "log"


def test_methods_below_the_axis_are_drawn_at_its_end() -> None:
    table = pd.DataFrame({"method": ["network", "a", "b"], "mma_1px": [0.5, 0.0, 0.1]})
    table = table.assign(mma_1px_low=[0.4, 0.0, 0.05], mma_1px_high=[0.6, 0.0, 0.2])
    ax = comparison.bars_of_methods(Figure().subplots(), table)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["network", "b", "a"]
    (triangle,) = [line for line in ax.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert triangle.get_ydata().tolist() == [1e-3] and triangle.get_xdata().tolist() == [2]


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def table() -> pd.DataFrame:
    rows = [("haze", level, method) for level in ("clear", "bright") for method in ("a", "b")]
    rows += [("water", "no", "a"), ("water", "no", "b")]
    made = pd.DataFrame(rows, columns=["condition", "level", "method"])
    made["mma_1px"] = np.arange(1, 7) / 10
    return made.assign(
        n_pairs=9, n_scenes=5, mma_1px_low=made["mma_1px"] - 0.05, mma_1px_high=[np.nan, *made["mma_1px"][1:] + 0.02]
    )


def test_points_lie_at_their_values_under_their_names() -> None:
    _, axes = plt.subplots(1, 1, squeeze=False)
    (ax,) = condition_points(axes[0], table(), ["mma_1px"])
    drawn = {c.get_label(): c[0].get_xdata().tolist() for c in ax.containers}
    assert drawn == {"a": [0.1, 0.3, 0.5], "b": [0.2, 0.4, 0.6]}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["clear  (9 / 5)", "bright  (9 / 5)", "no  (9 / 5)"]
    assert [t.get_text() for t in ax.texts] == ["haze", "water"]
    y = [c[0].get_ydata() for c in ax.containers]
    assert np.all(np.diff(y[0]) > 0) and np.all(np.abs(y[0] - y[1]) < 0.5) and ax.yaxis_inverted()
    assert ax.get_xlim()[0] == 0 and ax.get_xlabel() == "MMA within 1 px"


def test_an_interval_that_is_unknown_is_not_drawn() -> None:
    _, axes = plt.subplots(1, 1, squeeze=False)
    (ax,) = condition_points(axes[0], table(), ["mma_1px"])
    segments = ax.containers[0][2][0].get_segments()
    assert segments[1][:, 0] == pytest.approx([0.25, 0.32])
    assert segments[0][1, 0] == pytest.approx(0.1)  # nothing to the right of the first point


def test_axes_and_values_must_be_as_many() -> None:
    _, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match="shorter"):
        condition_points(axes, table(), ["mma_1px"])


def test_curves_of_doses() -> None:
    rows = [(kind, "a", metric, dose) for kind in ("speckle", "haze") for metric in ("x", "mma_3px") for dose in (1, 0)]
    made = pd.DataFrame(rows, columns=["kind", "method", "metric", "dose"])
    made = made.assign(mean=np.arange(8) / 10, mean_low=np.nan, mean_high=np.nan)
    _, axes = plt.subplots(1, 2)
    for ax, expected in zip(dose_curves(axes, made, "mma_3px"), ([0.3, 0.2], [0.7, 0.6]), strict=True):
        assert ax.containers[0][0].get_ydata() == pytest.approx(expected)
        assert "artificial" in ax.get_xlabel() and ax.get_ylabel() == "MMA within 3 px"
