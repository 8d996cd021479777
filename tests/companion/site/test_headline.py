"""README and front page show the published results and nothing else."""

from pathlib import Path

import pandas as pd
import pytest

from companion.site.headline import BEGIN, END, headline, summary, update

PROJECT = Path(__file__).parents[3]
RESULTS = PROJECT / "book" / "results" / "s1s2"


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
