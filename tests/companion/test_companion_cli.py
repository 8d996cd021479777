"""The commands of `python -m companion`, called as functions on the smallest profile."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import pandas as pd
import pytest

from companion import cli
from companion.baselines import SiftMatcher, TemplateMatcher
from companion.baselines.multiscale import MultiscaleNet
from companion.settings import home
from companion.site import build
from companion.studies import ablation, comparison, learned_baselines
from companion.studies.ablation import STUDIES, Variant


def test_studies_are_those_that_can_be_named() -> None:
    assert set(typing.get_args(cli.StudyName)) == set(STUDIES)


@pytest.mark.parametrize("command", ["study", "compare", "book"])
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m companion {command}" in capsys.readouterr().out
    function = getattr(cli, command)
    explained = inspect.getdoc(function) or ""
    assert all(f"    {name}: " in explained for name in function.__annotations__ if name != "return")


def test_a_study_prints_its_rows_and_writes_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ablation.STUDIES, "transfer", (Variant("all data"), Variant("half", share=0.5)))
    command = ["study", "transfer", "--profile", "smoke", "--runs", str(tmp_path / "runs")]
    assert cli.main([*command, "-o", str(tmp_path / "none" / "records.csv")]) == 2
    assert "make it first" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert cli.main([*command, "-o", str(tmp_path / "records.csv")]) == 0
    printed = capsys.readouterr().out
    assert "all data" in printed and "half" in printed and "ece" in printed
    records = pd.read_csv(tmp_path / "records.csv")
    assert set(records["row"]) == {"all data", "half"} and set(records["seed"]) == {0, 1}


def test_compare_prints_a_ranking_and_writes_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {"template": TemplateMatcher(29), "SIFT": SiftMatcher(200)}
    monkeypatch.setattr(comparison, "methods", lambda net, crop_size, trained: two)
    monkeypatch.setattr(learned_baselines, "PEERS", {"multiscale chain": MultiscaleNet})
    monkeypatch.setattr(learned_baselines, "OURS", {})
    command = ["compare", "--profile", "smoke", "--runs", str(tmp_path / "runs")]
    assert cli.main([*command, "--search-radius", "-5"]) == 2
    assert "search_radius must be positive" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert cli.main([*command, "--search-radius", "16", "-o", str(tmp_path / "records.csv")]) == 0
    printed = capsys.readouterr().out
    assert "template" in printed and "success_3px" in printed and "search radius 16" in printed
    assert "trained at equal budget" in printed and "multiscale chain" in printed
    assert set(pd.read_csv(tmp_path / "records.csv")["method"]) == set(two)


def test_bad_input_of_the_book_is_named_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["book", "--profile", "sen12ms"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sarmatch: error: ") and "--data" in error


def test_book_failure_is_status_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise build.BookError("data.ipynb, cell In [2]")

    monkeypatch.setattr(build, "build_book", fail)
    assert cli.main(["book", "--out", str(tmp_path)]) == 1


def test_book_publishes_the_published_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(build, "build_book", lambda *a, **k: calls.append(a) or tmp_path)
    monkeypatch.setattr(build, "publish", lambda *a, **k: calls.append(a))
    assert cli.main(["book", "--publish", "--data", str(tmp_path), "--chapters", "data", "--no-site"]) == 0
    assert calls == [
        ("s1s2", tmp_path, home() / "build", ("data",), False, None, home() / "runs", 1),
        (tmp_path, "s1s2", tmp_path, ("data",)),
    ]
