"""The `sarmatch` command, called as a function; training and matching only as far as the smallest profile goes."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pandas as pd
import pytest

from sarmatch import cli
from sarmatch.profiles import PROFILES
from sarmatch.scenes.settings import SceneOptions

COMMANDS = ["demo", "match", "register", "batch", "train", "evaluate", "data get", "data check"]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """A SAR and an optical image of 96 px."""
    rng = np.random.default_rng(0)
    sar, optical = tmp_path / "sar.png", tmp_path / "optical.png"
    cv2.imwrite(str(sar), rng.integers(0, 256, (96, 96), np.uint8))
    cv2.imwrite(str(optical), rng.integers(0, 256, (96, 96, 3), np.uint8))
    return sar, optical


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["train", "--profile", "smoke", "--runs", str(runs), "--training.max-steps", "2", "--seed", "1"]
    assert cli.main(command) == 0
    return next(path.parent for path in runs.rglob("matcher-*/model.safetensors"))


def test_choices_are_those_of_the_config() -> None:
    assert set(typing.get_args(cli.ProfileName)) == set(PROFILES)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: sarmatch {command}" in text
    function = cli.train_command([]) if command == "train" else getattr(cli, command.replace(" ", "_"))
    explained = inspect.getdoc(function) or ""
    hints = get_type_hints(function, include_extras=True)
    shared = {name for name, hint in hints.items() if any(getattr(m, "help", None) for m in get_args(hint)[1:])}
    assert all(f"    {name}: " in explained for name in hints.keys() - shared - {"return"})
    if command in ("match", "register"):
        assert all(f"--{field.name.replace('_', '-')} " in text for field in fields(SceneOptions))
        assert "How far the georeferences may disagree" in text and "bands to use, counted from 0" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sarmatch.cli import main\n"
        "try:\n main(['--help'])\nexcept SystemExit:\n pass\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'rasterio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_bad_input_is_one_line_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sarmatch: error: ") and error.count("\n") == 1 and "nowhere" in error
    assert cli.main(["data", "check", str(tmp_path / "nowhere"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--profile", "s1s2"], "--data"),
        (["match", "a.tif", "b.tif", "--model", "nothing"], "no weights 'nothing'"),
        (["data", "get", "nothing"], "no data set 'nothing'"),
        (["data", "get", "sen12ms"], "https://doi.org/10.14459/2019mp1474000"),
        (["evaluate", "nothing", "-o", "records.txt"], "records.txt"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_run_of_version_0_1_is_evaluated(run: Path, tmp_path: Path) -> None:
    """Its stored config still holds the sizes of the book's studies."""
    stored = json.loads((run / "config.json").read_text())
    assert "studies" not in stored
    stored["evaluation"].pop("calibration_pairs")
    (tmp_path / "config.json").write_text(json.dumps(stored | {"studies": {"seeds": [0, 1], "calibration_pairs": 4}}))
    assert cli._config_of(str(tmp_path), None, None).hash() == cli._config_of(str(run), None, None).hash()


def test_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(app: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.SubcommandApp, "cli", interrupt)
    assert cli.main([]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_data_check_reports_and_tells_by_its_status(
    tmp_path: Path, images: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,sar,optical\na,sar.png,optical.png\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    assert "no problems" in capsys.readouterr().out
    manifest.write_text("id,sar,optical\na,sar.png,optical.png\nb,sar.png,gone.png\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "gone.png" in capsys.readouterr().out


def test_training_again_loads_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", "--profile", "smoke", "--runs", str(run.parents[1]), "--training.max-steps", "2", "--seed", "1"]
    assert cli.main(again) == 0
    assert "\nloaded matcher-" in capsys.readouterr().out


def test_evaluate_a_run(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "records.parquet"
    arguments = ["evaluate", str(run), "--search-radius", "16", "--max-pairs", "1", "-o", str(output)]
    assert cli.main([*arguments, "--protocol", "affine", "--part", "validation"]) == 0
    records = pd.read_parquet(output)
    assert list(records["protocol"]) == ["affine"]
    assert list(records["search_radius"]) == [16]


def test_match_two_files(run: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "matches.csv"
    sar, optical = images
    command = ["match", str(sar), str(optical), "--model", str(run), "--search-radius", "8", "-o", str(output)]
    assert cli.main([*command, "--force"]) == 0
    matches = pd.read_csv(output)
    assert {"x_sar", "y_sar", "x_optical", "y_optical", "confidence"} <= set(matches)
    shift = np.hypot(matches["x_sar"] - matches["x_optical"], matches["y_sar"] - matches["y_optical"])
    assert len(matches) and shift.max() < 8 + 8, "the fine level may leave the coarse radius by a cell"


def test_match_rejects_an_impossible_coverage(
    images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "matches.csv"
    assert cli.main(["match", *map(str, images), "--coverage", "90", "-o", str(output)]) == 2
    assert "coverage must lie between" in capsys.readouterr().err and not output.exists()


def test_match_estimates_the_epistemic_uncertainty_in_one_pass(images: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "matches.csv"
    command = ["match", *map(str, images), "--device", "cpu", "--force", "-o", str(output)]
    assert cli.main(command) == 0
    assert pd.read_csv(output)["epistemic"].isna().all()
    assert cli.main([*command, "--distilled"]) == 0
    assert (pd.read_csv(output)["epistemic"] > 0).all()


def test_a_head_that_was_not_distilled_is_refused(
    run: Path, images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "matches.csv"
    assert cli.main(["match", *map(str, images), "--model", str(run), "--distilled", "-o", str(output)]) == 2
    assert "epistemic_head was distilled" in capsys.readouterr().err
    assert not output.exists()


def test_the_decision_on_overlap_is_printed_and_saved(
    images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "matches.geojson"
    assert cli.main(["match", *map(str, images), "--device", "cpu", "-o", str(output)]) == 3
    assert "refused" in capsys.readouterr().err  # noise against other noise
    assert not output.exists()
    assert cli.main(["match", *map(str, images), "--device", "cpu", "--force", "-o", str(output)]) == 0
    assert "look unrelated" in capsys.readouterr().err
    assert json.loads(output.read_text())["overlaps"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["match", "a.tif", "b.tif", "-o", "m.txt"], "matches are saved as"),
        (["match", "a.tif", "b.tif", "-o", "nowhere/m.csv"], "make it first"),
        (["match", "a.tif", "b.tif", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["match", "a.tif", "b.tif", "--distilled", "--mc-passes", "20"], "give one of them"),
        (["train", "--seed", "-1"], "seed must not be negative"),
        (["train", "--runs", "file", "--profile", "smoke"], "file"),
        (["evaluate", "s1s2", "--profile", "smoke", "--max-pairs", "0"], "max_pairs must be positive"),
        (["evaluate", "s1s2", "--profile", "smoke", "--search-radius", "-1"], "search_radius must be positive"),
        (["data", "check", "file"], "is neither a folder nor a manifest (.csv)"),
    ],
)
def test_bad_arguments_are_named_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
