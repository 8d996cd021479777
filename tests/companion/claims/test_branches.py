"""Verdicts by hand."""

import numpy as np
import pandas as pd
import pytest

from companion.claims.branches import NAMED, aleatoric_order, branch_verdicts, claim, group_correlations
from companion.studies import uncertainty


def correlations(rho: float, effect: float, low: float | None = None, high: float | None = None) -> pd.DataFrame:
    low, high = rho - 0.1 if low is None else low, rho + 0.1 if high is None else high
    rows = [(s, rho, low, high, effect) for s in uncertainty.MEASURED]
    table = pd.DataFrame(rows, columns=["source", "rho", "rho_low", "rho_high", "effect"])
    return table.assign(nuisance="haze", change=0.01)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (correlations(0.9, 1.0), "follows"),
        (correlations(-0.9, -1.0), "falls"),
        (correlations(0.9, 0.1), "hardly moves"),
        (correlations(0.9, np.nan), "hardly moves"),
        (correlations(0.7, 1.0), "no"),
        (correlations(0.9, 1.0, low=-0.1), "no"),
    ],
)
def test_verdicts_on_branches(table, verdict):
    verdicts = branch_verdicts(table)
    assert list(verdicts["measure"]) == ["atmosphere", "optical", "total"]
    assert set(verdicts["verdict"]) == {verdict}


def test_every_dose_has_a_branch_named_for_it():
    assert set(uncertainty.DOSES) == set(NAMED)
    assert set(NAMED.values()) < set(uncertainty.MEASURED)


@pytest.mark.parametrize(("values", "verdict"), [([1, 2], "yes"), ([-1, -2], "opposite"), ([-1, 2], "open")])
def test_claims_need_an_interval_on_one_side(values, verdict):
    records = pd.DataFrame({"scene": list("abcdefgh"), "value": np.tile(values, 4).astype(float)})
    found = claim(records, "value")
    assert found["verdict"] == verdict
    assert (found["n_pairs"], found["n_scenes"]) == (8, 8)
    assert claim(records.assign(scene=list("aabbccdd")), "value")["verdict"] == "too few scenes"


def test_correlations_of_groups():
    levels = pd.DataFrame(
        {"dataset": list("aaaab"), "haze_index": [1, 2, 3, 4, 5.0], "mean_optical": [2, 4, 6, 9, 0.0]}
    )
    found = group_correlations(levels, "haze_index", ["optical"])
    assert found.to_dict("records") == [{"dataset": "a", "source": "optical", "rho": pytest.approx(1.0), "n_pairs": 4}]


def test_order_within_pairs_does_not_profit_from_levels_of_pairs():
    table = pd.DataFrame(
        {
            "dataset": "a",
            "id": list("pppqqq"),
            "scene": list("sssttt"),
            "aleatoric": [0.1, 0.1, 0.1, 0.9, 0.9, 0.9],
            "error_px": [1.0, 1.0, 9.0, 9.0, 9.0, 1.0],
        }
    )
    row = aleatoric_order(table).iloc[0]
    assert row["within_pairs"] == pytest.approx(0.5)
    assert row["pooled"] == pytest.approx(2 / 3 * 2 / 3 + 0.5 * 4 / 9)
    assert (row["n_pairs"], row["n_scenes"]) == (2, 2)
