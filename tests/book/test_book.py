from __future__ import annotations

import ast
import json
import multiprocessing
import os
import re
import shutil
import threading
import time

import nbformat
import pandas as pd
import pytest

from tests.judging.test_cards import CLAIM
from tests.pages.test_runner import write_notebook
from tests.planted import planted
from threegates import digest
from threegates.book import assemble, build, render
from threegates.book.values import FILE
from threegates.errors import NotebookError
from threegates.figures.published import Published
from threegates.pages import runner
from threegates.pages.asked import NotRun
from threegates.pages.contents import Page
from threegates.pages.runner import NotebookRun

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
    replace, steps = build.os.replace, []

    def killed_at_the_second(old, new):
        steps.append(new)
        if len(steps) == 2:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(build.os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        render.render(tmp_path, source)
    monkeypatch.undo()
    assert not (tmp_path / "html").exists()
    render._put_back(tmp_path / "html")
    assert (tmp_path / "html" / "index.html").read_text() == MINIMAL["intro.md"]


def _hold(folder, held, seconds):
    with build._only_one(folder):
        held.set()
        time.sleep(seconds)


def test_a_second_build_in_the_folder_waits_and_says_so(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, 0.6))
    other.start()
    assert held.wait(10)
    started = time.monotonic()
    with build._only_one(tmp_path):
        waited = time.monotonic() - started
    other.join()
    assert waited > 0.3
    assert "another build is at work in this folder; waiting" in capsys.readouterr().err


def _finished(folder, page, executed=True):
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "figures" / page.name
    figures.mkdir(parents=True)
    (figures / "one.svg").write_text(page.name)
    cells = [nbformat.v4.new_markdown_cell(f"# {page.name}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{page.name}.ipynb")
    verdicts = pd.DataFrame([CLAIM | {"about": page.parameters.get("subject", "lab")}])
    return NotebookRun(folder / f"{page.name}.ipynb", [], verdicts, executed)


def test_two_pages_of_one_notebook_stand_side_by_side(tmp_path):
    shown = [Page("drift", "drift"), Page("drift-encoder", "drift", {"subject": "encoder"})]
    runs = {page: _finished(tmp_path / "made", page) for page in shown}
    (tmp_path / "src").mkdir()
    for page, run in runs.items():
        assemble._add_page(tmp_path / "src", page, run)
    for page in shown:
        assert (tmp_path / "src" / f"{page.name}.ipynb").read_text().count(f'# {page.name}"') == 1
        assert (tmp_path / "src" / "figures" / page.name / "one.svg").read_text() == page.name
    table = assemble._verdicts(runs)
    table = table[table["page"].isin([page.name for page in shown])]
    assert table[["about", "page"]].values.tolist() == [["lab", "drift"], ["encoder", "drift-encoder"]]


def test_a_page_without_checkpoints_says_so_and_judges_nothing(project, tmp_path):
    base = planted.base_tensors()
    planted.write_study(project / "build" / "lab", base, {})
    shutil.copy(planted.ROOT / "notebooks" / "spectral-drift.ipynb", project / "notebooks")
    page = Page("spectral-drift-encoder", "spectral-drift", {"subject": "encoder"})
    result = build._run(page)
    assert isinstance(result, NotRun)
    assemble._add_page(tmp_path, page, result)
    shown = (tmp_path / "spectral-drift-encoder.md").read_text()
    assert "Not run: this build has no checkpoints for this page." in shown
    # The verdicts' page links to each claim's card.
    assert all(f'id="verdict-{claim}"' in shown for claim in result.verdicts["claim"])
    verdicts = assemble._verdicts({page: result})
    own = verdicts[verdicts["page"] == page.name]
    assert set(own["verdict"]) == {"not run"} and set(own["about"]) == {"encoder"}
    # What stands on no page of this book awaits its runs.
    assert verdicts.loc[verdicts["page"] != page.name, "awaits"].ne("").all()


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


MEETS = """import os, time
from pathlib import Path
here = Path(os.environ["THREEGATES_BUILD"])
Path("own.txt").write_text(name)
(here / f"{name}.there").touch()
deadline = time.monotonic() + 300
while not (here / f"{other}.there").exists():
    assert time.monotonic() < deadline, "the other notebook never ran"
    time.sleep(0.05)
assert Path("own.txt").read_text() == name"""


def test_notebooks_run_beside_each_other_each_in_a_folder_of_its_own(project):
    (project / "build").mkdir()
    names = ("one", "two")
    for name, other in zip(names, reversed(names), strict=True):
        write_notebook(
            project, name, f"name, other = {name!r}, {other!r}", MEETS, parameters="draws: int = 3"
        )
    here = os.getcwd()
    runs = build._run_all([Page(name, name) for name in names], 2, measure=True)
    assert [page.name for page in runs] == list(names)
    assert all(isinstance(run, NotebookRun) and run.executed for run in runs.values())
    assert os.getcwd() == here
    assert not list((project / "build" / "notebooks").glob(".running-*"))


def test_pages_that_run_beside_each_other_parse_one_at_a_time(project, monkeypatch):
    """CPython counts the depth of a syntax tree per interpreter: two at once can fail with SystemError."""
    (project / "build").mkdir()
    names = [f"page{number}" for number in range(6)]
    for name in names:
        write_notebook(project, name, "draws", parameters="draws: int = 3")
    inside, most, threads, parse = [], [], set(), ast.parse

    def slow(*arguments, **options):
        inside.append(1)
        most.append(len(inside))
        threads.add(threading.get_ident())
        time.sleep(0.005)
        try:
            return parse(*arguments, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(runner, "_papermill", lambda plan, work: plan.notebook)
    digest._parsed.cache_clear()
    monkeypatch.setattr(ast, "parse", slow)
    runs = build._run_all([Page(name, name) for name in names], 3, measure=True)
    assert all(run.executed for run in runs.values())
    assert len(threads) > 2 and len(most) > len(names) and max(most) == 1


def test_a_page_is_measured_before_it_runs_and_a_failure_ends_the_build(monkeypatch):
    seen = []

    def run(page, measure):
        seen.append(f"run {page.name}")
        if page.name == "bad":
            raise NotebookError("a cell failed", where=page.name)
        return NotRun("tried", pd.DataFrame())

    def measured(page, workers):
        seen.append(f"measure {page.name}")
        time.sleep(0.2)

    monkeypatch.setattr(build, "_measure", measured)
    monkeypatch.setattr(build, "_run", run)
    pages = [Page(name, name) for name in ("good", "bad", "later", "last")]
    with pytest.raises(NotebookError, match="a cell failed"):
        build._run_all(pages, 2, measure=True)
    assert seen.index("measure bad") < seen.index("run bad")
    assert "run last" not in seen
    seen.clear()
    assert len(build._run_all(pages[:1], 2, measure=False)) == 1 and seen == ["run good"]
