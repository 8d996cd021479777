"""Configurations: the paper's numbers, rejected contradictions, and hashes that name runs."""

import dataclasses
import json

import pytest

from companion.settings import book_profile
from sarmatch.config import Config, DataConfig, EvaluationConfig, ModelConfig, TrainingConfig, from_dict
from sarmatch.io import digest
from sarmatch.profiles import ON_REAL_DATA, PROFILES, profile


def test_defaults_are_table_2_and_the_widths_of_the_paper():
    training, model = TrainingConfig(), ModelConfig()
    assert (training.learning_rate, training.batch_size, training.epochs) == (5e-5, 32, 30)
    assert (training.accumulation_steps, training.patience) == (4, 5)
    assert (training.betas, training.weight_decay) == ((0.9, 0.999), 1e-4)
    assert model.sar_widths == (32, 64, 128, 256, 512)
    assert model.optical_widths == (64, 128, 256, 512)
    assert (model.head_width, model.descriptor_dim) == (512, 128)
    config = profile("sen12ms", "somewhere")
    assert config.model == model
    assert config.data.split_fractions == (0.70, 0.15, 0.15)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_profiles_survive_json(name):
    config = profile(name, "somewhere" if name in ON_REAL_DATA else None)
    assert from_dict(Config, json.loads(json.dumps(config.to_dict()))) == config


def test_a_folder_is_tried_at_the_size_of_smoke():
    small, real, tried = profile("smoke"), profile("s1s2", "somewhere").data, profile("s1s2-smoke", "somewhere")
    assert (tried.data.source, tried.data.root, tried.data.datasets) == (real.source, "somewhere", real.datasets)
    assert tried.data.crop_size == small.data.crop_size
    assert tried.replace(profile="smoke", data=small.to_dict()["data"]) == small


def test_profiles_on_real_data_are_named():
    assert ON_REAL_DATA == ("s1s2-smoke", "s1s2", "s1s2-gpu", "s1s2-full", "sen12ms")


@pytest.mark.parametrize(
    ("name", "whole", "pretraining"),
    [
        ("smoke", "e21c66a1", "bb2faebd"),
        ("demo", "04c549f6", "ca553e87"),
        ("s1s2-smoke", "4fc51bb5", "c806ad39"),
        ("s1s2", "0b08a3c1", "0a28ad52"),
        ("sen12ms", "f5183a75", "dcefaff0"),
    ],
)
def test_stored_runs_keep_their_names(name, whole, pretraining):
    for make in (profile, book_profile):
        config = make(name, "somewhere" if name in ON_REAL_DATA else None)
        assert config.hash("a") == whole and config.hash("a", ("training", "evaluation")) == pretraining


def test_tables_do_not_depend_on_the_size_of_the_fit():
    """So that what was measured before the number of pairs stood among the settings of evaluation is still found."""
    own = profile("smoke").evaluation
    assert digest(own) == digest(dataclasses.replace(own, calibration_pairs=1)) == "68c48b961d33"
    assert digest(own) != digest(dataclasses.replace(own, max_pairs=1))


def test_the_books_config_is_stored_as_that_of_the_run():
    book = book_profile("smoke").replace(seed=3, studies={"steps": 9})
    assert (book.studies.steps, book.seed, book.studies.seeds) == (9, 3, (0, 1))
    assert book.to_dict() == profile("smoke").replace(seed=3).to_dict()


def test_sizes_of_studies_that_version_0_1_stored_are_dropped():
    config = profile("smoke")
    assert from_dict(Config, config.to_dict() | {"studies": {"calibration_pairs": 4}}) == config
    with pytest.raises(ValueError, match="no field"):
        from_dict(Config, config.to_dict() | {"study": {}})


def test_the_hash_counts_a_later_field_only_where_it_changes_something():
    config = profile("smoke")
    assert config.hash() == config.replace(training={"fine_share": 1.0}).hash()
    changed = [
        config.replace(training={"fine_share": 0.5}),
        config.replace(data={"deformation_probability": 0.5}),
        config.replace(evaluation={"deformation_px": 4.0}),
        config.replace(model={"uncertainty_statistics": True}),
    ]
    assert len({config.hash(), *(other.hash() for other in changed)}) == 5
    # What version 0.1 knew nothing of does not rename what it stored.
    assert profile("s1s2", "anywhere").hash("x") == "2f1fadf4"


def test_the_hash_names_what_determines_a_run_and_nothing_else():
    config = profile("smoke")
    assert config.hash("a") == config.hash("a")
    assert config.hash("a") != config.hash("b")
    assert config.hash() != config.replace(seed=1).hash()
    assert config.hash() != config.replace(training={"max_steps": 5}).hash()
    assert config.hash() == config.replace(data={"root": "elsewhere"}).hash()
    assert config.hash() == config.replace(evaluation={"search_radii": (8.0,)}).hash()
    assert config.hash() != config.replace(evaluation={"headline_radius": 8.0}).hash()  # it chooses the best weights
    with_gradients, without = (config.replace(model={"oriented_gradients": on}).hash() for on in (True, False))
    assert with_gradients != without


def test_replace_leaves_the_original_alone():
    config = profile("smoke")
    assert config.replace(model={"norm": "batch"}).model.norm == "batch"
    assert config.model.norm == "group"


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (DataConfig, {"split_fractions": (0.5, 0.4, 0.2)}, "sum to 1"),
        (DataConfig, {"crop_size": 100}, "multiple of 16"),
        (DataConfig, {"crop_size": 512}, "between 16 and patch_size"),
        (DataConfig, {"flip_probability": 1.5}, "flip_probability must lie in"),
        (DataConfig, {"speckle_looks": (4.0, 2.0)}, "speckle_looks"),
        (ModelConfig, {"norm": "layer"}, "norm must be"),
        (ModelConfig, {"early_dropout": 1.0}, "early_dropout"),
        (ModelConfig, {"consensus_cells": (4,)}, "odd numbers"),
        (ModelConfig, {"bifpn_repeats": 1}, "bifpn_repeats"),
        (ModelConfig, {"sar_channels": 3}, "sar_channels"),
        (TrainingConfig, {"batch_size": 6, "accumulation_steps": 4}, "multiple of accumulation_steps"),
        (TrainingConfig, {"epochs": 0}, "epochs must be positive"),
        (TrainingConfig, {"max_steps": -3}, "max_steps must be positive"),
        (EvaluationConfig, {"max_pairs": 0}, "max_pairs must be positive"),
        (Config, {"profile": "smoke", "seed": -1}, "seed must not be negative"),
        (EvaluationConfig, {"crop_size": 100}, "multiple of 16"),
        (EvaluationConfig, {"protocols": ("shift", "twist")}, "twist"),
    ],
)
def test_contradictions_are_rejected(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_unknown_profiles_and_fields_are_rejected():
    with pytest.raises(ValueError, match="profile must be one of"):
        profile("large")
    with pytest.raises(ValueError, match="give the folder"):
        profile("s1s2")
    with pytest.raises(ValueError, match="no field"):
        from_dict(ModelConfig, {"depth": 3})
