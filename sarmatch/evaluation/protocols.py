"""A model or a baseline over a part of the data: one record a pair, per protocol and search radius (section 4.3)."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Protocol as Interface
from typing import runtime_checkable

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from sarmatch.config import EvaluationConfig, Protocol
from sarmatch.data.crops import EvaluationCrops
from sarmatch.data.pairs import INDEX_COLUMNS, Pair, Pairs
from sarmatch.evaluation.metrics import pair_record
from sarmatch.geometry import (
    Search,
    central_corner,
    coverage,
    inside,
    rotation_scale,
    smooth_field,
    transform_points,
    translation,
    warp,
)
from sarmatch.matching.matches import Matches

PAIRS_AT_ONCE = 16  #: Read, and given to a matcher that takes batches, together.


def evaluation_crops(pair: Pair, protocol: Protocol, config: EvaluationConfig) -> EvaluationCrops:
    """Cut the two images of a protocol from a pair, the same for every method.

    The SAR crop is the central window. The optical one is it too (`aligned`), displaced by up to `max_shift_px` on each
    axis (`shift`), also turned and scaled, at `affine_crop_size` (`affine`), or also bent by a smooth random field,
    on crops 16 px smaller (`deform`). Transforms that leave a pair are redrawn; a pair too small for them is a
    ValueError.
    """
    affine = protocol == "affine"
    crop = {"affine": config.affine_crop_size, "deform": config.crop_size - 16}.get(protocol, config.crop_size)
    sar_to_pair = translation(*central_corner(pair.size, crop, f"pair {pair.id!r}"))
    size = (crop, crop)
    A_sar_to_optical, field = _relative_map(pair, protocol, config, sar_to_pair, crop)
    optical_to_pair = sar_to_pair @ torch.linalg.inv(A_sar_to_optical)
    return EvaluationCrops(
        sar=warp(pair.sar, sar_to_pair, size, mode="nearest"),
        optical=warp(pair.optical, optical_to_pair, size, field=field),
        sar_valid=coverage(pair.valid, sar_to_pair, size),
        optical_valid=coverage(pair.valid, optical_to_pair, size, field),
        A_sar_to_optical=A_sar_to_optical,
        search=Search(None, config.max_rotation_deg, config.scale_range) if affine else Search(None),
        field=field,
    )


def _relative_map(
    pair: Pair, protocol: Protocol, config: EvaluationConfig, sar_to_pair: Tensor, crop: int
) -> tuple[Tensor, Tensor | None]:
    """True map from SAR to optical crop and the field that bends the latter, a function of seed, protocol and id."""
    if protocol == "aligned":
        return torch.eye(3, dtype=torch.float64), None
    rng = np.random.default_rng([config.seed, zlib.crc32(f"{protocol}/{pair.id}".encode())])
    middle = (crop - 1) / 2
    corners = torch.tensor([[0.0, 0], [crop - 1, 0], [0, crop - 1], [crop - 1, crop - 1]], dtype=torch.float64)
    field = None
    if protocol == "deform" and config.deformation_px > 0:
        field = _whole_field(crop, config, rng)
        corners = corners + config.deformation_px * (2 * corners / (crop - 1) - 1)  # as far as the field can lead
    for _ in range(100):
        shift = rng.uniform(-config.max_shift_px, config.max_shift_px, 2)
        A_sar_to_optical = translation(*shift)
        if protocol == "affine":
            angle = rng.uniform(-config.max_rotation_deg, config.max_rotation_deg)
            scale = rng.uniform(*config.scale_range)
            A_sar_to_optical = A_sar_to_optical @ rotation_scale(angle, scale, (middle, middle))
        optical_to_pair = sar_to_pair @ torch.linalg.inv(A_sar_to_optical)
        if bool(inside(transform_points(optical_to_pair, corners), pair.size).all()):
            return A_sar_to_optical, field
    raise ValueError(
        f"pair {pair.id!r} of {pair.size[0]} x {pair.size[1]} px leaves no room for protocol {protocol!r} at "
        f"{crop} px; lower max_shift_px or the crop size"
    )


def _whole_field(crop: int, config: EvaluationConfig, rng: np.random.Generator) -> Tensor:
    """A displacement field that has its full size; draws that would fold the image are drawn again."""
    largest, sigma = config.deformation_px, config.deformation_sigma_px
    for _ in range(20):
        field = smooth_field((crop, crop), largest, sigma, rng)
        if float(field.abs().max()) > 0.999 * largest:
            return field
    raise ValueError(
        f"deformation_px={largest:g} would fold the image, smooth over deformation_sigma_px={sigma:g} only; lower the "
        "former or raise the latter"
    )


class CropMatcher(Interface):
    """What can be evaluated: our matcher and every baseline."""

    def match_crops(self, crops: EvaluationCrops, search_radius: float | None) -> Matches:
        """Match the two crops; the search radius is in px around the same position, None searches everywhere."""


@runtime_checkable
class BatchMatcher(Interface):
    """A matcher to which several pairs are better given together."""

    def match_all_crops(self, crops: Sequence[EvaluationCrops], search_radius: float | None) -> list[Matches]:
        """`CropMatcher.match_crops` of each, all under one protocol."""


def evaluate(
    matcher: CropMatcher,
    pairs: Pairs,
    protocol: Protocol,
    search_radius: float | None,
    config: EvaluationConfig,
    progress: bool = True,
) -> pd.DataFrame:
    """One record a pair: the columns of `INDEX_COLUMNS`, the metrics of `pair_record`, protocol, radius and crop size.

    A pair that cannot be cut as the protocol asks is an error, never silently dropped.
    """
    Search(search_radius)  # rejects what makes no sense before anything is computed
    chosen, rows = spread(pairs, config.max_pairs), []
    with tqdm(total=len(chosen), desc=f"{protocol}, R={search_radius}", disable=None if progress else True) as bar:
        for first in range(0, len(chosen), PAIRS_AT_ONCE):
            batch = [chosen[i] for i in range(first, min(first + PAIRS_AT_ONCE, len(chosen)))]
            crops = [evaluation_crops(pair, protocol, config) for pair in batch]
            if isinstance(matcher, BatchMatcher):
                found = matcher.match_all_crops(crops, search_radius)
            else:
                found = [matcher.match_crops(one, search_radius) for one in crops]
            for pair, one, matches in zip(batch, crops, found, strict=True):
                size = (one.sar.shape[-2], one.sar.shape[-1])
                record = {name: getattr(pair, name) for name in INDEX_COLUMNS}
                record |= pair_record(matches, one.truth, size, config.thresholds_px)
                rows.append(record | {"protocol": protocol, "search_radius": search_radius, "crop_size": size[0]})
            bar.update(len(batch))
    return pd.DataFrame(rows)


def mismatched(pairs: Pairs, spare: Pairs | None = None) -> Pairs:
    """The same SAR images, each with the optical image of another scene: nothing can be matched but by a leak.

    Where all pairs are of one scene, the optical images are those of `spare`; a ValueError where these are of it too.
    """
    alone = pairs.index["scene"].nunique() == 1
    givers = spare if alone and spare is not None else pairs
    scenes, n = givers.index["scene"].to_numpy(), len(givers)
    partners: dict[str, int] = {}
    for i, (name, scene) in enumerate(zip(pairs.index["id"], pairs.index["scene"], strict=True)):
        # Half the list away first, so that the partner is not a neighbour that only counts as another scene.
        order = (np.arange(n) + i + n // 2) % n
        others = order[scenes[order] != scene]
        if not len(others):
            raise ValueError(f"mismatched pairs need at least two scenes, all {n} pairs are of {scene!r}")
        partners[name] = int(others[0])

    def read(row: pd.Series) -> Pair:
        own, other = pairs.read(row), givers[partners[row["id"]]]
        height, width = (min(a, b) for a, b in zip(own.size, other.size, strict=True))
        crop = (..., slice(height), slice(width))
        valid = own.valid[crop] & other.valid[crop]
        return dataclasses.replace(own, sar=own.sar[crop], optical=other.optical[crop], valid=valid)

    # The partner enters the fingerprint, so that no stored record takes these for the real pairs.
    return Pairs(pairs.index.assign(partner=givers.index["id"].to_numpy()[list(partners.values())]), read)


def validation_scores(
    matcher: CropMatcher, pairs: Pairs, config: EvaluationConfig, deformed: bool = False
) -> dict[str, float]:
    """Mean accuracies and number of matches at the headline radius, under `shift` or as the mean over it and `deform`.

    In the latter case those of each protocol stand beside the means, as `shift_mma_3px` and `deform_mma_3px`. Processes
    that train together share the pairs, and each has the scores of all.
    """
    columns = [*(f"mma_{t:g}px" for t in config.thresholds_px), "n_matches"]
    protocols: tuple[Protocol, ...] = ("shift", "deform") if deformed else ("shift",)
    scores, state, chosen = {}, PartialState(), spread(pairs, config.max_pairs)
    own = chosen.subset(np.arange(state.process_index, len(chosen), state.num_processes))
    for protocol in protocols:
        records = evaluate(matcher, own, protocol, config.headline_radius, config, progress=False)
        together = pd.DataFrame(gather_object(records.to_dict("records")))
        scores[protocol] = together.reindex(columns=columns).mean()  # NaN without pairs
    means = (sum(scores.values()) / len(scores)).to_dict()
    apart = {f"{protocol}_{name}": value for protocol in protocols for name, value in scores[protocol].items()}
    return means | (apart if deformed else {})


def spread(pairs: Pairs, at_most: int | None) -> Pairs:
    """At most so many pairs, evenly spaced over the index sorted by scene."""
    if at_most is None or len(pairs) <= at_most:
        return pairs
    by_scene = np.lexsort((pairs.index["id"], pairs.index["scene"]))
    return pairs.subset(np.sort(by_scene[np.linspace(0, len(pairs) - 1, at_most).round().astype(int)]))
