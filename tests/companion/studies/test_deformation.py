"""Methods under displacement fields: each field measured once, windows of one width, and their figures."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from companion.baselines import TemplateMatcher
from companion.figures import deformation as figures
from companion.settings import book_profile
from companion.studies import deformation
from sarmatch.evaluation.protocols import spread
from sarmatch.matching.matcher import Matcher

SMOKE = book_profile("smoke")


def test_every_field_is_measured_once_and_none_is_a_shift(run, split, monkeypatch) -> None:
    monkeypatch.setattr(deformation, "AMPLITUDES_PX", (0.0, 6.0))
    monkeypatch.setattr(deformation, "LENGTHS_PX", (24.0, 48.0))
    pairs, methods = spread(split.test, 2), {"network": Matcher(run.net), "template": TemplateMatcher()}
    records = deformation.field_records(run, methods, pairs, SMOKE.evaluation)
    counts = records.groupby(["method", "amplitude_px", "length_px"]).size()
    assert (counts == len(pairs)).all()
    assert len(counts) == 8
    assert (records["protocol"] == "deform").all()
    still = records[records["amplitude_px"] == 0].drop(columns="length_px").sort_values(["method", "id"])
    first, second = still.iloc[::2], still.iloc[1::2]  # the same measurement stands with both lengths
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    template = records[records["method"] == "template"].groupby("amplitude_px")["mma_1px"].mean()
    assert template[0.0] > template[6.0]
    axes = Figure().subplots(1, 2)
    figures.by_amplitude(axes, records)
    assert [ax.get_title() for ax in axes] == ["smooth over 24 px", "smooth over 48 px"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["network", "template"]


def test_windows_of_one_width_of_the_network_and_of_the_template(run, split, monkeypatch) -> None:
    monkeypatch.setattr(deformation, "TEMPLATES_PX", (17, 33))
    records = deformation.window_records(run, spread(split.test, 1), SMOKE.evaluation)
    sides = {side * 4 for side in SMOKE.model.consensus_cells}
    assert set(records[records["method"] == "network"]["window_px"]) == sides
    assert set(records[records["method"] == "template"]["window_px"]) == {17, 33}
    assert set(records["protocol"]) == {"shift", "deform"}
    axes = Figure().subplots(1, 2)
    figures.by_window(axes, records)
    assert [ax.get_title() for ax in axes] == ["shift", "deform"]
    assert axes[0].get_ylabel() == "MMA within 3 px"
