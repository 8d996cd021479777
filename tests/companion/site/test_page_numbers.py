"""README, front page and notes of pages show the published results and where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from companion.settings import PUBLISHED_PROFILE
from companion.site.build import chapter_names
from companion.site.page_numbers import BEGIN, END, headline, page_file, page_lines, save_page, summary, update
from sarmatch.profiles import profile

PROJECT = Path(__file__).parents[3]
BOOK = PROJECT / "book"
RESULTS = BOOK / "results" / "s1s2"


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_headline_is_that_of_the_published_results(page):
    assert headline(RESULTS) in (PROJECT / page).read_text()


def test_the_front_page_begins_with_the_published_summary():
    shown = summary(RESULTS)
    assert shown in (PROJECT / "book" / "index.md").read_text()
    counts = pd.read_csv(RESULTS / "claims_counts.csv")
    assert f"| Claims | {counts['claims'].sum()} |" in shown
    matching = pd.read_csv(RESULTS / "matching.csv")
    row = matching[(matching["source"] == "OMBRIA") & (matching["method"] == "per cell")].iloc[0]
    assert f"| 0.145 | {row['mma_1px']:.2f} [{row['mma_1px_low']:.2f}, {row['mma_1px_high']:.2f}] |" in shown


def test_update_replaces_what_stands_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN.format('headline')}\nstale numbers\n{END.format('headline')}\nafter\n")
    update(page, RESULTS)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale numbers" not in text
    assert headline(RESULTS) in text
    update(page, RESULTS)
    assert page.read_text() == text


def test_a_page_without_markers_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        update(page, RESULTS)
    with pytest.raises(ValueError, match="around the summary table"):
        update(page, RESULTS, ("summary",))
    assert page.read_text() == "nothing"


def test_a_note_says_what_made_the_page(tmp_path: Path) -> None:
    note = save_page(tmp_path / "demo", "matching", profile("demo"))
    about = json.loads(note.read_text())
    assert about["command"] == "python -m companion book --profile demo --chapters matching"
    assert (about["profile"], about["seed"]) == ("demo", 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["date"])
    assert "--data DATA" in save_page(tmp_path, "x", profile("s1s2", "somewhere")).read_text()
    assert "somewhere" not in (tmp_path / "page_x.json").read_text()


def test_lines_name_the_runs_of_this_chapter_only(tmp_path: Path) -> None:
    note = save_page(tmp_path, "cost", profile("demo"))
    (tmp_path / "cost_modes.json").write_text('{"run": "matcher-1", "seeds": [0, 1], "search_radius": 32.0, "x": 1}')
    (tmp_path / "costly.json").write_text('{"run": "other"}')
    (heading, words), (table, about) = page_lines(note)
    assert heading.endswith("--chapters cost") and "profile demo, seed 0" in words and "commit" in words
    assert (table, about) == ("cost_modes.csv", "run matcher-1, seeds 0 and 1, search radius 32 px")


def test_weights_are_named_by_file_or_by_the_commit_that_made_them(tmp_path: Path) -> None:
    note = save_page(tmp_path, "precision", profile("demo"))
    for weights, words in (
        ("s1s2.safetensors", "weights s1s2.safetensors"),
        ("b4a395d28", "weights of commit b4a395d28"),
    ):
        (tmp_path / "precision_x.json").write_text(json.dumps({"weights": weights}))
        assert page_lines(note)[1] == ("precision_x.csv", words)


def test_the_commit_of_a_benchmark_is_where_it_was_measured(tmp_path: Path) -> None:
    note = save_page(tmp_path, "precision", profile("demo"))
    for about, words in (
        ({"commit": "a19f1a72d", "clock": "CPU time"}, "CPU time, measured at commit a19f1a72d"),
        ({"commit": "1", "commits": ["1"], "measured_at": ["2"]}, "trained at commit 1, measured at commit 2"),
    ):
        (tmp_path / "precision_x.json").write_text(json.dumps(about))
        assert page_lines(note)[1] == ("precision_x.csv", words)


def test_a_staged_book_shows_its_own_note(tmp_path: Path) -> None:
    assert page_file(tmp_path, "matching", "s1s2") is None
    published = save_page(tmp_path / "s1s2", "matching", profile("s1s2", "d"))
    assert page_file(tmp_path, "matching", "s1s2") == published
    staged = save_page(tmp_path / "smoke", "matching", profile("smoke"))
    assert page_file(tmp_path, "matching", "s1s2") == staged


NOTES = sorted((BOOK / "results" / PUBLISHED_PROFILE).glob("page_*.json"))


@pytest.mark.parametrize("note", NOTES, ids=lambda path: path.stem)
def test_notes_of_the_stored_chapters(note: Path) -> None:
    assert note.stem.removeprefix("page_") in chapter_names(BOOK)
    assert json.loads(note.read_text())["profile"] == PUBLISHED_PROFILE
    assert all(words for _, words in page_lines(note))
