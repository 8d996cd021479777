"""Studies of short trainings: what each row changes, which pairs it learns from, and what is made of its matches."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from companion.settings import book_profile
from companion.studies import ablation
from companion.studies.ablation import (
    ABLATION,
    BY_NAME,
    PAPER,
    Variant,
    calibration_gains,
    calibration_score,
    calibration_table,
    gains,
    labelled,
    metrics_table,
    pair_scores,
    studied,
    study_matches,
    study_run,
)
from sarmatch.calibration.scores import calibration_scores
from sarmatch.config import EvaluationConfig
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation.protocols import evaluate, spread
from sarmatch.matching.matcher import Matcher

SMOKE = book_profile("smoke").replace(studies={"seeds": (0,)})


@pytest.fixture(scope="module")
def split():
    return split_pairs(open_pairs(SMOKE.data, SMOKE.seed), SMOKE.data)


def test_rows_of_table_3_build_on_each_other() -> None:
    assert [row.name for row in ABLATION] == ["baseline", "aleatoric", "epistemic", "both", "contrastive", "rotation"]
    nets = {row.name: dataclasses.replace(SMOKE.model, **row.model) for row in ABLATION}
    aleatoric = {name for name, net in nets.items() if net.uncertainty}
    dropout = {name for name, net in nets.items() if net.early_dropout > 0}
    assert aleatoric == {"aleatoric", "both", "contrastive", "rotation"}
    assert dropout == {row.name for row in ABLATION if row.passes} == aleatoric - {"aleatoric"} | {"epistemic"}
    assert not nets["baseline"].fusion_dropout and not nets["baseline"].uncertainty_dropout
    assert [row.name for row in ABLATION if row.pretraining.get("rotation")] == ["rotation"]
    assert [row.name for row in ABLATION if row.pretraining.get("contrastive")] == ["contrastive", "rotation"]


def test_studies_with_many_rows_train_shorter() -> None:
    base = book_profile("s1s2", "nowhere")
    assert studied(base, "ablation") == base
    own = studied(base, "data")
    assert (own.studies.steps, own.training.warmup_steps) == (120, 30) and own.studies.validate_every == 40
    assert own.replace(studies=dataclasses.asdict(base.studies), training={"warmup_steps": 100}) == base


def test_smaller_shares_of_one_seed_lie_within_larger_ones(split) -> None:
    parts = {share: labelled(split, Variant("x", share=share), 3) for share in (0.1, 0.5, 1.0)}
    ids = {share: set(part.train.index["id"]) for share, part in parts.items()}
    assert ids[0.1] < ids[0.5] < ids[1.0] == set(split.train.index["id"])
    assert len(ids[0.5]) == round(0.5 * len(split.train))
    assert all(part.validation is split.validation and part.test is split.test for part in parts.values())
    assert set(labelled(split, Variant("x", share=0.5), 4).train.index["id"]) != ids[0.5]


def test_datasets_leave_training_and_validation_but_not_the_test(split) -> None:
    index = split.train.index.assign(
        dataset=["one", "other"] * (len(split.train) // 2) + ["one"] * (len(split.train) % 2)
    )
    mixed = dataclasses.replace(split, train=dataclasses.replace(split.train, index=index))
    part = labelled(mixed, Variant("x", datasets=("one",)), 0)
    assert set(part.train.index["dataset"]) == {"one"} and len(part.train) == (index["dataset"] == "one").sum()
    assert len(part.validation) == 0 and part.test is split.test


def test_pretraining_takes_the_pairs_that_have_no_label(split, tmp_path, monkeypatch) -> None:
    given = {}

    def fake(config, runs_dir, name, labelled_split, unlabelled):
        given.update(labelled=len(labelled_split.train), unlabelled=len(unlabelled.train), config=config)

    monkeypatch.setattr(ablation, "train_or_load", fake)
    study_run(
        SMOKE, Variant("x", share=0.5, pretraining={"contrastive": True}, data={"band_mixing": 0.0}), 5, split, tmp_path
    )
    assert (given["labelled"], given["unlabelled"]) == (round(len(split.train) / 2), len(split.train))
    config = given["config"]
    assert (config.seed, config.data.band_mixing, config.model.oriented_gradients) == (5, 0.0, False)
    assert (config.pretraining.contrastive, config.pretraining.rotation) == (True, False)


@pytest.fixture(scope="module")
def measured(split, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    rows = [BY_NAME[name] for name in ("baseline", "both")]
    return rows, runs, study_matches(SMOKE, rows, split, runs)


def test_matches_are_those_of_the_trained_networks(measured, split) -> None:
    _, runs, matches = measured
    run = study_run(SMOKE, "baseline", 0, split, runs)
    assert run.loaded
    config = dataclasses.replace(SMOKE.evaluation, max_pairs=SMOKE.studies.test_pairs)
    pairs = spread(split.test, SMOKE.studies.test_pairs)
    scores = pair_scores(matches, pairs, config)
    assert len(scores) == 2 * 2 * len(pairs)  # two rows, with aggregation and without
    for voting in (True, False):
        expected = evaluate(
            Matcher(run.net, use_consensus=voting), split.test, "shift", config.headline_radius, config, progress=False
        )
        own = scores[(scores["row"] == "baseline") & (scores["voting"] == voting)]
        for name in ("id", "scene"):
            assert own[name].tolist() == expected[name].tolist()
        for name in ("mma_1px", "mma_5px", "rmse_px", "n_matches"):
            np.testing.assert_allclose(own[name], expected[name].to_numpy(float), rtol=1e-3)


def test_confidence_is_fitted_with_aggregation(measured) -> None:
    matches = measured[2]
    assert matches["confidence"].notna().equals(matches["voting"])
    assert matches.loc[matches["voting"], "confidence"].between(0, 1).all()


def test_a_stopped_study_goes_on_without_measuring_again(measured, split, monkeypatch) -> None:
    rows, runs, matches = measured

    def never(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(Matcher, "raw_matches", never)
    pd.testing.assert_frame_equal(study_matches(SMOKE, rows, split, runs), matches)


def test_pairs_without_matches_count_as_nothing_right(split) -> None:
    pairs = spread(split.test, 2)
    matches = pd.DataFrame(
        {"row": "a", "seed": 0, "voting": True, "id": pairs.index["id"].iloc[0], "error_px": [0.5, 4.0]}
    )
    scores = pair_scores(matches, pairs, EvaluationConfig())
    assert scores["mma_1px"].tolist() == [0.5, 0.0] and scores["n_matches"].tolist() == [2, 0]
    assert scores["rmse_px"].iloc[0] == pytest.approx(np.sqrt((0.25 + 16) / 2)) and np.isnan(scores["rmse_px"].iloc[1])


def test_matches_of_other_pairs_are_rejected(split) -> None:
    matches = pd.DataFrame({"row": "a", "seed": 0, "voting": True, "id": ["elsewhere"], "error_px": [0.5]})
    with pytest.raises(ValueError, match=r"1 pairs that are not among `pairs`, e.g. elsewhere"):
        pair_scores(matches, split.test, EvaluationConfig())


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant("elsewhere", datasets=("ombria",)), "row 'elsewhere' has 0 training and 0 validation pairs"),
        (Variant("large", data={"crop_size": 128}), "crop_size must be a multiple of 16 between"),
    ],
)
def test_what_cannot_be_trained_is_rejected_before_the_first_training(split, tmp_path, variant, message) -> None:
    with pytest.raises(ValueError, match=message):
        study_matches(SMOKE, [BY_NAME["baseline"], variant], split, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fewer_labels_and_other_unlabelled_pairs_are_another_run(split, tmp_path, monkeypatch) -> None:
    config = SMOKE.replace(studies={"steps": 1, "pretraining_steps": 1})
    half = Variant("half", share=0.5, pretraining={"contrastive": True})
    run = study_run(config, half, 0, split, tmp_path)
    few = labelled(split, half, 0)
    alone = study_run(config, Variant("alone", pretraining={"contrastive": True}), 0, few, tmp_path)
    assert run.path != alone.path
    pretrained = [tmp_path / "smoke" / r.provenance["pretraining"] for r in (run, alone)]
    fingerprints = [json.loads((p / "provenance.json").read_text())["data_fingerprint"] for p in pretrained]
    assert [f.split("-")[0] for f in fingerprints] == [split.train.fingerprint(), few.train.fingerprint()]


def simulated(n: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"seed": rng.integers(0, 3, n), "scene": rng.integers(0, 8, n).astype(str)})
    confidence = rng.uniform(size=n)
    right = rng.uniform(size=n) < confidence**1.5
    return table.assign(confidence=confidence, probability=confidence**3, error_px=np.where(right, 1.0, 9.0))


@pytest.mark.parametrize(
    ("score", "column", "name"),
    [("ece", "confidence", "ece"), ("ece_raw", "probability", "ece"), ("brier", "confidence", "brier")],
)
def test_scores_are_those_of_the_calibration_module(score, column, name) -> None:
    table = simulated()
    found = calibration_score(table, score)
    expected = calibration_scores(table[column].to_numpy(), (table["error_px"] <= 3).to_numpy())
    assert found.value == pytest.approx(expected[name], rel=1e-6)
    one = table[(table["seed"] == 1)]
    expected = calibration_scores(one[column].to_numpy(), (one["error_px"] <= 3).to_numpy())
    assert found.by_first[1] == pytest.approx(expected[name], rel=1e-6)


def row_scores(shift: float = 0.1, noise: float = 0.0) -> pd.DataFrame:
    """Two rows, two seeds, six scenes of two pairs; the second row is better by `shift`."""
    rng, rows = np.random.default_rng(0), []
    for row, gain in (("baseline", 0.0), ("rotation", shift)):
        for seed in (0, 1):
            for pair in range(12):
                value = 0.3 + 0.01 * pair + gain + noise * rng.normal()
                rows.append((row, seed, f"p{pair}", f"s{pair // 2}", value, np.nan))
    return pd.DataFrame(rows, columns=["row", "seed", "id", "scene", "mma_1px", "rmse_px"])


def test_means_have_their_counts_and_lie_in_their_intervals() -> None:
    table = metrics_table(row_scores(), ["mma_1px", "rmse_px"]).set_index("row")
    assert table.loc["rotation", "mma_1px"] == pytest.approx(0.455)
    assert table.loc["baseline", ["n_seeds", "n_pairs", "n_scenes"]].tolist() == [2, 12, 6]
    assert (table["mma_1px_low"] < table["mma_1px"]).all() and (table["mma_1px"] < table["mma_1px_high"]).all()
    assert table["rmse_px"].isna().all()


def test_a_gain_that_is_everywhere_the_same_is_certain_and_relative_to_what_it_is_compared_with() -> None:
    table = gains(row_scores(noise=1e-6), "mma_1px", [("rotation", "baseline"), ("baseline", "rotation")])
    assert table["difference"].tolist() == pytest.approx([0.1, -0.1], abs=1e-5)
    assert table["verdict"].tolist() == ["better", "worse"]
    assert table["relative"].iloc[0] == pytest.approx(0.1 / 0.355, rel=1e-3)


def test_noise_leaves_a_small_gain_undecided_and_the_t_test_is_that_of_scipy() -> None:
    records = row_scores(shift=0.01, noise=0.1)
    row = gains(records, "mma_1px", [("rotation", "baseline")]).iloc[0]
    means = records.groupby(["row", "id"])["mma_1px"].mean().unstack(0)
    expected = scipy.stats.ttest_rel(means["rotation"], means["baseline"])
    assert (row["t"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert row["low"] < 0 < row["high"] and row["verdict"] == "undecided"


def test_rows_that_were_measured_otherwise_are_rejected() -> None:
    records = row_scores()
    with pytest.raises(KeyError, match="both"):
        gains(records, "mma_1px", [("both", "baseline")])
    with pytest.raises(ValueError, match="not measured once with the same seeds and pairs"):
        gains(records.drop(index=records.index[-1]), "mma_1px", [("rotation", "baseline")])


def row_matches(gain: float) -> pd.DataFrame:
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
    table = calibration_table(row_matches(0.2)).set_index("row")
    assert table.loc["baseline", "ece"] == pytest.approx(0.2, abs=0.02)
    assert table.loc["rotation", "ece"] < 0.03 and (table["ece_raw"] > 0.1).all()
    assert (table["ece_low"] <= table["ece_high"]).all() and (table["matches"] == 9000).all()
    row = calibration_gains(row_matches(0.2), "ece", [("rotation", "baseline")]).iloc[0]
    assert row["difference"] == pytest.approx(table.loc["rotation", "ece"] - table.loc["baseline", "ece"])
    assert row["verdict"] == "better" and row["high"] < 0
    with pytest.raises(KeyError, match="both"):
        calibration_gains(row_matches(0.2), "ece", [("rotation", "both")])
    one_scene = calibration_gains(row_matches(0.2).assign(scene="a"), "ece", [("rotation", "baseline")]).iloc[0]
    assert np.isnan(one_scene["low"]) and one_scene["verdict"] == "too few scenes"
    same = calibration_gains(row_matches(0.2), "ece", [("rotation", "rotation")]).iloc[0]
    assert (same["low"], same["high"]) == (0, 0) and same["verdict"] == "undecided"


def test_the_printed_table_has_the_gain_of_the_abstract() -> None:
    """Section 4.5: 6.3 % by the aleatoric part over the baseline, and the headline of 0.145."""
    mma = PAPER.set_index("row")["paper_mma_1px"]
    assert mma["aleatoric"] / mma["baseline"] - 1 == pytest.approx(0.063, abs=6e-4)
    assert mma["rotation"] == 0.145
