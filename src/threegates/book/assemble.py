"""The pages of a book in one fresh folder: prose, executed notebooks, figures, values, verdicts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd

from threegates.appendices.benchmark_page import benchmark_file, benchmark_page
from threegates.appendices.larger_page import PAGE as LARGER
from threegates.appendices.larger_page import larger_page
from threegates.appendices.pairs_page import PAGE as PAIRS
from threegates.appendices.pairs_page import SITUATIONS, pairs_page
from threegates.appendices.verdict_plots import forest, forest_rows
from threegates.appendices.verdicts import PAGE, verdict_page
from threegates.atomic import write_json
from threegates.book.evidence import write_evidence
from threegates.book.summary import forget, write_summary
from threegates.book.values import FILE, rate_values, verdict_values, write_values
from threegates.chapters.miniature_lab.views import gain_view, pass_view
from threegates.digest import code_digest, file_digest, runtime_versions
from threegates.errors import NotebookError
from threegates.estimates.statistics import with_statistics
from threegates.figures.published import Published, publish
from threegates.jobs.released import FILE as RELEASE_FILE
from threegates.jobs.subjects import taken_by
from threegates.judging.cards import VerdictCards
from threegates.judging.claims import Claims, NoTables, judge, read_claims, verdict_table
from threegates.pages.asked import NotRun
from threegates.pages.figure_cards import PROVENANCE, card, with_cards
from threegates.pages.opened import Opened
from threegates.pages.runner import NotebookRun, sidecar
from threegates.pages.stated_values import stated_values
from threegates.records.known_digests import known_digest
from threegates.records.places import Places
from threegates.records.provenance import build_state, project_root
from threegates.releases.making import RELEASED_PROFILE, RESULTS
from threegates.releases.notes import freshness, release_note, wider_note, with_note
from threegates.releases.packing import Release
from threegates.releases.taking import taken_note

LAB_CHAPTER = "miniature-lab"


#: Profiles of which the released one is a wider form.
WIDENED = ("smoke", "mini")


#: What became of each page.
Runs = dict[Opened, NotebookRun | NotRun]


_MATHJAX = ("sphinx-mathjax-offline", "static", "mathjax", "tex-svg.js")


def assemble(build: Path, root: Path, profile: str, runs: Runs, release: Release | None = None) -> Path:
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
    _add_verdicts(source, build, table, runs, note)
    speed = benchmark_page(benchmark_file(build, root), source / "figures")
    (source / "benchmarks.md").write_text(speed, encoding="utf-8")
    (source / f"{LARGER}.md").write_text(larger_page(root, build, table), encoding="utf-8")
    if (source / SITUATIONS).is_file():
        (source / f"{PAIRS}.md").write_text(pairs_page(root), encoding="utf-8")
    stated = stated_values(read_claims(root / "claims.yaml"))
    values = (
        {"profile": profile, "origin": _origin(release, taken_by(profile) if note else ())}
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


def _note(release: Release | None, pages: Sequence[Opened]) -> str:
    """What pages of a released build say of their records; nothing in any other build."""
    if release is None:
        return ""
    studies = [study for page in pages if (study := page.study) is not None]
    return release_note(release, freshness(studies, release.profile)) if studies else ""


def _is_released(root: Path) -> bool:
    return (root / RESULTS / RELEASED_PROFILE / RELEASE_FILE).is_file()


def _add_wider(source: Path, page: Opened, profile: str) -> None:
    """At a page's end, which arms of its chapter only the released records have."""
    place = source / f"{page.name}.ipynb"
    note = wider_note(page.chapter, profile, RELEASED_PROFILE) if profile in WIDENED else ""
    if note and place.is_file() and page.name == page.chapter:
        notebook = nbformat.read(place, as_version=4)
        nbformat.write(with_note(notebook, note, len(notebook.cells)), place)


def _add_verdicts(source: Path, build: Path, table: pd.DataFrame, runs: Runs, note: str) -> None:
    """The verdicts' page with its figure, and the evidence of every claim."""
    rows = forest_rows(table)
    figure = _with_card(source, build, _summary_figure(source, rows), runs) if len(rows) else ""
    (source / f"{PAGE}.md").write_text(verdict_page(table, note + figure), encoding="utf-8")
    write_evidence(source / "extra", table, _cells(runs), {page.name: _read(runs[page]) for page in runs})


def _with_card(source: Path, build: Path, figure: Published, runs: Runs) -> str:
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
    place = Places(build).notebooks / f"{PAGE}.ipynb"
    before = sidecar(place).get("figures", {}).get(figure.name, {})
    # A figure made from the same things is the same figure, and keeps the time when it was first made.
    same = {key: before.get(key) for key in facts} == facts
    if not same:
        write_json(place.with_suffix(".json"), {"figures": {figure.name: {**facts, **build_state()}}})
    # Facts are read back from the file, for the next build will read them there: one order of keys.
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
    found.append(_without_page(known, {page.chapter for page in runs}))
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
        if isinstance(result, NotebookRun) and page.study is not None:
            frames.append(page.study.cells())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _read(result: NotebookRun | NotRun) -> list[dict]:
    """Name and content digest of every record that a page read."""
    # A study that is looked at but judges nothing has no record of verdicts.
    files = [path for path in result.records if path.is_file()] if isinstance(result, NotebookRun) else []
    return [{"record": f"{f.parent.name}/{f.name}", "sha256": known_digest(f)} for f in files]


def _add_page(source: Path, page: Opened, result: NotebookRun | NotRun, note: str = "") -> None:
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
    done = (page for page, result in runs.items() if isinstance(result, NotebookRun))
    page = next((page for page in done if page.name == LAB_CHAPTER), None)
    if page is None or page.study is None:
        return dict.fromkeys(("base.pass@1", "base.pass@8"), "(not run)")
    evaluation = page.study.table("evaluation")
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
