"""Tables of the comparison by hand: ranks, leads, calibration, registration, and the printed table beside."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from companion.studies import comparison, comparison_tables


def test_ranking_puts_the_best_first() -> None:
    records = pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "scene": ["s", "t", "s", "t"], "mma_3px": [0.1, 0.2, 0.5, 0.7]}
    )
    table = comparison_tables.ranked(records, ["mma_3px"])
    assert table["method"].tolist() == ["b", "a"]
    np.testing.assert_allclose(table["mma_3px"], [0.6, 0.15])


def test_the_network_is_compared_over_the_same_pairs_and_the_worst_comes_first() -> None:
    ours = pd.DataFrame(
        {"id": list("pqrs"), "scene": list("aabb"), "mma_1px": [0.5, 0.6, 0.7, 0.8], "method": "network"}
    )
    better = ours.assign(method="better", mma_1px=ours["mma_1px"] + 0.1)
    worse = ours.assign(method="worse", mma_1px=0.1)
    table = comparison_tables.network_ahead(pd.concat([worse, ours, better]), ["mma_1px"])
    assert table["against"].tolist() == ["better", "worse"]
    np.testing.assert_allclose(table["difference"], [-0.1, 0.55])
    assert table["n_pairs"].tolist() == [4, 4] and table["n_scenes"].tolist() == [2, 2]


def test_where_another_method_is_ahead_stands_first() -> None:
    names = {"method": ["network", "network, short", "a", "b"]}
    ranking = pd.DataFrame(names | {"mma_1px": [0.5, 0.9, 0.4, 0.1], "mma_3px": [0.8, 0.9, 0.85, 0.1]})
    accuracy = {"accuracy": [0.8, 0.9, 0.7, 0.1], "brier": [0.1, 0.1, 0.2, 0.01], "auroc": [0.8, 0.8, 0.7, 0.9]}
    calibration = pd.DataFrame(names | accuracy | {"ece": [0.05, 0.01, 0.04, 0.001]})
    success = {"success_1px": [0.5, 0.5, 0.5, 0.0], "success_3px": [0.9, 0.9, 0.8, 0.0]}
    registration = pd.DataFrame(names | success | {"median_corner_error_px": [0.7, 0.7, 0.6, np.inf]})
    table = comparison_tables.leaders(ranking, calibration, registration).set_index("measure")
    assert table.index[table["ahead"]].tolist() == ["mma_3px", "ece", "median_corner_error_px"]
    assert (table["method"] == "a").all()  # b is too often wrong for its calibration to count
    assert table.loc["ece", ["ours", "other"]].tolist() == [0.05, 0.04]


def test_registration_counts_failures() -> None:
    records = pd.DataFrame(
        {"method": ["a"] * 4 + ["b"] * 2, "corner_error_px": [0.5, 2.0, np.inf, 30.0, np.inf, np.inf]}
    )
    table = comparison_tables.registration_table(records).set_index("method")
    assert table.loc["a", [f"success_{t}px" for t in (1, 3, 5, 10)]].tolist() == [0.25, 0.5, 0.5, 0.5]
    assert table.loc["a", "failures"] == 1 and table.loc["a", "median_corner_error_px"] == 16
    assert table.loc["b", "failures"] == 2 and np.isinf(table.loc["b", "median_corner_error_px"])


def test_calibration_scores_by_hand() -> None:
    sure = pd.DataFrame({"confidence": [1.0] * 8, "error_px": [0.0] * 4 + [9.0] * 4, "method": "sure"})
    fair = pd.DataFrame({"confidence": [0.5] * 8, "error_px": [0.0] * 4 + [9.0] * 4, "method": "fair"})
    matches = pd.concat([sure, fair]).assign(scene=["s", "t"] * 8, id=["p", "q"] * 8)
    table = comparison_tables.calibration_by_method(matches).set_index("method")
    assert table["ece"].tolist() == [0.5, 0.0] and table["brier"].tolist() == [0.5, 0.25]
    assert table["accuracy"].tolist() == [0.5, 0.5] and table["matches"].tolist() == [8, 8]


def test_table_1_stands_beside_the_rows_of_its_methods() -> None:
    ranking = pd.DataFrame({"method": ["SIFT", "RIFT"], "mma_1px": [0.1, 0.2], "mma_2px": [0.3, 0.4], "mma_3px": 0.5})
    table = comparison_tables.beside_printed(ranking).set_index("method")
    assert list(table.index) == comparison_tables.TABLE_1["method"].tolist()
    assert table.loc["RIFT", ["mma_1px", "mma_2px", "mma_3px"]].tolist() == [0.2, 0.4, 0.5]
    assert table.loc["MOEFC", ["mma_1px", "mma_2px"]].isna().all()
    assert set(table["row"]) <= set(comparison.STANDS_FOR) and table["remark"].str.len().min() > 10


def test_every_method_of_table_1_is_a_row_or_has_a_reason() -> None:
    words = " ".join([*comparison.STANDS_FOR, *comparison.STANDS_FOR.values(), *comparison.MISSING])
    for reference in filter(None, comparison_tables.TABLE_1["reference"]):
        assert re.search(rf"refs?\. (\d+, )*{reference}\b", words), reference
    assert all(reason.startswith(("not run", "patented")) for reason in comparison.MISSING.values())
