"""Learned baselines, each trained with the data, crops, steps and rate of our short trainings."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.utils import set_seed
from safetensors import safe_open
from torch import Tensor, nn

from companion.baselines.co_attention import CoAttentionNet
from companion.baselines.detect_and_describe import DetectAndDescribeNet
from companion.baselines.learned import LearnedMatcher, PeerNet, PeerSize
from companion.baselines.multiscale import MultiscaleNet
from companion.baselines.pseudo_siamese import PatchNet, PseudoSiameseNet
from companion.baselines.three_step import ThreeStepNet
from companion.baselines.transformer import TransformerNet
from companion.baselines.translation import TranslationNet
from companion.settings import BookConfig
from companion.studies.selfsupervision import study_config
from sarmatch.config import from_dict
from sarmatch.data.crops import EvaluationCrops, Sample, TrainingCrops
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import CropMatcher, validation_scores
from sarmatch.io import provenance
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.matches import Matches
from sarmatch.model import STRIDE
from sarmatch.training.loop import CACHE_AT_MOST, fit
from sarmatch.training.runs import Run, run_path, split_fingerprint, stored_training, train_or_load, train_run

PEERS: Mapping[str, type[PeerNet]] = {
    "pseudo-siamese CNN": PseudoSiameseNet,
    "three-step CNN": ThreeStepNet,
    "co-attention": CoAttentionNet,
    "transformer": TransformerNet,
    "detect and describe": DetectAndDescribeNet,
    "patch CNN": PatchNet,
    "multiscale chain": MultiscaleNet,
    "translation": TranslationNet,
}
"""Networks that are trained here, by the names of their rows."""
OURS: Mapping[str, bool] = {"network, short": True, "network, short, all learned": False}
"""Rows of our own network at the same budget: whether it has oriented gradients."""
PER_CELL = "network, short, cell by cell"
"""The last of these without local aggregation, beside others that judge each cell by itself."""


@dataclass(frozen=True)
class PeerRun:
    """A finished training of a peer, with the attributes of `sarmatch.training.runs.Run`."""

    path: Path
    net: PeerNet
    loaded: bool
    history: pd.DataFrame
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Named:
    """A matcher under the name of its training, which tells stored matches apart."""

    matcher: Matcher = field(repr=False)
    training: str

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        return self.matcher.match_crops(crops, search_radius)


def peer_config(config: BookConfig, oriented_gradients: bool = False) -> BookConfig:
    """The equal budget: `studies.steps` steps from scratch, the last weights kept, half a cosine of the rate."""
    steps, warmup = config.studies.steps, config.studies.label_warmup_steps
    training = {"validate_every": steps, "warmup_steps": warmup, "cosine": True}
    from_scratch, model = {"contrastive": False, "rotation": False}, {"oriented_gradients": oriented_gradients}
    return study_config(config, config.seed, from_scratch, model, training=training)


def peer_size(config: BookConfig) -> PeerSize:
    """Descriptors as wide as ours, over the same window."""
    model, radius = config.model, math.ceil(config.training.window_px / STRIDE)
    return PeerSize(model.sar_channels, model.optical_channels, model.descriptor_dim, radius)


class PeerObjective(nn.Module):
    """A peer and its losses, as the training loop takes them."""

    def __init__(self, net: PeerNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.net(batch)
        return losses


def train_or_load_peer(
    config: BookConfig, name: str, split: Split, runs_dir: str | Path = "runs", show_progress: bool = True
) -> PeerRun:
    """The finished training of one of `PEERS` at `peer_config`, or ValueError: loaded, resumed or trained."""
    if name not in PEERS:
        raise ValueError(f"name must be among {sorted(PEERS)}, got {name!r}")
    own, fingerprint = peer_config(config), split_fingerprint(split)
    folder = run_path(own, fingerprint, runs_dir, f"peer-{name.replace(' ', '-')}")
    scoring = dataclasses.replace(own.evaluation, max_pairs=own.training.validation_pairs)

    def validate(objective: PeerObjective) -> dict[str, float]:
        return validation_scores(LearnedMatcher(objective.net), split.validation, scoring)

    def steps() -> None:
        set_seed(own.seed)
        objective = PeerObjective(PEERS[name](peer_size(own)))
        crops = TrainingCrops(split.train, own.data, own.seed, cache=len(split.train) <= CACHE_AT_MOST)
        fit(objective, crops, own.training, own.seed, folder, validate, None, show_progress)

    stored = stored_training(folder, lambda: train_run(own, folder, provenance(own, fingerprint), steps))
    return PeerRun(folder, load_peer(name, folder / "model.safetensors"), *stored)


def load_peer(name: str, path: Path) -> PeerNet:
    """A peer with the weights of its run; ValueError where they are of another version of the network."""
    with safe_open(path, framework="pt") as file:
        size = from_dict(PeerSize, json.loads(file.metadata()["model"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    net = PEERS[name](size)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another version of {name!r}; delete the folder to train again") from error
    return net


def trained_peers(
    config: BookConfig, split: Split, runs_dir: str | Path = "runs", show_progress: bool = True
) -> dict[str, Run | PeerRun]:
    """All trainings at equal budget, our own network's first: loaded, resumed or trained."""
    runs: dict[str, Run | PeerRun] = {}
    for name, gradients in OURS.items():
        own = peer_config(config, gradients)
        runs[name] = train_or_load(own, runs_dir, "peer-network", split, show_progress=show_progress)
    for name in PEERS:
        runs[name] = train_or_load_peer(config, name, split, runs_dir, show_progress)
    return runs


def peer_matchers(runs: Mapping[str, Run | PeerRun]) -> dict[str, CropMatcher]:
    """What matches with the weights of each training; our last network is `PER_CELL` too."""
    matchers: dict[str, CropMatcher] = {}
    for name, run in runs.items():
        if isinstance(run, PeerRun):
            matchers[name] = LearnedMatcher(run.net, run.path.name)
        else:
            matchers[name] = Named(Matcher(run.net), run.path.name)
            matchers[PER_CELL] = Named(Matcher(run.net, use_consensus=False), run.path.name)
    return matchers


def training_table(runs: Mapping[str, Run | PeerRun], config: BookConfig) -> pd.DataFrame:
    """What each training at equal budget cost.

    Returns:
        method, parameters, steps, crops (of all its steps), seconds, hardware, commit, run.
    """
    rows = []
    for name, run in runs.items():
        about, steps = run.provenance, int(run.provenance["steps"])
        row = {"method": name, "parameters": sum(p.numel() for p in run.net.parameters()), "steps": steps}
        row |= {"crops": steps * config.training.batch_size, "seconds": float(about["training_seconds"])}
        rows.append(row | {"hardware": about["hardware"], "commit": about["commit"], "run": run.path.name})
    return pd.DataFrame(rows)
