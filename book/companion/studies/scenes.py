"""Registration judged: pairs with a known displacement, and unrelated ones, through the whole path of a user.

Each trial writes both images to rasters in memory, the optical one with a georeference that is off by a known shift.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rasterio import Affine
from rasterio.io import DatasetReader, MemoryFile
from torch import Tensor
from tqdm import tqdm

from companion.cache import cached_table, confidence_or_load
from companion.settings import BookConfig
from companion.shipping import shipped_or_trained
from companion.studies.groundtruth import CheckPoints, check_points
from sarmatch.data import open_pairs, split_pairs
from sarmatch.data.pairs import AbsentDatasetError, Pair, Pairs
from sarmatch.data.synthetic import synthetic_pairs
from sarmatch.demo import FOLDER
from sarmatch.io import commit
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pipeline import MatchedPair, matched_pair
from sarmatch.scenes.settings import MatchSettings, Model
from sarmatch.scenes.transforms import CE90, MODELS, SceneTransform, fit_transform
from sarmatch.training.runs import open_split

OWN = ("n_blocks", "n_checks", "own_median_px", "own_corner_px")
_ERRORS = ("corner_error_px", "check_corner_px", "check_rmse_px", "within_ce90", "rmse_px")


@contextmanager
def as_raster(image: Tensor, shift: Sequence[float] | np.ndarray = (0.0, 0.0)) -> Iterator[DatasetReader]:
    """An image (C, H, W) in [0, 1] as an 8-bit raster of 10 m px, whose georeference puts it `shift` px too far."""
    values = (image.numpy() * 255).round().astype(np.uint8)
    transform = Affine(10.0, 0, 500_000.0 + 10.0 * shift[0], 0, -10.0, 5_000_000.0 - 10.0 * shift[1])
    count, height, width = values.shape
    shape: dict[str, Any] = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs="EPSG:32631", transform=transform, **shape) as file:
            file.write(values)
        with memory.open() as file:
            yield file


def example_files(config: BookConfig) -> tuple[Path, Path]:
    """A SAR and an optical GeoTIFF of one place: the first UTM pair of a profile's data, else the bundled pair."""
    root = Path(config.data.root or "")
    for sar in sorted(root.glob("terramesh/S1RTC/*.tif")) if config.data.root else ():
        optical = root / "terramesh" / "S2L2A" / sar.name
        if optical.is_file():
            return sar, optical
    return FOLDER / "sar.tif", FOLDER / "optical.tif"


@contextmanager
def _matched(
    sar: Tensor, optical: Tensor, shift: Sequence[float] | np.ndarray, matcher: Matcher
) -> Iterator[MatchedPair]:
    settings = MatchSettings(matcher, progress=False)
    with (
        as_raster(sar) as first,
        as_raster(optical, shift) as second,
        matched_pair(first, second, settings, None, spread=True) as matched,
    ):
        yield matched


def displaced(pair: Pair, shift: Sequence[float] | np.ndarray, matcher: Matcher) -> AbstractContextManager[MatchedPair]:
    """A pair matched with the default settings although the optical image's georeference is `shift` px off."""
    return _matched(pair.sar, pair.optical, shift, matcher)


def registration_trials(
    matcher: Matcher,
    pairs: Pairs | Sequence[Pair],
    n_shifts: int,
    max_shift_px: float = 40.0,
    seed: int = 0,
    models: Sequence[Model] = MODELS,
) -> pd.DataFrame:
    """Register pairs whose optical image is displaced by random sub-pixel shifts, of up to `max_shift_px` on each axis.

    Returns:
        one row a pair, shift and model: id, dx, dy, model, refused (the reason, or empty), share and required share of
        agreeing matches, rmse_px (of the matches), seconds; corner_error_px, the largest distance at the four corners
        from the shift applied; and at check points, which know what the pair is displaced by itself (NaN where there
        are none): n_blocks, n_checks, own_median_px and own_corner_px (of that displacement; the latter is the largest
        at the check points nearest to the corners), check_rmse_px, check_corner_px (at the same ones), within_ce90
        (share of check points that lie within the CE90 stated for their place).
    """
    rng = np.random.default_rng(seed)
    rows = []
    jobs = [(pair, rng.uniform(-max_shift_px, max_shift_px, 2)) for pair in pairs for _ in range(n_shifts)]
    checks: dict[str, CheckPoints] = {}
    for pair, shift in tqdm(jobs, desc="registrations", disable=None):
        if pair.id not in checks:
            checks[pair.id] = check_points(pair)
        rows.extend(_trial(matcher, pair, shift, checks[pair.id], models))
    return pd.DataFrame(rows)


def own_displacements(trials: pd.DataFrame) -> pd.DataFrame:
    """How far pairs of `registration_trials` are displaced by themselves: a row a pair, id and the columns of `OWN`."""
    return trials.drop_duplicates("id")[["id", *OWN]].reset_index(drop=True)


def _own(pair: Pair, checks: CheckPoints) -> dict[str, float]:
    lengths = np.linalg.norm(checks.xy_optical - checks.xy_sar, axis=1)
    nearest = lengths[checks.nearest(_corners(pair))]
    ends = (float(np.median(lengths)), float(nearest.max())) if len(lengths) else (np.nan, np.nan)
    return dict(zip(OWN, (checks.n_blocks, len(lengths), *ends), strict=True))


def _corners(pair: Pair) -> np.ndarray:
    """Px (4, 2) of the four corner pixels."""
    height, width = pair.size
    return np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)


def _trial(
    matcher: Matcher, pair: Pair, shift: np.ndarray, checks: CheckPoints, models: Sequence[Model]
) -> list[dict[str, Any]]:
    start = time.perf_counter()
    about = {"id": pair.id, "dx": shift[0], "dy": shift[1]}
    with displaced(pair, shift, matcher) as matched:
        agreed, thinned = matched.agreement, matched.thinned
    about |= {"refused": agreed.reason, "share": agreed.share, "required": agreed.required}
    about |= {"n_thinned": agreed.n_thinned, **_own(pair, checks), "seconds": time.perf_counter() - start}
    rows = []
    for model in models:
        row = {**about, "model": model, **dict.fromkeys(_ERRORS, np.nan)}
        if agreed.accepted:
            try:
                ends = thinned.xy_sar, thinned.xy_optical
                row |= _errors(fit_transform(*ends, model, covariance=thinned.covariance), pair, shift, checks)
            except SceneRefusal as refusal:
                row["refused"] = str(refusal)
        rows.append(row)
    return rows


def _errors(transform: SceneTransform, pair: Pair, shift: np.ndarray, checks: CheckPoints) -> dict[str, float]:
    corners = _corners(pair)
    furthest = float(np.linalg.norm(transform(corners) - corners - shift, axis=1).max())
    found = {"corner_error_px": furthest, "rmse_px": transform.rmse_px}
    if len(checks.xy_sar):
        errors = np.linalg.norm(transform(checks.xy_sar) - checks.xy_optical - shift, axis=1)
        found["check_corner_px"] = float(errors[checks.nearest(corners)].max())
        found["check_rmse_px"] = float(np.sqrt((errors**2).mean()))
        found["within_ce90"] = float((errors <= CE90 * transform.sigma(checks.xy_sar)).mean())
    return found


def unrelated_trials(
    matcher: Matcher, pairs: Pairs, n: int, side: int | None = None, seed: int = 0, max_shift_px: float = 40.0
) -> pd.DataFrame:
    """Try to register the SAR image of one scene onto the optical image of another, with the default settings.

    Args:
        pairs: of at least two scenes.
        side: of crops from the upper left, px; None takes whole images.

    Returns:
        one row a pairing; an empty reason in `refused` is a false success.
    """
    rng = np.random.default_rng(seed)
    scene = pairs.index["scene"].to_numpy()
    rows = []
    for _ in tqdm(range(n), desc="unrelated pairings", disable=None):
        i = int(rng.integers(len(pairs)))
        j = int(rng.choice(np.flatnonzero(scene != scene[i])))
        shift = rng.uniform(-max_shift_px, max_shift_px, 2)
        first, second = pairs[i], pairs[j]
        part = np.s_[:, :side, :side]
        row: dict[str, Any] = {"sar": first.id, "optical": second.id, "share": 0.0, "required": 1.0, "n_thinned": 0}
        try:
            with _matched(first.sar[part], second.optical[part], shift, matcher) as matched:
                agreed = matched.agreement
                row |= {"share": agreed.share, "required": agreed.required, "refused": agreed.reason}
                row["n_thinned"] = agreed.n_thinned
        except SceneRefusal as refused:
            row["refused"] = str(refused)
        rows.append(row)
    return pd.DataFrame(rows, columns=["sar", "optical", "n_thinned", "share", "required", "refused"])


def success_table(trials: pd.DataFrame, threshold_px: float = 3.0) -> pd.DataFrame:
    """Per model: registrations, share refused, shares within a corner error, medians, share of points within CE90.

    A success is a corner error of at most the threshold, from the shift applied (success) or at the check points
    nearest to the corners (success_checks).
    """
    rows = []
    for model, group in trials.groupby("model", sort=False):
        rows.append(
            {
                "model": model,
                "registrations": len(group),
                "refused": float((group["refused"] != "").mean()),
                "success": float((group["corner_error_px"] <= threshold_px).mean()),
                "success_checks": float((group["check_corner_px"] <= threshold_px).mean()),
                "median_corner_px": float(group["corner_error_px"].median()),
                "median_check_rmse_px": float(group["check_rmse_px"].median()),
                "within_ce90": float(group["within_ce90"].mean()),
            }
        )
    return pd.DataFrame(rows)


def false_successes(pairings: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per kind of unrelated pairings: how many, how many accepted, and how close shares came to what is required."""
    rows = []
    for kind, table in pairings.items():
        accepted = int((table["refused"] == "").sum())
        row: dict[str, Any] = {"kind": kind, "pairings": len(table), "false_successes": accepted}
        row |= {"largest_share": table["share"].max(), "least_margin": (table["required"] - table["share"]).min()}
        rows.append(row)
    return pd.DataFrame(rows)


def refusal(
    pair: Pair,
    matcher: Matcher,
    sar: np.ndarray | None = None,
    optical: np.ndarray | None = None,
    shift: Sequence[float] = (0.0, 0.0),
) -> str:
    """Why a pair is refused when one of its images is replaced by an array (C, H, W), or its georeference shifted."""

    def image(own: Tensor, other: np.ndarray | None) -> Tensor:
        return own if other is None else torch.from_numpy(np.ascontiguousarray(other, np.float32))

    try:
        with _matched(image(pair.sar, sar), image(pair.optical, optical), shift, matcher) as matched:
            return matched.agreement.reason or "accepted"
    except SceneRefusal as refused:
        return re.sub(r"/vsimem/\S+", "(in memory)", str(refused))  # names of rasters in memory


class Study(NamedTuple):
    """Tables of `registration_trials` on scenes, and of `unrelated_trials` on crops and on whole scenes."""

    registrations: pd.DataFrame
    unrelated_crops: pd.DataFrame
    unrelated_scenes: pd.DataFrame


def scenes_of(config: BookConfig) -> Pairs:
    """The large scenes of a profile: those of 1024 px where its data hold them, else generated ones."""
    if config.data.source == "manifest":
        with suppress(AbsentDatasetError):  # a folder of OMBRIA alone has none
            return open_pairs(config.replace(data={"datasets": ("scenes",)}).data, config.seed)
    return synthetic_pairs(8, max(256, 3 * config.data.patch_size), config.seed + 1)


def matcher_of(config: BookConfig, runs_dir: Path) -> Matcher:
    """What the chapter on scenes registers with: the network of `shipping.shipped_or_trained` with its confidence.

    Profiles whose networks are too small for it take the shipped weights by name (`studies.registers_with_shipped`);
    some of the real pairs of `s1s2-smoke` may have trained these.
    """
    if config.studies.registers_with_shipped:
        return load_matcher("s1s2")
    split = open_split(config)
    run = shipped_or_trained(config, runs_dir, split)
    return Matcher(run.net, confidence=confidence_or_load(run, split))


def study_or_load(config: BookConfig, runs_dir: Path, matcher: Matcher) -> Study:
    """What the chapter on scenes shows; measured once with this matcher, then read from the store of runs."""
    scenes = scenes_of(config)
    generated = scenes.index["dataset"].iloc[0] == "synthetic"
    test = scenes if generated else split_pairs(open_pairs(config.data, config.seed), config.data).test
    studies = config.studies
    n_shifts, n_crops, n_scenes = studies.scene_shifts, studies.unrelated_crops, studies.unrelated_scenes
    chosen = [scenes[i] for i in range(0, len(scenes), 4 if generated else 1)]  # four generated pairs show one scene
    chosen = chosen[:n_shifts] if generated else chosen
    seed = config.seed

    def kept(name: str, make: Callable[[], pd.DataFrame], pairs: Pairs, n: int, *columns: str) -> pd.DataFrame:
        on = {"matcher": matcher, "pairs": pairs, "n": n, "seed": seed, "columns": columns}
        return cached_table(runs_dir / "scenes", name, on, lambda: make().assign(commit=commit()))

    def registrations() -> pd.DataFrame:
        return registration_trials(matcher, chosen, n_shifts, seed=seed)

    return Study(
        kept("registrations", registrations, scenes, n_shifts, *OWN, *_ERRORS),
        kept("crops", lambda: unrelated_trials(matcher, test, n_crops, 256, seed), test, n_crops),
        kept("unrelated", lambda: unrelated_trials(matcher, scenes, n_scenes, None, seed), scenes, n_scenes),
    )
