"""A chapter as one asks for it on the command line: its notebook, its pairs, where its page goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import value_digest
from threegates.errors import CheckpointError, NotebookError, PairError, ThreeGatesError
from threegates.estimates.rows import MissingRecordError
from threegates.jobs.sources import folder_labels, manifest_of
from threegates.jobs.subjects import LAB
from threegates.judging.claims import not_run, read_claims, verdict_table
from threegates.pages.choices import explained, refuse_foreign, refuse_unsuited
from threegates.pages.contents import Page, find_page, page_of
from threegates.pages.notebooks import notebook_path, opens_study, read_notebook
from threegates.pages.parameters import checked, declared, parsed
from threegates.pages.runner import STUDY_PARAMETERS, NotebookRun, run_notebook
from threegates.records.provenance import build_folder, project_root
from threegates.study import Study

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
    workers: int = 1,
    choice: tuple[Sequence[int] | None, Sequence[str] | None] = (None, None),
) -> NotebookRun:
    """Run a notebook with parameters as they were typed.

    choice : blocks and roles of tensors that alone are looked at; None takes all.

    A page of the book, by its name or by its notebook and parameters, lands in build/notebooks; with any
    other parameters it lands in a folder of its own below build/runs, so that the book keeps its page.

    Raises
    ------
    NotebookError : there is no such notebook, or it has no such parameters.
    """
    listed = find_page(project_root(), notebook)
    path = notebook_path(listed.notebook if listed else notebook)
    known = declared(read_notebook(path), path.stem)
    refuse_unsuited(path.stem, known, pairs, base or tuned)
    if pairs and (base or tuned):
        raise NotebookError("give either --pair, or --base and --tuned", found="both")
    if bool(base) != bool(tuned):
        raise NotebookError("a pair of your own needs both sides", found=f"--base {base}, --tuned {tuned}")
    sources = folder_labels([name for name in (base, tuned) if name])
    labels = {place: label for label, place in sources.items()}
    values = {**(listed.parameters if listed else {}), **parsed(known, texts, path.stem)}
    values |= {"pairs": list(pairs)} if pairs else {}
    own = {side: _labelled(name, labels) for side, name in (("base", base), ("tuned", tuned)) if name}
    values |= own
    values |= {key: list(only) for key, only in zip(_CHOICE, choice, strict=True) if only}
    checked(known, values, path.stem)
    # A value that is the notebook's own says nothing, and makes no other page.
    values = {key: value for key, value in values.items() if value != known[key].default}
    page = page_of(project_root(), path.stem, values)
    try:
        if pairs:
            refuse_foreign(path.stem, manifest_of(pairs))
        output, name = (None, page.name) if page else (_output(path.stem, values, sources), None)
        return run_notebook(path, values, page=name, output=output, sources=sources, workers=workers)
    except (NotebookError, PairError) as error:
        raise (explained(path.stem, error) if pairs or tuned else error) from None


def run_page(page: Page, workers: int = 1, measure: bool = True) -> NotebookRun | NotRun:
    """Run a page of the book; one whose checkpoints or records are missing is not run, and says which.

    Without `measure` a missing record is not measured, and the claims that rest on it are not run.
    """
    path = notebook_path(page.notebook)
    try:
        if page_looks(page) and not page_study(page, measure).pairs:
            return NotRun("this build has no checkpoints for this page", _verdicts(page))
        return run_notebook(path, page.parameters, page=page.name, workers=workers, measure=measure)
    except (CheckpointError, MissingRecordError) as error:
        return NotRun(_told(error), _verdicts(page))


def page_looks(page: Page) -> bool:
    """Whether a page looks at checkpoints at all."""
    return opens_study(read_notebook(notebook_path(page.notebook)))


def page_study(page: Page, measure: bool = True) -> Study:
    """The study of a page's chapter and subject, with the parameters that its notebook declares."""
    path = notebook_path(page.notebook)
    known = declared(read_notebook(path), path.stem)
    options: dict[str, Any] = {name: known[name].default for name in STUDY_PARAMETERS if name in known}
    options |= {name: value for name, value in page.parameters.items() if name in STUDY_PARAMETERS}
    return Study.open(page.notebook, **options, measure=measure)


def _verdicts(page: Page) -> pd.DataFrame:
    """Verdicts from the records that are there; where no checkpoint says which those are, none was run."""
    try:
        return page_study(page, measure=False).verdicts()
    except CheckpointError as error:
        about = str(page.parameters.get("subject", LAB))
        known = read_claims(project_root() / "claims.yaml").of(page.notebook, about)
        return verdict_table(not_run(claim, _told(error)) for claim in known).assign(about=about)


def _told(error: ThreeGatesError) -> str:
    """What an error says, in one sentence; never a folder of this machine."""
    where = Path(str(error.where))
    told = "/".join(where.parts[-2:]) if where.is_absolute() else error.where
    return f"{error.what}: {told}" if error.where else error.what


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    return labels.get(str(Path(name).resolve()), name) if Path(name).is_dir() else name


def _output(chapter: str, values: Mapping[str, object], sources: Mapping[str, str]) -> Path:
    """A folder for these parameters; folders of one name, such as checkpoint-500, hold different models."""
    held = {label: Checkpoint.open(folder).digest() for label, folder in sources.items()}
    return build_folder() / "runs" / f"{chapter}-{value_digest([dict(values), held])[:8]}"
