"""Rendering with Jupyter Book: warnings are errors, and the last good book stays until the next is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from threegates.digest import code_digest, file_digest, value_digest
from threegates.errors import NotebookError
from threegates.records.provenance import importlib_version


def say(text: str) -> None:
    """Tell of a build's progress on standard error."""
    print(f"book: {text}", file=sys.stderr, flush=True)


def render(build: Path, source: Path) -> Path:
    """Render with warnings as errors, unless these very pages were rendered before."""
    html = build / "html"
    _put_back(html)
    digest, mark = _digest(source), html / ".source"
    if mark.is_file() and mark.read_text() == digest:
        say("pages unchanged")
        return html / "index.html"
    started, work = time.monotonic(), build / ".rendering"
    shutil.rmtree(work, ignore_errors=True)
    _jupyter_book(source, work)
    fresh = work / "_build" / "html"
    (fresh / ".source").write_text(digest)
    _swap(fresh, html)
    shutil.rmtree(work)
    say(f"pages rendered ({time.monotonic() - started:.0f} s)")
    return html / "index.html"


def _digest(source: Path) -> str:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    versions = {
        name: importlib_version(name) for name in ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme")
    }
    return value_digest(
        {
            "files": {str(path.relative_to(source)): file_digest(path) for path in files},
            "versions": versions,
            "extensions": code_digest("threegates.book.values", "threegates.book.scripts"),
        }
    )


def _jupyter_book(source: Path, work: Path) -> None:
    # Jupyter Book 1.x has a script but no __main__, and a virtual environment need not be on the PATH.
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", "-W", "-n", "--keep-going"]
    done = subprocess.run(
        [*command, str(source), "--path-output", str(work)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-30:]
        raise NotebookError(
            "the book has warnings, and warnings are errors",
            where="build/book-src",
            found="\n    ".join(told),
            remedy="correct the pages in book/ or notebooks/; the last good book is left in place",
        )


def _swap(fresh: Path, place: Path) -> None:
    # A folder cannot be replaced by another in one step; the old book is moved aside first.
    old = _aside(place)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(place: Path) -> None:
    """Give back the last good book if a build was killed between the two steps of putting a new one there."""
    if not place.exists() and _aside(place).exists():
        os.replace(_aside(place), place)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}-old")
