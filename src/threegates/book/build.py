"""The book: train, measure, run every chapter, assemble the pages, render them with Jupyter Book.

Every stage does only what has changed, and puts its result in place in one step: a build that is killed
leaves the last good book, and the next one continues.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pandas as pd

from threegates.appendices.benchmark_page import benchmark_file, benchmark_page
from threegates.appendices.larger_page import PAGE as LARGER
from threegates.appendices.larger_page import larger_page
from threegates.appendices.verdict_plots import forest, forest_rows
from threegates.appendices.verdicts import PAGE, verdict_page
from threegates.atomic import write_json
from threegates.book.evidence import write_evidence
from threegates.book.summary import forget, write_summary
from threegates.book.values import FILE, rate_values, verdict_values, write_values
from threegates.chapters.stripe_masks.views import gain_view, pass_view
from threegates.digest import code_digest, file_digest, runtime_versions, value_digest
from threegates.errors import CheckpointError, NotebookError
from threegates.estimates.rows import MissingRecordError
from threegates.estimates.statistics import with_statistics
from threegates.figures.style import Published, publish
from threegates.jobs.released import FILE as RELEASE_FILE
from threegates.jobs.sources import MANIFEST_VARIABLE
from threegates.judging.cards import VerdictCards
from threegates.judging.claims import Claims, NoTables, judge, read_claims, verdict_table
from threegates.pages.asked import NotRun, page_looks, page_study, run_page
from threegates.pages.contents import Page, book_pages
from threegates.pages.figure_cards import PROVENANCE, card, with_cards
from threegates.pages.runner import NotebookRun, notebook_path, page_studies, sidecar
from threegates.pages.stated_values import stated_values
from threegates.pages.syntax import parse_package
from threegates.records.known_digests import known_digest
from threegates.records.provenance import (
    build_folder,
    build_state,
    importlib_version,
    project_root,
    tracked_manifest,
)
from threegates.releases.making import RELEASED_PROFILE, RESULTS, unpacked
from threegates.releases.notes import freshness, release_note, wider_note, with_note
from threegates.releases.packing import Release
from threegates.releases.taking import TAKEN, take, taken_note
from threegates.study import Study

LAB_CHAPTER = "miniature-lab"
#: The profile that trains and measures nothing, and its folder below the build's.
RELEASED = "released"
#: Profiles of which the released one is a wider form.
WIDENED = ("smoke", "mini")
# Measuring that took less goes without saying.
TOLD_SECONDS = 5
#: What became of each page.
Runs = dict[Page, NotebookRun | NotRun]

_MATHJAX = ("sphinx-mathjax-offline", "static", "mathjax", "tex-svg.js")


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
        source = _assemble(build, root, profile, runs, release)
        return _render(build, source)


@contextmanager
def _only_one(build: Path) -> Iterator[None]:
    """Let one build work in a folder at a time; the next one waits and says so."""
    with open(build / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another build is at work in this folder; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"book: {text}", file=sys.stderr, flush=True)


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
        _say(f"{len(taken)} runs of the subject {subjects} and their records are taken from the release")
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
        _say(f"{page.name} measured ({seconds:.0f} s)")


def _run(page: Page, measure: bool = True) -> NotebookRun | NotRun:
    """Run a page, and say what became of it."""
    started = time.monotonic()
    result = run_page(page, 1, measure)
    seconds = time.monotonic() - started
    if isinstance(result, NotRun):
        _say(f"{page.name} not run: {result.reason}")
    else:
        _say(f"{page.name} {'executed' if result.executed else 'unchanged'} ({seconds:.0f} s)")
    return result


def _assemble(build: Path, root: Path, profile: str, runs: Runs, release: Release | None = None) -> Path:
    """Put prose, executed notebooks, figures, values and the verdicts' page into one fresh folder."""
    source = build / "book-src"
    forget(build)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "book", source)
    for page, result in runs.items():
        _add_page(source, page, result, _note(release, [page]) or taken_note([page], profile, build))
        if release is None and _is_released(root):
            _add_wider(source, page, profile)
    table = _verdicts(runs)
    note = _note(release, list(runs)) or taken_note(runs, profile, build, named=True)
    _add_verdicts(source, table, runs, note)
    speed = benchmark_page(benchmark_file(build, root))
    (source / "benchmarks.md").write_text(speed, encoding="utf-8")
    (source / f"{LARGER}.md").write_text(larger_page(root, build, table), encoding="utf-8")
    stated = stated_values(read_claims(root / "claims.yaml"))
    values = (
        {"profile": profile, "origin": _origin(release, TAKEN.get(profile, ()) if note else ())}
        | stated
        | verdict_values(table)
        | _lab_values(runs)
    )
    write_values(source / FILE, values)
    write_summary(build, source, profile, table, values)
    mathjax = source / "_static" / "mathjax"
    mathjax.mkdir(parents=True)
    shutil.copyfile(_mathjax_file(), mathjax / "tex-svg.js")
    return source


def _origin(release: Release | None, taken: Sequence[str]) -> str:
    """On what the build's numbers rest, for the prose; `taken` are subjects that come from the release."""
    if release is None:
        others = f"; what concerns the {' and the '.join(taken)} is from released records" if taken else ""
        return "on models trained on the spot" + others
    return f"from released records of the profile {release.profile}, whose models are not trained again"


def _note(release: Release | None, pages: Sequence[Page]) -> str:
    """What pages of a released build say of their records; nothing in any other build."""
    if release is None:
        return ""
    studies = [page_study(page, measure=False) for page in pages if page_looks(page)]
    return release_note(release, freshness(studies, release.profile)) if studies else ""


def _is_released(root: Path) -> bool:
    return (root / RESULTS / RELEASED_PROFILE / RELEASE_FILE).is_file()


def _add_wider(source: Path, page: Page, profile: str) -> None:
    """At a page's end, which arms of its chapter only the released records have."""
    place = source / f"{page.name}.ipynb"
    note = wider_note(page.notebook, profile, RELEASED_PROFILE) if profile in WIDENED else ""
    if note and place.is_file() and page.name == page.notebook:
        notebook = nbformat.read(place, as_version=4)
        nbformat.write(with_note(notebook, note, len(notebook.cells)), place)


def _add_verdicts(source: Path, table: pd.DataFrame, runs: Runs, note: str) -> None:
    """The verdicts' page with its figure, and the evidence of every claim."""
    rows = forest_rows(table)
    figure = _with_card(source, _summary_figure(source, rows), runs) if len(rows) else ""
    (source / f"{PAGE}.md").write_text(verdict_page(table, note + figure), encoding="utf-8")
    write_evidence(source / "extra", table, _cells(runs), {page.name: _read(runs[page]) for page in runs})


def _with_card(source: Path, figure: Published, runs: Runs) -> str:
    """A figure of a generated page with its card: it is made from the verdicts of all pages."""
    pages = {page.name: file_digest(run.page) for page, run in runs.items() if isinstance(run, NotebookRun)}
    facts = {
        "page": PAGE,
        "made from": "the verdicts of all pages",
        "pages": pages,
        "data": file_digest(source / "figures" / f"{figure.name}.csv"),
        "code": code_digest("threegates.appendices.verdict_plots"),
        "versions": runtime_versions(),
    }
    place = build_folder() / "notebooks" / f"{PAGE}.ipynb"
    before = sidecar(place).get("figures", {}).get(figure.name, {})
    # Made from the same things it is the same figure, and its time that of its making.
    same = {key: before.get(key) for key in facts} == facts
    if not same:
        write_json(place.with_suffix(".json"), {"figures": {figure.name: {**facts, **build_state()}}})
    # As they were written, in the order that they have there: the next build has them from the file.
    facts = sidecar(place)["figures"][figure.name]
    _write_facts(source, {figure.name: facts})
    return figure.markdown() + "\n" + card(figure.name, facts) + "\n"


def _summary_figure(source: Path, rows: pd.DataFrame) -> Published:
    return publish(
        forest(rows),
        f"{PAGE}/summary",
        alt="The paper's claims on effects, one row each, ratios above, differences below: our estimate with "
        "its interval, coloured by verdict, the tolerance fixed beforehand, and the same under each null or "
        "matched control. Many effects lie far beyond their tolerance, their controls at no effect.",
        caption="The paper's claims, every effect beside its tolerance and its controls, with 95 % intervals "
        "over seeds. A claim is reproduced where its own interval and those of all controls lie at or beyond "
        "their tolerances. Differences are on a scale that is linear around zero and logarithmic beyond; "
        "ratios that are not above zero stand at the left edge.",
        data=rows,
        folder=source / "figures",
    )


def _verdicts(runs: Runs) -> pd.DataFrame:
    """Verdicts of all pages, each row with the page that has its card; of claims without a page, why not."""
    found = [result.verdicts.assign(page=page.name) for page, result in runs.items()]
    known = read_claims(project_root() / "claims.yaml")
    found.append(_without_page(known, {page.notebook for page in runs}))
    table = pd.concat([frame for frame in found if not frame.empty], ignore_index=True)
    counts = {name: table[name].fillna(0).astype(int) for name in ("cells", "cells_same") if name in table}
    return with_statistics(table.assign(**counts), known.confidence)


def _without_page(known: Claims, chapters: set[str]) -> pd.DataFrame:
    """Claims whose chapter has no page: what their runs await."""
    judged = [
        verdict_table([judge(claim, NoTables(), "no page yet", known.confidence)]).assign(about=subject)
        for claim in known.claims
        if claim.awaits and claim.chapter not in chapters
        for subject in claim.subjects
    ]
    return pd.concat(judged, ignore_index=True).assign(page=PAGE) if judged else pd.DataFrame()


def _cells(runs: Runs) -> pd.DataFrame:
    """Claims over their free choices, of all pages that judge any."""
    frames = []
    for page, result in runs.items():
        if isinstance(result, NotebookRun) and page_looks(page):
            frames.append(page_study(page).cells())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _read(result: NotebookRun | NotRun) -> list[dict]:
    """Name and content digest of every record that a page read."""
    # A study that is looked at but judges nothing has no record of verdicts.
    files = [path for path in result.records if path.is_file()] if isinstance(result, NotebookRun) else []
    return [{"record": f"{f.parent.name}/{f.name}", "sha256": known_digest(f)} for f in files]


def _add_page(source: Path, page: Page, result: NotebookRun | NotRun, note: str = "") -> None:
    """The executed notebook with its figures, or a page that says why it was not run, with its verdicts.

    `note` stands below the title.
    """
    if isinstance(result, NotRun):
        text = f"# {page.name}\n\nNot run: {result.reason}.\n\n{VerdictCards(result.verdicts).html()}\n"
        (source / f"{page.name}.md").write_text(text, encoding="utf-8")
        return
    facts = sidecar(result.page).get("figures", {})
    shown = with_cards(nbformat.read(result.page, as_version=4), facts)
    shown = with_note(shown, note) if note else shown
    nbformat.write(shown, source / f"{page.name}.ipynb")
    _write_facts(source, facts)
    figures = result.page.parent / "figures" / page.name
    if figures.is_dir():
        shutil.copytree(figures, source / "figures" / page.name)


def _write_facts(source: Path, facts: Mapping[str, Mapping]) -> None:
    """All facts of every figure, which its card links to."""
    for name, own in facts.items():
        path = source / "extra" / PROVENANCE / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(own))


def _lab_values(runs: Runs) -> dict[str, str]:
    if not any(page.name == LAB_CHAPTER and isinstance(result, NotebookRun) for page, result in runs.items()):
        return dict.fromkeys(("base.pass@1", "base.pass@8"), "(not run)")
    evaluation = Study.open(LAB_CHAPTER).table("evaluation")
    return rate_values(pass_view(evaluation), gain_view(evaluation))


def _mathjax_file() -> Path:
    """MathJax in one file, from a wheel: the book makes no request."""
    for folder in map(Path, sys.path):
        path = folder.joinpath(*_MATHJAX)
        if path.is_file():
            return path
    raise NotebookError(
        "MathJax for offline pages is not installed", remedy="install the package sphinx-mathjax-offline"
    )


def _render(build: Path, source: Path) -> Path:
    """Render with warnings as errors, unless these very pages were rendered before."""
    html = build / "html"
    _put_back(html)
    digest, mark = _digest(source), html / ".source"
    if mark.is_file() and mark.read_text() == digest:
        _say("pages unchanged")
        return html / "index.html"
    started, work = time.monotonic(), build / ".rendering"
    shutil.rmtree(work, ignore_errors=True)
    _jupyter_book(source, work)
    fresh = work / "_build" / "html"
    (fresh / ".source").write_text(digest)
    _swap(fresh, html)
    shutil.rmtree(work)
    _say(f"pages rendered ({time.monotonic() - started:.0f} s)")
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
