"""Rendering the book: what fails, what is drawn again, and what a killed build leaves."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from threegates.book import render
from threegates.book.values import FILE
from threegates.errors import NotebookError
from threegates.figures.published import Published

MINIMAL = {
    "_config.yml": "title: t\nexecute: {execute_notebooks: 'off'}\nonly_build_toc_files: true\n"
    "sphinx: {extra_extensions: [threegates.book.scripts, threegates.book.values]}\n",
    "_toc.yml": "format: jb-book\nroot: intro\n",
    FILE: json.dumps({"known": "0.25"}),
    "intro.md": "# Title\n\nIt is {val}`known`.\n",
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "book-src"
    folder.mkdir()
    for name, text in MINIMAL.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Stands for Jupyter Book: counts its runs, writes one page."""
    runs = []

    def draw(source, work):
        runs.append(source)
        html = work / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").write_text((source / "intro.md").read_text())

    monkeypatch.setattr(render, "_jupyter_book", draw)
    return runs


def test_a_value_is_printed_where_its_key_stands(tmp_path, source):
    text = render.render(tmp_path, source).with_name("intro.html").read_text()
    assert re.search(r'It is <span class="tg-value">0\.25</span>\.', text)


def test_an_unknown_key_fails_the_build_and_the_last_good_book_stays(tmp_path, source):
    html = tmp_path / "html"
    html.mkdir()
    (html / "index.html").write_text("the last good book")
    (source / "intro.md").write_text("# Title\n\nIt is {val}`unknown`.\n")
    with pytest.raises(NotebookError) as failure:
        render.render(tmp_path, source)
    assert "no record has the value 'unknown'" in str(failure.value)
    assert "intro.md:3" in str(failure.value)
    assert [p.name for p in html.iterdir()] == ["index.html"]


def test_a_broken_reference_fails_the_build(tmp_path, source):
    (source / "intro.md").write_text("# Title\n\nSee {numref}`fig-nowhere`.\n")
    with pytest.raises(NotebookError, match="warnings are errors") as failure:
        render.render(tmp_path, source)
    assert "fig-nowhere" in str(failure.value)


def test_a_changed_value_alone_draws_the_book_again(tmp_path, source, drawn):
    render.render(tmp_path, source)
    render.render(tmp_path, source)
    assert len(drawn) == 1
    (source / FILE).write_text(json.dumps({"known": "0.26"}))
    render.render(tmp_path, source)
    assert len(drawn) == 2


def test_nothing_is_left_beside_the_book(tmp_path, source, drawn):
    for text in ("# One\n", "# Two\n"):
        (source / "intro.md").write_text(text)
        assert render.render(tmp_path, source).read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["book-src", "html"]


def test_a_build_killed_while_it_swapped_gives_the_old_book_back(tmp_path, source, drawn, monkeypatch):
    render.render(tmp_path, source)
    (source / "intro.md").write_text("# Two\n")
    replace, steps = render.os.replace, []

    def killed_at_the_second(old, new):
        steps.append(new)
        if len(steps) == 2:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(render.os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        render.render(tmp_path, source)
    monkeypatch.undo()
    assert not (tmp_path / "html").exists()
    render._put_back(tmp_path / "html")
    assert (tmp_path / "html" / "index.html").read_text() == MINIMAL["intro.md"]


def test_two_books_of_the_same_sources_differ_in_no_page(tmp_path, source):
    published = Published("chapter/dots", "Two dots.", "Dots.")
    (source / "intro.md").write_text("# Title\n\n" + published.markdown())
    (source / "figures" / "chapter").mkdir(parents=True)
    for kind in ("svg", "png", "csv"):
        (source / "figures" / "chapter" / f"dots.{kind}").write_text(
            "<svg xmlns='http://www.w3.org/2000/svg'/>"
        )
    one = render.render(tmp_path, source).with_name("intro.html").read_bytes()
    shutil.rmtree(tmp_path / "html")
    assert render.render(tmp_path, source).with_name("intro.html").read_bytes() == one
    assert b'alt="Two dots."' in one
    assert b'<span class="caption-number">Fig. 1' in one
    assert len(re.findall(rb'<a class="reference download internal"', one)) == 3
