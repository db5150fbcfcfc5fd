"""The book: train, measure, run every chapter, assemble the pages, render them with Jupyter Book.

Every stage does only what has changed, and puts its result in place in one step: a build that is killed
leaves the last good book, and the next one continues.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from threegates.book.assemble import Runs, assemble
from threegates.book.render import render, say
from threegates.errors import CheckpointError
from threegates.estimates.rows import MissingRecordError
from threegates.jobs.sources import PAPER
from threegates.jobs.subjects import taken_by
from threegates.pages.asked import NotRun, run_page
from threegates.pages.opened import PAGES, Opened, open_book
from threegates.pages.runner import NotebookRun
from threegates.pages.syntax import parse_package
from threegates.records.places import Places
from threegates.records.provenance import (
    project_root,
    tracked_manifest,
)
from threegates.releases.making import unpacked
from threegates.releases.taking import take, take_of_bases
from threegates.workers import one_thread

#: The profile that trains and measures nothing, and its folder below the build's.
RELEASED = "released"
# Measuring that took less goes without saying.
TOLD_SECONDS = 5


def build_book(profile: str, build: Path, workers: int = 2, measure: bool = True) -> Path:
    """Build the book of a profile; returns its first page.

    Parameters
    ----------
    profile : "smoke", "mini" or "full" train the lab; "paper" takes the paper's own checkpoints from the Hub;
        "released" renders the records of results/, in a folder of its own below `build`.
    build : folder of everything that is built.
    workers : processes that train, measure and execute.
    measure : whether to train and measure what is missing; if not, claims that rest on it are not run.
    """
    root = project_root()
    if profile == RELEASED:
        build, measure = build / RELEASED, False
    build.mkdir(parents=True, exist_ok=True)
    pages = open_book(_places(profile, build), measure)
    with _only_one(build):
        release = unpacked(build) if profile == RELEASED else None
        if release is None and profile != PAPER and measure:
            _train(profile, build, workers)
        runs = _run_all(pages, workers)
        source = assemble(build, root, profile, runs, release)
        return render(build, source)


def _places(profile: str, build: Path) -> Places:
    """A build's own folder, and the paper's own checkpoints where those are the profile's."""
    places = replace(Places.here(), build=build.absolute())
    return replace(places, manifest=tracked_manifest()) if profile == PAPER else places


@contextmanager
def _only_one(build: Path) -> Iterator[None]:
    """Let one build work in a folder at a time; the next one waits and says so."""
    with open(build / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build is at work in this folder; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(profile: str, build: Path, workers: int) -> None:
    """Make the checkpoints: take from the release what is the same there, and train the rest of the lab."""
    from threegates.lab.train import train

    if taken := take(profile, build):
        subjects, runs = " and ".join(taken_by(profile)), {entry.run or entry.name for entry in taken}
        say(f"{len(runs)} runs of the subject {subjects} and their records are taken from the release")
    train(profile, build, workers, taken=taken)


def _run_all(pages: Sequence[Opened], workers: int) -> Runs:
    """Measure page by page over processes, and execute notebooks beside: a kernel keeps but one core busy."""
    # Digests of code are wanted in every thread below.
    parse_package()
    futures: dict[Opened, Future[NotebookRun | NotRun]] = {}
    # Computed claims are judged in this process, beside kernels and workers that keep the cores busy.
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        try:
            for page in in_running_order(pages):
                # What has failed ends the build before more is measured.
                _ = [future.result() for future in futures.values() if future.done()]
                if page.measure:
                    _measure(page, workers)
                futures[page] = pool.submit(_run, page)
            # The first to fail tells why; others may only have waited for it.
            _ = [future.result() for future in as_completed(futures.values())]
            return {page: futures[page].result() for page in pages}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_running_order(pages: Sequence[Opened]) -> list[Opened]:
    """Pages in the book's order, but one that looks at a few others right after the last of them.

    Late in the book it would run when there is little left to measure beside it.
    """
    places = {page.name: number for number, page in enumerate(pages)}

    def place(page: Opened) -> tuple[int, bool]:
        others = page.values[PAGES] if page.looks_at_pages else ()
        assert isinstance(others, Sequence)
        last = max((places[name] for name in others if name in places), default=None)
        return (places[page.name], False) if last is None else (last, True)

    return sorted(pages, key=place)


def _measure(page: Opened, workers: int) -> None:
    """Measure what a page lacks; what cannot be opened is the page's own to say."""
    started = time.monotonic()
    with suppress(CheckpointError, MissingRecordError):
        for study in page.studies:
            take_of_bases(study)
            study.ensure(workers)
    if (seconds := time.monotonic() - started) >= TOLD_SECONDS:
        say(f"{page.name} measured ({seconds:.0f} s)")


def _run(page: Opened) -> NotebookRun | NotRun:
    """Run a page, and say what became of it."""
    started = time.monotonic()
    result = run_page(page)
    seconds = time.monotonic() - started
    if isinstance(result, NotRun):
        say(f"{page.name} not run: {result.reason}")
    else:
        say(f"{page.name} {'executed' if result.executed else 'unchanged'} ({seconds:.0f} s)")
    return result
