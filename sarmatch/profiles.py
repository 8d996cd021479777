"""The named profiles: one code path at seven scales."""

from typing import Any

from sarmatch.config import Config, DataConfig, EvaluationConfig, ModelConfig, PretrainingConfig, TrainingConfig

_REDUCED: dict[str, Any] = dict(
    sar_widths=(16, 32, 64, 96, 128), optical_widths=(24, 48, 96, 128), bifpn_width=64, bifpn_repeats=2,
    feature_width=128, head_width=128, descriptor_dim=64, fine_width=16, fine_dim=16, uncertainty_width=16,
    oriented_gradients=True)  # fmt: skip
_NARROW: dict[str, Any] = dict(
    sar_widths=(8, 16, 24, 32, 48), optical_widths=(8, 16, 24, 32), bifpn_width=24, bifpn_repeats=2, fine_width=8,
    feature_width=48, head_width=48, descriptor_dim=32, fine_dim=8, uncertainty_width=8,
    oriented_gradients=True)  # fmt: skip
_SMOKE = Config(
    profile="smoke",
    data=DataConfig(source="synthetic", patch_size=96, n_synthetic=48, crop_size=64, relative_shift_px=8.0),
    model=ModelConfig(**_NARROW, consensus_cells=(3, 5)),
    pretraining=PretrainingConfig(learning_rate=2e-3, batch_size=4, accumulation_steps=1, epochs=1, max_steps=2,
        rotation_width=16, validation_pairs=2, checkpoint_every=2),
    training=TrainingConfig(learning_rate=2e-3, batch_size=4, accumulation_steps=1, epochs=1, max_steps=4,
        warmup_steps=1, cosine=True, validation_pairs=2, window_px=16.0, checkpoint_every=2),
    evaluation=EvaluationConfig(crop_size=64, affine_crop_size=48, max_shift_px=8.0, search_radii=(16.0, None),
        headline_radius=16.0, max_pairs=2, calibration_pairs=4))  # fmt: skip
_DEMO = Config(
    profile="demo",
    data=DataConfig(source="synthetic", patch_size=176, n_synthetic=120, crop_size=96, relative_shift_px=16.0),
    model=ModelConfig(**_REDUCED, consensus_cells=(3, 7, 15)),
    pretraining=PretrainingConfig(learning_rate=1.5e-3, batch_size=16, accumulation_steps=1, epochs=100, max_steps=12,
        warmup_steps=3, cosine=True, validate_every=12, rotation_width=64, validation_pairs=16, checkpoint_every=20),
    training=TrainingConfig(learning_rate=1.5e-3, batch_size=8, accumulation_steps=1, epochs=100, max_steps=60,
        warmup_steps=15, cosine=True, validate_every=20, validation_pairs=8, window_px=24.0, checkpoint_every=25),
    evaluation=EvaluationConfig(crop_size=128, affine_crop_size=96, max_shift_px=16.0, search_radii=(16.0, 32.0, None),
        max_pairs=6, calibration_pairs=12))  # fmt: skip
_S1S2 = Config(
    profile="s1s2",
    data=DataConfig(source="manifest", datasets=("ombria", "sen1-2", "sen12ms")),
    model=ModelConfig(**_REDUCED),
    pretraining=PretrainingConfig(learning_rate=1e-3, batch_size=32, accumulation_steps=1, epochs=1000, max_steps=100,
        warmup_steps=25, cosine=True, validate_every=100, rotation_width=64),
    training=TrainingConfig(learning_rate=1.5e-3, batch_size=8, accumulation_steps=1, epochs=1000, max_steps=1400,
        warmup_steps=100, cosine=True, patience=1000, validate_every=200, validation_pairs=24,
        window_px=36.0))  # fmt: skip
# The folder of `s1s2` at the size of `smoke`: every cell runs on somebody's own pairs before the hours begin.
_S1S2_SMOKE = _SMOKE.replace(
    profile="s1s2-smoke", data=dict(source="manifest", datasets=_S1S2.data.datasets, patch_size=256))  # fmt: skip
# Learned descriptors alone, under deformation, 300,000 crops on one GPU: a small network, and the paper's encoders.
_S1S2_GPU = _S1S2.replace(
    profile="s1s2-gpu",
    data=dict(datasets=("ombria", "sen1-2", "sen12ms", "sih1733"), pixel_scale=(0.6, 1.4), deformation_probability=0.7,
        partial_probability=0.5, cloud_probability=0.1, drawn_twice=("sen1-2", "sen12ms", "sih1733")),
    model=dict(oriented_gradients=False, uncertainty_statistics=True, backbone="lite0", pretrained=True),
    pretraining=dict(contrastive=False, rotation=False),
    aggregation=dict(deformable_cells=(39, 57)),
    training=dict(batch_size=32, max_steps=9375, backbone_rate=0.4, validate_every=500, validate_deformed=True,
        image_mismatch=True, workers=8, precision="bf16"))  # fmt: skip
_S1S2_FULL = _S1S2_GPU.replace(
    profile="s1s2-full", model=ModelConfig(uncertainty_statistics=True),
    training=dict(learning_rate=8e-4, backbone_rate=1.0))  # fmt: skip
_SEN12MS = Config(
    profile="sen12ms",
    data=DataConfig(source="sen12ms", optical_bands=(3, 2, 1)),
    pretraining=PretrainingConfig(workers=4, precision="bf16"),
    training=TrainingConfig(workers=4, precision="bf16"))  # fmt: skip
PROFILES = {config.profile: config for config in (_SMOKE, _DEMO, _S1S2_SMOKE, _S1S2, _S1S2_GPU, _S1S2_FULL, _SEN12MS)}
ON_REAL_DATA = tuple(name for name, config in PROFILES.items() if config.data.source != "synthetic")


def profile(name: str, data_root: str | None = None) -> Config:
    """The named profile, with the folder of its data; needed for real data, refused for generated scenes."""
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {sorted(PROFILES)}, got {name!r}")
    return with_data(PROFILES[name], data_root)


def with_data(config: Config, root: str | None) -> Config:
    """The config with the folder of its data; a ValueError where real data lack one or generated ones have one."""
    what = f"data.source {config.data.source!r} of profile {config.profile!r}"
    if config.data.source == "synthetic" and root is not None:
        raise ValueError(f"{what} runs on generated scenes and would not look at {root}; leave it out, or take 's1s2'")
    if config.data.source != "synthetic" and root is None:
        raise ValueError(f"{what} is real data: give the folder (--data PATH or data_root=...)")
    return config.replace(data={"root": root})
