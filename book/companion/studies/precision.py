"""Coverage of conformal radii and quality of covariances on scenes they were not fitted on, by whole scenes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from companion.cache import cached_table, confidence_or_load
from companion.intervals import cluster_bootstrap
from companion.settings import BookConfig
from companion.shipping import shipped_or_trained
from companion.studies.calibration import stacked
from companion.studies.sensitivity import with_source
from sarmatch.calibration.confidence import SPREAD, fit_calibrator
from sarmatch.calibration.position_error import (
    COVERAGE,
    Precision,
    fit_precision,
    raw_covariance,
    scene_weights,
    weighted_quantiles,
)
from sarmatch.config import CONFIDENT_PX, EvaluationConfig
from sarmatch.data.pairs import Pairs
from sarmatch.data.splits import Split
from sarmatch.evaluation.confidence_fit import MODES, collect_matches
from sarmatch.io import commit
from sarmatch.matching.cues import CUES
from sarmatch.matching.matcher import Matcher
from sarmatch.training.runs import Run

COVERAGES = (0.5, 0.8, 0.9, 0.95)


def fitted_run(config: BookConfig, split: Split, runs_dir: Path) -> tuple[Run, Matcher]:
    """The run of `shipping.shipped_or_trained`, and its network with its confidence."""
    run = shipped_or_trained(config, runs_dir, split)
    return run, Matcher(run.net, confidence=confidence_or_load(run, split))


def measured_or_load(run: Run, matcher: Matcher, pairs: Pairs, part: str, config: EvaluationConfig) -> pd.DataFrame:
    """`match_table` of a part of the data in one pass under `shift`, made once and kept.

    With season and land_cover ("" where unknown), source, and the calibrated confidence of a matcher of `fitted_run`.
    """
    raw = Matcher(run.net)
    on = {"matcher": raw, "pairs": pairs, "config": config, "columns": [*CUES, *SPREAD]}

    def make() -> pd.DataFrame:
        return collect_matches(raw, part, pairs, config, "shift").assign(commit=commit())

    table = cached_table(run.path, f"precision-{part}-single", on, make)
    index = pairs.index.set_index("id")
    known = {name: table["id"].map(index[name]).fillna("") for name in ("season", "land_cover")}
    assert matcher.confidence is not None
    return with_source(table.assign(**known, confidence=matcher.confidence.calibrators["single"](table)))


def within(table: pd.DataFrame, radius: np.ndarray, asked: float) -> pd.DataFrame:
    """The table with `radius_px`, whether the truth lies within it, `covered` (1 or 0), and the coverage `asked`."""
    return table.assign(radius_px=radius, covered=(table["error_px"] <= radius).astype(float), asked=asked)


def with_radius(table: pd.DataFrame, precision: Precision, asked: float = COVERAGE) -> pd.DataFrame:
    """`within` the radii of the error model."""
    return within(table, precision.radius(table["confidence"], raw_covariance(table), asked), asked)


def coverage_by(found: pd.DataFrame, by: str) -> pd.DataFrame:
    """Share of matches of `with_radius` or `held_out` whose truth lies within their radius, by a column, "" left out.

    `covered` is the mean over scenes of the share of their matches; in `of_matches` matches count alike.
    """
    rows = []
    for (name, asked), part in found[found[by] != ""].groupby([by, "asked"]):
        scenes = part.groupby("scene", as_index=False)["covered"].mean()
        counts = {"n_pairs": part["id"].nunique(), "n_scenes": len(scenes), "n_matches": len(part), "asked": asked}
        shares = {"worst_scene": scenes["covered"].min(), "of_matches": part["covered"].mean()}
        sizes = {"median_px": part["radius_px"].median(), "mean_px": part["radius_px"].mean()}
        rows.append({by: name} | counts | cluster_bootstrap(scenes, "covered").named("covered") | shares | sizes)
    return pd.DataFrame(rows)


def coverage_table(
    table: pd.DataFrame, precision: Precision, by: str = "matches", coverages: Sequence[float] = COVERAGES
) -> pd.DataFrame:
    """`coverage_by` of the radii of the error model for each coverage asked for; by default of all matches together."""
    table = table.assign(matches="all")
    parts = [coverage_by(with_radius(table, precision, asked), by) for asked in coverages]
    return pd.concat(parts).sort_values([by, "asked"], ignore_index=True)


def held_out(
    known: pd.DataFrame,
    table: pd.DataFrame,
    by: str,
    coverages: Sequence[float] = COVERAGES,
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A table once for each coverage, with radii from fits on matches of all other values of the column `by` alone.

    Where the `known` matches leave fewer than two scenes to fit on, nothing is judged.
    """
    names = (n for n in MODES["single"][1] if n != "aleatoric" or known["aleatoric"].notna().all())
    fit = partial(fit_calibrator, names=tuple(names))
    parts = [table.head(0).assign(asked=0.0, radius_px=0.0, covered=0.0)]
    for group in table[by].unique() if groups is None else groups:
        own, others = table[table[by] == group], known[known[by] != group]
        if others["scene"].nunique() > 1:
            others = others.iloc[::4]  # neighbours hold much the same, and there are hundreds of thousands
            own = own.assign(confidence=fit(others)(own))
            precision = fit_precision(others, fit)
            parts += [with_radius(own, precision, asked) for asked in coverages]
    return pd.concat(parts, ignore_index=True)


def other_radii(validation: pd.DataFrame, test: pd.DataFrame, precision: Precision, coverage: float) -> pd.DataFrame:
    """`coverage_by` source of the error model's radii and of simpler ones, calibrated on the same validation scenes."""
    kinds: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
        "one for all": lambda table: np.ones(len(table)),
        "spread": lambda table: np.sqrt(np.trace(precision.covariance(raw_covariance(table)), axis1=1, axis2=2)),
        "1 / confidence": lambda table: 1 / np.maximum(table["confidence"].to_numpy(np.float64), 1e-3),
    }
    made = {}
    for name, size in kinds.items():
        ratio = validation["error_px"].to_numpy() / size(validation)
        scale = weighted_quantiles(ratio, scene_weights(validation), [coverage])[0]
        made[name] = within(test, scale * size(test), coverage)
    made["confidence and spread"] = with_radius(test, precision, coverage)
    rows = stacked({name: coverage_by(table, "source") for name, table in made.items()}, ["radius"])
    return rows.drop(columns=["n_pairs", "n_scenes", "n_matches", "asked"])


def scene_table(table: pd.DataFrame, precision: Precision) -> pd.DataFrame:
    """Coverage of each scene, the worst first, beside the length of the mean error of its correct matches, an error of
    the truth rather than of matches."""
    scenes = with_radius(table, precision).groupby("scene")
    found = scenes.agg(n_pairs=("id", "nunique"), covered=("covered", "mean"), median_px=("radius_px", "median"))
    vectors = correct(table).groupby("scene")[["error_x", "error_y"]]
    found.insert(2, "offset_px", vectors.apply(lambda errors: float(np.hypot(*errors.mean()))).astype(float))
    return found.reset_index().sort_values("covered", ignore_index=True)


def correct(table: pd.DataFrame) -> pd.DataFrame:
    """The matches that a covariance speaks of."""
    return table[(table["error_px"] <= CONFIDENT_PX) & table["var_x"].notna()]


def covariance_table(table: pd.DataFrame, kinds: dict[str, np.ndarray]) -> pd.DataFrame:
    """What covariances (N, 2, 2) of the same correct matches are worth, by source.

    Means of the squared Mahalanobis distance over 2 (more than 1 is too narrow) and of the nll (nats), and shares of
    matches within the ellipse of each level.
    """
    parts = {}
    error = table[["error_x", "error_y"]].to_numpy(np.float64)
    for name, covariance in kinds.items():
        squares = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)  # chi-square if all is well
        made = pd.DataFrame({"source": table["source"].to_numpy(), "n_matches": 1, "mean_square": squares / 2})
        made = made.assign(**{f"within_{p:g}": squares <= scipy.stats.chi2.ppf(p, 2) for p in (0.5, 0.9, 0.95)})
        made["nll"] = squares / 2 + np.log(np.linalg.det(covariance)) / 2 + np.log(2 * np.pi)
        sources = made.groupby("source")
        parts[name] = sources.mean().assign(n_matches=sources.size()).reset_index()
    found = stacked(parts, ["covariance"]).sort_values(["source", "nll"], ignore_index=True)
    return found[["source", "covariance", *found.columns[2:]]]


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
    table = table.assign(stated=stated)
    bin_ = table.groupby("source")["stated"].transform(pd.qcut, bins, labels=False, duplicates="drop")
    found = table.groupby(["source", bin_.rename("bin")]).agg(
        stated_px=("stated", lambda x: np.sqrt((x**2).mean())),
        measured_px=("error_px", lambda x: np.sqrt((x**2).mean() / 2)),
        n=("stated", "size"),
    )
    return found.droplevel("bin").reset_index().astype({"measured_px": np.float64})
