"""A miniature SEN12MS tree through index, split, training and evaluation, at the full width of the paper."""

import json

import numpy as np
import pandas as pd
import pytest
from data.make_sen12ms import write_sen12ms
from two_processes import run_in_two_processes

from sarmatch.config import Config
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation.protocols import evaluate
from sarmatch.profiles import profile
from sarmatch.training.runs import train_or_load

TRAIN = """
import json, sys
from sarmatch.config import Config, from_dict
from sarmatch.training.runs import train_or_load
train_or_load(from_dict(Config, json.loads(sys.argv[2])), sys.argv[1], show_progress=False)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The profile, shrunk to two steps and small crops; its network is the paper's."""
    root = tmp_path_factory.mktemp("sen12ms")
    write_sen12ms(root)
    return profile("sen12ms", str(root)).replace(
        data={"crop_size": 64},
        model={"early_dropout": 0.0, "uncertainty_dropout": 0.0, "fusion_dropout": 0.0},
        pretraining={"max_steps": 1, "batch_size": 2, "accumulation_steps": 1, "validation_pairs": 1, "precision": "no",
                     "workers": 0},
        training={"max_steps": 2, "batch_size": 2, "accumulation_steps": 1, "validation_pairs": 1, "precision": "no",
                  "workers": 0},
        evaluation={"max_pairs": 1, "crop_size": 96, "affine_crop_size": 64},
    )  # fmt: skip


def test_two_steps_at_full_width_from_real_geotiffs(config, tmp_path):
    split = split_pairs(open_pairs(config.data), config.data)
    run = train_or_load(config, tmp_path, split=split, show_progress=False)
    assert run.history["step"].tolist() == [1, 2]
    assert np.isfinite(run.history["loss"]).all()
    records = evaluate(run.matcher, split.test, "shift", 32.0, config.evaluation, progress=False)
    assert len(records) == 1
    assert records["season"].iloc[0] in ("spring", "summer", "fall", "winter")
    assert train_or_load(config, tmp_path, show_progress=False).loaded


def test_two_processes_have_the_losses_of_one(config, tmp_path):
    # Each process draws its own quarter turns and contrasts its own part of the batch, so pretraining differs
    # (test_two_processes.py).
    config = config.replace(pretraining={"contrastive": False, "rotation": False})
    one = train_or_load(config, tmp_path / "one", show_progress=False)
    run_in_two_processes(TRAIN, tmp_path, str(tmp_path / "two"), json.dumps(config.to_dict()))
    two = pd.read_json(next((tmp_path / "two" / "sen12ms").iterdir()) / "metrics.jsonl", lines=True)
    assert np.allclose(one.history["loss"], two["loss"], rtol=1e-4)
