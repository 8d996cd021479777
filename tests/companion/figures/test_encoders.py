"""What the figures of the encoders draw, read back from the axes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from companion.figures import encoders as plots
from companion.studies.encoders import Part


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def part(name: str, *sources: str, stride: int = 1, kind: str = "Conv2d", **more: int) -> Part:
    return Part(name, kind, sources, (1, 8, 64 // stride, 64 // stride), stride, **more)


CHAIN = [
    part("input", kind="input"),
    part("stem", "input", stride=2, parameters=10, kernel=7),
    part("body", "stem", stride=2, parameters=1000, kernel=3, dilation=2),
    part("fine", "input", "stem", "body"),
]


def test_diagram_has_a_box_a_part_and_an_arrow_a_source() -> None:
    ax = plots.diagram(plt.subplots()[1], CHAIN)
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert (len(boxes), len(arrows)) == (4, 5)
    assert [text.get_text() for text in ax.texts] == [
        "input\n8×64×64",
        "stem\nConv2d\n7×7\n8×32×32",
        "body\nConv2d\n3×3, dilation 2\n8×32×32",
        "fine\nConv2d\n8×64×64",
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["stride 1", "stride 2"]
    lightness = [sum(box.get_facecolor()[:3]) for box in boxes]
    assert lightness[0] > lightness[1] > lightness[2], "more parameters are darker"


def test_diagram_leaves_out_arrows_from_parts_not_drawn_and_beginnings_of_names() -> None:
    ax = plots.diagram(plt.subplots()[1], [part("inner.a", "outside"), part("inner.b", "inner.a")], within="inner.")
    assert sum(isinstance(p, FancyArrowPatch) for p in ax.patches) == 1
    assert [text.get_text().partition("\n")[0] for text in ax.texts] == ["a", "b"]


def test_places_follow_the_longest_way_and_never_coincide() -> None:
    assert plots._places(CHAIN) == {"input": (0, 0), "stem": (1, -1), "body": (1, -2), "fine": (0, -3)}
    twins = [part("input"), part("a", "input"), part("b", "input")]
    assert len(set(plots._places(twins).values())) == 3


@pytest.mark.parametrize("end", [(0, -3), (1, -3), (2, -2), (0, -1), (-2, -1)])
def test_arrows_do_not_cross_boxes(end: tuple[int, int]) -> None:
    taken = {(0, 0), (0, -1), (0, -2), (2, -2), (-2, -1), (0, -3), (1, -3)}
    corners = np.array(plots._route((0, 0), end, taken))
    fine = np.concatenate([np.linspace(a, b, 200) for a, b in pairwise(corners)])
    for x, y in taken:
        inside = (np.abs(fine - (x, y)) < np.array(plots.BOX) / 2 - 1e-6).all(axis=1)
        assert not inside.any(), (x, y)
    assert np.isclose(np.abs(corners[-1] - end) * 2, plots.BOX).any(), "ends at the box"


def test_equal_descriptors_have_equal_colours_across_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 6, 5, generator=generator)
    one, two = plots.descriptor_colours([first, first.flip(-1)])
    assert one.shape == (6, 5, 3)
    assert np.allclose(one, two[:, ::-1], atol=1e-5)
    assert one.min() >= 0 and one.max() <= 1
    assert (one.std(axis=(0, 1)) > 0.1).all()


def test_mean_and_spread_of_a_map_do_not_change_its_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 6, 5, generator=generator)
    one, two = plots.descriptor_colours([first, 3 * first + torch.randn(8, 1, 1, generator=generator)])
    assert np.allclose(one, two, atol=1e-4)


def test_colours_are_the_principal_components() -> None:
    values = torch.zeros(5, 1, 100)
    values[2, 0] = torch.linspace(-1, 1, 100)  # all the variance
    (colours,) = plots.descriptor_colours([values])
    red = colours[0, :, 0]
    assert (np.diff(red) >= 0).all() or (np.diff(red) <= 0).all()
    assert {red[0], red[-1]} == {0, 1}


def test_gallery_names_its_columns() -> None:
    maps = [torch.randn(4, 8, 8) for _ in range(2)]
    _, axes = plt.subplots(2, 2)
    plots.descriptor_gallery(axes, (torch.rand(1, 32, 32), torch.rand(3, 32, 32)), {"untrained": maps})
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["SAR", "optical"]
    assert axes[0, 1].get_title() == "untrained"
    assert axes[1, 0].images[0].get_array().shape == (32, 32, 3)


def test_receptive_fields_share_a_scale_that_ends_where_asked() -> None:
    _, axes = plt.subplots(1, 2)
    field = torch.zeros(16, 16)
    field[8, 8] = 1
    plots.receptive_fields(axes, {"a": field, "b": field}, decades=3)
    for ax in axes:
        assert ax.images[0].get_clim() == (1e-3, 1)
        assert ax.images[0].get_array().min() == pytest.approx(1e-3)
        assert ax.images[0].get_extent() == [-8, 8, 8, -8]


def test_leak_plots_begin_at_chance() -> None:
    _, axes = plt.subplots(1, 3)
    plots.leak_maps(axes[:2], {"a": torch.full((4, 4), 2.0), "b": torch.full((4, 4), 3.0)}, 0.25)
    assert {ax.images[0].get_clim() for ax in axes[:2]} == {(0.25, 3.0)}
    profile = (torch.tensor([2.0, 6.0]), torch.tensor([1.5, 0.3]))
    plots.leak_profile(axes[2], {"a": profile}, 0.25)
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["a", "chance"]
    assert axes[2].lines[0].get_ydata().tolist() == pytest.approx([1.5, 0.3])
    assert set(axes[2].lines[1].get_ydata()) == {0.25}
