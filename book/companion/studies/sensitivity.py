"""How much results depend on choices: labelled pairs, source, split, neighbourhoods, crops, the truth itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from companion.cache import cached_table, records_or_load
from companion.settings import BookConfig
from companion.shipping import shipped_or_trained
from companion.studies.ablation import (
    DATA_EFFICIENCY,
    Variant,
    ablation_row,
    labelled,
    pair_scores,
    study_matches,
    study_run,
)
from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split, split_pairs
from sarmatch.evaluation.intervals import Interval, crossed_bootstrap, paired_difference, verdict
from sarmatch.evaluation.metrics import match_errors, mma
from sarmatch.evaluation.protocols import CropMatcher, evaluation_crops, spread
from sarmatch.geometry import translation
from sarmatch.io import commit
from sarmatch.matching.assignment import predict
from sarmatch.matching.matcher import Matcher
from sarmatch.matching.refinement import RawMatches, pick_matches
from sarmatch.matching.tiling import MULTIPLE
from sarmatch.model import PairInput, SarOpticalNet, encode_pair
from sarmatch.training.runs import Run

SOURCES: Mapping[str, str] = {"ombria": "OMBRIA", "sen1-2": "SEN12", "sen12ms": "SEN12"}
"""Where the images of a dataset come from; one that is not named stands for itself."""
SPLITS: tuple[Literal["scene", "patch"], ...] = ("scene", "patch")
Position = Literal["whole cells", "3x3 expectation", "fine level"]
POSITIONS: tuple[Position, ...] = get_args(Position)
"""Where within its cell a match is placed, the coarsest first."""
TRUTHS = {"raw": 0.0, "refined": 1.0, "opposite": -1.0}
"""Truths, and how often each has the estimated residual shift added to the published one."""


def with_source(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `source` made of its `dataset`."""
    return table.assign(source=table["dataset"].map(lambda name: SOURCES.get(name, name)))


def by_source(scores: pd.DataFrame, make: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A table made of the scores of each source, one below the other, with its name in the first column."""
    parts = {name: make(part) for name, part in with_source(scores).groupby("source")}
    return pd.concat(parts, names=["source"]).reset_index("source").reset_index(drop=True)


def possible(variants: Sequence[Variant], config: BookConfig, split: Split) -> tuple[Variant, ...]:
    """Variants whose labelled pairs fill a batch, whose crops fit, and that leave a source out if they name one."""
    sources = set(split.train.index["dataset"])
    return tuple(
        v
        for v in variants
        if len(labelled(split, v, 0).train) >= config.training.batch_size
        and v.data.get("crop_size", 0) <= config.data.patch_size
        and not (v.datasets and sources <= set(v.datasets))
    )


def other_datasets(pairs: Pairs, datasets: Sequence[str]) -> Pairs:
    """The pairs of all other datasets, of any part; ValueError where there are none."""
    others = ~pairs.index["dataset"].isin(datasets).to_numpy()
    if not others.any():
        raise ValueError(f"all {len(pairs)} pairs are of {sorted(datasets)}; give pairs of another dataset too")
    return pairs.subset(others)


def study_runs(config: BookConfig, variants: Sequence[Variant], split: Split, runs_dir: str | Path) -> pd.DataFrame:
    """Where the numbers of a study come from: row, seed, run, commit, date, hardware, steps, training_seconds."""
    rows = []
    for variant in variants:
        for seed in config.studies.seeds:
            run = study_run(config, variant, seed, split, runs_dir)
            about = {name: run.provenance[name] for name in ("commit", "date", "hardware", "steps", "training_seconds")}
            rows.append({"row": variant.name, "seed": seed, "run": run.path.name} | about)
    return pd.DataFrame(rows)


def with_shares(table: pd.DataFrame, split: Split) -> pd.DataFrame:
    """A table over the rows of `DATA_EFFICIENCY` with the columns start, share and labelled_pairs in front."""
    known = {variant.name: variant for variant in DATA_EFFICIENCY}
    variants = [known[name] for name in table["row"]]
    table = table.copy()
    table.insert(1, "labelled_pairs", [len(labelled(split, variant, 0).train) for variant in variants])
    table.insert(1, "share", [variant.share for variant in variants])
    table.insert(1, "start", ["pretrained" if variant.pretraining else "from scratch" for variant in variants])
    return table


def shared_test_pairs(config: BookConfig, pairs: Pairs) -> Pairs:
    """The pairs in the test part both of the split by scene and of that by patch; ValueError where there are none."""
    parts = [split_pairs(pairs, dataclasses.replace(config.data, split=by)).test for by in SPLITS]
    common = parts[0].index["id"].isin(parts[1].index["id"]).to_numpy()
    if not common.any():
        raise ValueError(f"no pair lies in both test parts of {len(parts[0])} and {len(parts[1])} pairs; take more")
    return parts[0].subset(common)


def split_leak(config: BookConfig, pairs: Pairs, runs_dir: str | Path, show_progress: bool = True) -> pd.DataFrame:
    """`pair_scores` of `both` trained on either split of all pairs, on pairs in neither training, by `split by <s>`."""
    test = spread(shared_test_pairs(config, pairs), config.studies.test_pairs)
    parts = []
    for by in SPLITS:
        own = config.replace(data={"split": by})
        split = split_pairs(pairs, own.data)
        matches = study_matches(own, [ablation_row("both")], split, runs_dir, test, show_progress)
        parts.append(matches.assign(row=f"split by {by}"))
    return pair_scores(pd.concat(parts, ignore_index=True), test, config.evaluation)


def split_gains(scores: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """By patch minus by scene for each value of one way of matching in `split_leak`, with crossed intervals.

    Returns:
        value, by_scene, by_patch, difference, low, high, verdict, n_pairs, n_scenes.
    """
    rows = []
    for value in values:
        both = scores.set_index(["row", "seed", "id", "scene"])[value].unstack("row")
        both["difference"] = both["split by patch"] - both["split by scene"]
        table = both.reset_index()
        found = crossed_bootstrap(table, "difference")
        means = {f"by_{by}": float(both[f"split by {by}"].mean()) for by in SPLITS}
        counts = {"n_pairs": table["id"].nunique(), "n_scenes": found.n_clusters}
        rows.append({"value": value} | means | _difference(found) | counts)
    return pd.DataFrame(rows)


def with_neighbourhoods(net: SarOpticalNet, sides: Sequence[int]) -> SarOpticalNet:
    """A copy of a network that aggregates over some of its `consensus_cells` only; ValueError for other sides."""
    known = net.config.consensus_cells
    unknown = sorted(set(sides) - set(known))
    if unknown:
        raise ValueError(f"sides must be among the neighbourhoods {known} of the network, got {unknown}")
    kept = [0, *(i + 1 for i, side in enumerate(known) if side in sides)]
    cut = copy.deepcopy(net)
    cut.config = dataclasses.replace(net.config, consensus_cells=tuple(known[i - 1] for i in kept[1:]))
    cut.coarse_log_scales = nn.Parameter(net.coarse_log_scales.detach()[kept].clone())
    cut.fine_log_scales = nn.Parameter(net.fine_log_scales.detach()[kept].clone())
    return cut


def neighbourhood_sets(sides: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The cell alone, with each side by itself, with the narrowest few, with all; by names like `1+3+7`."""
    sets = [(), *((side,) for side in sides), *(tuple(sides[:n]) for n in range(2, len(sides) + 1))]
    return {"+".join(map(str, (1, *chosen))): chosen for chosen in sets}


def neighbourhood_records(
    run: Run, pairs: Pairs, config: EvaluationConfig, protocols: Sequence[Protocol] = ("shift", "affine")
) -> pd.DataFrame:
    """Records with each of the `neighbourhood_sets`, in the column `neighbourhoods`, at the headline radius."""
    sets = neighbourhood_sets(run.net.config.consensus_cells).items()
    matchers = {name: Matcher(with_neighbourhoods(run.net, sides)) for name, sides in sets}
    return _records(run, "neighbourhoods", matchers, pairs, config, protocols)


def _records(
    run: Run,
    column: str,
    matchers: Mapping[str, CropMatcher],
    pairs: Pairs,
    config: EvaluationConfig,
    protocols: Sequence[Protocol] = ("shift",),
) -> pd.DataFrame:
    """Records of each matcher at the headline radius, with its name in a column."""
    parts = []
    for name, matcher in matchers.items():
        for protocol in protocols:
            method, radius = f"{column} {name}", config.headline_radius
            found = records_or_load(run, matcher, method, pairs, protocol, radius, config)
            parts.append(found.assign(**{column: name}))
    return pd.concat(parts, ignore_index=True)


class PositionMatcher(Matcher):
    """The matcher in one pass, whose matches stay at whole cells, take the coarse volume's 3x3 expectation, or refine.

    Args:
        position: one of `POSITIONS`; `fine level` is what the matcher does by default.
    """

    def __init__(self, net: SarOpticalNet, position: Position) -> None:
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {POSITIONS}, got {position!r}")
        super().__init__(net)
        self.position = position

    def match_tiles(
        self, images: PairInput, search_radius: float, seeds: Sequence[int | Sequence[int]] = (0,)
    ) -> list[RawMatches]:
        with torch.no_grad():
            encoded = encode_pair(self.net, images)
        first, second = (image.descriptors for image in encoded)
        masks = encoded[0].valid, encoded[1].valid
        prediction = predict(self.net, first, second, search_radius, *masks)
        fine, refine = self.position == "fine level", self.position != "whole cells"
        return pick_matches(self.net, prediction, first.fine, second.fine, *masks, fine, refine)


def position_records(run: Run, pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """Records under `shift` for each of `POSITIONS`, in the column `position`."""
    matchers: dict[str, CropMatcher] = {position: PositionMatcher(run.net, position) for position in POSITIONS}
    return _records(run, "position", matchers, pairs, config)


def crop_sides(config: EvaluationConfig) -> tuple[int, ...]:
    """Sides of crops to compare, px: shares of the profile's, as multiples of 16."""
    shares = (128 / 208, 160 / 208, 1.0)
    rounded = {max(MULTIPLE, round(share * config.crop_size / MULTIPLE) * MULTIPLE) for share in shares}
    return tuple(sorted(rounded))


def crop_records(run: Run, matchers: Mapping[str, CropMatcher], pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """Records under `shift` for each of `crop_sides`, the same true shifts for all; the columns say crop and method."""
    parts = []
    for side in crop_sides(config):
        own, radius = dataclasses.replace(config, crop_size=side), config.headline_radius
        parts += [records_or_load(run, m, name, pairs, "shift", radius, own) for name, m in matchers.items()]
    return pd.concat(parts, ignore_index=True)


def seed_records(config: BookConfig, split: Split, runs_dir: str | Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Records under `shift`, test part, of the profile's network from several seeds, with the columns seed and run."""
    parts = []
    for seed in seeds:
        run = shipped_or_trained(config.replace(seed=seed), runs_dir, split)
        radius = config.evaluation.headline_radius
        found = records_or_load(run, Matcher(run.net), "one pass", split.test, "shift", radius, config.evaluation)
        parts.append(found.assign(seed=seed, run=run.path.name))
    return pd.concat(parts, ignore_index=True)


def refined_records(
    run: Run, matcher: CropMatcher, name: str, pairs: Pairs, shifts: pd.DataFrame, config: EvaluationConfig
) -> pd.DataFrame:
    """Accuracy under `shift` of the same matches against each of `TRUTHS`; once, then kept with the run.

    Args:
        shifts: as `residual_shift_table` returns; only pairs with a reliable one count, ValueError without any.
    """
    reliable = shifts[shifts["reliable"]].set_index("id")
    known = pairs.subset(pairs.index["id"].isin(reliable.index).to_numpy())
    if not len(known):
        raise ValueError(f"none of the {len(pairs)} pairs has a reliable residual shift; take more or larger pairs")
    make = partial(_against_truths, matcher, known, reliable, config)
    on = {"matcher": matcher, "pairs": known, "shifts": reliable.reset_index(), "config": config}
    found = cached_table(run.path, f"truths-{name}", on, make)
    return found.assign(method=name)


def _against_truths(matcher: CropMatcher, pairs: Pairs, shifts: pd.DataFrame, config: EvaluationConfig) -> pd.DataFrame:
    rows = []
    for pair in tqdm(pairs, "truths", len(pairs), disable=None):
        crops = evaluation_crops(pair, "shift", config)
        matches = matcher.match_crops(crops, config.headline_radius)
        dx, dy = (float(shifts.loc[pair.id, axis]) for axis in ("dx", "dy"))
        for truth, times in TRUTHS.items():
            # What stands at p in the SAR image stands at p + (dx, dy) in the optical one before the known shift.
            errors = match_errors(matches, crops.A_sar_to_optical @ translation(times * dx, times * dy))
            row = {column: getattr(pair, column) for column in INDEX_COLUMNS} | {"truth": truth}
            row |= {f"mma_{t:g}px": mma(errors, t) for t in config.thresholds_px}
            rows.append(row | {"n_matches": len(matches), "commit": commit()})
    return pd.DataFrame(rows)


def differences(
    records: pd.DataFrame, label: str, against: str, values: Sequence[str], by: Sequence[str] = ()
) -> pd.DataFrame:
    """All other rows of a comparison minus the row `against`, over the same pairs; intervals resample scenes.

    Args:
        records: one row a pair and value of `label`, within each group of `by`.

    Returns:
        by, label, against, value, difference, low, high, verdict; ValueError for a group without the row `against`.
    """
    rows = []
    for names, group in records.groupby(list(by), sort=False) if by else [((), records)]:
        base = group[group[label] == against]
        if base.empty:
            raise ValueError(f"no {label} {against!r} among {sorted(group[label].unique())}")
        for name, own in group[group[label] != against].groupby(label, sort=False):
            for value in values:
                found = paired_difference(own, base, value)
                about = dict(zip(by, names, strict=True)) | {label: name, "against": against, "value": value}
                rows.append(about | _difference(found))
    return pd.DataFrame(rows)


def _difference(found: Interval) -> dict[str, float | str]:
    return found.named("difference", "") | {"verdict": verdict(found.low, found.high, found.n_clusters)}
