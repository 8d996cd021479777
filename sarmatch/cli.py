"""The `sarmatch` command: thin functions over the package. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

ProfileName = Literal["smoke", "demo", "s1s2", "sen12ms"]
Part = Literal["train", "validation", "test"]
ProtocolName = Literal["aligned", "shift", "affine"]
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]

app = SubcommandApp()
data = SubcommandApp()
app.command(data, name="data", help="Look at the data of a folder.")


@data.command(name="check")
def data_check(path: Positional[Path]) -> int:
    """Report which pairs a folder holds and which files are broken; exits with 1 if any is.

    Args:
        path: a folder with a manifest.csv, or a SEN12MS or SEN1-2 tree.
    """
    raise NotImplementedError


@app.command
def train(
    profile: ProfileName = "demo",
    data: Path | None = None,
    runs: Path = Path("runs"),
    fresh: bool = False,
    max_steps: int | None = None,
    seed: int | None = None,
) -> int:
    """Train a matcher, or load the run if it is stored already; an interrupted one goes on where it stopped.

    Args:
        profile: what to train, on which kind of data.
        data: folder of the data, for the profiles on real data.
        runs: store of runs.
        fresh: train anew even if the run is stored.
        max_steps: stop after this many optimiser steps instead of the profile's number.
        seed: seed of weights, order and augmentation instead of the profile's.
    """
    from sarmatch.config import profile as named_profile
    from sarmatch.experiments import train_or_load

    config = named_profile(profile, str(data) if data else None)
    if seed is not None:
        config = config.replace(seed=seed)
    if max_steps is not None:
        config = config.replace(training={"max_steps": max_steps})
    run = train_or_load(config, runs_dir=str(runs), fresh=fresh)
    print(f"{'loaded' if run.loaded else 'trained'} {run.path}")
    return 0


@app.command
def match(
    sar: Positional[Path],
    optical: Positional[Path],
    model: str = "s1s2",
    search_radius: float | None = None,
    device: str = "auto",
    output: Output = Path("matches.geojson"),
) -> int:
    """Find points that correspond in a SAR and an optical image.

    Args:
        sar: SAR image, any raster that rasterio reads.
        optical: optical image of the same place.
        model: shipped weights by name, a run folder, or a .safetensors file.
        search_radius: how far the images may be displaced against each other, px; None searches everywhere.
        device: auto, cpu, cuda or mps.
        output: .geojson, .csv or .parquet.
    """
    import sarmatch

    matches = sarmatch.load_matcher(model, device=device).match(sar, optical, search_radius=search_radius)
    matches.save(output)
    print(f"{len(matches)} matches -> {output}")
    return 0


@app.command
def book(
    profile: ProfileName | None = None,
    data: Path | None = None,
    out: Path = Path("build"),
    runs: Path = Path("runs"),
    chapters: tuple[str, ...] = (),
    no_site: bool = False,
    publish: bool = False,
) -> int:
    """Execute the chapters into a staged copy of the book and build the site there.

    Args:
        profile: what the chapters run on; demo, or s1s2 with --publish.
        data: folder of the data, for the profiles on real data.
        out: the copy is made in OUT/PROFILE/book.
        runs: store of trained runs; what it holds is loaded.
        chapters: execute only these, by name.
        no_site: execute only, without jupyter-book.
        publish: write executed chapters and result tables back to book/.
    """
    from sarmatch import book as machinery

    profile = profile or (machinery.PUBLISHED_PROFILE if publish else "demo")
    try:
        staged = machinery.build_book(profile, data, out, chapters or None, not no_site, runs_dir=runs)
    except machinery.BookError as error:
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 1
    if publish:
        machinery.publish(staged, profile, data, chapters or None)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, which is 2 for bad input.

    Args:
        arguments: default `sys.argv[1:]`; `--debug` anywhere shows the traceback of an error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        status = app.cli(
            prog="sarmatch",
            description="Matching of SAR and optical images. --debug shows where an error comes from.",
            args=[argument for argument in arguments if argument != "--debug"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, FileNotFoundError) as error:
        if debug:
            traceback.print_exc()
        print(f"sarmatch: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sarmatch: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return int(status or 0)
