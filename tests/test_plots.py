"""What the figures draw, read back from the axes."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from sarmatch import plots
from sarmatch.data import render_pair


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_display_range_stretches_valid_pixels_and_whitens_the_rest() -> None:
    image = torch.linspace(0.4, 0.6, 10_000).reshape(1, 100, 100)
    valid = torch.ones(100, 100, dtype=torch.bool)
    image[0, 0, 0], valid[0, 0] = 0.0, False  # would widen the range if it counted
    shown = plots.display_range(image, valid)
    assert shown.shape == (100, 100)
    assert shown[0, 0] == 1
    inner = shown[valid.numpy()]
    assert inner.min() == 0 and inner.max() == 1
    assert np.isclose((inner == 0).mean(), 0.01, atol=2e-3) and np.isclose((inner == 1).mean(), 0.01, atol=2e-3)


def test_display_range_shows_three_of_thirteen_bands_and_survives_constant_and_empty_images() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    assert plots.display_range(torch.rand(13, 4, 5), valid).shape == (4, 5, 3)
    assert np.isfinite(plots.display_range(torch.full((1, 4, 5), 0.3), valid)).all()
    assert (plots.display_range(torch.rand(2, 4, 5), ~valid) == 1).all()


def test_pair_gallery_puts_sar_above_optical() -> None:
    pairs = {"first": render_pair(0, 32), "second": render_pair(1, 32)}
    _, axes = plt.subplots(2, 2)
    assert plots.pair_gallery(axes, pairs) is axes
    assert [ax.get_title() for ax in axes[0]] == ["first", "second"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["SAR", "optical"]
    assert axes[0, 1].images[0].get_array().shape == (32, 32)
    assert axes[1, 1].images[0].get_array().shape == (32, 32, 3)
    with pytest.raises(ValueError, match="zip"):
        plots.pair_gallery(axes, {"only": render_pair(0, 32)})


def test_count_heatmap_writes_every_count_but_none_where_there_are_no_pairs() -> None:
    counts = pd.DataFrame([[3, 0], [0, 1200]], index=pd.Index(["a", "b"], name="land_cover"), columns=["x", "y"])
    counts.columns.name = "season"
    ax = plots.count_heatmap(plt.subplots()[1], counts)
    assert sorted(text.get_text() for text in ax.texts) == ["1200", "3"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("season", "land cover")


def test_value_histograms_have_area_one() -> None:
    axes = plots.value_histograms(
        plt.subplots(1, 2)[1], {"generated": [render_pair(0, 32), render_pair(1, 32)]}, bins=10
    )
    for ax in axes:
        values, edges, _ = ax.patches[0].get_data()
        assert np.isclose((values * np.diff(edges)).sum(), 1)
    assert axes[1].get_legend().get_texts()[0].get_text() == "generated"
