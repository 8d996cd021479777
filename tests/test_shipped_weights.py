"""The shipped weights do what the book says of them, on real pairs of scenes they never saw."""

import dataclasses

import numpy as np
import pytest

from sarmatch import load_matcher
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


def test_shipped_weights_load_without_data_and_match_noise_with_little_confidence():
    matcher = load_matcher("s1s2", device="cpu")
    rng = np.random.default_rng(0)
    matches = matcher.match(rng.random((64, 64)), rng.random((64, 64, 3)), search_radius=16)
    assert np.median(matches.confidence) < 0.1


def test_shipped_weights_keep_the_published_accuracy(unseen):
    pairs, config = unseen
    records = evaluate(load_matcher("s1s2", device="cpu"), pairs, "shift", 32.0, config, progress=False)
    assert records["mma_3px"].mean() > 0.75
    assert records["mma_1px"].mean() > 0.45
    assert records["n_matches"].mean() > 800


def test_with_another_scenes_optical_image_they_fall_to_chance(unseen):
    pairs, config = unseen
    wrong = mismatched(pairs)
    records = evaluate(load_matcher("s1s2", device="cpu"), wrong, "aligned", 32.0, config, progress=False)
    assert records["mma_3px"].mean() < 0.05  # chance is 0.009, and a matcher by position would reach 1
