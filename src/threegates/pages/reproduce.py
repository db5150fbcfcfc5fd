"""Showing where a figure comes from, and making it anew with just what it needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from threegates.checkpoints.manifests.manifest import write_manifest
from threegates.digest import file_digest
from threegates.errors import NotebookError
from threegates.jobs.released import taken_runs
from threegates.jobs.subjects import LAB, subject_of, taken_by
from threegates.pages.figure_cards import text
from threegates.pages.opened import Opened, open_book
from threegates.pages.runner import execute_cells, sidecar
from threegates.pages.slices import Slice
from threegates.records.places import Places


@dataclass(frozen=True)
class Reproduced:
    """A figure made anew: where it is, what it was held against, and what differs."""

    name: str
    place: Path
    verdict: str
    same: bool


def all_figures() -> dict[str, Opened]:
    """Every figure that the book's pages publish, "page/figure", with its page."""
    return {
        f"{page.name}/{figure.partition('/')[2]}": page
        for page in open_book(Places.here())
        for figure in page.figures
    }


def figure_list() -> str:
    """Every figure with whether this build has it."""
    built = _built()
    states = {name: f"built {facts.get('time')}" for name, facts in built.items()}
    known = dict.fromkeys([*all_figures(), *built])
    return "\n".join(f"{name:<50} {states.get(name, 'not built')}" for name in known)


def show(name: str, full: bool = False) -> str:
    """The facts of a figure of this build, as text.

    Raises
    ------
    NotebookError : no figure has that name, or this build does not have it.
    """
    built = _built()
    found = resolve(name, [*all_figures(), *built])
    if found not in built:
        raise NotebookError(
            "this build does not have the figure", where=found, remedy=f"threegates reproduce {found}"
        )
    return text(found, built[found], full)


def resolve(name: str, known: list[str]) -> str:
    """The figure that a name stands for: page/figure, its label fig-…, or a bare name that is unique.

    Raises
    ------
    NotebookError : none has that name, or several; the message lists those that come close.
    """
    names = list(dict.fromkeys(known))
    labels = {"fig-" + one.replace("/", "-"): one for one in names}
    if name in names or name in labels:
        return labels.get(name, name)
    bare = [one for one in names if one.partition("/")[2] == name]
    if len(bare) == 1:
        return bare[0]
    close = bare or difflib.get_close_matches(name, [*names, *labels], n=5, cutoff=0.4)
    raise NotebookError(
        "several figures have that name" if bare else "there is no such figure",
        found=name,
        expected=", ".join(close) or "page/figure",
        remedy="`threegates show` lists all figures",
    )


def reproduce(name: str, profile: str = "mini", workers: int = 2) -> Reproduced:
    """Make one figure anew: train, measure and run what it needs, and hold its numbers against the book's.

    The figure lands in build/reproduced/<page>/; nothing else of the build is touched, but for runs and
    records that were missing.

    Raises
    ------
    NotebookError : there is no such figure, or a cell fails.
    """
    figures = all_figures()
    found = resolve(name, list(figures))
    page, figure = figures[found], found.partition("/")[2]
    own = next(page.slice_of(one) for one in page.figures if one.partition("/")[2] == figure)
    _train(page, own, profile, workers)
    for study in page.studies_for(own):
        study.ensure(workers, tables=own.tables.get(study.chapter))
    target = page.places.build / "reproduced" / page.name
    execute_cells(page, own.cells, target)
    book = page.places.notebooks / "figures" / f"{found}.csv"
    verdict, same = compared(target / f"{figure}.csv", book)
    return Reproduced(found, target / f"{figure}.svg", verdict, same)


def compared(own: Path, book: Path) -> tuple[str, bool]:
    """How the data of a figure differ from the book's, in words, and whether they are the same."""
    if not book.is_file():
        return "the book of this build has no such figure yet", True
    if file_digest(own) == file_digest(book):
        return f"the same numbers as the book's, to the last digit (sha256 {file_digest(own)[:12]})", True
    told = "; ".join(_differences(pd.read_csv(own), pd.read_csv(book)))
    return f"differs from the book's: {told}", False


def _differences(own: pd.DataFrame, book: pd.DataFrame) -> Iterator[str]:
    if list(own) != list(book) or len(own) != len(book):
        yield f"{len(own)} rows of {len(own.columns)} columns against {len(book)} of {len(book.columns)}"
        return
    for column in own:
        a, b = own[column], book[column]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            x, y = a.to_numpy(float), b.to_numpy(float)
            gap = np.nanmax(np.abs(x - y), initial=0.0)
            scale = np.nanmax(np.abs(y), initial=0.0)
            if gap > 0 or (np.isnan(x) != np.isnan(y)).any():
                yield f"{column} by up to {gap:.3g} ({gap / scale if scale else np.inf:.2g} of its largest)"
        elif not a.equals(b):
            yield f"{column} in {int((a != b).sum())} rows"


def _built() -> dict[str, dict]:
    """Facts of every figure of this build."""
    folder = Places.here().notebooks
    facts = [sidecar(path.with_suffix(".ipynb")).get("figures", {}) for path in sorted(folder.glob("*.json"))]
    return {name: own for page in facts for name, own in page.items()}


def _train(page: Opened, own: Slice, profile: str, workers: int) -> None:
    """Train the runs whose checkpoints the figure looks at; the base goes with them.

    Runs that the build took from a release and would train otherwise by now are left as the book shows them.
    """
    # A notebook that looks at other pages needs what they need.
    if profile == "paper" or not (own.tables or page.looks_at_pages):
        return
    from threegates.lab.plans.plan import manifest, plan
    from threegates.lab.train import train

    runs, shown = plan(profile), taken_runs(page.places.build / "lab")
    planned = manifest(profile, runs)
    subject = str(page.given.get("subject", LAB))
    wanted = [
        pair.tuned.run or pair.tuned.name
        for chapter in own.tables or [None]
        for pair in planned.pairs(chapter)
        if not own.tables or subject_of(pair.tuned) == subject
    ]
    if shown and subject in taken_by(profile):
        present = {item.run.name: item.run.folder for item in runs}
        wanted = [name for name in wanted if shown.get(name) == present[name]]
    if wanted:
        train(profile, page.places.build, workers, only=tuple(dict.fromkeys(wanted)))
    if not page.places.lab.is_file():
        write_manifest(page.places.lab, planned)
