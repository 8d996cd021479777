"""Table 3: means, differences and verdicts against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from companion.studies.ablation_tables import PAPER, calibration_gains, calibration_table, gains, metrics_table


def scores(shift: float = 0.1, noise: float = 0.0) -> pd.DataFrame:
    """Two rows, two seeds, six scenes of two pairs; the second row is better by `shift`."""
    rng, rows = np.random.default_rng(0), []
    for row, gain in (("baseline", 0.0), ("rotation", shift)):
        for seed in (0, 1):
            for pair in range(12):
                value = 0.3 + 0.01 * pair + gain + noise * rng.normal()
                rows.append((row, seed, f"p{pair}", f"s{pair // 2}", value, np.nan))
    return pd.DataFrame(rows, columns=["row", "seed", "id", "scene", "mma_1px", "rmse_px"])


def test_means_have_their_counts_and_lie_in_their_intervals() -> None:
    table = metrics_table(scores(), ["mma_1px", "rmse_px"]).set_index("row")
    assert table.loc["rotation", "mma_1px"] == pytest.approx(0.455)
    assert table.loc["baseline", ["n_seeds", "n_pairs", "n_scenes"]].tolist() == [2, 12, 6]
    assert (table["mma_1px_low"] < table["mma_1px"]).all() and (table["mma_1px"] < table["mma_1px_high"]).all()
    assert table["rmse_px"].isna().all()


def test_a_gain_that_is_everywhere_the_same_is_certain_and_relative_to_what_it_is_compared_with() -> None:
    table = gains(scores(noise=1e-6), "mma_1px", [("rotation", "baseline"), ("baseline", "rotation")])
    assert table["difference"].tolist() == pytest.approx([0.1, -0.1], abs=1e-5)
    assert table["verdict"].tolist() == ["better", "worse"]
    assert table["relative"].iloc[0] == pytest.approx(0.1 / 0.355, rel=1e-3)


def test_noise_leaves_a_small_gain_undecided_and_the_t_test_is_that_of_scipy() -> None:
    records = scores(shift=0.01, noise=0.1)
    row = gains(records, "mma_1px", [("rotation", "baseline")]).iloc[0]
    means = records.groupby(["row", "id"])["mma_1px"].mean().unstack(0)
    expected = scipy.stats.ttest_rel(means["rotation"], means["baseline"])
    assert (row["t"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert row["low"] < 0 < row["high"] and row["verdict"] == "undecided"


def test_rows_that_were_measured_otherwise_are_rejected() -> None:
    records = scores()
    with pytest.raises(ValueError, match="no row 'both'"):
        gains(records, "mma_1px", [("both", "baseline")])
    with pytest.raises(ValueError, match="not measured once with the same seeds and pairs"):
        gains(records.drop(index=records.index[-1]), "mma_1px", [("rotation", "baseline")])


def matches(gain: float) -> pd.DataFrame:
    """A row whose confidence is right, and one that claims `gain` too much."""
    rng, parts = np.random.default_rng(1), []
    for row, too_much in (("baseline", gain), ("rotation", 0.0)):
        for seed in (0, 1, 2):
            truth = rng.uniform(0.2, 0.7, 3000)
            right = rng.uniform(size=3000) < truth
            scene = rng.integers(0, 10, 3000).astype(str)
            confidence = truth + too_much
            parts.append(
                pd.DataFrame({"row": row, "seed": seed, "scene": scene, "confidence": confidence}).assign(
                    probability=confidence / 2, error_px=np.where(right, 0.0, 10.0)
                )
            )
    return pd.concat(parts, ignore_index=True)


def test_calibration_of_rows_and_their_difference() -> None:
    table = calibration_table(matches(0.2)).set_index("row")
    assert table.loc["baseline", "ece"] == pytest.approx(0.2, abs=0.02)
    assert table.loc["rotation", "ece"] < 0.03 and (table["ece_raw"] > 0.1).all()
    assert (table["ece_low"] <= table["ece_high"]).all() and (table["matches"] == 9000).all()
    row = calibration_gains(matches(0.2), "ece", [("rotation", "baseline")]).iloc[0]
    assert row["difference"] == pytest.approx(table.loc["rotation", "ece"] - table.loc["baseline", "ece"])
    assert row["verdict"] == "better" and row["high"] < 0
    with pytest.raises(ValueError, match="no row 'both'"):
        calibration_gains(matches(0.2), "ece", [("rotation", "both")])
    one_scene = calibration_gains(matches(0.2).assign(scene="a"), "ece", [("rotation", "baseline")]).iloc[0]
    assert np.isnan(one_scene["low"]) and one_scene["verdict"] == "too few scenes"
    same = calibration_gains(matches(0.2), "ece", [("rotation", "rotation")]).iloc[0]
    assert (same["low"], same["high"]) == (0, 0) and same["verdict"] == "undecided"


def test_the_printed_table_has_the_gain_of_the_abstract() -> None:
    """Section 4.5: 6.3 % by the aleatoric part over the baseline, and the headline of 0.145."""
    mma = PAPER.set_index("row")["paper_mma_1px"]
    assert mma["aleatoric"] / mma["baseline"] - 1 == pytest.approx(0.063, abs=6e-4)
    assert mma["rotation"] == 0.145
