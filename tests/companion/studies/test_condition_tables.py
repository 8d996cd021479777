"""Tables by condition: hand-computed means and differences, planted effects that must be found, and none invented."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.intervals import FEWEST_CLUSTERS, cluster_bootstrap
from companion.studies import condition_tables, conditions

SCENES, EACH = 8, 9
N = SCENES * EACH


def measures(seed: int = 0) -> pd.DataFrame:
    """Pairs of eight scenes whose haze varies within scenes; all else is flat or unknown."""
    rng = np.random.default_rng(seed)
    index = {"id": [f"p{i}" for i in range(N)], "dataset": "d", "scene": [f"s{i % SCENES}" for i in range(N)]}
    numeric = {c.measure: np.nan for c in conditions.CONDITIONS if c.levels}
    text = {c.measure: "" for c in conditions.CONDITIONS if not c.levels}
    known = {"haze": rng.uniform(0, 1, N), "misfit_px": rng.uniform(0, 1, N)}
    return pd.DataFrame(index | numeric | text | known)


def records(table: pd.DataFrame, mma: np.ndarray, method: str = "a") -> pd.DataFrame:
    keys = table[["id", "dataset", "scene"]]
    return keys.assign(mma_1px=mma, mma_3px=mma / 2, n_matches=100, method=method).reset_index(drop=True)


# --- by condition ----------------------------------------------------------------------------------------------------


def test_means_of_each_level_and_method_are_those_of_its_pairs() -> None:
    table = measures()
    levels = conditions.classify(table)
    both = pd.concat([records(table, table["haze"].to_numpy()), records(table, np.ones(N), "b")])
    found = condition_tables.by_condition(both, levels, ["mma_1px"]).set_index(["condition", "level", "method"])
    for level, group in levels[levels["condition"] == "haze"].groupby("level"):
        own = table[table["id"].isin(group["id"])]
        row = found.loc[("haze", level, "a")]
        assert row["mma_1px"] == pytest.approx(own["haze"].mean()) and row["n_pairs"] == len(own)
        interval = cluster_bootstrap(own, "haze")
        assert (row["mma_1px_low"], row["mma_1px_high"]) == pytest.approx((interval.low, interval.high))
        assert found.loc[("haze", level, "b"), "mma_1px"] == 1


def test_few_scenes_have_no_interval() -> None:
    table = measures().assign(water=lambda t: np.where(t["scene"] < "s4", "yes", "no"))
    levels = conditions.classify(table)
    found = condition_tables.by_condition(records(table, table["haze"].to_numpy()), levels, ["mma_1px"])
    water = found[found["condition"] == "water"]
    assert (water["n_scenes"] < FEWEST_CLUSTERS).all() and water["mma_1px_low"].isna().all()
    assert found[found["condition"] == "haze"]["mma_1px_low"].notna().all()
    effect = condition_tables.effects(records(table, np.ones(N)), levels, "mma_1px").set_index("condition")
    assert effect.loc["water", "verdict"] == "too few scenes" and np.isnan(effect.loc["water", "difference_low"])


def test_repeated_records_are_rejected() -> None:
    table = measures()
    twice = pd.concat([records(table, np.ones(N))] * 2)
    with pytest.raises(ValueError, match="more than once"):
        condition_tables.by_condition(twice, conditions.classify(table), ["mma_1px"])


def test_scenes_have_intervals_over_their_pairs() -> None:
    table = measures()
    few = table[(table["scene"] != "s0") | (table["id"] == "p0")]
    found = condition_tables.by_scene(records(few, few["haze"].to_numpy()), ["mma_1px"]).set_index("scene")
    assert found.loc["s0", "n_pairs"] == 1 and np.isnan(found.loc["s0", "mma_1px_low"])
    own = few[few["scene"] == "s3"]["haze"]
    assert found.loc["s3", "mma_1px"] == pytest.approx(own.mean())
    assert own.min() < found.loc["s3", "mma_1px_low"] < own.mean() < found.loc["s3", "mma_1px_high"] < own.max()


# --- effects ---------------------------------------------------------------------------------------------------------


def test_a_planted_effect_is_found_between_and_within_scenes_and_nothing_else() -> None:
    table = measures()
    rng = np.random.default_rng(1)
    found = records(table, 0.8 - 0.4 * table["haze"].to_numpy() + rng.normal(0, 0.02, N))
    levels = conditions.classify(table)
    between = condition_tables.effects(found, levels, "mma_1px").set_index("condition")
    assert (
        between.loc["haze", "verdict"] == "lower" and (between.loc["haze", ["from", "to"]] == ["clear", "bright"]).all()
    )
    ends = [table[table["id"].isin(levels[levels["level"] == name]["id"])]["id"] for name in ("clear", "bright")]
    means = [found[found["id"].isin(ids)]["mma_1px"].mean() for ids in ends]
    assert between.loc["haze", "difference"] == pytest.approx(means[1] - means[0])
    within = condition_tables.within_scenes(found, table, "mma_1px").set_index("condition")
    assert within.loc["haze", "rho"] < -0.9 and within.loc["haze", "verdict"] == "lower"
    misfit = conditions.DISTORTION["misfit_px"]
    assert within.loc[misfit, "verdict"] == between.loc[misfit, "verdict"] == "open"
    assert within.loc["speckle", "n_scenes"] == 0 and within.loc["speckle", "verdict"] == "too few scenes"


def test_what_only_scenes_differ_in_drops_out_within_them() -> None:
    table = measures()
    level = table["scene"].str[1:].astype(int)
    rng = np.random.default_rng(3)
    table["haze"] = level / 8 + rng.uniform(0, 0.1, N)  # hazy scenes are hard, hazy pairs are not
    found = records(table, 0.9 - level.to_numpy() / 10 + rng.normal(0, 0.01, N))
    between = condition_tables.effects(found, conditions.classify(table), "mma_1px").set_index("condition")
    within = condition_tables.within_scenes(found, table, "mma_1px").set_index("condition")
    assert between.loc["haze", "difference"] < -0.3
    assert within.loc["haze", "verdict"] == "open" and abs(within.loc["haze", "rho"]) < 0.3


def test_unordered_conditions_of_three_levels_are_left_out() -> None:
    table = measures().assign(season=lambda t: t["scene"].map(lambda s: ("fall", "spring", "winter")[int(s[1:]) % 3]))
    found = condition_tables.effects(records(table, np.ones(N)), conditions.classify(table), "mma_1px")
    assert "season" not in set(found["condition"]) and "haze" in set(found["condition"])


# --- paired ----------------------------------------------------------------------------------------------------------


def test_changes_are_paired_and_only_of_pairs_that_both_have() -> None:
    table = measures()
    early = records(table, table["haze"].to_numpy())
    late = records(table, table["haze"].to_numpy() - 0.1).head(60)
    found = condition_tables.paired_changes(early, late, ["mma_1px"]).iloc[0]
    assert (found["difference"], found["difference_low"]) == pytest.approx((-0.1, -0.1))
    assert found["n_pairs"] == 60 and found["verdict"] == "lower"
    assert found["before"] - found["after"] == pytest.approx(0.1)
    nothing = condition_tables.paired_changes(early, early.head(0), ["mma_1px"])
    assert nothing.empty and "verdict" in nothing


def test_doses_are_compared_with_none_on_the_same_pairs() -> None:
    table = measures()
    base = table["haze"].to_numpy()
    dosed = pd.concat(
        records(table, base - step).assign(kind="haze", dose=dose)
        for dose, step in ((0.0, 0.0), (0.5, 0.2), (1.0, 0.3))
    )
    found = condition_tables.by_dose(dosed, ["mma_1px", "mma_3px"]).set_index(["metric", "dose"])
    assert found.loc[("mma_1px", 0.0), "difference"] == 0
    assert found.loc[("mma_1px", 1.0), "difference"] == pytest.approx(-0.3)
    assert found.loc[("mma_3px", 0.5), "difference"] == pytest.approx(-0.1)
    assert found.loc[("mma_1px", 0.5), "mean"] == pytest.approx(base.mean() - 0.2)
    with pytest.raises(ValueError, match="one table only"):
        condition_tables.by_dose(dosed[dosed["dose"] > 0], ["mma_1px"])


# --- rotation --------------------------------------------------------------------------------------------------------


def studies(gain_distorted: float, gain_rest: float, noise: float = 0.01, seeds: int = 3) -> pd.DataFrame:
    """Records of both rows at 0.5 without rotation prediction; the first half of the pairs is the distorted one."""
    table, rng = measures(), np.random.default_rng(0)
    gain = np.where(np.arange(N) < N // 2, gain_distorted, gain_rest)
    parts = []
    for seed in range(seeds):
        for row, own in zip(condition_tables.ROWS, (0.0, gain), strict=True):
            parts.append(records(table, 0.5 + own + rng.normal(0, noise, N)).assign(row=row, seed=seed))
    return pd.concat(parts, ignore_index=True)


PARTS = {"distorted": [f"p{i}" for i in range(N // 2)], "rest": [f"p{i}" for i in range(N // 2, N)]}


def test_gain_where_geometry_is_distorted_is_no_gain_everywhere() -> None:
    special = condition_tables.rotation_gain(studies(0.05, 0.0), PARTS, ["mma_1px"]).set_index("part")
    assert special["verdict"].to_dict() == {"distorted": "higher", "rest": "open", "distorted minus rest": "higher"}
    assert special.loc["distorted", "relative"] == pytest.approx(0.1, abs=0.02)
    assert special.loc["distorted", "claim"] == "outside" and special.loc["distorted minus rest", "claim"] == ""
    assert special.loc["distorted", ["n_pairs", "n_scenes", "n_seeds", "seeds_better"]].tolist() == [36, 8, 3, 3]
    everywhere = condition_tables.rotation_gain(studies(0.05, 0.05), PARTS, ["mma_1px"]).set_index("part")
    assert everywhere["verdict"].tolist() == ["higher", "higher", "open"]


def test_the_claimed_gain_is_recognised_and_harm_is_called_harm() -> None:
    found = condition_tables.rotation_gain(
        studies(0.5 * condition_tables.CLAIMED_GAIN, -0.05), PARTS, ["mma_1px"]
    ).set_index("part")
    assert found.loc["distorted", "claim"] == "within" and found.loc["rest", "verdict"] == "lower"


def test_gains_by_hand_without_noise() -> None:
    found = condition_tables.rotation_gain(studies(0.05, 0.1, noise=0), PARTS, ["mma_1px", "mma_3px"])
    found = found.set_index(["metric", "part"])
    for end in ("", "_low", "_high"):
        assert found.loc[("mma_1px", "distorted"), f"difference{end}"] == pytest.approx(0.05)
        assert found.loc[("mma_1px", "rest"), f"relative{end}"] == pytest.approx(0.2)
        assert found.loc[("mma_3px", "distorted minus rest"), f"difference{end}"] == pytest.approx(-0.025)
    assert found.loc[("mma_3px", "rest"), "contrastive"] == 0.25


def test_seeds_that_disagree_leave_the_gain_open() -> None:
    table = studies(0.0, 0.0, noise=0.001)
    own = (table["row"] == "rotation") * table["seed"].map({0: 0.1, 1: -0.02, 2: 0.0})
    found = condition_tables.rotation_gain(table.assign(mma_1px=table["mma_1px"] + own), PARTS, ["mma_1px"]).set_index(
        "part"
    )
    assert found.loc["distorted", "difference"] > 0.02 and found.loc["distorted", "verdict"] == "open"


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(20)))
def test_order_of_records_does_not_matter(order: list[int]) -> None:
    table = studies(0.03, 0.01)
    chosen = table[table["id"].isin([f"p{i}" for i in (*range(5), *range(40, 45))])]
    shuffled = chosen.iloc[[*(3 * i for i in order), *(set(range(60)) - {3 * i for i in order})]]
    a, b = (condition_tables.rotation_gain(t, PARTS, ["mma_1px"]) for t in (chosen, shuffled))
    pd.testing.assert_frame_equal(a, b)


def test_unequal_rows_and_empty_parts_are_rejected() -> None:
    table = studies(0.0, 0.0)
    with pytest.raises(ValueError, match="same seeds and pairs"):
        condition_tables.rotation_gain(table[(table["seed"] < 2) | (table["row"] == "rotation")], PARTS, ["mma_1px"])
    with pytest.raises(ValueError, match="duplicate entries"):
        condition_tables.rotation_gain(pd.concat([table, table]), PARTS, ["mma_1px"])
    with pytest.raises(ValueError, match="'rest' holds none"):
        condition_tables.rotation_gain(table, {**PARTS, "rest": []}, ["mma_1px"])
    with pytest.raises(KeyError, match="seed"):
        condition_tables.rotation_gain(table.drop(columns="seed"), PARTS, ["mma_1px"])
