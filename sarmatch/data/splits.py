"""Training, validation and test parts: by scene (the default) or by patch (the paper's stratified split)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sarmatch.config import DataConfig
from sarmatch.data.pairs import SPLIT_COLUMN, PairError, Pairs

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of one sequence of pairs, each in the order of the whole."""

    train: Pairs
    validation: Pairs
    test: Pairs

    @property
    def selection(self) -> Pairs:
        """Validation pairs by whose scores weights are chosen and training stops early."""
        return validation_roles(self.validation)[0]

    @property
    def calibration(self) -> Pairs:
        """Validation pairs of other scenes than `selection`, on which confidence is fitted."""
        return validation_roles(self.validation)[1]


def validation_roles(validation: Pairs) -> tuple[Pairs, Pairs]:
    """`Split.selection` and `Split.calibration`: every third scene by dataset and name, and the others.

    Weights chosen by their score on a scene look better there than elsewhere, so confidence fitted on it would be too
    high. With fewer than 4 scenes both roles take the whole part.
    """
    scenes = validation.index[["dataset", "scene"]].sort_values(["dataset", "scene"]).drop_duplicates("scene")
    if len(scenes) < 4:
        return validation, validation
    chooses = validation.index["scene"].isin(scenes["scene"].iloc[::3]).to_numpy()
    return validation.subset(chooses), validation.subset(~chooses)


def split_pairs(pairs: Pairs, config: DataConfig) -> Split:
    """Split as the config says: `config.split`, `config.split_fractions`, `config.split_seed`.

    Under `scene`, a column `split` of the pairs' table decides instead.
    """
    if config.split == "scene" and SPLIT_COLUMN in pairs.index:
        return split_as_given(pairs)
    split = split_by_scene if config.split == "scene" else split_by_patch
    return split(pairs, config.split_fractions, config.split_seed)


def split_as_given(pairs: Pairs) -> Split:
    """The parts of the column `split`; PairError for other values, an empty part, or a scene in two parts."""
    given, scenes = pairs.index[SPLIT_COLUMN], pairs.index["scene"]
    if unknown := sorted(set(given) - set(PARTS)):
        raise PairError(f"column 'split' must hold {', '.join(PARTS)}; it holds {unknown}")
    shared = given.groupby(scenes).nunique()
    if len(torn := shared.index[(shared > 1) & (shared.index != "")]):
        raise PairError(f"scene {torn[0]!r} stands in more than one part of the column 'split'; give it one")
    if absent := [part for part in PARTS if part not in set(given)]:
        raise PairError(f"column 'split' leaves nothing for {', '.join(absent)}")
    return Split(*(pairs.subset(np.flatnonzero(given == part)) for part in PARTS))


def split_by_scene(pairs: Pairs, fractions: Sequence[float] = (0.70, 0.15, 0.15), seed: int = 0) -> Split:
    """Scene-disjoint split, each dataset divided among the parts by its own scenes.

    Scenes go, largest first, to the part that lacks most pairs. A dataset of three scenes or more occurs in every part;
    of two scenes, in training and test; of one, in training. `seed` decides between equals. PairError where a pair has
    no scene, or scenes are too few for a part.
    """
    index = pairs.index
    unknown = index["id"][index["scene"] == ""]
    if len(unknown):
        raise PairError(
            f"pair {unknown.iloc[0]!r} has no scene, so a scene-disjoint split is impossible; name the scenes (column "
            "'scene' of a manifest) or split by patch (split='patch')"
        )
    rng = np.random.default_rng(seed)
    part = np.zeros(len(index), int)
    for _, rows in sorted(index.groupby("dataset").indices.items()):
        _, scene, sizes = np.unique(index["scene"].to_numpy(str)[rows], return_inverse=True, return_counts=True)
        part[rows] = _share_out(sizes, fractions, rng)[scene]
    return _split(pairs, part, fractions)


def _share_out(sizes: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part (0 training, 1 validation, 2 test) of each scene of one dataset."""
    wanted = [p for p in (0, 2, 1) if fractions[p] > 0][: len(sizes)]  # few scenes: training first, then test
    need = np.full(3, -np.inf)
    need[wanted] = np.asarray(fractions)[wanted] * sizes.sum()
    tie_break = rng.permutation(3)
    part, empty = np.zeros(len(sizes), int), set(wanted)
    order = np.lexsort([rng.permutation(len(sizes)), -sizes])
    for done, scene in enumerate(order):
        last_chance = len(sizes) - done == len(empty)
        candidates = sorted(empty if last_chance else wanted)
        part[scene] = max(candidates, key=lambda p: (need[p], tie_break[p]))
        need[part[scene]] -= sizes[scene]
        empty.discard(int(part[scene]))
    return part


def split_by_patch(pairs: Pairs, fractions: Sequence[float] = (0.70, 0.15, 0.15), seed: int = 0) -> Split:
    """The paper's split over patches, stratified by season and land cover (section 4.1), with exact totals.

    Training and validation get their shares rounded, test the rest: of 180,662 pairs 126,463 / 27,099 / 27,100. Patches
    of one scene overlap or touch, so parts are not independent (`leakage`).
    """
    n_train, n_validation = (round(share * len(pairs)) for share in fractions[:2])
    stratum = pairs.index.groupby(["season", "land_cover"], sort=True).ngroup().to_numpy()
    sizes = np.bincount(stratum)
    train = _apportion(sizes, n_train)
    validation = _apportion(sizes - train, min(n_validation, len(pairs) - n_train))
    shuffled = np.random.default_rng(seed).permutation(len(pairs))
    rank = np.empty(len(pairs), int)  # position within the shuffled stratum
    rank[shuffled] = pd.Series(stratum[shuffled]).groupby(stratum[shuffled]).cumcount()
    part = (rank >= train[stratum]).astype(int) + (rank >= (train + validation)[stratum])
    return _split(pairs, part, fractions)


def _apportion(sizes: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total`, at most one off `sizes * total / sizes.sum()` (method of largest remainders)."""
    share, remainder = np.divmod(sizes * total, max(int(sizes.sum()), 1))
    share[np.argsort(-remainder, kind="stable")[: total - int(share.sum())]] += 1
    return share


def leakage(split: Split) -> float:
    """Share of test pairs whose scene also occurs in training, in [0, 1]; an unknown scene counts as one scene."""
    return float(split.test.index["scene"].isin(set(split.train.index["scene"])).mean())


def _split(pairs: Pairs, part: np.ndarray, fractions: Sequence[float]) -> Split:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares in [0, 1] that sum to 1, got {tuple(fractions)}")
    parts = [pairs.subset(np.flatnonzero(part == p)) for p in range(3)]
    for name, share, rows in zip(("training", "validation", "test"), fractions, parts, strict=True):
        if share > 0 and not len(rows):
            raise PairError(
                f"{len(pairs)} pairs of {pairs.index['scene'].nunique()} scenes leave nothing for {name} at fractions "
                f"{tuple(fractions)}; add pairs or scenes, or give that part the fraction 0"
            )
    return Split(*parts)
