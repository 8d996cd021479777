"""README and front page show the published results and nothing else."""

from pathlib import Path

import pytest

from sarmatch.headline import BEGIN, END, headline, update

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "book" / "results" / "s1s2"


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_headline_is_that_of_the_published_results(page):
    assert headline(RESULTS) in (PROJECT / page).read_text()


def test_update_replaces_what_stands_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale numbers\n{END}\nafter\n")
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
