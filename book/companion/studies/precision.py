"""Coverage of conformal radii and quality of covariances on scenes that they were not fitted on.

Tables hold mutual matches, one row each, as `match_table` gives them; intervals resample whole scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from companion.cache import cached_table, confidence_or_load
from companion.shipping import shipped_or_trained
from companion.studies.sensitivity import with_source
from sarmatch.calibration.calibrators import Calibrator
from sarmatch.calibration.confidence import SPREAD, Confidence, fit_calibrator
from sarmatch.calibration.position_error import (
    CONFIDENT_PX,
    COVERAGE,
    Precision,
    fit_precision,
    raw_covariance,
    scene_weights,
    weighted_quantiles,
)
from sarmatch.config import Config, EvaluationConfig
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import MODES, match_table
from sarmatch.evaluation.intervals import cluster_bootstrap
from sarmatch.io import commit
from sarmatch.matching.matcher import Matcher

COVERAGES = (0.5, 0.8, 0.9, 0.95)


class Fitted(NamedTuple):
    """A network with what was fitted for it, and the folder that keeps what is measured of it."""

    matcher: Matcher
    confidence: Confidence
    folder: Path
    about: dict[str, Any]


def fitted_run(config: Config, split: Split, runs_dir: Path) -> Fitted:
    """The run of `shipping.shipped_or_trained` with its confidence."""
    run = shipped_or_trained(config, runs_dir, split)
    confidence = confidence_or_load(run, split)
    about = {"run": run.path.name, "commits": run.provenance["commits"]}
    about |= {name: run.provenance[name] for name in ("profile", "seed", "data_fingerprint")}
    return Fitted(Matcher(run.net, confidence=confidence), confidence, run.path, about)


def measured_or_load(
    fitted: Fitted, pairs: Pairs, part: str, config: EvaluationConfig, mode: str = "single"
) -> pd.DataFrame:
    """Match table of a part of the data under `shift`, made once and kept, see also `labelled`.

    Args:
        part: what the file is called.
        mode: of inference, key of `sarmatch.evaluation.confidence_fit.MODES`.
    """
    matcher = Matcher(fitted.matcher.net, **MODES[mode][0])
    on = {"matcher": matcher, "pairs": pairs, "config": config, "columns": SPREAD}

    def make() -> pd.DataFrame:
        raw = partial(matcher.raw_matches, search_radius=config.headline_radius)
        return match_table(raw, pairs, "shift", config).assign(commit=commit())

    return labelled(cached_table(fitted.folder, f"precision-{part}-{mode}", on, make), pairs, fitted, mode)


def labelled(table: pd.DataFrame, pairs: Pairs, fitted: Fitted, mode: str = "single") -> pd.DataFrame:
    """The table with season, land_cover ("" where unknown) and source of its pairs, and its calibrated confidence."""
    index = pairs.index.set_index("id")
    known = {name: table["id"].map(index[name]).fillna("") for name in ("season", "land_cover") if name in index}
    return with_source(table.assign(**known, confidence=fitted.confidence.calibrators[mode](table)))


def usable_names(table: pd.DataFrame, mode: str = "single") -> tuple[str, ...]:
    """Scores that the mode's confidence is made of, without what this network does not have."""
    return tuple(n for n in MODES[mode][1] if n != "aleatoric" or table["aleatoric"].notna().all())


def with_radius(table: pd.DataFrame, precision: Precision, coverage: float = COVERAGE) -> pd.DataFrame:
    """The table with `radius_px`, and whether the truth lies within it, `covered` (1 or 0)."""
    radius = precision.radius(table["confidence"], raw_covariance(table), coverage)
    return table.assign(radius_px=radius, covered=(table["error_px"] <= radius).astype(float))


def coverage_table(
    table: pd.DataFrame, precision: Precision, by: str | None = None, coverages: Sequence[float] = COVERAGES
) -> pd.DataFrame:
    """Share of matches whose truth lies within their radius, for each coverage asked for.

    Args:
        by: column whose values get rows of their own, "" left out; None takes all matches together.

    Returns:
        columns `by`, n_pairs, n_scenes, n_matches, asked, covered (mean over scenes of the share of their matches) with
        its 95 % interval, worst_scene, of_matches (matches counting alike), median_px and mean_px (of the radii).
    """
    groups = [("all", table)] if by is None else [(name, part) for name, part in table.groupby(by) if name != ""]
    rows = [
        {by or "matches": name} | _covered(with_radius(part, precision, asked), asked)
        for name, part in groups
        for asked in coverages
    ]
    return pd.DataFrame(rows)


def _covered(table: pd.DataFrame, asked: float) -> dict[str, float]:
    counts = {"n_pairs": table["id"].nunique(), "n_scenes": table["scene"].nunique(), "n_matches": len(table)}
    scenes = table.groupby("scene", as_index=False)["covered"].mean()
    found = cluster_bootstrap(scenes, "covered").named("covered")
    shares = {"worst_scene": float(scenes["covered"].min()), "of_matches": float(table["covered"].mean())}
    sizes = {"median_px": float(table["radius_px"].median()), "mean_px": float(table["radius_px"].mean())}
    return counts | {"asked": asked} | found | shares | sizes


def held_out(
    table: pd.DataFrame,
    names: tuple[str, ...],
    coverages: Sequence[float] = COVERAGES,
    scenes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The table once for each coverage (`asked`), with `radius_px` and `covered` from fits on all other scenes alone.

    Args:
        scenes: those to judge; None takes all.
    """
    parts = [table.head(0).assign(asked=0.0, radius_px=0.0, covered=0.0)]
    for scene in table["scene"].unique() if scenes is None else scenes:
        own, others = table[table["scene"] == scene], table[table["scene"] != scene]
        calibrator, precision = _refitted(others, names)
        own = own.assign(confidence=calibrator(own))
        parts += [with_radius(own, precision, c).assign(asked=c) for c in coverages]
    return pd.concat(parts, ignore_index=True)


def _refitted(table: pd.DataFrame, names: tuple[str, ...]) -> tuple[Calibrator, Precision]:
    fit = partial(fit_calibrator, names=names)
    table = table.iloc[::4]  # neighbours hold much the same, and there are hundreds of thousands
    return fit(table), fit_precision(table, fit)


def held_out_by(found: pd.DataFrame, by: str) -> pd.DataFrame:
    """`coverage_table` of what `held_out` returned, by the values of a column, "" left out."""
    groups = found[found[by] != ""].groupby([by, "asked"])
    return pd.DataFrame([{by: name} | _covered(part, asked) for (name, asked), part in groups])


def leave_source_out(
    validation: pd.DataFrame, test: pd.DataFrame, names: tuple[str, ...], coverages: Sequence[float] = COVERAGES
) -> pd.DataFrame:
    """`coverage_table` of each test source from fits on validation scenes of the others; empty for one source."""
    rows = []
    for source in sorted(test["source"].unique()):
        others = validation[validation["source"] != source]
        if others["scene"].nunique() < 2:
            continue
        calibrator, precision = _refitted(others, names)
        own = test[test["source"] == source]
        rows.append(coverage_table(own.assign(confidence=calibrator(own)), precision, "source", coverages))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def other_radii(validation: pd.DataFrame, test: pd.DataFrame, precision: Precision, coverage: float) -> pd.DataFrame:
    """Radii of the error model beside simpler ones of the same coverage, calibrated on the same validation scenes.

    Returns:
        the columns of `coverage_table` from `covered` on, a row a source and kind of radius: constant, in proportion to
        the spread, from confidence without spread, and from both.
    """
    kinds: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
        "one for all": lambda table: np.ones(len(table)),
        "spread": lambda table: np.sqrt(np.trace(precision.covariance(raw_covariance(table)), axis1=1, axis2=2)),
        "1 / confidence": lambda table: 1 / np.maximum(table["confidence"].to_numpy(np.float64), 1e-3),
    }
    made = {}
    for name, size in kinds.items():
        ratio = validation["error_px"].to_numpy() / size(validation)
        radius = weighted_quantiles(ratio, scene_weights(validation), [coverage])[0] * size(test)
        made[name] = test.assign(radius_px=radius, covered=(test["error_px"] <= radius).astype(float))
    made["confidence and spread"] = with_radius(test, precision, coverage)
    rows = [
        {"radius": name, "source": source} | _covered(part, coverage)
        for name, table in made.items()
        for source, part in table.groupby("source")
    ]
    return pd.DataFrame(rows).drop(columns=["n_pairs", "n_scenes", "n_matches", "asked"])


def scene_table(table: pd.DataFrame, precision: Precision, coverage: float = COVERAGE) -> pd.DataFrame:
    """Coverage of each scene, the worst first, beside the mean error vector of its correct matches.

    Returns:
        columns scene, n_pairs, covered, offset_px (length of that vector, an error of the truth rather than of
        matches), median_px.
    """
    rows = []
    for scene, part in with_radius(table, precision, coverage).groupby("scene"):
        common = correct(part)[["error_x", "error_y"]].mean()
        sizes = {"offset_px": float(np.hypot(*common)), "median_px": float(part["radius_px"].median())}
        rows.append({"scene": scene, "n_pairs": part["id"].nunique(), "covered": part["covered"].mean()} | sizes)
    return pd.DataFrame(rows).sort_values("covered", ignore_index=True)


def correct(table: pd.DataFrame) -> pd.DataFrame:
    """The matches that a covariance speaks of: within 3 px."""
    return table[(table["error_px"] <= CONFIDENT_PX) & table["var_x"].notna()]


def squared_distances(table: pd.DataFrame, covariance: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance (N,) of each error: chi-square with two degrees of freedom if all is well."""
    error = table[["error_x", "error_y"]].to_numpy(np.float64)
    return np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)


def covariance_table(
    table: pd.DataFrame, kinds: dict[str, np.ndarray], levels: Sequence[float] = (0.5, 0.9, 0.95)
) -> pd.DataFrame:
    """What several covariances of the same correct matches are worth, by source.

    Args:
        kinds: covariances (N, 2, 2) by name.
        levels: of ellipses.

    Returns:
        columns source, covariance, n_matches, mean_square (mean squared Mahalanobis distance over 2; more than 1 is too
        narrow), share of matches within the ellipse of each level, nll (mean, nats).
    """
    rows = []
    for name, covariance in kinds.items():
        squares = squared_distances(table, covariance)
        nll = squares / 2 + np.log(np.linalg.det(covariance)) / 2 + np.log(2 * np.pi)
        made = pd.DataFrame({"source": table["source"].to_numpy(), "squares": squares, "nll": nll})
        for source, part in made.groupby("source"):
            within = {f"within_{p:g}": float((part["squares"] <= scipy.stats.chi2.ppf(p, 2)).mean()) for p in levels}
            row = {"source": source, "covariance": name, "n_matches": len(part)}
            rows.append(row | {"mean_square": part["squares"].mean() / 2} | within | {"nll": part["nll"].mean()})
    return pd.DataFrame(rows).sort_values(["source", "nll"], ignore_index=True)


def covariances(table: pd.DataFrame, precision: Precision, validation: pd.DataFrame) -> dict[str, np.ndarray]:
    """Raw, fitted, and fitted without direction for the correct matches `table`, and one for all from `validation`."""
    raw = raw_covariance(table)
    full = precision.covariance(raw)
    mean = np.trace(full, axis1=1, axis2=2)[:, None, None] / 2 * np.eye(2)
    constant = float(scene_weights(validation) @ validation["error_px"].to_numpy(np.float64) ** 2) / 2
    return {
        "raw spread": raw + 1e-3 * np.eye(2),  # so that it can be inverted
        "fitted": full,
        "fitted, no direction": mean,
        "one for all": np.tile(constant * np.eye(2), (len(table), 1, 1)),
    }


def errors_by_spread(table: pd.DataFrame, precision: Precision, bins: int = 10) -> pd.DataFrame:
    """Root mean square error of an axis against the stated deviation, in bins of equal numbers, by source."""
    stated = np.sqrt(np.trace(precision.covariance(raw_covariance(table)), axis1=1, axis2=2) / 2)
    rows = []
    for source, part in table.assign(stated=stated).groupby("source"):
        cut = pd.qcut(part["stated"], bins, duplicates="drop")
        for _, some in part.groupby(cut, observed=True):
            measured = float(np.sqrt((some["error_px"] ** 2).mean() / 2))
            rows.append((source, float(np.sqrt((some["stated"] ** 2).mean())), measured, len(some)))
    return pd.DataFrame(rows, columns=["source", "stated_px", "measured_px", "n"])
