"""Learned methods to compare with: each trained with the data, crops, steps and rates of our short trainings."""

from __future__ import annotations

from pathlib import Path

from sarmatch.config import Config
from sarmatch.data.splits import Split
from sarmatch.experiments import Run, train_or_load
from sarmatch.studies import study_config


def peer_config(config: Config, oriented_gradients: bool = False) -> Config:
    """What every method with a row at equal budget is trained with: `studies.steps` steps from scratch, the last
    weights kept, the rate falling along a half cosine.

    Args:
        oriented_gradients: of our own network, which goes without pretraining here.
    """
    training = {
        "validate_every": config.studies.steps,
        "warmup_steps": config.studies.label_warmup_steps,
        "cosine": True,
    }
    from_scratch = {"contrastive": False, "rotation": False}
    return study_config(
        config, config.seed, from_scratch, {"oriented_gradients": oriented_gradients}, training=training
    )


def short_network(config: Config, oriented_gradients: bool, split: Split, runs_dir: str | Path) -> Run:
    """Our own network at the budget of the others: loaded, resumed or trained."""
    return train_or_load(peer_config(config, oriented_gradients), runs_dir, "peer-network", split)
