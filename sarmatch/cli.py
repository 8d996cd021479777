"""The `sarmatch` command: thin functions over the package; each imports the heavy modules it needs."""

import json
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from sarmatch.config import SEARCH_RADIUS_PX, Config, Protocol, from_dict
from sarmatch.profiles import PROFILES, with_data
from sarmatch.profiles import profile as named_profile
from sarmatch.scenes.commands import Output, batch, match, register

UNFINISHED = 4  #: Exit status of a training that met its time limit.
ProfileName = Literal["smoke", "demo", "s1s2-smoke", "s1s2", "s1s2-gpu", "s1s2-full", "sen12ms"]

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
    from sarmatch.demo import PICTURES, draw_pair, match_pair
    from sarmatch.io import check_output
    from sarmatch.matching.matcher import load_matcher

    check_output(output, "pictures", PICTURES)
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
    from sarmatch.matching.matcher import load_matcher
    from sarmatch.model.onnx import export as export_encoders

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
    from sarmatch.data import check_data

    report, problems = check_data(path, max_read)
    print(report)
    return 1 if problems else 0


# long because the help is generated from the docstring, and imports wait for the command
def evaluate(
    model: Positional[str],
    profile: ProfileName | None = None,
    data: Path | None = None,
    protocol: Protocol = "shift",
    search_radius: float | None = SEARCH_RADIUS_PX,
    part: Literal["train", "validation", "test"] = "test",
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
    from sarmatch.evaluation.protocols import evaluate as evaluate_pairs
    from sarmatch.io import TABLES, check_output, write_table
    from sarmatch.matching.matcher import load_matcher
    from sarmatch.training.runs import open_split

    check_output(output, "records", TABLES)
    matcher = load_matcher(model, device=device)
    config = _config_of(model, profile, data)
    if max_pairs is not None:
        config = config.replace(evaluation={"max_pairs": max_pairs})
    pairs = getattr(open_split(config), part)
    records = evaluate_pairs(matcher, pairs, protocol, search_radius, config.evaluation)
    write_table(records, output, "records")
    print(records.drop(columns=["search_radius", "crop_size"]).mean(numeric_only=True).to_string())
    print(f"{len(records)} pairs, {part}, {protocol}, search radius {search_radius} -> {output}")
    return 0


# long because the command's defaults are those of the profile that the arguments name
def train_command(arguments: Sequence[str]) -> Callable[..., int]:
    """The command as tyro takes it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", nargs="?", default="demo")
    defaults = PROFILES.get(parser.parse_known_args(arguments)[0].profile, PROFILES["demo"])

    # long because the help is generated from the docstring
    def train(
        data_root: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
        runs: Path = Path("runs"),
        name: str = "matcher",
        fresh: bool = False,
        minutes: float | None = None,
        config: Annotated[Config, tyro.conf.arg(name="")] = defaults,
    ) -> int:
        """Train a matcher and fit its confidence; a stored run is loaded, an interrupted one goes on where it stopped.

        Every field of the config can be given, as in --training.max-steps 300 --model.norm batch; the defaults shown
        are those of the profile, so `--profile s1s2 --help` shows others. What differs from the profile is printed.

        Args:
            data_root: folder of the data, or a manifest (.csv) in it, for the profiles on real data.
            runs: store of runs.
            name: what the run is called in the store.
            fresh: train anew even if the run is stored.
            minutes: stop at the first checkpoint after so many minutes, with status 4; the same command then goes on.
            config: what to train, and on which kind of data.
        """
        from accelerate import PartialState

        from sarmatch.training.loop import Paused, time_limit
        from sarmatch.training.runs import confidence_or_load, open_split, train_or_load

        config, is_main = _with_folder(config, data_root), PartialState().is_main_process
        if is_main:
            for line in differences(PROFILES[config.profile].replace(data={"root": config.data.root}), config):
                print(line)
        split = open_split(config)
        try:
            with time_limit(minutes):
                run = train_or_load(config, runs, name, split, fresh=fresh)
        except Paused as pause:
            if is_main:
                print(f"{pause}; the same command goes on from there")
            return UNFINISHED
        if is_main:
            print(f"{run}\n{run.path}", flush=True)
            confidence_or_load(run, split)
            print(f"confidence fitted on {len(split.calibration)} validation pairs")
        return 0

    return train


def _with_folder(config: Config, data_root: Path | None) -> Config:
    root = str(data_root) if data_root else config.data.root
    if data_root and config.data.root not in (None, root):
        raise ValueError(f"--data {root} and --data.root {config.data.root} name two folders; give one of them")
    if config.profile not in PROFILES:
        named_profile(config.profile)  # says which there are
    return with_data(config, root)


def differences(base: Config, config: Config) -> list[str]:
    """A line for each field that differs: `training.max_steps: 80 -> 300`."""
    before, lines = base.to_dict(), []
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            lines += [f"{name}.{k}: {before[name][k]} -> {v}" for k, v in value.items() if v != before[name][k]]
        elif value != before[name]:
            lines.append(f"{name}: {before[name]} -> {value}")
    return lines


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default `sys.argv[1:]`); returns the exit status, see `run_app`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    app = SubcommandApp()
    commands: tuple[Callable[..., int], ...] = (demo, match, register, batch, export)
    for command in commands:
        app.command(command)
    app.command(data_app, name="data", help="Fetch data, or look at those in a folder.")
    app.command(train_command(arguments))
    app.command(evaluate)
    return run_app(app, "sarmatch", "Matching of SAR and optical images.", arguments)


def run_app(app: SubcommandApp, prog: str, description: str, arguments: Sequence[str]) -> int:
    """Run one of the commands of an app; returns the exit status, which is 2 for bad input and 130 if interrupted."""
    debug = "--debug" in arguments
    try:
        status = app.cli(
            prog=prog,
            description=f"{description} --debug shows where an error comes from.",
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
