"""The studies of other pages, for a page that looks at what they found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nbformat

from threegates.errors import NotebookError
from threegates.jobs.sources import lab_manifest
from threegates.jobs.subjects import LAB, subject_of
from threegates.pages.contents import Page, book_pages
from threegates.pages.parameters import declared
from threegates.records.provenance import project_root
from threegates.register import WITH_JOBS
from threegates.study import Study

#: Parameters of a page that `Study.open` takes too.
_OPTIONS = ("subject", "draws", "seed")
#: Label of what a run's learning rate is for.
_RATE = "rate"


def studies_of(pages: Sequence[str], measure: bool = True) -> dict[str, Study]:
    """The study of each page as the page itself opens it: with its draws, seed and subject.

    Parameters
    ----------
    pages : names of pages; none takes every page of the book that looks at checkpoints.
    measure : whether they measure what is missing.

    Raises
    ------
    NotebookError : the book has no such page.
    """
    known = {page.name: page for page in book_pages(project_root())}
    if lost := [name for name in pages if name not in known]:
        raise NotebookError("the book has no such page", expected=", ".join(known), found=lost[0])
    chosen = list(pages) or [name for name, page in known.items() if page.notebook in WITH_JOBS]
    return {name: _study(known[name], measure) for name in chosen}


def every_rate(measure: bool = True) -> Study:
    """Counts of changed weights in all finished runs of the lab, at whichever learning rate they trained.

    Runs whose master weights are kept in bf16 are left out: they differ in more than the rate.
    """
    names = [
        pair.tuned.name
        for pair in lab_manifest().pairs()
        if pair.tuned.final
        and subject_of(pair.tuned) == LAB
        and _RATE in pair.tuned.labels
        and "master" not in pair.tuned.labels
    ]
    return Study.open("update-sparsity", pairs=names or None, measure=measure)


def _study(page: Page, measure: bool) -> Study:
    path = project_root() / "notebooks" / f"{page.notebook}.ipynb"
    known = declared(nbformat.read(path, as_version=4), page.notebook)
    options: dict[str, Any] = {name: known[name].default for name in _OPTIONS if name in known}
    options |= {name: value for name, value in page.parameters.items() if name in _OPTIONS}
    return Study.open(page.notebook, **options, measure=measure)
