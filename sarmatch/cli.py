"""The `sarmatch` command: thin functions over the package; each imports the heavy modules it needs."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from sarmatch.config import Config, from_dict
from sarmatch.profiles import PROFILES
from sarmatch.profiles import profile as named_profile
from sarmatch.scene_commands import Output, batch, match, register
from sarmatch.train_command import train_command

if TYPE_CHECKING:
    import pandas as pd

ProfileName = Literal["smoke", "demo", "s1s2-smoke", "s1s2", "sen12ms"]
StudyName = Literal["ablation", "data", "transfer", "settings"]
Part = Literal["train", "validation", "test"]
ProtocolName = Literal["aligned", "shift", "affine"]

data_app = SubcommandApp()


def demo(output: Output = Path("demo.png"), model: str = "s1s2", mc_passes: int = 0, device: str = "auto") -> int:
    """Match a small generated pair that comes with the package, and draw its matches; nothing is downloaded.

    Of accuracy on real images it says nothing: the pair is generated, and the shift to be found is known.

    Args:
        model: shipped weights by name, a run folder, or a .safetensors file.
        mc_passes: Monte Carlo passes with dropout; 0 makes none.
        device: auto, cpu, cuda or mps.
        output: picture of the matches: .png, .pdf, .svg or another format of matplotlib.
    """
    from sarmatch.demo import check_picture, draw_pair, match_pair
    from sarmatch.inference import load_matcher

    check_picture(output)
    result = match_pair(load_matcher(model, device=device, mc_passes=mc_passes))
    print(result)
    draw_pair(result, output)
    print(f"matches -> {output}")
    return 0


def export(model: Positional[str] = "s1s2", output: Output = Path("model.onnx")) -> int:
    """Write the encoders of a model as ONNX, for images of any size; `sarmatch match --onnx` runs them.

    Needs `pip install 'sarmatch[onnx]'`. What was written is compared with PyTorch on a size that it was not made with.

    Args:
        model: shipped weights by name, a run folder, or a .safetensors file.
        output: .onnx file.
    """
    from sarmatch.inference import load_matcher
    from sarmatch.onnx_backend import export as export_encoders

    difference = export_encoders(load_matcher(model, device="cpu").net, output)
    print(f"encoders of {model} -> {output}; outputs differ from PyTorch's by {difference:.1e} at most")
    return 0


@data_app.command(name="get")
def data_get(name: Positional[str], to: Path | None = None) -> int:
    """Fetch a public data set; calling again goes on where it stopped. Exits with 1 if files could not be fetched.

    Args:
        name: ombria or optical-sar; of sen12ms, sen12ms-cr and sen1-2 it says where they are and how to unpack them.
        to: the folder; default data/NAME.
    """
    from sarmatch.data.download import DownloadError, download

    try:
        folder = download(name, to)
    except DownloadError as error:
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 1
    print(f"{name} -> {folder}")
    return 0


@data_app.command(name="check")
def data_check(path: Positional[Path], max_read: int = 2000) -> int:
    """Report which pairs a folder holds and what is broken; exits with 1 if anything is.

    Args:
        path: a folder with a manifest.csv, or a tree of OMBRIA, SEN12MS, SEN12MS-CR or SEN1-2.
        max_read: pairs to read in full, evenly spaced.
    """
    from sarmatch.data.check import check_data

    report = check_data(path, max_read)
    print(report)
    return 0 if report.ok else 1


def experiments(
    study: Positional[StudyName],
    profile: ProfileName = "demo",
    data: Path | None = None,
    runs: Path = Path("runs"),
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> int:
    """Train and measure all rows of a study that the data allow; stopped at any moment, it goes on where it was.

    Args:
        study: ablation (table 3), data (fewer labelled pairs), transfer (one source only) or settings.
        profile: size of the trainings and kind of the data.
        data: folder of the data, for the profiles on real data.
        runs: store of runs.
        output: also write the records, .parquet or .csv: one a training, test pair and way of matching (`voting`).
    """
    from sarmatch.ablation import STUDIES, measured_pairs, pair_scores, studied, study_matches
    from sarmatch.ablation_tables import calibration_table, metrics_table
    from sarmatch.data import open_pairs, split_pairs
    from sarmatch.sensitivity import possible
    from sarmatch.statistics import with_intervals

    if output is not None:
        _check_records(output)
    config = studied(named_profile(profile, str(data) if data else None), study)
    split = split_pairs(open_pairs(config.data, config.seed), config.data)
    variants = possible(STUDIES[study], config, split)
    if absent := [variant.name for variant in STUDIES[study] if variant not in variants]:
        print(f"these data are too few, or of one source, for: {', '.join(absent)}", file=sys.stderr)
    matches = study_matches(config, variants, split, runs)
    scores = pair_scores(matches, measured_pairs(config, split), config.evaluation)
    metrics = ["mma_1px", "mma_3px", "rmse_px", "n_matches"]
    voting = metrics_table(scores[scores["voting"]], metrics).merge(calibration_table(matches), on="row", how="left")
    alone = metrics_table(scores[~scores["voting"]], metrics)
    radius, side = config.evaluation.headline_radius, config.evaluation.crop_size
    print(f"protocol shift, search radius {radius:g} px, {side} px crops, test part; 95 % for other seeds and scenes")
    for title, table in (("neighbours vote", voting), ("each cell by itself, one pass", alone)):
        print(f"\n{title}\n{with_intervals(table, 3).to_string(index=False)}")
    if output is not None:
        _save_records(scores, output)
    return 0


def compare(
    profile: ProfileName = "demo",
    data: Path | None = None,
    runs: Path = Path("runs"),
    search_radius: float | None = 32.0,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> int:
    """Measure our network and all other methods on the same test pairs; stopped at any moment, it goes on.

    Takes the shipped weights where they are of this profile and these data, else trains the profile's network; then
    trains all learned methods, and our network once more, with one short budget.

    Args:
        profile: whose network, data, split and crops to use.
        data: folder of the data, for the profiles on real data.
        runs: store of runs.
        search_radius: px around the predicted position; None searches the whole image.
        output: also write the records, .parquet or .csv: one a method and test pair.
    """
    from sarmatch.comparison import all_methods, without_packages
    from sarmatch.comparison import compare as compare_methods
    from sarmatch.comparison_tables import ranked, registration_table
    from sarmatch.data import open_pairs, split_pairs
    from sarmatch.peers import peer_matchers, trained_peers, training_table
    from sarmatch.search import Search
    from sarmatch.shipping import shipped_or_trained
    from sarmatch.statistics import with_intervals

    Search(search_radius)  # rejects what makes no sense before hours of training
    if output is not None:
        _check_records(output)
    config = named_profile(profile, str(data) if data else None)
    split = split_pairs(open_pairs(config.data, config.seed), config.data)
    run = shipped_or_trained(config, runs, split)
    trainings = trained_peers(config, split, runs)
    compared = all_methods(run.net, config.evaluation.crop_size, peer_matchers(trainings))
    records, _ = compare_methods(run, compared, split, config, search_radius)
    table = ranked(records, ["mma_1px", "mma_3px", "n_matches"])
    where = f"protocol shift, search radius {search_radius} px, {config.evaluation.crop_size} px crops, test part"
    print(f"{where}; 95 % for other scenes\n{with_intervals(table, 3).to_string(index=False)}")
    budget = training_table(trainings, config)[["method", "parameters", "steps", "seconds"]]
    print(f"\ntrained at equal budget\n{budget.to_string(index=False, float_format='%.0f')}")
    for name in without_packages():
        print(f"skipped {name}: its package is not installed (sarmatch[peers])")
    print(f"\nimages registered\n{registration_table(records).to_string(index=False, float_format='%.2f')}")
    if output is not None:
        _save_records(records, output)
    return 0


def evaluate(
    model: Positional[str],
    profile: ProfileName | None = None,
    data: Path | None = None,
    protocol: ProtocolName = "shift",
    search_radius: float | None = 32.0,
    part: Part = "test",
    max_pairs: int | None = None,
    device: str = "auto",
    output: Output = Path("records.parquet"),
) -> int:
    """Measure a matcher on one part of the data: one record a pair, and their means on the screen.

    Args:
        model: shipped weights by name, or a run folder.
        profile: whose data, split and crops to use; default those of the run, or of the profile the weights are named
            after.
        data: folder of the data, for the profiles on real data.
        protocol: the known transform between the two images.
        search_radius: px around the predicted position; None searches the whole image.
        part: of the split.
        max_pairs: at most this many, evenly spaced over the scenes.
        device: auto, cpu, cuda or mps.
        output: .parquet or .csv.
    """
    from sarmatch.data import open_pairs, split_pairs
    from sarmatch.evaluation import evaluate as evaluate_pairs
    from sarmatch.inference import load_matcher

    _check_records(output)
    matcher = load_matcher(model, device=device)
    config = _config_of(model, profile, data)
    if max_pairs is not None:
        config = config.replace(evaluation={"max_pairs": max_pairs})
    pairs = getattr(split_pairs(open_pairs(config.data, config.seed), config.data), part)
    records = evaluate_pairs(matcher, pairs, protocol, search_radius, config.evaluation)
    _save_records(records, output)
    print(records.drop(columns=["search_radius", "crop_size"]).mean(numeric_only=True).to_string())
    print(f"{len(records)} pairs, {part}, {protocol}, search radius {search_radius} -> {output}")
    return 0


def _check_records(path: Path) -> None:
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: records are saved as .parquet or .csv; got suffix {path.suffix!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")


def _save_records(records: pd.DataFrame, path: Path) -> None:
    from sarmatch.files import atomic_path

    with atomic_path(path) as partial:
        records.to_csv(partial, index=False) if path.suffix == ".csv" else records.to_parquet(partial, index=False)


def _config_of(model: str, profile: str | None, data: Path | None) -> Config:
    """The config to evaluate with, from a profile's name or a run's folder."""
    root = str(data) if data else None
    stored = Path(model) / "config.json"
    if profile is None and stored.is_file():
        config = from_dict(Config, json.loads(stored.read_text()))
        return config.replace(data={"root": root}) if root else config
    if profile is None and model not in PROFILES:
        raise ValueError(f"{model!r} is neither a run folder nor named after a profile; give --profile")
    return named_profile(profile or model, root)


def book(
    profile: ProfileName | None = None,
    data: Path | None = None,
    out: Path = Path("build"),
    runs: Path = Path("runs"),
    chapters: tuple[str, ...] = (),
    no_site: bool = False,
    publish: bool = False,
    workers: int | None = None,
) -> int:
    """Execute the chapters into a staged copy of the book and build the site there.

    Args:
        profile: what the chapters run on; default demo, with --publish s1s2.
        data: folder of the data, for the profiles on real data.
        out: the copy is made in OUT/PROFILE/book.
        runs: store of trained runs; what it holds is loaded.
        chapters: execute only these, by name.
        no_site: execute only, without jupyter-book.
        publish: write executed chapters and result tables back to book/.
        workers: chapters at a time; default as many as there are cores, up to 4; one where there is a GPU, and with
            --publish, since chapters measure times.
    """
    from sarmatch import book as machinery

    chosen = profile or (machinery.PUBLISHED_PROFILE if publish else "demo")
    if publish and workers is None:
        workers = 1
    try:
        staged = machinery.build_book(chosen, data, out, chapters or None, not no_site, None, runs, workers)
    except machinery.BookError as error:
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 1
    if publish:
        machinery.publish(staged, chosen, data, chapters or None)
    return 0


def _app(arguments: Sequence[str]) -> SubcommandApp:
    """All commands; the defaults of `train` are those of the profile that the arguments name."""
    app = SubcommandApp()
    images: tuple[Callable[..., int], ...] = (demo, match, register, batch, export)
    networks: tuple[Callable[..., int], ...] = (train_command(arguments), experiments, compare, evaluate, book)
    for command in images:
        app.command(command)
    app.command(data_app, name="data", help="Fetch data, or look at those in a folder.")
    for command in networks:
        app.command(command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, which is 2 for bad input.

    Args:
        arguments: default `sys.argv[1:]`; `--debug` anywhere shows the traceback of an error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        status = _app(arguments).cli(
            prog="sarmatch",
            description="Matching of SAR and optical images. --debug shows where an error comes from.",
            args=[argument for argument in arguments if argument != "--debug"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sarmatch: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return int(status or 0)
