"""The built site in headless Chromium: what a reader on a desktop or a phone, in light or dark, would stumble over.

Skipped where there is no site, no Playwright or no Chromium (the system's, or the one that Playwright fetches).
"""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion.site.build import toc_files

BOOK = Path(__file__).parents[3] / "book"
SITE = BOOK / "_build" / "html"
PAGES = [f"{name}.html" for name in toc_files(BOOK)] + ["search.html", "genindex.html"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
MAX_BYTES = 2_000_000
"""Of a page with its images, which the browser fetches once; style and scripts are shared by all pages."""
LEAST_CONTRAST = 4.5
"""WCAG AA for text of ordinary size."""

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="no site in book/_build: run jupyter-book build book first"
)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN_IMAGES = """[...document.images].filter(i => !i.loading || i.complete).filter(i => !i.naturalWidth && i.src)
    .map(i => i.src)"""
NO_ALT = """[...document.querySelectorAll('figure img, .cell_output img')]
    .filter(i => !i.alt || i.alt.startsWith('_images') || /[.](png|svg)$/.test(i.alt)).map(i => i.src)"""
CUT_FIGURES = """[...document.querySelectorAll('figure img, .cell_output img')].filter(i => {
  let box = i.parentElement;
  while (box && getComputedStyle(box).overflowX === 'visible') box = box.parentElement;
  return box && i.getBoundingClientRect().right > box.getBoundingClientRect().right + 1;
}).map(i => i.src)"""
LOAD_LAZY_IMAGES = "document.querySelectorAll('img[loading=lazy]').forEach(i => { i.loading = 'eager' })"
COLOURS = """() => {
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0[)]$|^transparent$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const kinds = ['section > p', 'h1', 'p.provenance', '.cell_output td', '.cell_output td small', 'figcaption p'];
  return kinds.map(kind => document.querySelector(`article ${kind}`))
      .filter(e => e && e.innerText.trim()).map(e => [getComputedStyle(e).color, ground(e)]);
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if path is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium: install the system's, or run playwright install chromium")
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    yield context.new_page()
    context.close()


class Visit:
    """What one page did while it loaded."""

    def __init__(self, tab: Any, url: str, address: str) -> None:
        self.external: list[str] = []
        self.errors: list[str] = []
        self.bytes = 0

        def on_request(request: Any) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                self.external.append(request.url)

        def on_response(response: Any) -> None:
            kind, length = response.request.resource_type, response.headers.get("content-length", "0")
            self.bytes += int(length) if kind in ("document", "image") else 0

        def on_console(message: Any) -> None:
            self.errors += [message.text] if message.type == "error" else []

        def on_error(error: Any) -> None:
            self.errors.append(str(error))

        handlers = {"request": on_request, "response": on_response, "console": on_console, "pageerror": on_error}
        for event, handler in handlers.items():
            tab.on(event, handler)
        tab.set_viewport_size(DESKTOP)
        tab.emulate_media(color_scheme="light")
        tab.goto(url, wait_until="load")
        tab.evaluate(LOAD_LAZY_IMAGES)
        tab.wait_for_load_state("networkidle")
        for event, handler in handlers.items():
            tab.remove_listener(event, handler)


def contrast(text: str, ground: str) -> float:
    """Ratio of relative luminances of two CSS colours `rgb(r, g, b)`, between 1 and 21."""

    def luminance(colour: str) -> float:
        values = [float(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, tab: Any, address: str) -> None:
    visit = Visit(tab, address + name, address)
    assert visit.external == [], "a reader without a network would miss these"
    assert visit.errors == []
    assert tab.evaluate(BROKEN_IMAGES) == []
    assert tab.evaluate(NO_ALT) == [], "figures without a text for those who do not see them"
    assert visit.bytes < MAX_BYTES, f"{name} weighs {visit.bytes / 1e6:.1f} MB"
    assert tab.evaluate(OVERFLOW) <= 0, "the page scrolls sideways on a desktop"
    assert tab.evaluate(CUT_FIGURES) == [], "figures that a desktop shows in part"
    tab.set_viewport_size(PHONE)
    assert tab.evaluate(OVERFLOW) <= 0, "the page scrolls sideways on a phone"
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme, timeout=3000)
        for text, ground in tab.evaluate(COLOURS):
            assert contrast(text, ground) >= LEAST_CONTRAST, f"{text} on {ground} in {scheme} mode"


def test_search_works_without_a_network(tab: Any, address: str) -> None:
    visit = Visit(tab, f"{address}search.html?q=speckle", address)
    tab.wait_for_selector("#search-results li a")
    assert visit.external == [] and visit.errors == []


def test_what_is_checked_can_fail(tab: Any, address: str) -> None:
    """The checks see what they look for."""
    visit = Visit(tab, f"{address}missing.html", address)
    assert visit.errors
    tab.set_content(
        "<body style='margin:0'><figure style='width: 90px; overflow-x: auto'><img src='gone.png' width='99'></figure>"
        "<div style='width: 3000px'>wide</div></body>"
    )
    tab.wait_for_load_state("networkidle")
    assert tab.evaluate(OVERFLOW) > 0
    assert len(tab.evaluate(BROKEN_IMAGES)) == len(tab.evaluate(NO_ALT)) == len(tab.evaluate(CUT_FIGURES)) == 1
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(117, 117, 117)", "rgb(255, 255, 255)") == pytest.approx(4.6, abs=0.05)
