"""Building the book: its notebooks side by side, and one build at a time."""

from __future__ import annotations

import ast
import multiprocessing
import os
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest

from tests.pages.test_runner import write_notebook
from threegates import canonical, definitions
from threegates.book import build
from threegates.errors import NotebookError
from threegates.pages import runner
from threegates.pages.asked import NotRun
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.pages.runner import NotebookRun


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
        write_notebook(project, name, f"name, other = {name!r}, {other!r}", MEETS, parameters="seed: int = 3")
    here = os.getcwd()
    runs = build._run_all([Opened.of_page(Page(name, name)) for name in names], 2)
    assert [page.name for page in runs] == list(names)
    assert all(isinstance(run, NotebookRun) and run.executed for run in runs.values())
    assert os.getcwd() == here
    assert not list((project / "build" / "notebooks").glob(".running-*"))


def test_pages_that_run_beside_each_other_parse_one_at_a_time(project, monkeypatch):
    """CPython counts the depth of a syntax tree per interpreter: two at once can fail with SystemError."""
    (project / "build").mkdir()
    names = [f"page{number}" for number in range(6)]
    for name in names:
        write_notebook(project, name, "seed", parameters="seed: int = 3")
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

    monkeypatch.setattr(runner, "_papermill", lambda opened, work: opened.notebook)
    for known in (definitions._closure, definitions._tree, canonical._read):
        known.cache_clear()
    monkeypatch.setattr(ast, "parse", slow)
    # Nothing is measured before, so that the threads are the first to look into the cells.
    pages = [Opened.of_page(Page(name, name), measure=False) for name in names]
    runs = build._run_all(pages, 3)
    assert all(run.executed for run in runs.values())
    assert len(threads) > 2 and len(most) > len(names) and max(most) == 1


def test_what_looks_at_a_few_pages_runs_right_after_them_and_what_looks_at_all_at_its_place(project):
    looks = {"at-two": '["c", "a"]', "at-none-here": '["elsewhere"]', "at-all": "[]"}
    names = ("at-two", "a", "b", "c", "d", "at-none-here", "at-all", "e")
    pages = [
        Opened.of_notebook(
            write_notebook(
                project, name, parameters=f"pages: list = {looks[name]}  # seen" if name in looks else ""
            )
        )
        for name in names
    ]
    order = [page.name for page in build.in_running_order(pages)]
    assert order == ["a", "b", "c", "at-two", "d", "at-none-here", "at-all", "e"]


def test_a_page_is_measured_before_it_runs_and_a_failure_ends_the_build(project, monkeypatch):
    seen = []

    def run(page):
        seen.append(f"run {page.name}")
        if page.name == "bad":
            raise NotebookError("a cell failed", where=page.name)
        return NotRun("tried", pd.DataFrame())

    def measured(page, workers):
        seen.append(f"measure {page.name}")
        time.sleep(0.2)

    monkeypatch.setattr(build, "_measure", measured)
    monkeypatch.setattr(build, "_run", run)
    names = ("good", "bad", "later", "last")
    pages = [Opened.of_notebook(write_notebook(project, name)) for name in names]
    with pytest.raises(NotebookError, match="a cell failed"):
        build._run_all(pages, 2)
    assert seen.index("measure bad") < seen.index("run bad")
    assert "run last" not in seen
    seen.clear()
    unmeasured = [replace(page, measure=False) for page in pages[:1]]
    assert len(build._run_all(unmeasured, 2)) == 1 and seen == ["run good"]
