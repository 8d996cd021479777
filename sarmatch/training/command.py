"""`sarmatch train`: any field of a profile's config from the command line; what differs from the profile is printed."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from sarmatch.config import PROFILES, Config, profile, with_data


# long because the command's defaults are those of the profile that the arguments name
def train_command(arguments: Sequence[str]) -> Callable[..., int]:
    """The command as tyro takes it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", nargs="?", default="demo")
    defaults = PROFILES.get(parser.parse_known_args(arguments)[0].profile, PROFILES["demo"])

    def train(
        data_root: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
        runs: Path = Path("runs"),
        name: str = "matcher",
        fresh: bool = False,
        config: Annotated[Config, tyro.conf.arg(name="")] = defaults,
    ) -> int:
        """Train a matcher and fit its confidence; a stored run is loaded, an interrupted one goes on where it stopped.

        Every field of the config can be given, as in --training.max-steps 300 --model.norm batch; the defaults shown
        are those of the profile, so `--profile s1s2 --help` shows others. What differs from the profile is printed.

        Args:
            data_root: folder of the data, for the profiles on real data.
            runs: store of runs.
            name: what the run is called in the store.
            fresh: train anew even if the run is stored.
            config: what to train, on which kind of data: smoke, demo, s1s2-smoke, s1s2 or sen12ms, and changes to it.
        """
        from accelerate import PartialState

        from sarmatch.training.runs import confidence_or_load, open_split, train_or_load

        config, main = _with_folder(config, data_root), PartialState().is_main_process
        if main:
            for line in differences(PROFILES[config.profile].replace(data={"root": config.data.root}), config):
                print(line)
        split = open_split(config)
        run = train_or_load(config, runs, name, split, fresh=fresh)
        if main:
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
        profile(config.profile)  # says which there are
    return with_data(config, root)


def differences(base: Config, config: Config) -> list[str]:
    """A line for each field that differs: `training.max_steps: 80 -> 300`."""
    before = dict(_fields(base.to_dict()))
    return [f"{name}: {before[name]} -> {value}" for name, value in _fields(config.to_dict()) if before[name] != value]


def _fields(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
