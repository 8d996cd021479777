"""Registration of pairs with a known displacement, and of unrelated ones, through the whole path of a user."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from rasterio import Affine
from rasterio.io import DatasetReader, MemoryFile
from torch import Tensor
from tqdm import tqdm

from companion.cache import cached_table
from companion.settings import BookConfig
from companion.studies.data import CheckPoints, check_points
from companion.studies.precision import fitted_run
from sarmatch.config import CONFIDENT_PX
from sarmatch.data import open_pairs, split_pairs
from sarmatch.data.pairs import AbsentDatasetError, Pair, Pairs
from sarmatch.data.synthetic import synthetic_pairs
from sarmatch.demo import FOLDER
from sarmatch.io import commit
from sarmatch.matching.matcher import Matcher, load_matcher
from sarmatch.scenes.files import SceneRefusal
from sarmatch.scenes.pipeline import MatchedPair, matched_pair
from sarmatch.scenes.settings import MatchSettings
from sarmatch.scenes.transforms import CE90, MODELS, Agreement, SceneTransform, fit_transform
from sarmatch.training.runs import open_split

OWN = ("n_blocks", "n_checks", "own_median_px", "own_corner_px")
MAX_SHIFT_PX = 40.0  #: Of georeferences, on each axis.
_ERRORS = ("corner_error_px", "check_corner_px", "check_rmse_px", "within_ce90", "rmse_px")


@contextmanager
def as_raster(image: Tensor, shift: ArrayLike = (0.0, 0.0)) -> Iterator[DatasetReader]:
    """An image (C, H, W) in [0, 1] as an 8-bit raster of 10 m px, whose georeference puts it `shift` px too far."""
    values = (image.numpy() * 255).round().astype(np.uint8)
    x, y = np.array([500_000.0, 5_000_000.0]) + np.asarray(shift) * [10.0, -10.0]
    count, height, width = values.shape
    shape: dict[str, Any] = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs="EPSG:32631", transform=Affine(10.0, 0, x, 0, -10.0, y), **shape) as file:
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
def displaced(sar: Tensor, optical: Tensor, shift: ArrayLike, matcher: Matcher) -> Iterator[MatchedPair]:
    """Two images matched with the default settings although the optical one's georeference is `shift` px off."""
    settings = MatchSettings(matcher, progress=False)
    with (
        as_raster(sar) as first,
        as_raster(optical, shift) as second,
        matched_pair(first, second, settings, None, spread=True) as matched,
    ):
        yield matched


def registration_trials(
    matcher: Matcher, pairs: Pairs | Sequence[Pair], n_shifts: int, max_shift_px: float = MAX_SHIFT_PX, seed: int = 0
) -> pd.DataFrame:
    """Register pairs whose optical image is displaced by random sub-pixel shifts, of up to `max_shift_px` on each axis.

    `corner_error_px` is the largest distance at the four corners from the shift applied. Of check points, which know
    what the pair is displaced by itself (NaN where there are none), those nearest to the corners give `own_corner_px`
    (of that displacement) and `check_corner_px`; `within_ce90` is the share within the CE90 stated for its place.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for pair in tqdm(pairs, "registrations", len(pairs), disable=None):
        checks = check_points(pair)
        for shift in rng.uniform(-max_shift_px, max_shift_px, (n_shifts, 2)):
            rows += _trial(matcher, pair, shift, checks)
    return pd.DataFrame(rows)


def _own(pair: Pair, checks: CheckPoints) -> dict[str, float]:
    lengths = pd.Series(np.linalg.norm(checks.xy_optical - checks.xy_sar, axis=1))
    nearest = lengths[checks.nearest(_corners(pair))]
    return dict(zip(OWN, (checks.n_blocks, len(lengths), lengths.median(), nearest.max()), strict=True))


def _corners(pair: Pair) -> np.ndarray:
    """Px (4, 2) of the four corner pixels."""
    height, width = pair.size
    return np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)


def _trial(matcher: Matcher, pair: Pair, shift: np.ndarray, checks: CheckPoints) -> list[dict[str, Any]]:
    """A row a model."""
    start = time.perf_counter()
    with displaced(pair.sar, pair.optical, shift, matcher) as matched:
        agreed, thinned = matched.agreement, matched.thinned
    about = {"id": pair.id, "dx": shift[0], "dy": shift[1], **_evidence(agreed), **_own(pair, checks)}
    about["seconds"] = time.perf_counter() - start
    rows = []
    for model in MODELS:
        row = {**about, "model": model, **dict.fromkeys(_ERRORS, np.nan)}
        if agreed.accepted:
            try:
                ends = thinned.xy_sar, thinned.xy_optical
                row |= _errors(fit_transform(*ends, model, covariance=thinned.covariance), pair, shift, checks)
            except SceneRefusal as refusal:
                row["refused"] = str(refusal)
        rows.append(row)
    return rows


def _evidence(agreed: Agreement) -> dict[str, Any]:
    return {"refused": agreed.reason} | {name: getattr(agreed, name) for name in ("share", "required", "n_thinned")}


def _outcome(sar: Tensor, optical: Tensor, shift: ArrayLike, matcher: Matcher) -> dict[str, Any]:
    try:
        with displaced(sar, optical, shift, matcher) as matched:
            return _evidence(matched.agreement)
    except SceneRefusal as refused:
        reason = re.sub(r"/vsimem/\S+", "(in memory)", str(refused))  # names of rasters in memory
        return {"share": 0.0, "required": 1.0, "n_thinned": 0, "refused": reason}


def _errors(transform: SceneTransform, pair: Pair, shift: np.ndarray, checks: CheckPoints) -> dict[str, float]:
    corners = _corners(pair)
    at_corners = np.linalg.norm(transform(corners) - corners - shift, axis=1).max()
    if not len(checks.xy_sar):
        return {"corner_error_px": at_corners, "rmse_px": transform.rmse_px}
    errors = np.linalg.norm(transform(checks.xy_sar) - checks.xy_optical - shift, axis=1)
    return {
        "corner_error_px": at_corners,
        "check_corner_px": errors[checks.nearest(corners)].max(),
        "check_rmse_px": np.sqrt((errors**2).mean()),
        "within_ce90": (errors <= CE90 * transform.sigma(checks.xy_sar)).mean(),
        "rmse_px": transform.rmse_px,
    }


def unrelated_trials(matcher: Matcher, pairs: Pairs, n: int, side: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Try to register the SAR image of one scene onto the optical image of another, with the default settings.

    A row a pairing; an empty reason in `refused` is a false success. Crops of `side` px are from the upper left.
    """
    rng = np.random.default_rng(seed)
    scene = pairs.index["scene"].to_numpy()
    rows = []
    for _ in tqdm(range(n), desc="unrelated pairings", disable=None):
        i = int(rng.integers(len(pairs)))
        j = int(rng.choice(np.flatnonzero(scene != scene[i])))
        shift = rng.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, 2)
        first, second, part = pairs[i], pairs[j], np.s_[:, :side, :side]
        found = _outcome(first.sar[part], second.optical[part], shift, matcher)
        rows.append({"sar": first.id, "optical": second.id} | found)
    return pd.DataFrame(rows, columns=["sar", "optical", "n_thinned", "share", "required", "refused"])


def success_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Means and medians of `registration_trials` per model.

    A success is a corner error of at most `CONFIDENT_PX`, from the shift applied or at check points (success_checks).
    """
    near = {"success": trials["corner_error_px"], "success_checks": trials["check_corner_px"]}
    judged = trials.assign(refused=trials["refused"] != "", **{name: e <= CONFIDENT_PX for name, e in near.items()})
    return judged.groupby("model", sort=False, as_index=False).agg(
        registrations=("refused", "size"),
        refused=("refused", "mean"),
        success=("success", "mean"),
        success_checks=("success_checks", "mean"),
        median_corner_px=("corner_error_px", "median"),
        median_check_rmse_px=("check_rmse_px", "median"),
        within_ce90=("within_ce90", "mean"),
    )


def false_successes(pairings: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per kind of unrelated pairings: how many, how many accepted, and how close shares came to what is required."""
    rows = []
    for kind, table in pairings.items():
        accepted, margin = (table["refused"] == "").sum(), (table["required"] - table["share"]).min()
        rows.append((kind, len(table), accepted, table["share"].max(), margin))
    return pd.DataFrame(rows, columns=["kind", "pairings", "false_successes", "largest_share", "least_margin"])


def refusal(sar: Tensor, optical: Tensor, matcher: Matcher, shift: ArrayLike = (0.0, 0.0)) -> str:
    """Why two images are refused when the georeference of the optical one is `shift` px off, or `accepted`."""
    return _outcome(sar, optical, shift, matcher)["refused"] or "accepted"


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
    """What the chapter on scenes registers with: the network of `precision.fitted_run`, or the shipped weights by name.

    Networks of small profiles register nothing; some of the real pairs of `s1s2-smoke` may have trained the weights.
    """
    if config.studies.registers_with_shipped:
        return load_matcher("s1s2")
    return fitted_run(config, open_split(config), runs_dir)[1]


def study_or_load(config: BookConfig, runs_dir: Path, matcher: Matcher) -> Study:
    """What the chapter on scenes shows; measured once with this matcher, then read from the store of runs."""
    scenes, studies, seed = scenes_of(config), config.studies, config.seed
    test = chosen = scenes
    if scenes.index["dataset"].iloc[0] == "synthetic":
        chosen = scenes.subset(np.arange(0, len(scenes), 4)[: studies.scene_shifts])  # four pairs show one scene
    else:
        test = split_pairs(open_pairs(config.data, seed), config.data).test

    def kept(name: str, make: Callable[[], pd.DataFrame], pairs: Pairs, n: int, *columns: str) -> pd.DataFrame:
        on = {"matcher": matcher, "pairs": pairs, "n": n, "seed": seed, "columns": columns}
        return cached_table(runs_dir / "scenes", name, on, lambda: make().assign(commit=commit()))

    def unrelated(name: str, pairs: Pairs, n: int, side: int | None) -> pd.DataFrame:
        return kept(name, lambda: unrelated_trials(matcher, pairs, n, side, seed), pairs, n)

    n = studies.scene_shifts
    registrations = partial(registration_trials, matcher, chosen, n, seed=seed)
    return Study(
        kept("registrations", registrations, scenes, n, *OWN, *_ERRORS),
        unrelated("crops", test, studies.unrelated_crops, 256),
        unrelated("unrelated", scenes, studies.unrelated_scenes, None),
    )
