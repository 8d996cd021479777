"""What the figures draw, read back from the axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from companion.figures import encoders, plots, selfsupervision, uncertainty
from companion.intervals import cluster_bootstrap
from sarmatch import visualize
from sarmatch.data import render_pair
from sarmatch.matching.matches import Matches


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_display_range_stretches_valid_pixels_and_whitens_the_rest() -> None:
    image = torch.linspace(0.4, 0.6, 10_000).reshape(1, 100, 100)
    valid = torch.ones(100, 100, dtype=torch.bool)
    image[0, 0, 0], valid[0, 0] = 0.0, False  # would widen the range if it counted
    shown = visualize.display_range(image, valid)
    assert shown.shape == (100, 100)
    assert shown[0, 0] == 1
    inner = shown[valid.numpy()]
    assert inner.min() == 0 and inner.max() == 1
    assert np.isclose((inner == 0).mean(), 0.01, atol=2e-3) and np.isclose((inner == 1).mean(), 0.01, atol=2e-3)


def test_display_range_shows_three_of_thirteen_bands_and_survives_constant_and_empty_images() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    assert visualize.display_range(torch.rand(13, 4, 5), valid).shape == (4, 5, 3)
    assert np.isfinite(visualize.display_range(torch.full((1, 4, 5), 0.3), valid)).all()
    assert (visualize.display_range(torch.rand(2, 4, 5), ~valid) == 1).all()


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
    axes = plots.value_histograms(plt.subplots(1, 2)[1], {"generated": [render_pair(0, 32), render_pair(1, 32)]})
    for ax in axes:
        values, edges, _ = ax.patches[0].get_data()
        assert np.isclose((values * np.diff(edges)).sum(), 1)
    assert axes[1].get_legend().get_texts()[0].get_text() == "generated"


def some_matches() -> Matches:
    xy = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    return Matches(xy, xy + 1, np.array([0.1, 0.4, 0.6, 0.9]))


def test_show_image_picks_its_bands() -> None:
    _, axes = plt.subplots(1, 2)
    assert visualize.show_image(axes[0], torch.rand(2, 10, 12), title="SAR") is axes[0]
    visualize.show_image(axes[1], torch.rand(13, 10, 12))
    assert [ax.images[0].get_array().shape for ax in axes] == [(10, 12), (10, 12, 3)]
    assert [ax.get_title() for ax in axes] == ["SAR", ""]


def test_draw_matches_joins_the_right_places_in_the_colour_of_their_error() -> None:
    errors = np.array([0.5, 2.0, 2.5, 9.0])
    ax = visualize.draw_matches(plt.subplots()[1], torch.rand(1, 16, 20), torch.rand(3, 18, 20), some_matches(), errors)
    (lines,) = ax.collections
    np.testing.assert_allclose(lines.get_segments()[1], [[3, 4], [4 + 32, 5]])
    good, fair, wrong = (to_rgb(colour) for colour in visualize.ERROR_COLOURS)
    np.testing.assert_allclose(lines.get_edgecolors()[:, :3], [good, fair, fair, wrong])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["up to 1 px: 25%", "1 to 3 px: 50%", "over 3 px: 25%"]
    assert [image.get_extent()[0] for image in ax.images] == [-0.5, 31.5]


def test_draw_matches_by_confidence_has_a_colour_bar_and_takes_an_even_sample() -> None:
    figure, ax = plt.subplots()
    visualize.draw_matches(ax, torch.rand(1, 16, 20), torch.rand(3, 16, 20), some_matches(), max_lines=2)
    np.testing.assert_allclose(ax.collections[0].get_array(), [0.1, 0.9])
    assert len(figure.axes) == 2 and figure.axes[1].get_ylabel() == "confidence"


def test_draw_matches_draws_the_images_where_there_are_no_matches() -> None:
    ax = visualize.draw_matches(
        plt.subplots()[1], torch.rand(1, 16, 20), torch.rand(3, 16, 20), Matches.empty(), np.zeros(0)
    )
    assert len(ax.images) == 2 and len(ax.collections[0].get_segments()) == 0


def test_displacement_volume_marks_the_truth_in_pixels() -> None:
    scores = np.zeros((5, 5))
    scores[0, 0] = -np.inf
    ax = plots.displacement_volume(plt.subplots()[1], torch.from_numpy(scores), 4.0, truth=(4, -8))
    assert ax.images[0].get_extent() == [-10, 10, 10, -10]
    assert ax.images[0].get_array().mask.sum() == 1
    np.testing.assert_allclose([c.get_offsets()[0] for c in ax.collections], [[4, -8]])
    assert plots.displacement_volume(plt.subplots()[1], scores, 1.0).get_legend() is None


def test_training_curves_leave_out_what_was_not_measured() -> None:
    nan = np.nan
    history = pd.DataFrame(
        {"step": [1, 2, 3, 4], "loss": [4.0, 3, 2, 1], "plain": [2.0, nan, 1, nan]}
        | {"mma_1px": [nan, 0.1, nan, 0.3], "mma_10px": [nan, 0.4, nan, 0.6], "mma_3px": [nan, 0.2, nan, 0.4]}
    )
    axes = plt.subplots(1, 2)[1]
    assert plots.training_curves(axes, history) is axes
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["loss", "plain"]
    names = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert names == ["within 1 px", "within 3 px", "within 10 px"]
    np.testing.assert_allclose(axes[1].lines[0].get_xydata(), [[2, 0.1], [4, 0.3]])


def records() -> pd.DataFrame:
    rows = [
        {"scene": f"s{scene}", "dataset": name, "search_radius": radius, "mma_1px": value / 2, "mma_3px": value}
        for name, base in (("a", 0.6), ("b", 0.2))
        for radius in (16.0, 32.0, None)
        for scene, value in enumerate((base, base + 0.1, base + 0.2))
    ]
    return pd.DataFrame(rows)


def test_mma_by_threshold_draws_means_with_their_intervals() -> None:
    table = records()
    ax = plots.mma_by_threshold(plt.subplots()[1], table)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    first = ax.containers[0]
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.35, 0.7])
    low, high = np.array(first.lines[2][0].get_segments())[1][:, 1]
    expected = cluster_bootstrap(table[table["dataset"] == "a"], "mma_3px")
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_mma_by_radius_puts_the_whole_image_last() -> None:
    ax = plots.mma_by_radius(plt.subplots()[1], records(), value="mma_1px", group="dataset")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "32", "none"]
    assert ax.get_ylabel() == "MMA within 1 px"
    np.testing.assert_allclose(ax.containers[1].lines[0].get_ydata(), [0.15] * 3)
    np.testing.assert_allclose(np.round(ax.containers[1].lines[0].get_xdata()), [0, 1, 2])


def test_text_can_be_read_on_white_and_on_black() -> None:
    ax = plots.mma_by_threshold(plt.subplots()[1], records())
    texts = [ax.xaxis.label, ax.title, ax.get_xticklabels()[0], *ax.get_legend().get_texts()]
    for text in texts:
        channels = np.array(to_rgb(text.get_color()))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert min(1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05) >= 4.5  # WCAG contrast for text
    assert ax.get_facecolor()[3] == 0


def test_rows_stand_in_order_with_intervals_and_what_was_printed() -> None:
    table = pd.DataFrame({"row": ["a", "b"], "ece": [0.2, 0.1], "paper": [0.3, np.nan]})
    table = table.assign(ece_low=[0.1, np.nan], ece_high=[0.4, np.nan])
    ax = plots.row_intervals(plt.subplots()[1], table, "ece", "paper")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_yticks()[0] > ax.get_yticks()[1]
    (segments,) = (c.get_segments() for c in ax.collections)
    np.testing.assert_allclose(segments[0][:, 0], [0.1, 0.4])  # the first row's interval; the second has none
    np.testing.assert_allclose(segments[1][:, 0], [0.1, 0.1])
    assert "paper, other data" in [text.get_text() for text in ax.get_legend().get_texts()]


class OnGpu(torch.Tensor):
    """A tensor that, as one on a GPU, is no array before it was brought to the CPU."""

    def numpy(self) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_tensors_on_a_gpu_and_with_a_gradient_are_drawn() -> None:
    image, field, line = (torch.rand(*size).as_subclass(OnGpu).requires_grad_() for size in ((3, 8, 8), (8, 8), (5,)))
    with pytest.raises(TypeError, match="cuda"):
        np.asarray(field)
    ax = plt.subplots()[1]
    visualize.show_image(ax, image, torch.ones(8, 8, dtype=torch.bool).as_subclass(OnGpu))
    plots.displacement_volume(ax, field, 1.0)
    pair = render_pair(0, 32)
    plots.value_histograms(
        plt.subplots(1, 2)[1], {"a": [dataclasses.replace(pair, optical=pair.optical.as_subclass(OnGpu))]}
    )
    encoders.receptive_fields([ax], {"a": field})
    encoders.leak_maps([ax], {"a": field}, 0.1)
    encoders.leak_profile(ax, {"a": (line, line)}, 0.1)
    encoders.descriptor_gallery(plt.subplots(2, 2)[1], (image, image), {"a": (image, image)})
    uncertainty.uncertainty_maps(plt.subplots(1, 2)[1], {"a": image}, {"b": field})
    assert selfsupervision.project(field, field)[0].shape == (2, 8, 3)
