"""Static checks of the site that `jupyter-book build book` made; skipped where there is none."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from companion.site.build import chapter_names, toc_files

BOOK = Path(__file__).parents[3] / "book"
SITE = BOOK / "_build" / "html"
pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="no site in book/_build: run jupyter-book build book first"
)
PAGES = [f"{name}.html" for name in toc_files(BOOK)] + ["search.html", "genindex.html"]
LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("link", "href")}


class Page(HTMLParser):
    """Identifiers, links, and what a browser fetches when the page is opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        navigation = tag == "link" and values.get("rel") in ("canonical", "index", "search", "next", "prev", "author")
        self.loads += [values[a] for t, a in LOADING if t == tag and a in values and not navigation]


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(errors="replace"))


def is_external(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def dead_links(path: Path) -> list[str]:
    """Links of a page that lead to no file or no place in it."""
    dead = []
    for link in page(path).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in page(target).ids):
            dead.append(link)
    return dead


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_site_lead_somewhere(name: str) -> None:
    assert dead_links(SITE / name) == []


@pytest.mark.parametrize("name", PAGES)
def test_everything_a_page_loads_is_in_the_site(name: str) -> None:
    loads = [url for url in page(SITE / name).loads if not url.startswith("data:")]
    assert [url for url in loads if is_external(url)] == [], "a reader without a network would miss these"
    missing = [url for url in loads if not (SITE / name).parent.joinpath(unquote(urlsplit(url).path)).is_file()]
    assert missing == []


def test_styles_load_nothing_from_elsewhere() -> None:
    urls = {
        url
        for style in (SITE / "_static").rglob("*.css")
        for url in re.findall(r"url\(['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style.read_text(errors="replace"))
        for url in url
        if url
    }
    assert [url for url in urls if is_external(url)] == []


@pytest.mark.parametrize("name", chapter_names(BOOK))
def test_chapters_show_figures_with_numbers_and_no_errors(name: str) -> None:
    html = (SITE / f"{name}.html").read_text()
    assert "Traceback (most recent call last)" not in html
    figures, captions = html.count("<figure"), html.count('class="caption-number"')
    assert figures and captions >= figures, f"{figures} figures, {captions} numbered captions"


@pytest.mark.parametrize("name", PAGES)
def test_no_page_shows_raw_markup(name: str) -> None:
    """A directive whose fence or name is wrong becomes text, without a warning."""
    html = re.sub(r"<pre.*?</pre>", "", (SITE / name).read_text(), flags=re.S)
    assert re.findall(r"```\S*|:{3,}\S*|\{(?:doc|numref|eq|cite:p|cite:t|term)\}`[^`]*`", html) == []


def test_own_style_is_applied() -> None:
    assert any("_static/custom.css" in url for url in page(SITE / "index.html").loads)


def test_intervals_of_tables_stay_together_and_wide_figures_are_marked() -> None:
    html = (SITE / "ablation.html").read_text()
    assert len(re.findall(r"<td>[\d.]+ <span class=\"interval\">\[[\d.]+, [\d.]+\]</span></td>", html)) >= 6
    assert re.findall(r"<td>[\d.]+ \[[^<]+</td>", html) == []
    assert re.search(r'<img[^>]*class="[^"]*figure-wide', html)
    assert re.search(r'<td class="number">[\d.]+e-\d+</td>', html), "p-values of the t-tests"
    assert re.findall(r"<td>-?[\d.]+e[-+]\d+</td>", html) == []


def test_fields_of_named_tuples_are_not_listed_as_aliases() -> None:
    html = (SITE / "api.html").read_text()
    assert "companion.studies.conditions.Condition" in html and "Alias for field number" not in html


def test_dead_links_are_found(tmp_path: Path) -> None:
    """The check itself: it must see what it looks for."""
    (tmp_path / "b.html").write_text("<p id='here'>")
    (tmp_path / "a.html").write_text(
        "<a href='b.html#here'><a href='b.html#gone'><a href='c.html'><a href='https://x.y/z'><a href='#top'>"
        "<img src='https://x.y/i.png'><link rel='canonical' href='https://x.y'>"
    )
    assert dead_links(tmp_path / "a.html") == ["b.html#gone", "c.html", "#top"]
    assert [url for url in page(tmp_path / "a.html").loads if is_external(url)] == ["https://x.y/i.png"]
