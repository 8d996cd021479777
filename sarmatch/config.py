"""Configuration as frozen dataclasses, which reject contradictory values; the named ones are in `profiles`."""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

D = TypeVar("D")
Norm = Literal["group", "batch"]
CONFIDENT_PX = 3.0  #: A match with an error up to this is correct: what confidence is the probability of.
SEARCH_RADIUS_PX = 32.0  #: Search radius unless another is asked for, px.
N_ORIENTATIONS = 9  #: Of oriented gradients, over 180 degrees.
Protocol = Literal["aligned", "shift", "affine", "deform"]


def _later(default: Any) -> Any:
    """A field that version 0.1 did not have; with its default nothing changes, so no hash and no digest names it."""
    return field(default=default, metadata={"later": True})


def counted(section: Any) -> list[str]:
    """The fields of a config dataclass that tell two of them apart, in their order."""
    fields = dataclasses.fields(section)
    return [f.name for f in fields if not (f.metadata.get("later") and getattr(section, f.name) == f.default)]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class DataConfig:
    """Which pairs, how they are split, and what training does to them (section 4.1 and 4.2 of the paper)."""

    source: Literal["synthetic", "manifest", "sen12ms"] = "manifest"  #: Of the pairs; real ones need `root`.
    root: str | None = None  #: Folder of the data; never part of the hash of a run (the data fingerprint is).
    datasets: tuple[str, ...] = ()  #: Keep only these values of the manifest's `dataset` column; empty keeps all.
    sar_bands: tuple[int, ...] = (0,)  #: Zero-based SAR bands to use: VV, or VV and VH.
    optical_bands: tuple[int, ...] = (0, 1, 2)  #: Zero-based optical bands to use, in red, green, blue order.
    patch_size: int = 256  #: Side of a stored patch, px.
    n_synthetic: int = 64  #: Number of generated pairs where `source` is `synthetic`.
    split: Literal["scene", "patch"] = "scene"  #: `scene`: each scene in one part; `patch`: the paper's, stratified.
    split_fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)  #: Shares of training, validation and test.
    split_seed: int = 0  #: Of the draw that assigns scenes or patches to the parts.
    crop_size: int = 128  #: Side of a training crop, px; a multiple of 16.
    joint_rotation_deg: float = 30.0  #: Both images turn together by up to this angle (section 4.2).
    flip_probability: float = 0.5  #: Horizontal flip of both images (section 4.2).
    noise_std: float = 0.01  #: Standard deviation of Gaussian noise added to both images, in units of [0, 1].
    relative_shift_px: float = 24.0  #: The optical crop is displaced against the SAR crop by up to this on each axis.
    pure_shift_probability: float = 0.5  #: Share of samples displaced by a shift alone, as if georeferenced.
    relative_rotation_deg: float = 4.0  #: The optical crop is turned against the SAR crop by up to this angle.
    relative_log_scale: float = 0.04  #: Relative scale is drawn between exp(-v) and exp(v).
    speckle_probability: float = 0.5  #: Chance that a training SAR crop receives artificial speckle.
    speckle_looks: tuple[float, float] = (1.0, 16.0)  #: Range of the equivalent number of looks of it (log-uniform).
    haze_probability: float = 0.3  #: Chance that a training optical crop is veiled by artificial, uneven haze.
    later_sar_probability: float = 0.3  #: Chance to train on the later SAR image of a place, if there is one.
    band_mixing: float = 0.5  #: Chance that optical bands are mixed, dropped or greyed, for true and false colour.
    pixel_scale: tuple[float, float] = _later((1.0, 1.0))  #: Range of a pixel of both crops in pixels of the pair.
    deformation_probability: float = _later(0.0)  #: Chance that the optical crop is bent by a smooth random field.
    deformation_px: float = _later(10.0)  #: The largest component of that field is drawn evenly up to this.
    deformation_sigma_px: tuple[float, float] = _later((20.0, 80.0))  #: Range of its smoothness (log-uniform).
    partial_probability: float = _later(0.0)  #: Chance that artificial speckle or haze covers a part of a crop only.
    drawn_twice: tuple[str, ...] = _later(())  #: Datasets whose pairs training draws twice as often as the others'.
    cloud_probability: float = _later(0.0)  #: Chance that an opaque bright cloud covers a part of an optical crop.

    def __post_init__(self) -> None:
        whole = len(self.split_fractions) == 3 and abs(sum(self.split_fractions) - 1) < 1e-6
        _require(whole, f"split_fractions must be three numbers that sum to 1, got {self.split_fractions}")
        crop, fits = self.crop_size, f"a multiple of 16 between 16 and patch_size={self.patch_size}"
        _require(crop % 16 == 0 and 16 <= crop <= self.patch_size, f"crop_size must be {fits}, got {crop}")
        for name, value in vars(self).items():
            if name.endswith("_probability") or name == "band_mixing":
                _require(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        for name, least in (("speckle_looks", 1.0), ("pixel_scale", 0.1), ("deformation_sigma_px", 1.0)):
            low, high = getattr(self, name)
            _require(least <= low <= high, f"{name} must satisfy {least:g} <= low <= high, got {(low, high)}")
        _require(self.deformation_px >= 0, f"deformation_px must not be negative, got {self.deformation_px}")


@dataclass(frozen=True)
class ModelConfig:
    """Widths and switches of the two encoders (sections 3.1.1 and 3.1.2) and of the matcher."""

    backbone: Literal["paper", "lite0"] = "paper"  #: Section 3.1, or timm's EfficientNet-Lite0 for both images.
    pretrained: bool = False  #: ImageNet weights for `backbone="lite0"`; of the paper's encoders there are none.
    sar_channels: int = 1  #: Bands of the SAR image, 1 or 2.
    optical_channels: int = 3  #: Bands of the optical image.
    sar_widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)  #: Stem and four Xception blocks.
    sar_dilations: tuple[int, int, int, int] = (1, 1, 2, 4)  #: Of each block: context at stride 4, all cells kept.
    optical_widths: tuple[int, int, int, int] = (64, 128, 256, 512)  #: 7x7 stem, three layers at strides 4, 8, 16.
    bifpn_width: int = 256  #: Channels of the BiFPN of the optical encoder.
    bifpn_repeats: int = 3  #: At least 2: the last one ends at the finest level.
    feature_width: int = 512  #: Channels of F (eqs. 1 and 2).
    head_width: int = 512  #: Hidden channels of the projection head.
    descriptor_dim: int = 128  #: Projection head of section 3.3.1: `head_width` then `descriptor_dim`.
    fine_width: int = 32  #: Channels of the full-resolution branch.
    fine_dim: int = 16  #: Channels of the full-resolution branch and of its descriptors.
    norm: Norm = "group"  #: Normalisation of all layers; `batch` depends on what else is in the batch.
    uncertainty: bool = True  #: Whether the aleatoric modules of sections 3.2.1 to 3.2.3 exist and guide matching.
    uncertainty_width: int = 32  #: Channels of each branch of those modules.
    uncertainty_statistics: bool = _later(False)  #: Whether local contrast and variation of the image enter them.
    early_dropout: float = 0.10  #: Section 3.2.4, first place: early in the encoders.
    uncertainty_dropout: float = 0.20  #: Second place: before the uncertainty modules.
    fusion_dropout: float = 0.15  #: Third place: where both modalities enter the common space, and in fusion.
    oriented_gradients: bool = _later(False)  #: Nine fixed oriented-gradient channels a descriptor; not in the paper.
    consensus_cells: tuple[int, ...] = (3, 7, 15, 25)  #: Odd sides of aggregation, cells; empty: none (the paper).
    #: Sides of wide neighbourhoods whose parts may move apart, cells, thrice an odd number; see `AggregationConfig`.
    deformable_cells: tuple[int, ...] = _later(())
    field_rounds: int = _later(0)  #: Of the fine level along the smoothed field of matches; 0: each match by itself.

    def __post_init__(self) -> None:
        _require(not self.pretrained or self.backbone == "lite0", "pretrained weights need backbone='lite0'")
        _require(self.norm in ("group", "batch"), f"norm must be 'group' or 'batch', got {self.norm!r}")
        for name in ("early_dropout", "uncertainty_dropout", "fusion_dropout"):
            _require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        odd = all(k > 1 and k % 2 == 1 for k in self.consensus_cells)
        _require(odd, f"consensus_cells must be odd numbers above 1, got {self.consensus_cells}")
        _require(self.field_rounds >= 0, f"field_rounds must not be negative, got {self.field_rounds}")
        thirds = all(k % 6 == 3 for k in self.deformable_cells) and bool(
            self.consensus_cells or not self.deformable_cells
        )
        _require(thirds, f"deformable_cells must be 3, 9, 15 ... beside consensus_cells, got {self.deformable_cells}")
        _require(self.bifpn_repeats >= 2, f"bifpn_repeats must be at least 2, got {self.bifpn_repeats}")
        _require(self.sar_channels in (1, 2), f"sar_channels must be 1 or 2, got {self.sar_channels}")

    @property
    def coarse_dim(self) -> int:
        """Channels of the descriptor of a cell."""
        return self.descriptor_dim + (N_ORIENTATIONS if self.oriented_gradients else 0)


@dataclass(frozen=True)
class Schedule:
    """What any training needs: rates, batches and when to stop (table 2)."""

    learning_rate: float = 5e-5  #: Of Adam, after the warm-up; scales of similarity learn ten times as fast.
    batch_size: int = 32  #: Pairs of one optimiser step, over all processes and accumulation steps together.
    accumulation_steps: int = 4  #: Each optimiser step is the mean of this many smaller batches.
    epochs: int = 30  #: Passes over the training pairs.
    max_steps: int | None = None  #: Stop after this many optimiser steps; None trains all epochs.
    betas: tuple[float, float] = (0.9, 0.999)  #: Of Adam.
    weight_decay: float = 1e-4  #: Of all weights but the scales of similarity.
    warmup_steps: int = 0  #: The learning rate rises linearly over so many steps.
    cosine: bool = False  #: Decay the learning rate to 5 % along a half cosine; the paper states no schedule.
    clip_norm: float = 1.0  #: Gradients longer than this are cut to it.
    patience: int | None = None  #: Stop after so many validations without improvement; None: train to the end.
    validate_every: int | None = None  #: Steps between validations; None validates once an epoch.
    validation_pairs: int = 64  #: Validate on at most this many pairs.
    checkpoint_every: int = 100  #: Steps between checkpoints; a killed run loses at most these.
    backbone_rate: float = _later(1.0)  #: Learning rate of a stock backbone in terms of that of the other weights.
    precision: Literal["no", "bf16", "fp16"] = "no"  #: Mixed precision of the network; losses stay in 32 bits.
    workers: int = 0  #: Loader processes.

    def __post_init__(self) -> None:
        batch, parts = self.batch_size, self.accumulation_steps
        _require(batch % parts == 0, f"batch_size={batch} must be a multiple of accumulation_steps={parts}")
        for name in ("learning_rate", "batch_size", "accumulation_steps", "epochs", "max_steps", "checkpoint_every",
                     "validate_every", "validation_pairs", "patience"):  # fmt: skip
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class PretrainingConfig(Schedule):
    """Self-supervised pretraining (section 3.3; table 2, left column). With both tasks off there is none."""

    learning_rate: float = 1e-4  #: Of Adam, after the warm-up.
    epochs: int = 50  #: Passes over the training pairs.
    contrastive: bool = True  #: Contrastive learning over the images of a batch (section 3.3.1).
    contrast_over: Literal["cells", "image"] = "cells"  #: Eq. 3 over all descriptors, or over pooled features.
    contrastive_form: Literal["infonce", "printed"] = "infonce"  #: Symmetric InfoNCE, or eq. 4 as printed.
    temperature: float = 0.07  #: tau of eq. 4.
    rotation: bool = True  #: Prediction of quarter turns (section 3.3.2).
    rotation_width: int = 256  #: Hidden channels of the heads that tell the turn.
    unpaired_share: float = 0.25  #: Share of samples of two different places, used by the rotation task only.

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        _require(0 <= self.unpaired_share <= 1, f"unpaired_share must lie in [0, 1], got {self.unpaired_share}")
        over, form = self.contrast_over, self.contrastive_form
        _require(over in ("cells", "image"), f"contrast_over must be 'cells' or 'image', got {over!r}")
        _require(form in ("infonce", "printed"), f"contrastive_form must be 'infonce' or 'printed', got {form!r}")

    @property
    def enabled(self) -> bool:
        return self.contrastive or self.rotation


@dataclass(frozen=True)
class TrainingConfig(Schedule):
    """Supervised fine-tuning (table 2, right column)."""

    patience: int | None = 5
    window_px: float = 40.0  #: Radius of the candidates of the coarse loss around the same position.
    matching_weight: float = 1.0  #: Weight of L_mat in the sum.
    uncertainty_weight: float = 0.5  #: Weight of L_unc in the sum.
    fine_share: float = _later(1.0)  #: Share of each batch that the fine level learns from; at least one crop.
    image_mismatch: bool = _later(False)  #: Whether the uncertainty of each image alone is also held to mismatches.
    validate_deformed: bool = _later(False)  #: Whether the score of validation is the mean over `shift` and `deform`.

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.fine_share <= 1, f"fine_share must lie in (0, 1], got {self.fine_share}")
        _require(self.window_px > 0, f"window_px must be positive, got {self.window_px}")
        for name in ("matching_weight", "uncertainty_weight"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class AggregationConfig(Schedule):
    """Fit of the scales of aggregation after fine-tuning, with the encoders as they are, on larger crops.

    Crops of fine-tuning are too small for wide neighbourhoods, and few numbers need few steps.
    """

    deformable_cells: tuple[int, ...] = ()  #: Those that the network gets; empty: there is no such fit.
    field_rounds: int = 3  #: Those that it gets.
    crop_size: int = 160  #: Side of its crops, px; a multiple of 16.
    learning_rate: float = 3e-3
    batch_size: int = 4
    accumulation_steps: int = 1
    epochs: int = 1000
    max_steps: int | None = 200
    weight_decay: float = 0.0
    cosine: bool = True
    validate_every: int | None = 200

    @property
    def enabled(self) -> bool:
        return bool(self.deformable_cells)


_NO_FIT = AggregationConfig()


@dataclass(frozen=True)
class EvaluationConfig:
    """Protocols and thresholds (section 4.3)."""

    protocols: tuple[Protocol, ...] = ("aligned", "shift", "affine")  #: Transforms to evaluate under.
    crop_size: int = 208  #: Side of an evaluation crop for `aligned` and `shift`, px.
    affine_crop_size: int = 128  #: Side for `affine`: small enough that no rotated crop leaves a 256 px patch.
    max_shift_px: float = 24.0  #: Largest shift on each axis under `shift`, `affine` and `deform`.
    deformation_px: float = _later(8.0)  #: Largest component of the field of `deform`, whose crops are 16 px smaller.
    deformation_sigma_px: float = _later(24.0)  #: Standard deviation of the Gaussian that makes that field smooth.
    max_rotation_deg: float = 30.0  #: Largest turn under `affine`.
    scale_range: tuple[float, float] = (0.9, 1.1)  #: Of scales under `affine`.
    search_radii: tuple[float | None, ...] = (16.0, 32.0, 64.0, None)  #: px around the prediction; None: everywhere.
    headline_radius: float = SEARCH_RADIUS_PX  #: Search radius of validation and of the headline, px.
    thresholds_px: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)  #: Errors up to which a match counts as right.
    seed: int = 2026  #: Of the transforms.
    calibration_pairs: int = field(default=48, metadata={"digest": False})  #: To fit confidence on; changes no table.
    max_pairs: int | None = None  #: Evaluate at most so many pairs of a part, evenly over its scenes; None: all.

    def __post_init__(self) -> None:
        _require(self.crop_size % 16 == 0, f"crop_size must be a multiple of 16, got {self.crop_size}")
        _require(self.max_pairs is None or self.max_pairs > 0, f"max_pairs must be positive, got {self.max_pairs}")
        bends = self.deformation_px >= 0 and self.deformation_sigma_px >= 1
        _require(bends, "deformation_px must not be negative and deformation_sigma_px at least 1")
        unknown = set(self.protocols) - set(typing.get_args(Protocol))
        _require(not unknown, f"protocols must be among {typing.get_args(Protocol)}, got {self.protocols}")


@dataclass(frozen=True)
class Config:
    """All that determines a run, apart from the data itself."""

    profile: str  #: Name of the profile that the other values come from, see `profiles`.
    seed: int = 0  #: Of weights, order of samples, augmentation and dropout.
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    aggregation: AggregationConfig = field(default=_NO_FIT, metadata={"later": True})
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed must not be negative, got {self.seed}")

    def replace(self, **sections: Any) -> Self:
        """Copy with changes; a section takes a dict, `config.replace(seed=1, training={"epochs": 2})`."""
        parts = {n: dataclasses.replace(getattr(self, n), **v) for n, v in sections.items() if isinstance(v, dict)}
        return dataclasses.replace(self, **sections | parts)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def hash(self, data_fingerprint: str = "", without: Collection[str] = ()) -> str:
        """Eight hex digits naming this config with these data, but for their path and the sections `without`."""
        sections = (("pretraining", self.pretraining), ("aggregation", self.aggregation))
        unread = {*without, *(name for name, section in sections if not section.enabled)}
        content = {name: section for name, section in self.to_dict().items() if name not in unread}
        del content["data"]["root"]
        if "evaluation" in content:  # of which validation reads these, all that can change the weights that are kept
            read = ("crop_size", "max_shift_px", "headline_radius", "seed", "deform")
            content["evaluation"] = {n: v for n, v in content["evaluation"].items() if n.startswith(read)}
        for name, section in content.items():
            if isinstance(section, dict):
                content[name] = {key: section[key] for key in counted(getattr(self, name)) if key in section}
        text = json.dumps(content, sort_keys=True) + data_fingerprint
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def from_dict(cls: type[D], content: dict[str, Any]) -> D:
    """Rebuild a config dataclass from `to_dict()` or parsed JSON (lists become tuples, unknown keys are errors)."""
    if cls is Config:  # version 0.1 stored the sizes of the book's studies too
        content = {name: value for name, value in content.items() if name != "studies"}
    hints = typing.get_type_hints(cls)
    unknown = set(content) - set(hints)
    _require(not unknown, f"{cls.__name__} has no field {sorted(unknown)}; known: {sorted(hints)}")
    values: dict[str, Any] = {}
    for name, value in content.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
