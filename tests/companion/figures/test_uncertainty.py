"""What the figures of uncertainty draw, read back from the axes."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgb

from companion.figures import uncertainty as plots
from sarmatch.calibration.scores import reliability_table, risk_coverage
from sarmatch.visualize import COLOURS, NEUTRAL


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def matches() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 0.8, 2000)
    return confidence, rng.random(2000) < confidence


def tables() -> dict[str, pd.DataFrame]:
    confidence, correct = matches()
    return {"raw": reliability_table(confidence, correct), "halved": reliability_table(confidence / 2, correct)}


def test_reliability_diagram_draws_accuracy_with_its_interval_and_leaves_out_empty_bins() -> None:
    given = tables()
    ax = plots.reliability_diagram(plt.subplots()[1], given)
    assert labels(ax) == ["calibrated", "raw", "halved"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])
    for container, table in zip(ax.containers, given.values(), strict=True):
        full = table[table["n"] > 0]
        assert len(full) < len(table)
        np.testing.assert_allclose(container.lines[0].get_xydata(), full[["confidence", "accuracy"]])
        ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, full[["accuracy_low", "accuracy_high"]])


def test_counts_histogram_is_logarithmic() -> None:
    given = tables()
    ax = plots.counts_histogram(plt.subplots()[1], given)
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] < 1
    for patch, table in zip(ax.patches, given.values(), strict=True):
        values, edges, _ = patch.get_data()
        np.testing.assert_array_equal(values, table["n"])
        np.testing.assert_allclose(edges, np.linspace(0, 1, 16))


def test_risk_coverage_curves_draw_few_points_and_keep_the_last() -> None:
    confidence, correct = matches()
    ax = plots.risk_coverage_curves(plt.subplots()[1], {"raw": risk_coverage(confidence, correct)}, 1 - correct.mean())
    base, curve = ax.lines
    assert len(curve.get_xdata()) == 400 < len(correct)
    np.testing.assert_allclose(curve.get_xydata()[-1], [1, 1 - correct.mean()])
    np.testing.assert_allclose(base.get_ydata(), 1 - correct.mean())
    assert labels(ax) == ["constant confidence", "raw"]
    few = {"few": (np.array([0.5, 1.0]), np.array([0.0, 0.5])), "same": (np.array([0.5, 1.0]), np.array([0.0, 0.5]))}
    ax = plots.risk_coverage_curves(plt.subplots()[1], few, 0.5)
    np.testing.assert_allclose(ax.lines[2].get_xydata(), [[0.5, 0], [1, 0.5]])
    assert labels(ax) == ["constant confidence", "few", "same"]


def passes() -> pd.DataFrame:
    scores = {"ece": [0.1, 0.2, 0.3], "brier": [0.2] * 3, "auroc": [0.7] * 3, "aurc": [0.4] * 3}
    return pd.DataFrame({"passes": [20, 1, 5], **scores, "seconds": [20.0, 1.0, 5.0]})


def test_score_by_passes_sorts_and_has_an_axes_a_score() -> None:
    axes = plt.subplots(1, 5)[1]
    assert plots.score_by_passes(axes, passes()) is axes
    np.testing.assert_allclose(axes[0].containers[0].lines[0].get_xydata(), [[1, 0.2], [5, 0.3], [20, 0.1]])
    np.testing.assert_allclose(axes[4].lines[0].get_xydata(), [[1, 1], [5, 5], [20, 20]])
    assert [ax.get_ylabel() for ax in axes] == ["ECE", "Brier score", "AUROC", "AURC", "seconds"]


def test_score_by_passes_draws_the_intervals_it_is_given() -> None:
    table = passes().assign(ece_low=[0.05, 0.1, np.nan], ece_high=[0.15, 0.25, np.nan])
    (ece,) = plots.score_by_passes(plt.subplots(1, 5)[1], table)[0].containers
    ends = np.array([segment[:, 1] for segment in ece.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, [[0.1, 0.25], [0.3, 0.3], [0.05, 0.15]])


def test_uncertainty_maps_lie_on_the_image_and_share_their_colours() -> None:
    figure, axes = plt.subplots(1, 4)
    images = {"SAR": torch.rand(1, 34, 50), "optical": torch.rand(3, 34, 50)}
    maps = {"aleatoric": np.linspace(0, 0.5, 96).reshape(8, 12), "epistemic": np.full((8, 12), 0.9)}
    maps["aleatoric"][0, 0] = np.nan
    assert plots.uncertainty_maps(axes, images, maps) is axes
    assert [ax.get_title() for ax in axes] == ["SAR", "optical", "aleatoric", "epistemic"]
    drawn = [ax.images[0] for ax in axes[2:]]
    assert drawn[0].get_extent() == [-0.5, 47.5, 31.5, -0.5]  # 12 x 8 cells of 4 px
    assert drawn[0].get_clim() == drawn[1].get_clim() == (pytest.approx(0.5 / 95), 0.9)
    assert drawn[0].get_array().mask.sum() == 1
    assert axes[2].get_xlim() == axes[0].get_xlim() and axes[2].get_ylim() == axes[0].get_ylim()
    assert len(figure.axes) == 5
    with pytest.raises(ValueError, match="zip"):
        plots.uncertainty_maps(axes[:3], images, maps)


def doses() -> pd.DataFrame:
    rows = [
        ("cloud_cover", 1.0, "optical", 0.8), ("cloud_cover", 0.0, "optical", 0.2), ("speckle", 0.0, "SAR", 0.3),
        ("speckle", 0.0, "optical", 0.1),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["nuisance", "dose", "source", "value"])
    return table.assign(low=table["value"] - 0.1, high=table["value"] + 0.05)


def test_dose_response_has_an_axes_a_nuisance_and_a_source_looks_the_same_on_all() -> None:
    axes = plots.dose_response(plt.subplots(1, 2)[1], doses())
    assert [ax.get_title() for ax in axes] == ["cloud cover", "speckle"]
    optical = axes[0].containers[0]
    np.testing.assert_allclose(optical.lines[0].get_xydata(), [[0, 0.2], [1, 0.8]])
    np.testing.assert_allclose(optical.lines[2][0].get_segments()[1][:, 1], [0.7, 0.85])
    assert labels(axes[1]) == ["optical", "SAR"]
    colours = [container.lines[0].get_color() for container in axes[1].containers]
    assert colours == [COLOURS[1], optical.lines[0].get_color()] == [COLOURS[1], COLOURS[0]]
    with pytest.raises(ValueError, match="longer"):
        plots.dose_response([axes[0]], doses())


def test_dose_response_names_every_source_though_the_last_nuisance_lacks_some() -> None:
    reordered = doses().iloc[[2, 3, 1, 0]]  # the last axes has no SAR
    axes = plots.dose_response(plt.subplots(1, 2)[1], reordered)
    assert labels(axes[1]) == ["SAR", "optical"]


def test_true_false_rates_marks_an_even_choice_of_thresholds() -> None:
    threshold = np.linspace(0, 1, 11)
    rates = pd.DataFrame({"threshold": threshold, "true_accept": 1 - threshold**2, "false_accept": 1 - threshold})
    ax = plots.true_false_rates(plt.subplots()[1], rates.sample(frac=1, random_state=0), marked=3)
    np.testing.assert_allclose(ax.lines[1].get_xydata(), rates[["false_accept", "true_accept"]])
    assert [text.get_text() for text in ax.texts] == ["0", "0.5", "1"]
    np.testing.assert_allclose([text.xy for text in ax.texts], [[1, 1], [0.5, 0.75], [0, 0]])


def test_text_can_be_read_on_white_and_on_black() -> None:
    figure, axes = plt.subplots(3, 5)
    plots.reliability_diagram(axes[0, 0], tables())
    plots.counts_histogram(axes[0, 1], tables())
    plots.risk_coverage_curves(axes[0, 2], {"raw": risk_coverage(*matches())}, 0.5)
    plots.true_false_rates(
        axes[0, 3], pd.DataFrame({"threshold": [0.0, 1.0], "true_accept": [1.0, 0.0], "false_accept": [1.0, 0.0]})
    )
    plots.score_by_passes(axes[1], passes())
    plots.dose_response(axes[2, 2:4], doses())
    plots.uncertainty_maps(axes[2, :2], {"SAR": torch.rand(1, 8, 8)}, {"u": np.eye(2)})
    for ax in (*axes[0, :4], *axes[1], *axes[2, :4], figure.axes[-1]):
        legend = ax.get_legend()
        texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *ax.get_yticklabels()]
        for text in [*texts, *(legend.get_texts() if legend else [])]:
            assert to_rgb(text.get_color()) == to_rgb(NEUTRAL), (ax.get_title(), text.get_text())
        assert ax.get_facecolor()[3] == 0


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_coverage_curves_have_a_line_a_group_and_a_thin_one_a_scene(ax: Axes) -> None:
    asked = {"asked": [0.5, 0.9], "covered": [0.4, 0.8]}
    curves = pd.DataFrame(asked | {"source": "a", "covered_low": [0.3, np.nan], "covered_high": [0.6, np.nan]})
    scenes = pd.concat([pd.DataFrame(asked | {"source": "a", "scene": s}) for s in ("x", "y")])
    plots.coverage_curves(ax, curves, scenes)
    drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 0.5]
    assert len([values for values in drawn if list(values) == [0.4, 0.8]]) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["as asked", "a"]


def test_stated_and_measured(ax: Axes) -> None:
    table = pd.DataFrame({"source": ["a", "a", "b"], "stated_px": [1.0, 2, 1], "measured_px": [1.5, 2.5, 1]})
    plots.stated_and_measured(ax, table)
    assert [list(line.get_ydata()) for line in ax.lines[1:]] == [[1.5, 2.5], [1.0]]
    assert ax.get_xlim()[1] == ax.get_ylim()[1] == pytest.approx(2.5 * 1.05)


def test_ellipses_lie_along_the_larger_variance_and_circles_have_the_radius(ax: Axes) -> None:
    covariance = np.array([[[4.0, 0], [0, 1]], [[1, 0], [0, 9]]])
    xy, radius, covered = np.array([[5.0, 5], [20, 20]]), np.array([3.0, 4]), np.array([True, False])
    plots.error_ellipses(ax, torch.rand(3, 32, 32), xy, covariance, radius, covered)
    ellipses, circles = (c for c in ax.collections if isinstance(c, EllipseCollection))
    np.testing.assert_allclose(ellipses.get_widths(), [4, 6])
    np.testing.assert_allclose(ellipses.get_heights(), [2, 2])
    np.testing.assert_allclose(np.abs(np.sin(np.radians(ellipses.get_angles()))), [0, 1], atol=1e-9)
    np.testing.assert_allclose(circles.get_widths(), [6, 8])
    assert circles.get_edgecolor()[1].tolist()[:3] == [1, 0, 0] and circles.get_edgecolor()[0].tolist()[:3] == [1, 1, 1]
