"""Learned baselines, each trained with the data, crops, steps and rate of our short trainings."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from accelerate.utils import set_seed

from companion.baselines.attention import CoAttentionNet, TransformerNet
from companion.baselines.detect_and_describe import DetectAndDescribeNet
from companion.baselines.learned import LearnedMatcher, PeerNet, PeerSize
from companion.baselines.multiscale import MultiscaleNet
from companion.baselines.siamese import PatchNet, PseudoSiameseNet, ThreeStepNet
from companion.baselines.translation import TranslationNet
from companion.settings import BookConfig
from companion.studies.selfsupervision import study_config
from sarmatch.config import from_dict
from sarmatch.data.crops import TrainingCrops
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import CropMatcher, validation_scores
from sarmatch.io import provenance
from sarmatch.matching.matcher import Matcher
from sarmatch.model import STRIDE
from sarmatch.model.checkpoints import read_weights
from sarmatch.training.loop import CACHE_AT_MOST, fit
from sarmatch.training.runs import Run, run_path, split_fingerprint, stored_training, train_or_load

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
OURS = {"network, short": True, "network, short, all learned": False}
"""Rows of our own network at the same budget: whether it has oriented gradients."""
PER_CELL = "network, short, cell by cell"  #: The last of these without local aggregation.


@dataclass(frozen=True)
class PeerRun(Run):
    """A finished training of a peer."""

    net: PeerNet  # type: ignore[assignment]


def peer_config(config: BookConfig, oriented_gradients: bool = False) -> BookConfig:
    """The equal budget: `studies.steps` steps from scratch, the last weights kept, half a cosine of the rate."""
    steps, warmup = config.studies.steps, config.studies.label_warmup_steps
    training = {"validate_every": steps, "warmup_steps": warmup, "cosine": True}
    from_scratch, model = {"contrastive": False, "rotation": False}, {"oriented_gradients": oriented_gradients}
    return study_config(config, config.seed, from_scratch, model=model, training=training)


def peer_size(config: BookConfig) -> PeerSize:
    """Descriptors as wide as ours, over the same window."""
    model, radius = config.model, math.ceil(config.training.window_px / STRIDE)
    return PeerSize(model.sar_channels, model.optical_channels, model.descriptor_dim, radius)


def train_or_load_peer(config: BookConfig, name: str, split: Split, runs_dir: str | Path) -> PeerRun:
    """The finished training of one of `PEERS` at `peer_config`, or ValueError: loaded, resumed or trained."""
    if name not in PEERS:
        raise ValueError(f"name must be among {sorted(PEERS)}, got {name!r}")
    own, fingerprint = peer_config(config), split_fingerprint(split)
    folder = run_path(own, fingerprint, runs_dir, f"peer-{name.replace(' ', '-')}")
    scoring = dataclasses.replace(own.evaluation, max_pairs=own.training.validation_pairs)

    def validate(net: PeerNet) -> dict[str, float]:
        return validation_scores(LearnedMatcher(net), split.validation, scoring)

    def steps() -> None:
        set_seed(own.seed)
        net = PEERS[name](peer_size(own))
        crops = TrainingCrops(split.train, own.data, own.seed, cache=len(split.train) <= CACHE_AT_MOST)
        fit(net, crops, own.training, own.seed, folder, validate, None)

    stored = stored_training(folder, own, provenance(own, fingerprint), steps)
    return PeerRun(folder, own, load_peer(name, folder / "model.safetensors"), *stored)


def load_peer(name: str, path: Path) -> PeerNet:
    """A peer with the weights of its run; ValueError where they are of another version of the network."""
    about, tensors = read_weights(path)
    net = PEERS[name](from_dict(PeerSize, json.loads(about["model"])))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another version of {name!r}; delete the folder to train again") from error
    return net


def trained_peers(config: BookConfig, split: Split, runs_dir: str | Path) -> dict[str, Run]:
    """All trainings at equal budget, our own network's first: loaded, resumed or trained."""
    configs = {name: peer_config(config, gradients) for name, gradients in OURS.items()}
    ours = {name: train_or_load(own, runs_dir, "peer-network", split) for name, own in configs.items()}
    return ours | {name: train_or_load_peer(config, name, split, runs_dir) for name in PEERS}


def peer_matchers(runs: Mapping[str, Run]) -> dict[str, CropMatcher]:
    """What matches with the weights of each training; our last network is `PER_CELL` too."""
    matchers: dict[str, CropMatcher] = {}
    for name, run in runs.items():
        if isinstance(run, PeerRun):
            matchers[name] = LearnedMatcher(run.net, run.path.name)
        else:
            matchers |= {name: Matcher(run.net), PER_CELL: Matcher(run.net, use_consensus=False)}
    return matchers


def training_table(runs: Mapping[str, Run], config: BookConfig) -> pd.DataFrame:
    """What each training cost; `crops` are those of all its steps."""
    rows = []
    for name, run in runs.items():
        about, steps = run.provenance, int(run.provenance["steps"])
        row = {"method": name, "parameters": sum(p.numel() for p in run.net.parameters()), "steps": steps}
        row |= {"crops": steps * config.training.batch_size, "seconds": float(about["training_seconds"])}
        rows.append(row | {"hardware": about["hardware"], "commit": about["commit"], "run": run.path.name})
    return pd.DataFrame(rows)
