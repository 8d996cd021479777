"""How much results depend on choices: labelled pairs, source, split, neighbourhoods, crops, the truth itself."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from companion.cache import cached_table, records_or_load
from companion.intervals import Interval, crossed_bootstrap, paired_difference, verdict
from companion.settings import BookConfig
from companion.shipping import shipped_or_trained
from companion.studies import ablation
from companion.studies.ablation import Variant, labelled
from companion.studies.calibration import stacked
from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.pairs import INDEX_COLUMNS, Pairs
from sarmatch.data.splits import Split, split_pairs
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

SOURCES = {"ombria": "OMBRIA", "sen1-2": "SEN12", "sen12ms": "SEN12"}  #: Of datasets; others are their own source.
SPLITS: tuple[Literal["scene", "patch"], ...] = ("scene", "patch")
POSITIONS = ("whole cells", "3x3 expectation", "fine level")  #: Of a match within its cell, the coarsest first.
TRUTHS = {"raw": 0.0, "refined": 1.0, "opposite": -1.0}  #: How often the estimated residual shift is added to each.


def with_source(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `source` made of its `dataset`."""
    return table.assign(source=table["dataset"].map(lambda name: SOURCES.get(name, name)))


def by_source(scores: pd.DataFrame, make: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A table made of the scores of each source, stacked."""
    return stacked({name: make(part) for name, part in with_source(scores).groupby("source")}, ["source"])


def possible(variants: Sequence[Variant], config: BookConfig, split: Split) -> tuple[Variant, ...]:
    """Variants whose labelled pairs fill a batch, whose crops fit, and that leave a source out if they name one."""
    sources = set(split.train.index["dataset"])

    def fits(v: Variant) -> bool:
        room = v.data.get("crop_size", 0) <= config.data.patch_size
        enough = len(labelled(split, v, 0).train) >= config.training.batch_size
        return room and enough and not (v.datasets and sources <= set(v.datasets))

    return tuple(filter(fits, variants))


def with_shares(table: pd.DataFrame, split: Split) -> pd.DataFrame:
    """A table over the rows of `DATA_EFFICIENCY` with the columns start, share and labelled_pairs behind `row`."""
    rows = [
        (v.name, "pretrained" if v.pretraining else "from scratch", v.share, len(labelled(split, v, 0).train))
        for v in ablation.DATA_EFFICIENCY
    ]
    known = pd.DataFrame(rows, columns=["row", "start", "share", "labelled_pairs"])
    return table[["row"]].merge(known).merge(table)


def shared_test_pairs(config: BookConfig, pairs: Pairs) -> Pairs:
    """The pairs in the test part both of the split by scene and of that by patch; ValueError where there are none."""
    parts = [split_pairs(pairs, dataclasses.replace(config.data, split=by)).test for by in SPLITS]
    common = parts[0].index["id"].isin(parts[1].index["id"]).to_numpy()
    if not common.any():
        raise ValueError(f"no pair lies in both test parts of {len(parts[0])} and {len(parts[1])} pairs; take more")
    return parts[0].subset(common)


def split_leak(config: BookConfig, pairs: Pairs, runs_dir: str | Path) -> pd.DataFrame:
    """`pair_scores` of `both` trained on either split of all pairs, on pairs in neither training, by `split by <s>`."""
    test = spread(shared_test_pairs(config, pairs), config.studies.test_pairs)
    parts = []
    for by in SPLITS:
        own = config.replace(data={"split": by})
        split = split_pairs(pairs, own.data)
        matches = ablation.study_matches(own, [ablation.BY_NAME["both"]], split, runs_dir, test)
        parts.append(matches.assign(row=f"split by {by}"))
    return ablation.pair_scores(pd.concat(parts, ignore_index=True), test, config.evaluation)


def split_gains(scores: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """By patch minus by scene for each value of one way of matching in `split_leak`, with crossed intervals."""
    rows = []
    for value in values:
        both = scores.pivot(index=["seed", "id", "scene"], columns="row", values=value)
        means = {f"by_{by}": float(both[f"split by {by}"].mean()) for by in SPLITS}
        table = (both["split by patch"] - both["split by scene"]).rename("difference").reset_index()
        found = crossed_bootstrap(table, "difference")
        counts = {"n_pairs": table["id"].nunique(), "n_scenes": found.n_clusters}
        rows.append({"value": value} | means | _difference(found) | counts)
    return pd.DataFrame(rows)


def with_neighbourhoods(net: SarOpticalNet, sides: Sequence[int]) -> SarOpticalNet:
    """A copy of a network that aggregates over some of its `consensus_cells` only; ValueError for other sides."""
    known = net.config.consensus_cells
    if not set(sides) <= set(known):
        raise ValueError(f"sides must be among the neighbourhoods {known} of the network, got {sorted(sides)}")
    kept = [i for i, side in enumerate(known) if side in sides]
    cut = copy.deepcopy(net)
    cut.config = dataclasses.replace(net.config, consensus_cells=tuple(known[i] for i in kept))
    rows = [0, *(i + 1 for i in kept)]  # the first scale is that of the cell itself
    cut.coarse_log_scales = nn.Parameter(net.coarse_log_scales.detach()[rows].clone())
    cut.fine_log_scales = nn.Parameter(net.fine_log_scales.detach()[rows].clone())
    return cut


def neighbourhood_sets(sides: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The cell alone, with each side by itself, with the narrowest few, with all; by names like `1+3+7`."""
    sets = [(), *((side,) for side in sides), *(tuple(sides[:n]) for n in range(2, len(sides) + 1))]
    return {"+".join(map(str, (1, *chosen))): chosen for chosen in sets}


def named_records(
    run: Run,
    column: str,
    matchers: Mapping[str, CropMatcher],
    pairs: Pairs,
    config: EvaluationConfig,
    protocols: Sequence[Protocol] = ("shift",),
) -> pd.DataFrame:
    """Records of each matcher at the headline radius, measured once, with its name in a column."""
    parts, radius = [], config.headline_radius
    for (name, matcher), protocol in product(matchers.items(), protocols):
        found = records_or_load(run, matcher, f"{column} {name}", pairs, protocol, radius, config)
        parts.append(found.assign(**{column: name}))
    return pd.concat(parts, ignore_index=True)


class PositionMatcher(Matcher):
    """The matcher in one pass, whose matches are at one of `POSITIONS`; `fine level` is what it does by default."""

    def __init__(self, net: SarOpticalNet, position: str) -> None:
        super().__init__(net)
        self.position = position

    @torch.no_grad()
    def match_tiles(
        self, images: PairInput, search_radius: float, seeds: Sequence[int | Sequence[int]] = (0,)
    ) -> list[RawMatches]:
        encoded = encode_pair(self.net, images)
        first, second = (image.descriptors for image in encoded)
        masks = encoded[0].valid, encoded[1].valid
        prediction = predict(self.net, first, second, search_radius, *masks)
        fine, refine = self.position == "fine level", self.position != "whole cells"
        return pick_matches(self.net, prediction, first.fine, second.fine, *masks, fine, refine)


def crop_sides(config: EvaluationConfig) -> tuple[int, ...]:
    """Sides of crops to compare, px: shares of the profile's, as multiples of 16."""
    shares = (128 / 208, 160 / 208, 1.0)
    rounded = {max(MULTIPLE, round(share * config.crop_size / MULTIPLE) * MULTIPLE) for share in shares}
    return tuple(sorted(rounded))


def crop_records(run: Run, matchers: Mapping[str, CropMatcher], pairs: Pairs, config: EvaluationConfig) -> pd.DataFrame:
    """Records under `shift` for each of `crop_sides`, the same true shifts for all; the columns say crop and method."""
    radius, sizes = config.headline_radius, [dataclasses.replace(config, crop_size=side) for side in crop_sides(config)]
    every = product(sizes, matchers.items())
    parts = [records_or_load(run, matcher, name, pairs, "shift", radius, own) for own, (name, matcher) in every]
    return pd.concat(parts, ignore_index=True)


def seed_records(config: BookConfig, split: Split, runs_dir: str | Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Records under `shift`, test part, of the profile's network from several seeds, with the columns seed and run."""
    parts, radius = [], config.evaluation.headline_radius
    for seed in seeds:
        run = shipped_or_trained(config.replace(seed=seed), runs_dir, split)
        found = records_or_load(run, Matcher(run.net), "one pass", split.test, "shift", radius, config.evaluation)
        parts.append(found.assign(seed=seed, run=run.path.name))
    return pd.concat(parts, ignore_index=True)


def refined_records(
    run: Run, matcher: CropMatcher, name: str, pairs: Pairs, shifts: pd.DataFrame, config: EvaluationConfig
) -> pd.DataFrame:
    """Accuracy under `shift` of the same matches against each of `TRUTHS`; once, then kept with the run.

    Only pairs with a reliable shift of `residual_shift_table` count, ValueError without any.
    """
    reliable = shifts[shifts["reliable"]].set_index("id")
    known = pairs.subset(pairs.index["id"].isin(reliable.index).to_numpy())
    if not len(known):
        raise ValueError(f"none of the {len(pairs)} pairs has a reliable residual shift; take more or larger pairs")

    def measured() -> pd.DataFrame:
        rows = []
        for pair in tqdm(known, "truths", len(known), disable=None):
            crops = evaluation_crops(pair, "shift", config)
            matches = matcher.match_crops(crops, config.headline_radius)
            shift = reliable.loc[pair.id, ["dx", "dy"]].to_numpy(float)
            for truth, times in TRUTHS.items():
                # What stands at p in the SAR image stands at p + shift in the optical one before the known shift.
                errors = match_errors(matches, crops.A_sar_to_optical @ translation(*(times * shift)))
                row = {column: getattr(pair, column) for column in INDEX_COLUMNS} | {"truth": truth}
                row |= {f"mma_{t:g}px": mma(errors, t) for t in config.thresholds_px}
                rows.append(row | {"n_matches": len(matches)})
        return pd.DataFrame(rows).assign(commit=commit())

    on = {"matcher": matcher, "pairs": known, "shifts": reliable.reset_index(), "config": config}
    return cached_table(run.path, f"truths-{name}", on, measured).assign(method=name)


def differences(
    records: pd.DataFrame, label: str, against: str, values: Sequence[str], by: Sequence[str] = ()
) -> pd.DataFrame:
    """All other rows of a comparison minus the row `against`, over the same pairs; intervals resample scenes."""
    rows = []
    for names, group in records.groupby(list(by), sort=False) if by else [((), records)]:
        parts = dict(iter(group.groupby(label, sort=False)))
        for name, value in product((name for name in parts if name != against), values):
            about = dict(zip(by, names, strict=True)) | {label: name, "against": against, "value": value}
            rows.append(about | _difference(paired_difference(parts[name], parts[against], value)))
    return pd.DataFrame(rows)


def _difference(found: Interval) -> dict[str, float | str]:
    return found.named("difference", "") | {"verdict": verdict(found.low, found.high, found.n_clusters)}
