"""Chapters executed one by one and side by side."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import nbformat
import pytest
from tiny_book import write_book, write_chapter

from companion.site import build as chapters
from companion.site.build import BookError, build_book, default_workers, execute_all, in_order

PARAMETERS = {"profile": "demo", "data_root": None, "runs_dir": None, "results_dir": None}
SHOW_THREADS = "import os\nprint('threads', os.environ.get('OMP_NUM_THREADS'))"


def test_first_the_first_result_then_the_longest_and_the_ledger_last() -> None:
    first, together, last = in_order(["claims", "data", "encoders", "matching", "labels", "cost"])
    assert (first, together, last) == (["matching"], ["encoders", "labels", "data", "cost"], ["claims"])
    assert in_order(["data"]) == ([], ["data"], [])


def test_one_chapter_at_a_time_on_one_core_and_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, n in ((1, 1), (2, 2), (64, chapters.MOST_WORKERS)):
        monkeypatch.setattr(chapters, "cores", lambda n=available: n)
        assert default_workers() == n
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default_workers() == 1


@pytest.fixture
def book(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_chapter(folder / f"{name}.ipynb", SHOW_THREADS)
    (tmp_path / "staged").mkdir()
    return folder


def printed(path: Path) -> str:
    return "".join(o.get("text", "") for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", []))


def execute(book: Path, workers: int, names: tuple[str, ...] = ("a", "b", "c")) -> list[str]:
    done: list[str] = []
    execute_all(book, book.parent / "staged", names, PARAMETERS, workers, done.append)
    return done


def test_side_by_side_chapters_share_the_cores(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert sorted(execute(book, 2)) == ["a", "b", "c"]
    share = max(1, chapters.cores() // 2)
    for name in "abc":
        assert f"threads {share}" in printed(book.parent / "staged" / f"{name}.ipynb")
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_number_of_threads_that_was_asked_for_stays(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    execute(book, 2, ("a", "b"))
    assert "threads 3" in printed(book.parent / "staged" / "a.ipynb")


def test_alone_a_chapter_has_all_cores(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert execute(book, 1, ("b", "a")) == ["b", "a"]
    assert "threads None" in printed(book.parent / "staged" / "a.ipynb")


def test_a_chapter_that_fails_is_named_and_no_other_is_begun(book: Path) -> None:
    begin = f"import pathlib, time; pathlib.Path({str(book.parent)!r}, '{{}}').touch(); "
    write_chapter(book / "a.ipynb", begin.format("begun a") + "1 / 0")
    for name in "bcdefgh":
        write_chapter(book / f"{name}.ipynb", begin.format(f"begun {name}") + "time.sleep(5)")
    with pytest.raises(BookError, match=r"a\.ipynb, cell In .*ZeroDivisionError"):
        execute(book, 2, ("a", *"bcdefgh"))
    assert not multiprocessing.active_children(), "what had begun was waited for"
    assert {path.name for path in book.parent.glob("begun *")} <= {"begun a", "begun b"}


def test_no_workers_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        build_book("demo", out=tmp_path, book=write_book(tmp_path / "source"), workers=0)


def test_the_first_result_is_shown_before_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book, order = write_book(tmp_path / "source"), []
    monkeypatch.setattr(chapters, "FIRST", "second")
    monkeypatch.setattr("companion.site.build.execute_all", lambda book, staged, names, *_: order.extend(names))

    def build_site(staged: Path) -> Path:
        order.append("site")
        return staged / "_build" / "html" / "index.html"

    monkeypatch.setattr("companion.site.build.build_site", build_site)
    build_book("demo", out=tmp_path / "out", book=book, runs_dir=tmp_path / "runs", workers=1)
    assert order == ["second", "site", "first", "site"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("first result: ") and shown[0].endswith("second.html")
    assert shown[1].startswith("site: ") and shown[1].endswith("index.html")
