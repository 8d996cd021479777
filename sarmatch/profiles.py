"""The five named profiles.

A profile changes numbers only: the same notebook and the same code run at every scale.
"""

from __future__ import annotations

from typing import Any

from sarmatch.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PretrainingConfig,
    StudyConfig,
    TrainingConfig,
)


def _smoke() -> Config:
    return Config(
        profile="smoke",
        data=DataConfig(source="synthetic", patch_size=96, n_synthetic=48, crop_size=64, relative_shift_px=8.0),
        model=ModelConfig(**_NARROW, consensus_cells=(3, 5)),
        pretraining=PretrainingConfig(
            learning_rate=2e-3, batch_size=4, accumulation_steps=1, epochs=1, max_steps=2, rotation_width=16,
            validation_pairs=2, checkpoint_every=2,
        ),
        training=TrainingConfig(
            learning_rate=2e-3, batch_size=4, accumulation_steps=1, epochs=1, max_steps=4, warmup_steps=1, cosine=True,
            validation_pairs=2, window_px=16.0, checkpoint_every=2,
        ),
        evaluation=EvaluationConfig(
            crop_size=64, affine_crop_size=48, max_shift_px=8.0, search_radii=(16.0, None), headline_radius=16.0,
            max_pairs=2,
        ),
        studies=StudyConfig(
            seeds=(0, 1), crop_size=64, pretraining_steps=2, sweep_steps=2, steps=4, validate_every=2,
            label_steps=4, label_warmup_steps=1, temperatures=(0.07, 0.5), passes=(1, 2), calibration_pairs=4,
            scenes=2, scene_px=64, distillation_crops=4, ablation_passes=2, test_pairs=2, fit_pairs=2,
            registers_with_shipped=True, scene_shifts=1, unrelated_crops=1, unrelated_scenes=0,
        ),
    )  # fmt: skip


def _demo() -> Config:
    return Config(
        profile="demo",
        data=DataConfig(source="synthetic", patch_size=176, n_synthetic=120, crop_size=96, relative_shift_px=16.0),
        model=ModelConfig(**_REDUCED, consensus_cells=(3, 7, 15)),
        pretraining=PretrainingConfig(
            learning_rate=1.5e-3, batch_size=16, accumulation_steps=1, epochs=100, max_steps=12, warmup_steps=3,
            cosine=True, validate_every=12, rotation_width=64, validation_pairs=16, checkpoint_every=20,
        ),
        training=TrainingConfig(
            learning_rate=1.5e-3, batch_size=8, accumulation_steps=1, epochs=100, max_steps=60, warmup_steps=15,
            cosine=True, validate_every=20, validation_pairs=8, window_px=24.0, checkpoint_every=25,
        ),
        evaluation=EvaluationConfig(
            crop_size=128, affine_crop_size=96, max_shift_px=16.0, search_radii=(16.0, 32.0, None), max_pairs=6,
        ),
        studies=StudyConfig(
            seeds=(0, 1), crop_size=64, pretraining_steps=8, sweep_steps=12, steps=16, validate_every=8, label_steps=8,
            label_warmup_steps=2, temperatures=(0.07, 0.5), passes=(1, 5, 20), calibration_pairs=12, scenes=4,
            distillation_crops=48, test_pairs=6, fit_pairs=6, registers_with_shipped=True,
            scene_shifts=2, unrelated_crops=12, unrelated_scenes=4,
        ),
    )  # fmt: skip


def _s1s2() -> Config:
    return Config(
        profile="s1s2",
        data=DataConfig(source="manifest", datasets=("ombria", "sen1-2", "sen12ms")),
        model=ModelConfig(**_REDUCED),
        pretraining=PretrainingConfig(
            learning_rate=1e-3, batch_size=32, accumulation_steps=1, epochs=1000, max_steps=100, warmup_steps=25,
            cosine=True, validate_every=100, rotation_width=64,
        ),
        training=TrainingConfig(
            learning_rate=1.5e-3, batch_size=8, accumulation_steps=1, epochs=1000, max_steps=1400, warmup_steps=100,
            cosine=True, patience=1000, validate_every=200, validation_pairs=24, window_px=36.0,
        ),
    )  # fmt: skip


def _s1s2_smoke() -> Config:
    """The folder of `s1s2` at the size of `smoke`: every cell runs on somebody's own pairs before the hours begin."""
    smoke, real = _smoke(), _s1s2().data
    own = {"source": real.source, "datasets": real.datasets, "patch_size": real.patch_size}
    return smoke.replace(profile="s1s2-smoke", data=own)


def _sen12ms() -> Config:
    return Config(
        profile="sen12ms",
        data=DataConfig(source="sen12ms", optical_bands=(3, 2, 1)),
        pretraining=PretrainingConfig(workers=4, precision="bf16"),
        training=TrainingConfig(workers=4, precision="bf16"),
    )


_REDUCED: dict[str, Any] = dict(
    sar_widths=(16, 32, 64, 96, 128), optical_widths=(24, 48, 96, 128), bifpn_width=64, bifpn_repeats=2,
    feature_width=128, head_width=128, descriptor_dim=64, fine_width=16, fine_dim=16, uncertainty_width=16,
    oriented_gradients=True,
)  # fmt: skip
_NARROW: dict[str, Any] = dict(
    sar_widths=(8, 16, 24, 32, 48), optical_widths=(8, 16, 24, 32), bifpn_width=24, bifpn_repeats=2,
    feature_width=48, head_width=48, descriptor_dim=32, fine_width=8, fine_dim=8, uncertainty_width=8,
    oriented_gradients=True,
)  # fmt: skip

PROFILES = {"smoke": _smoke, "demo": _demo, "s1s2-smoke": _s1s2_smoke, "s1s2": _s1s2, "sen12ms": _sen12ms}
ON_REAL_DATA = ("s1s2-smoke", "s1s2", "sen12ms")
"""Profiles that need a folder of data."""


def profile(name: str, data_root: str | None = None) -> Config:
    """The named profile, with the folder of its data.

    Raises:
        ValueError: unknown name, `data_root` missing for a profile on real data, or given for one on generated scenes.
    """
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {sorted(PROFILES)}, got {name!r}")
    config = PROFILES[name]()
    if config.data.source == "synthetic":
        if data_root is not None:
            raise ValueError(
                f"profile {name!r} runs on generated scenes and would not look at {data_root}; leave it out, or "
                "take a profile on real data such as 's1s2'"
            )
        return config
    if data_root is None:
        raise ValueError(f"profile {name!r} runs on real data: give the folder (--data PATH or data_root=...)")
    return config.replace(data={"root": str(data_root)})
