"""A miniature SEN12MS tree through index, split, training and evaluation, at the full width of the paper."""

import numpy as np
from data.make_sen12ms import write_sen12ms

from sarmatch.config import profile
from sarmatch.data import open_pairs, split_pairs
from sarmatch.evaluation import evaluate
from sarmatch.experiments import train_or_load


def test_two_steps_at_full_width_from_real_geotiffs(tmp_path):
    write_sen12ms(tmp_path / "sen12ms")
    config = profile("sen12ms", str(tmp_path / "sen12ms")).replace(
        data={"crop_size": 64},
        training={"max_steps": 2, "batch_size": 2, "accumulation_steps": 1, "validation_pairs": 1, "precision": "no",
                  "workers": 0},
        evaluation={"max_pairs": 1, "crop_size": 96, "affine_crop_size": 64},
    )  # fmt: skip
    split = split_pairs(open_pairs(config.data), config.data)
    run = train_or_load(config, tmp_path / "runs", split=split, show_progress=False)
    assert run.history["step"].tolist() == [1, 2]
    assert np.isfinite(run.history["loss"]).all()
    records = evaluate(run.matcher, split.test, "shift", 32.0, config.evaluation, progress=False)
    assert len(records) == 1
    assert records["season"].iloc[0] in ("spring", "summer", "fall", "winter")
    assert train_or_load(config, tmp_path / "runs", show_progress=False).loaded
