"""A chapter as one asks for it on the command line: its notebook, its pairs, where its page goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from threegates.checkpoints.series import spelled
from threegates.digest import value_digest
from threegates.errors import CheckpointError, NotebookError, PairError, ThreeGatesError
from threegates.estimates.rows import MissingRecordError
from threegates.jobs.series import local_members
from threegates.jobs.sources import (
    base_of_adapter,
    folder_digest,
    folder_labels,
    is_local,
    manifest_of,
    settle,
    settle_pairs,
)
from threegates.jobs.subjects import LAB
from threegates.judging.claims import not_run, read_claims, verdict_table
from threegates.pages.choices import explained, refuse_foreign, refuse_unsuited, refuse_without_matrices
from threegates.pages.contents import find_page, page_of
from threegates.pages.notebooks import notebook_path
from threegates.pages.opened import Opened
from threegates.pages.parameters import checked, parsed
from threegates.pages.runner import NotebookRun, run_notebook
from threegates.records.provenance import project_root
from threegates.register import WITH_JOBS

#: Parameters of a notebook that narrow its pairs.
_CHOICE = ("layers", "matrices")


@dataclass(frozen=True)
class NotRun:
    """A page that was not run: why not, and the verdicts that can be given all the same."""

    reason: str
    verdicts: pd.DataFrame


def run_chapter(
    notebook: str,
    texts: Mapping[str, str],
    pairs: Sequence[str] = (),
    base: str | None = None,
    tuned: str | None = None,
    workers: int | None = 1,
    choice: tuple[Sequence[int | str] | None, Sequence[str] | None] = (None, None),
) -> NotebookRun:
    """Run a notebook with parameters as they were typed.

    choice : blocks and roles of tensors that alone are looked at; None takes all.
    pairs, tuned : entries of a manifest, or a checkpoint; a name of either may be a series. Repositories are
    tied to commits at once, which stand for the page's kernel too.

    A page of the book, by its name or by its notebook and parameters, lands in build/notebooks; with any
    other parameters it lands in a folder of its own below build/runs, so that the book keeps its page.

    Raises
    ------
    NotebookError : there is no such notebook, or it has no such parameters.
    """
    listed = find_page(project_root(), notebook)
    asked = Opened.of_notebook(notebook_path(listed.notebook if listed else notebook))
    chapter, known = asked.chapter, asked.declared
    refuse_unsuited(chapter, known, pairs, base or tuned)
    if pairs and (base or tuned):
        raise NotebookError("give either --pair, or --base and --tuned", found="both")
    base = base or base_of_adapter(tuned)
    if bool(base) != bool(tuned):
        raise NotebookError("a pair of your own needs both sides", found=f"--base {base}, --tuned {tuned}")
    pairs = spelled(pairs)
    sources = folder_labels([name for name in (base, tuned) if name])
    settle([name for name in (base, tuned) if name])
    labels = {place: label for label, place in sources.items()}
    values = {**(listed.parameters if listed else {}), **parsed(known, texts, chapter)}
    values |= {"pairs": list(pairs)} if pairs else {}
    own = {side: _labelled(name, labels) for side, name in (("base", base), ("tuned", tuned)) if name}
    values |= own
    values |= {key: list(only) for key, only in zip(_CHOICE, choice, strict=True) if only}
    values = checked(known, values, chapter)
    refuse_without_matrices(chapter, [*(choice[1] or ())])
    # A value that is the notebook's own says nothing, and makes no other page.
    values = {key: value for key, value in values.items() if value != known[key].default}
    page = page_of(project_root(), chapter, values)
    places = replace(asked.places, sources=sources)
    if pairs:
        known_pairs = manifest_of(pairs, places=places)
        refuse_foreign(chapter, known_pairs)
        # A chapter without jobs shows tables that there are, and opens no checkpoint.
        if chapter in WITH_JOBS:
            settle_pairs(pairs, known_pairs)
    try:
        opened = asked.with_values(values, name=page.name if page else chapter, places=places)
        return run_notebook(opened, output=None if page else _output(opened), workers=workers)
    except (NotebookError, PairError) as error:
        raise (explained(chapter, error) if pairs or tuned else error) from None


def run_page(page: Opened, workers: int = 1) -> NotebookRun | NotRun:
    """Run a page of the book; one whose checkpoints or records are missing is not run, and says which.

    Where the page does not measure, the claims that rest on a missing record are not run.
    """
    try:
        if page.study is not None and not page.study.pairs:
            return _not_run(page, "this build has no checkpoints for this page")
        return run_notebook(page, workers=workers)
    except (CheckpointError, MissingRecordError) as error:
        return _not_run(page, _told(error))


def _not_run(page: Opened, reason: str) -> NotRun:
    """With verdicts from the records that are there; no claim is run where no checkpoint says which."""
    with suppress(CheckpointError):
        if page.study is not None:
            return NotRun(reason, page.study.unmeasured().verdicts())
    about = str(page.values.get("subject", LAB))
    known = read_claims(project_root() / "claims.yaml").of(page.chapter, about)
    return NotRun(reason, verdict_table(not_run(claim, reason) for claim in known).assign(about=about))


def _told(error: ThreeGatesError) -> str:
    """What an error says, in one sentence; never a folder of this machine."""
    where = Path(str(error.where))
    told = "/".join(where.parts[-2:]) if where.is_absolute() else error.where
    return f"{error.what}: {told}" if error.where else error.what


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    return labels.get(str(Path(name).resolve()), name) if is_local(name) else name


def _held(name: str) -> object:
    """Digest of what lies in a folder, or in each of a series."""
    members = local_members(name)
    return [folder_digest(one.text) for one in members] if members else folder_digest(name)


def _output(opened: Opened) -> Path:
    """A folder for its parameters; folders of one name, such as checkpoint-500, hold different models."""
    held = {label: _held(folder) for label, folder in opened.places.sources.items()}
    digest = value_digest([dict(opened.given), held])
    return opened.places.build / "runs" / f"{opened.chapter}-{digest[:8]}"
