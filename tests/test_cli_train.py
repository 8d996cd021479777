"""`sarmatch train`: fields of the config on the command line, contradictions, what differs, and the confidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sarmatch import cli, load_matcher
from sarmatch.cli import differences
from sarmatch.config import Config
from sarmatch.profiles import profile


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that would have been trained, instead of trainings."""
    found: list[Config] = []

    class Untrained(Exception):
        pass

    def train_or_load(config: Config, *_: object, **__: object) -> None:
        found.append(config)
        raise ValueError("not trained here")

    monkeypatch.setattr("sarmatch.training.runs.train_or_load", train_or_load)
    return found


def train(*arguments: str) -> int:
    return cli.main(["train", "--profile", "smoke", *arguments])


def test_any_field_can_be_given(asked: list[Config]) -> None:
    train(
        *("--training.max-steps", "300", "--model.norm", "batch", "--data.crop-size", "96"),
        *("--training.patience", "None", "--evaluation.search-radii", "16", "None"),
        *("--pretraining.no-rotation", "--seed", "7", "--data.speckle-looks", "1", "4"),
    )
    expected = profile("smoke").replace(
        seed=7,
        training={"max_steps": 300, "patience": None},
        model={"norm": "batch"},
        data={"crop_size": 96, "speckle_looks": (1.0, 4.0)},
        evaluation={"search_radii": (16.0, None)},
        pretraining={"rotation": False},
    )
    assert asked == [expected]


def test_defaults_are_those_of_the_profile(asked: list[Config]) -> None:
    for name in ("smoke", "demo"):
        cli.main(["train", f"--profile={name}"])
    assert asked == [profile("smoke"), profile("demo")]


def test_what_differs_is_printed(asked: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    train("--training.max-steps", "300", "--model.norm", "batch")
    assert capsys.readouterr().out.splitlines() == ["model.norm: group -> batch", "training.max_steps: 4 -> 300"]
    train()
    assert capsys.readouterr().out == ""


def test_the_source_of_the_data_is_a_field_too(asked: list[Config], tmp_path: Path) -> None:
    """Nothing is opened before the check of folder and source."""
    assert train("--data.source", "manifest") == 2 and not asked  # no folder
    assert train("--data.source", "manifest", "--data", str(tmp_path / "nowhere")) == 2 and not asked
    assert cli.main(["train", "--profile", "s1s2", "--data.source", "synthetic"]) == 2  # not trained here
    assert asked[0].data.source == "synthetic" and asked[0].profile == "s1s2"


def test_differences_name_nested_fields() -> None:
    base = profile("smoke")
    assert differences(base, base) == []
    changed = base.replace(seed=3, training={"max_steps": 9})
    assert differences(base, changed) == ["seed: 0 -> 3", "training.max_steps: 4 -> 9"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.crop-size", "95"], "crop_size must be a multiple of 16 between 16 and patch_size=96, got 95"),
        (["--training.max-steps", "-3"], "max_steps must be positive, got -3"),
        (["--training.batch-size", "5", "--training.accumulation-steps", "2"], "must be a multiple of"),
        (["--data.crop-siz", "96"], "--data.crop-size"),
        (["--model.norm", "layer"], "'group'"),
        (["--max-steps", "3"], "--training.max-steps"),
    ],
)
def test_contradictions_and_unknown_fields_are_refused(
    arguments: list[str], words: str, asked: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(*arguments)
    assert stopped.value.code == 2 and not asked
    shown = "".join(capsys.readouterr().err.replace("\u2502", " ").split())  # boxes break lines anywhere
    assert "".join(words.split()) in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "foo"], "profile must be one of"),
        (["--profile", "s1s2"], "--data PATH"),
        (["--profile", "demo", "--data", "somewhere"], "runs on generated scenes"),
        (["--profile", "s1s2", "--data", "a", "--data.root", "b"], "name two folders"),
    ],
)
def test_folders_and_profiles_that_do_not_go_together(
    arguments: list[str], words: str, asked: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *arguments]) == 2 and not asked
    assert words in capsys.readouterr().err


def test_a_trained_run_matches_with_calibrated_confidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    options = ("--runs", str(tmp_path), "--training.max-steps", "2", "--pretraining.no-rotation")
    assert train(*options, "--pretraining.no-contrastive", "--evaluation.calibration-pairs", "2") == 0
    run = Path(capsys.readouterr().out.splitlines()[-2])
    assert json.loads((run / "confidence.json").read_text())["calibrators"].keys() == {"single", "monte_carlo"}
    assert load_matcher(run).confidence is not None
    assert not [w for w in recwarn if "no confidence was fitted" in str(w.message)]


def test_a_training_in_pieces_ends_with_the_weights_of_one_in_one_piece(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each piece meets its limit at its first checkpoint, after two of the four steps."""
    options = ("--pretraining.no-rotation", "--pretraining.no-contrastive", "--evaluation.calibration-pairs", "2")
    pieces = ("--runs", str(tmp_path / "pieces"), "--minutes", "0", *options)
    assert train(*pieces) == cli.UNFINISHED
    assert "step 2 of 4; the same command goes on" in capsys.readouterr().out
    assert train(*pieces) == 0
    assert train("--runs", str(tmp_path / "whole"), *options) == 0
    weights = [next((tmp_path / name).glob("smoke/matcher-*/model.safetensors")) for name in ("pieces", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_weights_without_confidence_say_so(tmp_path: Path) -> None:
    from sarmatch.model import SarOpticalNet
    from sarmatch.model.checkpoints import save_weights

    save_weights(SarOpticalNet(profile("smoke").model), tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="no confidence was fitted for these weights"):
        load_matcher(tmp_path)
