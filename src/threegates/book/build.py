"""The book: train, measure, run every chapter, assemble the pages, render them with Jupyter Book.

Every stage does only what has changed, and puts its result in place in one step: a build that is killed
leaves the last good book, and the next one continues.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from threegates.book.assemble import Runs, assemble
from threegates.book.render import render, say
from threegates.errors import CheckpointError
from threegates.estimates.rows import MissingRecordError
from threegates.jobs.sources import MANIFEST_VARIABLE
from threegates.pages.asked import NotRun, run_page
from threegates.pages.contents import Page, book_pages
from threegates.pages.notebooks import notebook_path
from threegates.pages.runner import NotebookRun, page_studies
from threegates.pages.syntax import parse_package
from threegates.records.provenance import (
    project_root,
    tracked_manifest,
)
from threegates.releases.making import unpacked
from threegates.releases.taking import TAKEN, take

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
        os.environ["THREEGATES_BUILD"] = str(build)
    build.mkdir(parents=True, exist_ok=True)
    with _only_one(build):
        release = unpacked(build) if profile == RELEASED else None
        if release is None:
            _prepare(profile, build, root, workers, measure)
        runs = _run_all(book_pages(root), workers, measure)
        source = assemble(build, root, profile, runs, release)
        return render(build, source)


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


def _prepare(profile: str, build: Path, root: Path, workers: int, measure: bool) -> None:
    """Make the checkpoints: train the lab, or point the study at the paper's own."""
    if profile == "paper":
        os.environ[MANIFEST_VARIABLE] = str(tracked_manifest())
        return
    if not measure:
        return
    from threegates.lab.train import train

    if taken := take(profile, build):
        subjects = " and ".join(TAKEN[profile])
        say(f"{len(taken)} runs of the subject {subjects} and their records are taken from the release")
    train(profile, build, workers, taken=taken)


def _run_all(pages: Sequence[Page], workers: int, measure: bool) -> Runs:
    """Measure page by page over processes, and execute notebooks beside: a kernel keeps but one core busy."""
    # Digests of code are wanted in every thread below.
    parse_package()
    futures: dict[Page, Future[NotebookRun | NotRun]] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for page in pages:
                # What has failed ends the build before more is measured.
                _ = [future.result() for future in futures.values() if future.done()]
                if measure:
                    _measure(page, workers)
                futures[page] = pool.submit(_run, page, measure)
            # The first to fail tells why; others may only have waited for it.
            _ = [future.result() for future in as_completed(futures.values())]
            return {page: future.result() for page, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure(page: Page, workers: int) -> None:
    """Measure what a page lacks; what cannot be opened is the page's own to say."""
    started = time.monotonic()
    with suppress(CheckpointError, MissingRecordError):
        for study in page_studies(notebook_path(page.notebook), page.parameters):
            study.ensure(workers)
    if (seconds := time.monotonic() - started) >= TOLD_SECONDS:
        say(f"{page.name} measured ({seconds:.0f} s)")


def _run(page: Page, measure: bool = True) -> NotebookRun | NotRun:
    """Run a page, and say what became of it."""
    started = time.monotonic()
    result = run_page(page, 1, measure)
    seconds = time.monotonic() - started
    if isinstance(result, NotRun):
        say(f"{page.name} not run: {result.reason}")
    else:
        say(f"{page.name} {'executed' if result.executed else 'unchanged'} ({seconds:.0f} s)")
    return result
