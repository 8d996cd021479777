"""Figures of the comparison: what is drawn where."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.figures import comparison


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
