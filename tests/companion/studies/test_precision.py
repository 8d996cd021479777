"""Tables of the chapter on precision, on matches whose error model is known, and the way into the header of weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_errors import AS_STATED, fitted, simulated

from companion.studies import precision as precision_tables
from sarmatch.calibration.position_error import raw_covariance
from sarmatch.matching.cues import CUES


def table(seed: int = 0, n_scenes: int = 12, hard: float = 1.0) -> pd.DataFrame:
    made = simulated(n_scenes, 300, seed, hard)
    half = made["scene"].str.removeprefix("scene").astype(int) % 2
    source = np.where(half, "odd", "even")
    labels = {"id": made["scene"], "source": source, "confidence": AS_STATED(made), "aleatoric": np.nan}
    return made.assign(**labels, **dict.fromkeys(CUES, 0.5))


def test_coverage_is_counted_by_hand() -> None:
    known = table(n_scenes=2)
    precision = fitted(known)
    found = precision_tables.coverage_table(known, precision, "scene", (0.9,)).set_index("scene")
    own = known[known["scene"] == "scene1"]
    radius = precision.radius(own["confidence"], raw_covariance(own), 0.9)
    assert found.loc["scene1", "covered"] == pytest.approx((own["error_px"] <= radius).mean())
    assert found.loc["scene1", "mean_px"] == pytest.approx(radius.mean())
    assert found.loc["scene1", "worst_scene"] == found.loc["scene1", "covered"]
    assert np.isnan(found.loc["scene1", "covered_low"]), "one scene leaves nothing to resample"
    together = precision_tables.coverage_table(known, precision)
    assert together["n_matches"].tolist() == [600] * 4 and together["covered"].is_monotonic_increasing


def test_scenes_count_alike_in_coverage_whatever_their_size() -> None:
    known = table(n_scenes=2)
    precision = fitted(known)
    known = known[(known["scene"] == "scene0") | (np.arange(len(known)) % 10 == 0)]
    row = precision_tables.coverage_table(known, precision, coverages=(0.9,)).iloc[0]
    scenes = precision_tables.with_radius(known, precision, 0.9).groupby("scene")["covered"].mean()
    assert row["covered"] == pytest.approx(scenes.mean()) and row["worst_scene"] == scenes.min()


def test_what_the_errors_of_a_scene_have_in_common_is_told() -> None:
    known = table(n_scenes=2)
    known.loc[known["scene"] == "scene1", "error_x"] += 1.5
    known["error_px"] = np.hypot(known["error_x"], known["error_y"])
    found = precision_tables.scene_table(known, fitted(table()))
    assert found["scene"].tolist() == ["scene1", "scene0"], "the worst first"
    assert found["offset_px"].iloc[0] == pytest.approx(1.4, abs=0.2) and found["offset_px"].iloc[1] < 0.2


def test_other_scenes_are_covered_as_asked_with_every_kind_of_radius() -> None:
    validation, test = table(), table(1)
    found = precision_tables.other_radii(validation, test, fitted(validation), 0.9)
    assert set(found["radius"]) == {"one for all", "spread", "1 / confidence", "confidence and spread"}
    assert found["covered"].between(0.84, 0.96).all()


def test_held_out_scenes_are_judged_by_the_others() -> None:
    known = table(n_scenes=6)
    known.loc[known["scene"] == "scene0", ["error_px", "error_x"]] *= 100
    found = precision_tables.held_out(known, known, "scene", (0.9,))
    shares = found.groupby("scene")["covered"].mean()
    assert shares["scene0"] < 0.1 < 0.8 < shares.drop("scene0").min(), "its own errors would have widened its radii"
    by = precision_tables.coverage_by(found.assign(land=np.where(found["source"] == "odd", "urban", "")), "land")
    assert by["land"].tolist() == ["urban"] and by["n_scenes"].tolist() == [3]
    assert precision_tables.held_out(known, known, "scene", (0.9,), []).empty


def test_a_source_is_judged_by_the_calibration_of_the_others() -> None:
    validation, test = table(), table(1)
    odd = test["source"] == "odd"
    test.loc[odd, ["error_px", "error_x"]] *= 100
    judged = precision_tables.held_out(validation, test, "source", (0.9,))
    found = precision_tables.coverage_by(judged, "source").set_index("source")
    assert found.loc["odd", "covered"] < 0.1 and found.loc["even", "covered"] == pytest.approx(0.9, abs=0.03)
    assert precision_tables.held_out(validation[~odd], test[~odd], "source").empty


def test_the_right_covariance_is_ranked_first_and_its_distances_are_chi_square() -> None:
    validation, test = (precision_tables.correct(table(s)) for s in (0, 1))
    kinds = precision_tables.covariances(test, fitted(validation), validation)
    found = precision_tables.covariance_table(test, kinds)
    for _, rows in found.groupby("source"):
        assert rows["covariance"].iloc[0] == "fitted" and rows["nll"].is_monotonic_increasing
        best = rows.iloc[0]
        assert best["mean_square"] == pytest.approx(1, abs=0.1)
        assert best[["within_0.5", "within_0.9", "within_0.95"]].tolist() == pytest.approx([0.5, 0.9, 0.95], abs=0.03)


def test_squared_distances_by_hand() -> None:
    one = pd.DataFrame({"error_x": [2.0], "error_y": [1.0], "source": ["here"]})
    found = precision_tables.covariance_table(one, {"stated": np.array([[[4.0, 0], [0, 0.25]]])})
    assert found["mean_square"].tolist() == [2.5]


def test_errors_follow_the_stated_spread() -> None:
    known = precision_tables.correct(table(n_scenes=20))
    found = precision_tables.errors_by_spread(known, fitted(known), 4)
    assert len(found) == 8 and found["n"].sum() == len(known)
    np.testing.assert_allclose(found["measured_px"], found["stated_px"], rtol=0.12)
