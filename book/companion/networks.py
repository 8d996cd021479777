"""Networks that were trained on another machine: what travels of a finished run, and how it is published here."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from huggingface_hub import load_torch_model, save_torch_state_dict

from companion.cache import confidence_or_load, matches_or_load
from companion.settings import without_folders
from companion.shipping import ship
from sarmatch.calibration.scores import calibration_scores
from sarmatch.cli import differences
from sarmatch.config import CONFIDENT_PX, Config, Protocol, from_dict
from sarmatch.data.splits import Split
from sarmatch.evaluation.protocols import spread
from sarmatch.io import atomic_path, read_json, write_json
from sarmatch.model import SarOpticalNet
from sarmatch.model.checkpoints import save_weights
from sarmatch.profiles import PROFILES, with_data
from sarmatch.training.runs import Run, open_split, run_path, split_fingerprint, train_or_load

SHARD = "15MB"  #: Of the weights; other files that travel are smaller.
PROVENANCE = "provenance.json"
TRAVELS = ("config.json", "metrics.jsonl", PROVENANCE)


def pack(run: Run, folder: Path) -> None:
    """Write what has to travel of a finished run: weights in half precision, in shards of at most 15 MB, and `TRAVELS`.

    The provenance comes last: without it a folder was not written to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROVENANCE).unlink(missing_ok=True)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in run.net.state_dict().items()}
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)
    for name in TRAVELS:
        with atomic_path(folder / name) as partial:
            shutil.copyfile(run.path / name, partial)


def unpack(folder: Path, data: Path, runs_dir: Path) -> tuple[Run, Split]:
    """Take a packed run, or the folder of a run, into the store, with the split of its data.

    Raises:
        ValueError: it is not finished, not of its profile as it is now, of other data, or already in the store.
    """
    about = read_json(folder / PROVENANCE)
    if not about.get("finished"):
        raise ValueError(f"{folder}: expected a finished run, packed by `python -m companion networks`; train it on")
    config = with_data(from_dict(Config, read_json(folder / "config.json")), str(data))
    profile = with_data(PROFILES[config.profile], str(data))
    if other := differences(profile, config):
        raise ValueError(
            f"{folder}: not trained with the settings of profile {config.profile}, which can be published, but with "
            f"{'; '.join(other)}; train the profile as it is"
        )
    split = open_split(config)
    fingerprint = split_fingerprint(split)
    if about["data_fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder}: trained on data with fingerprint {about['data_fingerprint']}, {data} has {fingerprint}; test "
            "pairs may be among those it has seen. Name the data it was trained on"
        )
    target = run_path(config, fingerprint, runs_dir)
    if target.resolve() != folder.resolve():
        if read_json(target / PROVENANCE):
            raise ValueError(f"{target}: there is a run of the same settings and data; remove it to publish {folder}")
        net = SarOpticalNet(config.model)
        load_torch_model(net, folder, strict=True)
        target.mkdir(parents=True, exist_ok=True)
        save_weights(net, target / "model.safetensors")
        shutil.copyfile(folder / "metrics.jsonl", target / "metrics.jsonl")
        write_json(target / "config.json", config.to_dict())
        write_json(target / PROVENANCE, about)
    return train_or_load(config, runs_dir, split=split), split


def publish(run: Run, split: Split, weights: Path, results: Path) -> pd.DataFrame:
    """Calibrate and measure a run; write its weights, model card and table, which is returned.

    Args:
        weights: folder of the shipped weights; gets `<profile>.safetensors` and `<profile>.md`.
        results: folder of result tables; gets `<profile>/network.csv` and `network.json`.
    """
    confidence_or_load(run, split)
    table = measured(run, split)
    name, folder = run.config.profile, results / run.config.profile
    folder.mkdir(parents=True, exist_ok=True)
    ship(run, weights / f"{name}.safetensors")
    for path, text in (
        (folder / "network.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n")),
        (folder / "network.json", without_folders(json.dumps(run.provenance, indent=1, sort_keys=True)) + "\n"),
        (weights / f"{name}.md", model_card(run, table)),
    ):
        with atomic_path(path) as partial:
            partial.write_text(text)
    return table


def measured(run: Run, split: Split) -> pd.DataFrame:
    """Accuracy and calibration on the test pairs, one pass at the headline radius, a row a protocol and dataset.

    Means over pairs; the scores of the confidence are of all matches together.
    """
    matcher, evaluation, rows = run.matcher, run.config.evaluation, []
    assert matcher.confidence is not None  # fitted before
    for protocol in get_args(Protocol):
        found = matches_or_load(run, matcher, "test", split.test, evaluation, protocol)
        found["confidence"] = matcher.confidence.calibrators["single"](found)
        index = spread(split.test, evaluation.max_pairs).index
        for dataset, pairs in index.groupby("dataset", sort=False):
            own = found[found["dataset"] == dataset]
            row = {"protocol": protocol, "dataset": dataset, "pairs": len(pairs), "scenes": pairs["scene"].nunique()}
            row |= {f"mma_{t:g}px": _mean_share(own, pairs["id"], t) for t in evaluation.thresholds_px}
            scores = calibration_scores(own["confidence"], own["error_px"] <= CONFIDENT_PX) if len(own) else {}
            rows.append(
                row | {"matches": len(own) / len(pairs)} | {s: scores.get(s) for s in ("ece", "brier", "auroc")}
            )
    return pd.DataFrame(rows)


def _mean_share(found: pd.DataFrame, ids: pd.Series, threshold_px: float) -> float:
    """Mean over pairs of the share of their matches within a threshold; pairs without matches have 0."""
    share = (found["error_px"] <= threshold_px).groupby(found["id"]).mean()
    return float(share.reindex(ids, fill_value=0.0).mean())


def model_card(run: Run, table: pd.DataFrame) -> str:
    """What somebody who takes these weights has to know, as Markdown."""
    config, about = run.config, run.provenance
    encoders = "the paper's encoders" if config.model.backbone == "paper" else "EfficientNet-Lite0, one for each image"
    start = "ImageNet weights" if config.model.pretrained else "random weights"
    tuning = about.get("finetuning", about)  # a run with a fit of aggregation counts the steps of the fit
    crops, radius = tuning["steps"] * config.training.batch_size, f"{config.evaluation.headline_radius:g} px"
    minutes, parameters = tuning["training_seconds"] / 60, sum(p.numel() for p in run.net.parameters())
    lines = ["| " + " | ".join(row) + " |" for row in [list(table), ["---"] * table.shape[1], *_cells(table)]]
    return f"""# {config.profile}

Descriptors of Sentinel-1 and Sentinel-2 images: {encoders}, from {start}; {parameters:,} parameters.
`sarmatch.load_matcher("{config.profile}")`

- Training: {crops:,} crops in {minutes:.0f} minutes on {about["hardware"]}, seed {config.seed},
  commit {", ".join(about["commits"])}, configuration {about["config_hash"]}
- Data: {", ".join(config.data.datasets) or "all datasets"}, fingerprint {about["data_fingerprint"]}
- Confidence: fitted on validation scenes, one pass, search radius {radius}
- Made for: pairs of 10 m pixels, georeferenced to some tens of px. Of other sensors and resolutions nothing is known.
- Licence: MIT like the code; trained on modified Copernicus Sentinel data

Test scenes, one pass, search radius {radius}; accuracies are means over pairs:

{chr(10).join(lines)}
"""


def _cells(table: pd.DataFrame) -> list[list[str]]:
    text = table.map(lambda v: f"{v:.3g}" if isinstance(v, float | np.floating) else str(v))
    return text.to_numpy().tolist()
