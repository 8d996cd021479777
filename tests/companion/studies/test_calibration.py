"""Several confidences of one match table: hand-made scores, and the same numbers computed another way."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from companion.studies.calibration import (
    RECIPES,
    Recipe,
    acceptance_rates,
    aurc_verdicts,
    calibrated_confidences,
    decision_errors,
    logistic,
    raw_confidences,
    score_table,
    scores_by_dataset,
    scores_by_threshold,
    shared_matches,
    temperature_scaling,
)
from sarmatch.calibration.calibrators import Logistic
from sarmatch.calibration.scores import pool, pooled_aurc


def aurc(confidence, right) -> float:
    return pooled_aurc(pool(confidence, right))


def simulated(seed: int, n_scenes: int = 6, per_scene: int = 300) -> pd.DataFrame:
    """Matches that are right with the probability `truth`, which `probability` tells and the rest does not."""
    rng = np.random.default_rng(seed)
    n = n_scenes * per_scene
    truth = rng.uniform(0.05, 0.95, n)
    scene = np.repeat([f"s{i}" for i in range(n_scenes)], per_scene)
    return pd.DataFrame(
        {
            "id": scene,
            "dataset": np.where(np.char.endswith(scene.astype(str), "0"), "a", "b"),
            "scene": scene,
            "error_px": np.where(rng.random(n) < truth, 1.5, 20.0),
            "probability": truth**3,
            "aleatoric": rng.uniform(0, 1, n),
            "mean_probability": truth,
            "epistemic": rng.uniform(0, 1, n),
        }
    )


def found(rows: list[tuple[float, float, float]], **columns: float) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["x", "y", "error_px"]).astype(np.float32)
    table = table.assign(id="p", dataset="d", scene="s", probability=0.2, aleatoric=0.3, epistemic=np.nan)
    return table.assign(**columns)


def test_shared_matches_are_those_of_one_cell_and_one_error():
    single = found([(1.5, 1.5, 1.0), (5.5, 1.5, 2.0), (9.5, 1.5, 3.0)])
    passes = found([(1.5, 1.5, 1.0), (5.5, 1.5, 7.0), (1.5, 9.5, 1.0)], probability=0.6, epistemic=0.1, aleatoric=0.9)
    shared = shared_matches(single, passes)
    assert shared[["x", "y"]].to_numpy().tolist() == [[1.5, 1.5]], "another optical cell, and cells of one table only"
    row = shared.iloc[0]
    assert (row["probability"], row["mean_probability"]) == (0.2, 0.6)
    assert (row["aleatoric"], row["epistemic"]) == (0.3, 0.1)


def test_tables_of_different_pairs_share_nothing():
    with pytest.raises(ValueError, match="share no match"):
        shared_matches(found([(1.5, 1.5, 1.0)]), found([(1.5, 1.5, 1.0)]).assign(id="other"))


def test_raw_confidences_are_scores_at_face_value():
    table = pd.DataFrame(
        {"probability": [0.2], "mean_probability": [0.4], "aleatoric": [0.25], "epistemic": [np.log(2)]}
    )
    assert raw_confidences(table).iloc[0].tolist() == pytest.approx([0.2, 0.4, 0.75, 0.5, 0.375])


def test_a_recipe_uses_its_scores_and_no_others():
    """Only recipes that see the probability learn anything from matches that nothing else tells apart."""
    table = simulated(1)
    confidences = calibrated_confidences(simulated(0), table)
    right = table["error_px"] <= 3
    areas = {name: roc_auc_score(right, confidences[name]) for name in RECIPES}
    assert min(areas[name] for name in ("plain softmax", "plain, temperature", "all three")) > 0.75
    assert max(abs(areas[name] - 0.5) for name in ("aleatoric", "epistemic", "both")) < 0.06
    scores = score_table(table, confidences, n=20).set_index("confidence")
    assert scores.loc["plain softmax", "ece"] < 0.06, "isotonic mends a wrong scale"
    assert scores.loc["all three", "auroc"] == pytest.approx(areas["all three"])
    assert (scores["aurc_low"] <= scores["aurc_high"]).all()


def test_a_recipe_can_take_its_uncertainty_from_another_column():
    fitted_on, measured = (simulated(seed).assign(estimate=lambda t: t["mean_probability"]) for seed in (0, 1))
    recipes = {name: Recipe(logistic("epistemic"), epistemic=name) for name in ("estimate", "epistemic")}
    confidences = calibrated_confidences(fitted_on, measured, recipes)
    right = measured["error_px"] <= 3
    assert roc_auc_score(right, confidences["estimate"]) > 0.75
    assert roc_auc_score(right, confidences["epistemic"]) < 0.56


@pytest.mark.parametrize(("threshold_px", "expected"), [(1.0, 0.0), (20.0, 1.0)])
def test_where_nothing_tells_matches_apart_all_have_one_confidence(threshold_px, expected):
    confidences = calibrated_confidences(simulated(0), simulated(1), threshold_px=threshold_px)
    assert (confidences == expected).all(axis=None) and list(confidences) == list(RECIPES)


def test_each_threshold_and_dataset_has_its_rows():
    fitted_on, table = simulated(0), simulated(1)
    recipes = {"plain softmax": RECIPES["plain softmax"]}
    by_threshold = scores_by_threshold(fitted_on, table, (1, 3), recipes)
    assert by_threshold["threshold_px"].tolist() == [1, 3]
    assert by_threshold["accuracy"].tolist() == [0.0, pytest.approx((table["error_px"] <= 3).mean())]
    by_dataset = scores_by_dataset(table, calibrated_confidences(fitted_on, table, recipes))
    assert by_dataset[["dataset", "n_pairs", "n_scenes"]].to_numpy().tolist() == [["a", 1, 1], ["b", 5, 5]]
    assert np.isnan(by_dataset["ece_low"][0]) and by_dataset["ece_low"][1] < by_dataset["ece_high"][1]


def copied_differences(table: pd.DataFrame, confidences: pd.DataFrame, against: str, n: int) -> pd.DataFrame:
    """AURC differences of copies of whole scenes, each copy sorted anew: all matches, then the ends of the interval."""
    right = (table["error_px"] <= 3).to_numpy()
    scenes = [np.flatnonzero(table["scene"] == name) for name in sorted(table["scene"].unique())]
    draws = np.random.default_rng(0).integers(0, len(scenes), size=(n, len(scenes)))
    copies = [np.arange(len(table)), *(np.concatenate([scenes[i] for i in draw]) for draw in draws)]
    areas = pd.DataFrame([{c: aurc(confidences[c].to_numpy()[r], right[r]) for c in confidences} for r in copies])
    less = areas.sub(areas[against], axis=0)
    return pd.concat([less.iloc[:1], less.iloc[1:].quantile([0.025, 0.975])], ignore_index=True)


@pytest.mark.parametrize("decimals", [1, 9])
def test_differences_in_aurc_equal_those_of_copied_rows(decimals):
    table = simulated(5, n_scenes=7, per_scene=40).sample(frac=1, random_state=0)
    table = table[table["scene"] != "s3"].reset_index(drop=True)
    columns = ["probability", "mean_probability", "aleatoric"]
    confidences = table[columns].round(decimals)  # many ties, and hardly any
    found = aurc_verdicts(table, confidences, "aleatoric", n=60).set_index("confidence")
    expected = copied_differences(table, confidences, "aleatoric", 60)
    assert list(found.index) == columns[:2]
    ends = found[["difference", "difference_low", "difference_high"]].astype(float)
    np.testing.assert_allclose(ends, expected[columns[:2]].T, rtol=0, atol=1e-9)


def test_resamples_sort_nothing_anew(monkeypatch):
    table = simulated(6, n_scenes=5, per_scene=20)
    confidences = table[["probability", "mean_probability", "aleatoric"]]
    sorts = []

    def counted(plain):
        def sort(values, *arguments, **options):
            sorts.append(len(values) == len(table))
            return plain(values, *arguments, **options)

        return sort

    for name in ("argsort", "sort", "unique", "lexsort"):
        monkeypatch.setattr(np, name, counted(getattr(np, name)))
    for n in (3, 30):
        sorts.clear()
        aurc_verdicts(table, confidences, "aleatoric", n=n)
        assert sum(sorts) == len(confidences.columns), f"each confidence is sorted once for {n} resamples"


def test_exchanged_confidences_exchange_the_sign_and_equal_ones_do_not_differ():
    table = simulated(2, n_scenes=4, per_scene=30)
    two = pd.DataFrame({"a": table["mean_probability"], "b": table["aleatoric"], "same": table["mean_probability"]})
    ends = ["difference", "difference_low", "difference_high"]
    of_a = aurc_verdicts(table, two, "a", n=30).set_index("confidence")[ends]
    of_b = aurc_verdicts(table, two, "b", n=30).set_index("confidence")[ends]
    assert of_b.loc["a"].tolist() == pytest.approx((-of_a.loc["b"].iloc[[0, 2, 1]]).tolist())
    assert of_a.loc["same"].tolist() == [0, 0, 0]


def test_verdicts_follow_the_interval():
    table = simulated(4)
    truth = table["mean_probability"]
    confidences = pd.DataFrame({"good": truth, "bad": 1 - truth, "noise": table["aleatoric"], "constant": 0.5})
    verdicts = aurc_verdicts(table, confidences, "constant", n=50).set_index("confidence")
    assert verdicts["better"].to_dict() == {"good": "yes", "bad": "worse", "noise": "open"}
    assert (verdicts["against"] == "constant").all()
    alone = aurc_verdicts(table.assign(scene="s"), confidences, "constant", n=50)
    assert (alone["better"] == "too few scenes").all() and alone["difference_low"].isna().all()


def test_confidences_must_belong_to_the_matches():
    table = simulated(0)
    with pytest.raises(ValueError, match=r"need shape \(N,\)"):
        aurc_verdicts(table, pd.DataFrame({"a": [0.1], "b": [0.2]}), "b")


def test_decision_errors_by_hand():
    table = decision_errors([0.9, 0.8, 0.1], [0.2, 0.5], threshold=0.5)
    assert table[["n_pairs", "wrong"]].to_numpy().tolist() == [[3, 1], [2, 1]], "at the threshold a pair is accepted"
    none = decision_errors(np.ones(20), np.zeros(20), threshold=0.5)
    assert none["error_rate"].tolist() == [0, 0]
    assert none["error_rate_high"].tolist() == pytest.approx([1 - 0.025 ** (1 / 20)] * 2), "no error in 20 is not zero"


def test_temperature_finds_the_one_the_probabilities_were_sharpened_by() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.02, 0.98, 20_000)
    features = {"probability": expit(2.5 * logit(truth))}
    fitted = temperature_scaling(features, rng.random(20_000) < truth)
    assert 1 / fitted.weights[0] == pytest.approx(2.5, rel=0.05)
    exact = Logistic(("logit_probability",), (0.0,), (1.0,), (1 / 2.5,), 0.0)
    np.testing.assert_allclose(exact(features), truth, atol=1e-6)
    np.testing.assert_allclose(fitted(features), expit(logit(features["probability"]) * fitted.weights[0]))


def test_temperature_stops_at_its_limit_where_probabilities_say_the_opposite() -> None:
    fitted = temperature_scaling({"probability": [0.9, 0.8, 0.1, 0.2]}, [False, False, True, True])
    assert 1 / fitted.weights[0] == pytest.approx(100, rel=1e-2)


def test_acceptance_rates_by_hand():
    rates = acceptance_rates(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    assert rates["threshold"].tolist() == [0.9, 0.5, 0.1]
    assert rates["true_accept"].tolist() == [0.5, 1.0, 1.0]
    assert rates["false_accept"].tolist() == [0.0, 0.5, 1.0]
