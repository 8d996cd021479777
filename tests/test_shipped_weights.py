"""The shipped weights do what the book says of them, on real pairs of scenes they never saw."""

import dataclasses

import numpy as np
import pytest

from sarmatch import load_matcher
from sarmatch.calibration import calibration_scores
from sarmatch.confidence import match_table
from sarmatch.confidence_fit import MODES
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation import evaluate, mismatched
from sarmatch.profiles import profile


@pytest.fixture(scope="module")
def unseen(data_root):
    """A few test pairs of OMBRIA, and the evaluation of the published headline."""
    config = profile("s1s2", str(data_root))
    test = split_pairs(open_pairs(config.data), config.data).test
    few = dataclasses.replace(config.evaluation, max_pairs=8)
    return test.subset(np.flatnonzero(test.index["dataset"] == "ombria")), few


def test_shipped_weights_load_without_data_and_refuse_noise():
    matcher = load_matcher("s1s2", device="cpu")
    rng = np.random.default_rng(0)
    matches = matcher.match(rng.random((128, 128)), rng.random((128, 128, 3)))
    assert matches.overlaps is False
    assert matches.confidence.mean() < 0.5


def test_shipped_weights_carry_a_calibrator_for_every_mode():
    confidence = load_matcher("s1s2", device="cpu").confidence
    assert confidence is not None
    assert set(confidence.calibrators) == set(confidence.overlaps) == set(MODES)
    assert load_matcher("s1s2", device="cpu", distilled=True).mode == "distilled"


def test_shipped_weights_keep_the_published_accuracy(unseen):
    pairs, config = unseen
    records = evaluate(load_matcher("s1s2", device="cpu"), pairs, "shift", 32.0, config, progress=False)
    assert records["mma_3px"].mean() > 0.75
    assert records["mma_1px"].mean() > 0.45
    assert records["n_matches"].mean() > 800


def test_shipped_confidence_is_calibrated_on_unseen_scenes(unseen):
    pairs, config = unseen
    matcher = load_matcher("s1s2", device="cpu")
    table = match_table(lambda crops: matcher.raw_matches(crops, 32.0), pairs, "shift", config, progress=False)
    scores = calibration_scores(matcher.confidence.calibrators["single"](table), table["error_px"] <= 3)
    assert scores["ece"] < 0.15  # of eight pairs; the chapter measures all
    assert scores["auroc"] > 0.6


def test_with_another_scenes_optical_image_they_fall_to_chance(unseen):
    pairs, config = unseen
    wrong = mismatched(pairs)
    records = evaluate(load_matcher("s1s2", device="cpu"), wrong, "aligned", 32.0, config, progress=False)
    assert records["mma_3px"].mean() < 0.05  # chance is 0.009, and a matcher by position would reach 1
