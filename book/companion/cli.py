"""`python -m companion`: the studies of the book, the comparison of methods, and the book itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from sarmatch.cli import ProfileName, run_app

if TYPE_CHECKING:
    from pandas import DataFrame

    from companion.settings import BookConfig

StudyName = Literal["ablation", "data", "transfer", "settings"]


# long because the help is generated from the docstring
def study(
    name: Positional[StudyName],
    profile: ProfileName = "demo",
    data: Path | None = None,
    runs: Path | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> int:
    """Train and measure all rows of a study that the data allow; stopped at any moment, it goes on where it was.

    Args:
        name: ablation (table 3), data (fewer labelled pairs), transfer (one source only) or settings.
        profile: size of the trainings and kind of the data.
        data: folder of the data, for the profiles on real data.
        runs: store of runs; default `runs` in the checkout.
        output: also write the records, .parquet or .csv: one a training, test pair and way of matching (`voting`).
    """
    from companion.intervals import with_intervals
    from companion.studies import ablation
    from companion.studies.sensitivity import possible
    from sarmatch.evaluation.protocols import spread
    from sarmatch.io import write_table
    from sarmatch.training.runs import open_split

    config = ablation.studied(_config(profile, data, output), name)
    split = open_split(config)
    variants = possible(ablation.STUDIES[name], config, split)
    if absent := [variant.name for variant in ablation.STUDIES[name] if variant not in variants]:
        print(f"these data are too few, or of one source, for: {', '.join(absent)}", file=sys.stderr)
    matches = ablation.study_matches(config, variants, split, _runs(runs))
    scores = ablation.pair_scores(matches, spread(split.test, config.studies.test_pairs), config.evaluation)
    print(f"{_setting(config, config.evaluation.headline_radius)}; 95 % for other seeds and scenes")
    calibrated = ablation.calibration_table(matches)
    for voting, title in ((True, "aggregated over neighbours"), (False, "each cell by itself, one pass")):
        part = scores[scores["voting"] == voting]
        table = ablation.metrics_table(part, ["mma_1px", "mma_3px", "rmse_px", "n_matches"])
        table = table.merge(calibrated, on="row", how="left") if voting else table
        print(f"\n{title}\n{with_intervals(table, 3).to_string(index=False)}")
    if output is not None:
        write_table(scores, output, "records")
    return 0


# long because the help is generated from the docstring
def compare(
    profile: ProfileName = "demo",
    data: Path | None = None,
    runs: Path | None = None,
    search_radius: float | None = 32.0,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> int:
    """Measure our network and all other methods on the same test pairs; stopped at any moment, it goes on.

    Takes the shipped weights where they are of this profile and these data, else trains the profile's network; then
    trains all learned methods, and our network once more, with one short budget.

    Args:
        profile: whose network, data, split and crops to use.
        data: folder of the data, for the profiles on real data.
        runs: store of runs; default `runs` in the checkout.
        search_radius: px around the predicted position; None searches the whole image.
        output: also write the records, .parquet or .csv: one a method and test pair.
    """
    from companion.shipping import shipped_or_trained
    from companion.studies import comparison
    from companion.studies.learned_baselines import peer_matchers, trained_peers, training_table
    from sarmatch.geometry import Search
    from sarmatch.io import write_table
    from sarmatch.training.runs import open_split

    Search(search_radius)  # rejects what makes no sense before hours of training
    config = _config(profile, data, output)
    split = open_split(config)
    run = shipped_or_trained(config, _runs(runs), split)
    trainings = trained_peers(config, split, _runs(runs))
    compared = comparison.methods(run.net, config.evaluation.crop_size, peer_matchers(trainings))
    records, _ = comparison.compare(run, compared, split, config, search_radius)
    print(f"{_setting(config, search_radius)}; 95 % for other scenes")
    _print_comparison(records, training_table(trainings, config)[["method", "parameters", "steps", "seconds"]])
    if output is not None:
        write_table(records, output, "records")
    return 0


def _print_comparison(records: DataFrame, budget: DataFrame) -> None:
    from companion.intervals import with_intervals
    from companion.studies.comparison import ranked, registration_table, without_packages

    print(with_intervals(ranked(records, ["mma_1px", "mma_3px", "n_matches"]), 3).to_string(index=False))
    print(f"\ntrained at equal budget\n{budget.to_string(index=False, float_format='%.0f')}")
    for name in without_packages():
        print(f"skipped {name}: its package is not installed (sarmatch[peers])")
    print(f"\nimages registered\n{registration_table(records).to_string(index=False, float_format='%.2f')}")


def _config(profile: str, data: Path | None, output: Path | None) -> BookConfig:
    """The configuration; rejects before hours of training an output that could not be written."""
    from companion.settings import book_profile
    from sarmatch.io import TABLES, check_output

    if output is not None:
        check_output(output, "records", TABLES)
    return book_profile(profile, str(data) if data else None)


def _setting(config: BookConfig, radius: float | None) -> str:
    where = "the whole image" if radius is None else f"search radius {radius:g} px"
    return f"protocol shift, {where}, {config.evaluation.crop_size} px crops, test part"


def book(
    profile: ProfileName | None = None,
    data: Path | None = None,
    out: Path | None = None,
    runs: Path | None = None,
    chapters: tuple[str, ...] = (),
    no_site: bool = False,
    publish: bool = False,
    workers: int | None = None,
) -> int:
    """Execute the chapters into a staged copy of the book and build the site there.

    Args:
        profile: what the chapters run on; default demo, with --publish s1s2.
        data: folder of the data, for the profiles on real data.
        out: the copy is made in OUT/PROFILE/book; default `build` in the checkout.
        runs: store of trained runs; what it holds is loaded; default `runs` in the checkout.
        chapters: execute only these, by name.
        no_site: execute only, without jupyter-book.
        publish: write executed chapters and result tables back to book/.
        workers: chapters at a time; default as many as there are cores, up to 4; one where there is a GPU, and with
            --publish, since chapters measure times.
    """
    from companion import settings
    from companion.site import build

    chosen = profile or (settings.PUBLISHED_PROFILE if publish else "demo")
    if publish and workers is None:
        workers = 1
    try:
        staged = build.build_book(
            chosen, data, out or settings.home() / "build", chapters or None, not no_site, None, _runs(runs), workers
        )
    except build.BookError as error:
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 1
    if publish:
        build.publish(staged, chosen, data, chapters or None)
    return 0


# long because the help is generated from the docstring
def networks(
    data: Path,
    profiles: tuple[ProfileName, ...] = ("s1s2-gpu", "s1s2-full"),
    minutes: float | None = None,
    runs: Path | None = None,
    out: Path | None = None,
) -> int:
    """Train the networks that need a GPU, and pack each that is finished for `publish` on another machine.

    Args:
        data: folder of the data, or a manifest (.csv) in it.
        profiles: what to train, one after the other.
        minutes: stop at the first checkpoint after so many minutes, with status 4; the same command then goes on.
        runs: store of runs; default `runs` in the checkout.
        out: gets a folder a network, of files of at most 15 MB; default `build/networks` in the checkout.
    """
    from companion.networks import pack
    from companion.settings import home
    from sarmatch.cli import UNFINISHED
    from sarmatch.profiles import profile
    from sarmatch.training.loop import Paused, time_limit
    from sarmatch.training.runs import train_or_load

    try:
        with time_limit(minutes):
            for name in profiles:
                run = train_or_load(profile(name, str(data)), _runs(runs))
                pack(run, (folder := (out or home() / "build" / "networks") / name))
                print(f"{run}\npacked in {folder}", flush=True)
    except Paused as pause:
        print(f"{pause}; the same command goes on from there")
        return UNFINISHED
    return 0


def publish(folder: Positional[Path], data: Path, runs: Path | None = None, weights: Path | None = None) -> int:
    """Publish a run that was trained elsewhere: check, calibrate, measure; write weights, model card and table.

    Args:
        folder: what `networks` packed, or the folder of a run.
        data: the data that it was trained on: a folder, or a manifest (.csv) in it.
        runs: store of runs that takes it in; default `runs` in the checkout.
        weights: gets weights and model card; default the folder of the weights that come with the package.
    """
    from companion import networks
    from companion.settings import home
    from sarmatch.matching.matcher import WEIGHTS

    run, split = networks.unpack(folder, data, _runs(runs))
    table = networks.publish(run, split, weights or WEIGHTS, home() / "book" / "results")
    print(table.to_string(index=False, float_format="%.3f"))
    return 0


def _runs(given: Path | None) -> Path:
    from companion.settings import home

    return given or home() / "runs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `sys.argv[1:]` or other arguments; returns the exit status, see `run_app`."""
    app = SubcommandApp()
    for command in (study, compare, networks, publish, book):
        app.command(command)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_app(app, "python -m companion", "Studies of the book, and the book itself.", arguments)
