"""Learned methods are trained alike, kept in the run store, and come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.baselines.learned import LearnedMatcher
from companion.settings import book_profile
from companion.studies import learned_baselines
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation.protocols import evaluation_crops
from sarmatch.profiles import ON_REAL_DATA, PROFILES

SMOKE = book_profile("smoke").replace(studies={"steps": 2}, training={"validation_pairs": 1})


@pytest.fixture(scope="module")
def split():
    return split_pairs(open_pairs(SMOKE.data, SMOKE.seed), SMOKE.data)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(split, store):
    return learned_baselines.trained_peers(SMOKE, split, store)


@pytest.mark.parametrize("name", PROFILES)
def test_all_have_one_budget_which_is_that_of_the_short_trainings(name: str) -> None:
    config = book_profile(name, "somewhere" if name in ON_REAL_DATA else None)
    for own in (learned_baselines.peer_config(config), learned_baselines.peer_config(config, oriented_gradients=True)):
        assert own.training.max_steps == config.studies.steps and own.training.cosine
        assert own.data.crop_size == min(config.studies.crop_size, config.data.crop_size)
        assert not own.pretraining.enabled and own.training.patience is None
    size = learned_baselines.peer_size(config)
    assert size.window_cells * 4 >= config.training.window_px and size.width == config.model.descriptor_dim


def test_every_training_is_found_again_with_its_weights(runs, split, store) -> None:
    again = learned_baselines.trained_peers(SMOKE, split, store)
    assert list(again) == [*learned_baselines.OURS, *learned_baselines.PEERS]
    crops = evaluation_crops(split.test[0], "shift", SMOKE.evaluation)
    first, second = learned_baselines.peer_matchers(runs), learned_baselines.peer_matchers(again)
    for name, run in again.items():
        assert run.loaded and not runs[name].loaded and run.path == runs[name].path
        found, expected = (m[name].match_crops(crops, 16.0) for m in (second, first))
        np.testing.assert_array_equal(found.xy_optical, expected.xy_optical)


def test_a_stopped_training_goes_on_to_the_same_weights(runs, split, tmp_path, monkeypatch) -> None:
    name = "multiscale chain"
    config = SMOKE.replace(training={"checkpoint_every": 1})
    whole = learned_baselines.train_or_load_peer(config, name, split, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(learned_baselines, "validation_scores", stop)  # called after the last step
    with pytest.raises(KeyboardInterrupt):
        learned_baselines.train_or_load_peer(config, name, split, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = learned_baselines.train_or_load_peer(config, name, split, tmp_path / "stopped")
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_costs_are_counted(runs) -> None:
    table = learned_baselines.training_table(runs, SMOKE).set_index("method")
    assert (table["steps"] == 2).all() and (table["crops"] == 2 * SMOKE.training.batch_size).all()
    assert (table["seconds"] > 0).all()
    for name, run in runs.items():
        assert table.loc[name, "parameters"] == sum(p.numel() for p in run.net.parameters())


def test_an_unknown_peer_is_named(split, tmp_path) -> None:
    with pytest.raises(ValueError, match="name must be among"):
        learned_baselines.train_or_load_peer(SMOKE, "superglue", split, tmp_path)
    assert not list(tmp_path.iterdir())


def test_matchers_are_those_of_their_trainings(runs) -> None:
    matchers = learned_baselines.peer_matchers(runs)
    for name in learned_baselines.PEERS:
        assert isinstance(matchers[name], LearnedMatcher) and matchers[name].net is runs[name].net
    last = list(learned_baselines.OURS)[-1]
    per_cell = matchers[learned_baselines.PER_CELL]
    assert not learned_baselines.OURS[last] and per_cell.net is matchers[last].net is runs[last].net
    assert matchers[last].use_consensus and not per_cell.use_consensus


def test_weights_of_another_network_are_refused_with_the_remedy(runs) -> None:
    path = runs["patch CNN"].path / "model.safetensors"
    with pytest.raises(ValueError, match="delete the folder to train again"):
        learned_baselines.load_peer("transformer", path)
