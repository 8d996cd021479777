"""What the figures of self-supervision draw, read back from the axes, and the curves and components behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import same_color, to_hex

from companion.figures import selfsupervision as plots
from sarmatch.visualize import COLOURS, NEUTRAL


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def embeddings(n: int = 5, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


def histories() -> pd.DataFrame:
    rows = [(0, False, 10, 0.1), (0, False, 20, 0.3), (1, False, 10, 0.3), (1, False, 20, 0.5)]
    rows += [(seed, True, step, value + 0.2) for seed, _, step, value in rows]
    return pd.DataFrame(rows, columns=["seed", "pretrained", "step", "mma_3px"])


def test_contrastive_curves_are_those_of_the_formulas() -> None:
    """With B - 1 negatives of cosine 0: log(1 + (B - 1) e^(-s / tau)), and log(B - 1) - s / tau as printed."""
    s, batch, tau = np.array([-1, 0, 0.25, 1]), 8, 0.2
    curves = plots.contrastive_curves(s, batch, tau)
    standard, printed = (curves[curves["form"] == form] for form in ("standard", "as printed"))
    np.testing.assert_allclose(standard["similarity"], s)
    np.testing.assert_allclose(standard["loss"], np.log1p((batch - 1) * np.exp(-s / tau)), rtol=1e-6)
    np.testing.assert_allclose(printed["loss"], math.log(batch - 1) - s / tau, rtol=1e-6)
    p_negative = (batch - 1) / (batch - 1 + np.exp(s / tau))
    np.testing.assert_allclose(standard["pull"], p_negative / tau, rtol=1e-6)
    np.testing.assert_allclose(printed["pull"], 1 / tau, rtol=1e-6)
    assert standard["loss"].min() > 0 > printed["loss"].min()


def test_contrastive_losses_draw_both_forms_and_zero() -> None:
    curves = plots.contrastive_curves(np.linspace(-1, 1, 5), 4, 0.1)
    axes = plots.contrastive_losses(plt.subplots(1, 2)[1], curves)
    printed = curves[curves["form"] == "as printed"]
    assert axes[0].lines[1].get_ydata().tolist() == printed["loss"].tolist()
    assert axes[1].lines[1].get_ydata().tolist() == printed["pull"].tolist()
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["standard", "as printed"]
    assert all(set(ax.lines[2].get_ydata()) == {0} for ax in axes)


def test_projection_agrees_with_singular_values() -> None:
    z_sar, z_optical = embeddings()
    found, explained = plots.project(z_sar, z_optical)
    together = torch.cat([z_sar, z_optical]).double().numpy()
    u, s, _ = np.linalg.svd(together - together.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.concatenate(found)), np.abs(u * s)[:, :3], atol=1e-6)
    np.testing.assert_allclose(explained, (s**2 / (s**2).sum())[:3], rtol=1e-6)


def test_projection_keeps_distances_in_three_dimensions_whatever_the_rotation() -> None:
    z_sar, z_optical = embeddings(d=3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    for pair in ((z_sar, z_optical), (z_sar @ turn, z_optical @ turn)):
        found, explained = plots.project(*pair)
        apart = np.linalg.norm(found[0] - found[1], axis=1)
        np.testing.assert_allclose(apart, (z_sar - z_optical).norm(dim=1), rtol=1e-5)
        assert explained.sum() == pytest.approx(1)


def test_equal_embeddings_explain_nothing() -> None:
    ones = torch.ones(3, 4)
    assert plots.project(ones, ones)[1].tolist() == [0, 0, 0]


def test_panels_join_the_ends_of_each_pair_in_the_colour_of_its_group() -> None:
    found, explained = plots.project(*embeddings(3))
    axes = plt.subplots(2)[1]
    plots.embedding_panels(axes, embeddings(3), ["b", "a", "b"], "pretrained")
    for ax, second in zip(axes, (1, 2), strict=True):
        lines, sar, optical = ax.collections
        np.testing.assert_allclose(sar.get_offsets(), found[0][:, [0, second]])
        np.testing.assert_allclose(optical.get_offsets(), found[1][:, [0, second]])
        np.testing.assert_allclose(lines.get_segments()[1], found[:, 1, [0, second]])
        expected = [COLOURS[0], COLOURS[1], COLOURS[0]]
        assert [to_hex(c) for c in sar.get_facecolors()] == [to_hex(c) for c in lines.get_colors()] == expected
        assert ax.get_ylabel() == f"component {second + 1} ({100 * explained[second]:.2g} %)"
    assert axes[0].get_title() == "pretrained"


def test_legend_names_modalities_and_groups() -> None:
    legend = plots.embedding_legend(plt.figure(layout="constrained"), ["b", "a", "b"])
    assert [text.get_text() for text in legend.get_texts()] == ["SAR", "optical", "b", "a"]
    assert [handle.get_color() for handle in legend.legend_handles[2:]] == list(COLOURS[:2])


def test_convergence_draws_a_line_a_seed_and_their_mean() -> None:
    ax = plots.convergence_curves(plt.subplots()[1], histories(), label="MMA")
    values = [line.get_ydata().tolist() for line in ax.lines]
    np.testing.assert_allclose(values, [[0.1, 0.3], [0.3, 0.5], [0.2, 0.4], [0.3, 0.5], [0.5, 0.7], [0.4, 0.6]])
    widths = [line.get_linewidth() for line in ax.lines]
    assert min(widths[2], widths[5]) > max(widths[0], widths[3])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["from scratch", "pretrained"]
    assert ax.get_ylabel() == "MMA" and ax.get_ylim()[0] == 0


def test_bars_have_the_length_of_parts_and_the_colour_of_what_repeats() -> None:
    seconds = {"seconds": [0.1, 0.3, 0.2], "seconds_low": [0.1, 0.2, 0.2], "seconds_high": [0.1, 0.6, 0.2]}
    parts = pd.DataFrame(seconds | {"per_pass": [0, 1, 1]}, index=["prefix", "trunk", "head"])
    ax = plots.part_bars(plt.subplots()[1], parts)
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in ax.patches}
    assert [bars[i].get_width() for i in range(3)] == pytest.approx([100, 300, 200])
    assert [to_hex(bars[i].get_facecolor()) for i in range(3)] == [COLOURS[0], COLOURS[1], COLOURS[1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["prefix", "trunk", "head"]
    np.testing.assert_allclose(ax.containers[-1].lines[2][0].get_segments()[1][:, 0], [200, 600])


def test_passes_lie_between_sharing_and_none() -> None:
    columns = ["mode", "passes", "seconds", "seconds_low", "seconds_high"]
    rows = [("base", 0, 1.5, 1, 2), ("with uncertainty", 0, 2, 1, 3), ("MC 5", 5, 8, 7, 9), ("MC 1", 1, 2.5, 2, 3)]
    ax = plots.seconds_by_passes(plt.subplots()[1], pd.DataFrame(rows, columns=columns), lambda n: 1 + n / 2, 2.5)
    measured, bound, nothing, paper = (line.get_xydata() for line in [ax.containers[0].lines[0], *ax.lines[-3:]])
    np.testing.assert_allclose(measured, [[1, 2.5], [5, 8]])
    np.testing.assert_allclose(bound, [[1, 3], [5, 7]])
    np.testing.assert_allclose(nothing, [[1, 2], [5, 10]])
    np.testing.assert_allclose(paper, [[20, 5]])


def test_text_can_be_read_on_white_and_on_black() -> None:
    axes = plt.subplots(3, layout="constrained")[1]
    plots.embedding_panels(axes[:2], embeddings(), list("aabbb"), "title")
    legend = plots.embedding_legend(axes[0].figure, list("aabbb"))
    assert all(same_color(text.get_color(), NEUTRAL) for text in legend.get_texts())
    plots.convergence_curves(axes[2], histories(), "MMA")
    for ax in axes:
        legend = ax.get_legend()
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *(legend.get_texts() if legend else [])):
            assert same_color(text.get_color(), NEUTRAL)
        assert ax.get_facecolor()[3] == 0
