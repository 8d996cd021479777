"""Settings of the book: the sizes of its studies beside the configuration of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sarmatch.config import Config, profile


@dataclass(frozen=True)
class StudyConfig:
    """How large the studies of the chapters are; no part of a run's hash, since each study's runs carry their own."""

    seeds: tuple[int, ...] = (0, 1, 2)  #: Of the trainings with and without pretraining that are compared.
    crop_size: int = 96  #: Side of their training crops, px.
    pretraining_steps: int = 100  #: Of the trainings with and without pretraining that are compared.
    sweep_steps: int = 60  #: Of each contrastive training that is compared with others.
    steps: int = 200  #: Of each training that is compared with others at equal budget.
    validate_every: int = 40  #: Steps between validations of these.
    label_steps: int = 120  #: Of each training of the studies of labels, sources and settings, which have many rows.
    label_warmup_steps: int = 30  #: Warm-up of these.
    temperatures: tuple[float, ...] = (0.03, 0.07, 0.3)  #: Of the contrastive loss.
    passes: tuple[int, ...] = (1, 2, 5, 10, 20, 50)  #: Monte Carlo passes; the paper takes 20.
    scenes: int = 16  #: Generated scenes for the response of uncertainty to one nuisance at a time.
    scene_px: int = 128  #: Side of those scenes.
    ablation_passes: int = 5  #: Monte Carlo passes of the rows of the ablation that have them.
    test_pairs: int = 48  #: Test pairs that each training of a study is measured on.
    fit_pairs: int = 24  #: Validation pairs that the confidence of each training of a study is fitted on.
    distillation_crops: int = 200  #: Training crops from which the one-pass estimate of epistemic uncertainty learns.
    registers_with_shipped: bool = False  #: Scenes are registered by the shipped weights: small networks register none.
    scene_shifts: int = 2  #: Known shifts that each large scene is registered from.
    unrelated_crops: int = 200  #: Pairings of test crops of different scenes, each of which registration has to refuse.
    unrelated_scenes: int = 6  #: Pairings of whole large scenes, each of which registration has to refuse.


@dataclass(frozen=True)
class BookConfig(Config):
    """A run's configuration with the sizes of the studies; `to_dict()` and `hash()` are those of the run alone."""

    studies: StudyConfig = field(default_factory=StudyConfig)

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        del content["studies"]
        return content


_SMOKE = StudyConfig(
    seeds=(0, 1), crop_size=64, pretraining_steps=2, sweep_steps=2, steps=4, validate_every=2, label_steps=4,
    label_warmup_steps=1, temperatures=(0.07, 0.5), passes=(1, 2), scenes=2, scene_px=64, distillation_crops=4,
    ablation_passes=2, test_pairs=2, fit_pairs=2, registers_with_shipped=True, scene_shifts=1, unrelated_crops=1,
    unrelated_scenes=0,
)  # fmt: skip
_DEMO = StudyConfig(
    seeds=(0, 1), crop_size=64, pretraining_steps=8, sweep_steps=12, steps=16, validate_every=8, label_steps=8,
    label_warmup_steps=2, temperatures=(0.07, 0.5), passes=(1, 5, 20), scenes=4, distillation_crops=48, test_pairs=6,
    fit_pairs=6, registers_with_shipped=True, scene_shifts=2, unrelated_crops=12, unrelated_scenes=4,
)  # fmt: skip
STUDIES = {"smoke": _SMOKE, "demo": _DEMO, "s1s2-smoke": _SMOKE}
"""Sizes by profile; the others have the defaults."""


def book_profile(name: str, data_root: str | None = None) -> BookConfig:
    """The named profile with the sizes of its studies; arguments and errors of `sarmatch.profile`."""
    config = profile(name, data_root)
    sections = {section.name: getattr(config, section.name) for section in dataclasses.fields(config)}
    return BookConfig(**sections, studies=STUDIES.get(name, StudyConfig()))
