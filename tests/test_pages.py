"""Every page in a real browser, network off: wide and narrow, light and dark.

The book is drawn from our sources and synthetic figures. To look at a built book instead, name its folder in
THREEGATES_PAGES; to keep pictures, name a folder in THREEGATES_PICTURES.
"""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.planted import pages
from threegates.book import render
from threegates.pages.contents import book_pages

LOOK = """(() => {
  const SEARCHES = '.search-button, .search-button__button, .search-button-field, input[type=search]';
  const root = document.documentElement, all = s => [...document.querySelectorAll(s)];
  const seen = e => e.checkVisibility() && e.getBoundingClientRect().width > 0;
  return {
    theme: root.dataset.theme,
    sideways: root.scrollWidth - root.clientWidth,
    searches: all(SEARCHES).filter(seen).length,
    untypeset: all('span.math, div.math').filter(e => !e.querySelector('mjx-container, svg')).length,
    broken: all('img').filter(e => e.complete && !e.naturalWidth).map(e => e.src),
    silent: all('img').filter(e => !e.alt).map(e => e.src),
    ground: getComputedStyle(document.body).backgroundColor,
    boxes: all('.tg-verdict, .tg-scroll').map(e => [getComputedStyle(e).color, ground(e)]),
  };
  function ground(e) {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)' && c !== 'transparent') return c;
    }
    return 'rgb(255, 255, 255)';
  }
})()"""


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    if built := os.environ.get("THREEGATES_PAGES"):
        return Path(built)
    folder = tmp_path_factory.mktemp("book")
    drawn = render.render(folder, pages.assemble(folder / "book-src")).parent
    # Copied away from its sources, as a reader would get it.
    return Path(shutil.copytree(drawn, folder / "elsewhere"))


def page_files(html: Path) -> list[Path]:
    return [path for path in sorted(html.glob("*.html")) if path.stem not in ("index", "genindex", "search")]


class _Links(HTMLParser):
    """Addresses that a page loads by itself: everything but plain links."""

    def __init__(self):
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag != "a" and not (
            tag == "link" and given.get("rel") in ("canonical", "next", "prev", "index", "search")
        ):
            self.loads += [given[k] or "" for k in ("src", "href", "data", "srcset", "poster") if k in given]


def test_no_page_names_a_server_that_it_would_load_from(html):
    for path in page_files(html):
        links = _Links()
        links.feed(path.read_text("utf-8"))
        assert links.loads
        assert [a for a in links.loads if re.match(r"(https?:)?//", a)] == [], path.name


def test_no_style_sheet_names_a_server(html):
    for path in html.rglob("*.css"):
        assert (
            re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", path.read_text("utf-8")) == []
        ), path


def test_there_is_a_page_for_every_chapter_and_every_figure_is_numbered(html):
    names = {path.stem for path in page_files(html)}
    executed = {page.name for page in book_pages(pages.ROOT)}
    assert {path.stem for path in pages.NOTEBOOKS} < executed
    assert (
        executed
        | {
            "intro",
            "verdicts",
            "glossary",
            "bibliography",
        }
        <= names
    )
    for page in executed:
        text = (html / f"{page}.html").read_text("utf-8")
        figures = len(re.findall(r"<figure[^>]*\btg-figure\b", text))
        assert figures == len(re.findall(r'<span class="caption-number">Fig\. \d', text)) > 0
        assert len(re.findall(r'<a class="reference download internal"', text)) >= 3 * figures


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_look_right_wide_and_narrow_light_and_dark(html):
    pictures = os.environ.get("THREEGATES_PICTURES")
    shot = pictures is not None
    with Browser() as browser:
        for path in page_files(html):
            # Each width is loaded once and come to from the other once: typesetting takes most of the time.
            for dark, widths in ((False, (1280, 400)), (True, (400, 1280))):
                for order, width in enumerate(widths):
                    if order == 0:
                        visit = browser.visit(path, LOOK, width, dark, shot)
                    else:
                        visit = browser.resize(LOOK, width, shot)
                    _check(visit, f"{path.name}, {width} px, {'dark' if dark else 'light'}", dark)
                    if pictures:
                        name = f"{path.stem}-{width}-{'dark' if dark else 'light'}.png"
                        (Path(pictures) / name).write_bytes(visit.picture)


def _check(visit, where, dark):
    found = visit.found
    assert [a for a in visit.requests if not a.startswith(("file:", "data:"))] == [], where
    assert visit.complaints == [], where
    assert found["theme"] == ("dark" if dark else "light"), where
    assert found["sideways"] == 0, where
    assert found["searches"] == 1, where
    assert found["untypeset"] == 0, where
    assert found["broken"] == found["silent"] == [], where
    assert (_light(found["ground"]) < 0.2) == dark, where
    for ink, ground in found["boxes"]:
        assert abs(_light(ink) - _light(ground)) > 0.4, where
        assert (_light(ground) < 0.3) == dark, where


def _light(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / (3 * 255)


FILTER = """(async () => {
  const table = document.querySelector('table.tg-verdicts');
  const shown = () => Array.from(table.tBodies[0].rows).filter(row => !row.hidden).length;
  const told = () => document.querySelector('.tg-count').textContent;
  const found = {rows: shown(), told: told()};
  const select = document.querySelector('[data-filter="chapter"]');
  select.value = 'stripe-masks';
  select.dispatchEvent(new Event('change'));
  found.chapter = [shown(), told()];
  const words = document.querySelector('.tg-filters input');
  words.value = 'columns stand';
  words.dispatchEvent(new Event('input'));
  found.words = shown();
  document.querySelector('.tg-filters button').click();
  found.again = shown();
  const titles = () => Array.from(table.tBodies[0].rows).map(row => row.querySelector('strong').textContent);
  const before = titles();
  const head = table.tHead.rows[0].cells[0];
  head.querySelector('button').click();
  found.ascending = [head.getAttribute('aria-sort'), titles()];
  head.querySelector('button').click();
  found.descending = head.getAttribute('aria-sort');
  head.querySelector('button').click();
  found.restored = JSON.stringify(titles()) === JSON.stringify(before) && !head.hasAttribute('aria-sort');
  return found;
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_table_of_verdicts_filters_and_sorts_without_a_server(html):
    with Browser() as browser:
        found = browser.visit(html / "verdicts.html", FILTER).found
    rows = found["rows"]
    assert found["told"] == f"{rows} of {rows} rows shown" and rows > 40
    chapter, told = found["chapter"]
    assert 0 < chapter < rows and told == f"{chapter} of {rows} rows shown"
    assert found["words"] == 1 and found["again"] == rows
    assert found["ascending"][0] == "ascending" and found["descending"] == "descending"
    lowered = [title.lower() for title in found["ascending"][1]]
    assert lowered[0] <= lowered[-1] and lowered[0].startswith("a") and found["restored"]


def test_the_table_of_verdicts_is_whole_without_scripts(html):
    text = (html / "verdicts.html").read_text("utf-8")
    table = text.split('class="tg-table tg-verdicts"')[1].split("</table>")[0]
    assert table.count("<tr ") > 40 and "<tr hidden" not in table and "RL avoids principal weights" in table
