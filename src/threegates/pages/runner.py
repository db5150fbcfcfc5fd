"""Executes a chapter's notebook when something it rests on has changed; a failure leaves the last good one.

A notebook's digest covers its page, its cells, its parameters, the code of this package that it imports, the
content of the records and logs that it reads, and the claims it judges. Beside the notebook lies a JSON file
with that digest and with what must not be in the notebook itself: time, commit, dirty flag.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from threegates.atomic import write_json, write_text
from threegates.digest import (
    PACKAGE,
    code_digest,
    file_digest,
    runtime_versions,
    value_digest,
)
from threegates.errors import NotebookError
from threegates.estimates.verdict_frame import rules
from threegates.figures.published import PAGE_VARIABLE
from threegates.jobs.measured_pairs import measured_digest
from threegates.jobs.sources import VARIABLE
from threegates.jobs.subjects import LAB
from threegates.judging.claims import Claims, judge_computed, read_claims
from threegates.pages.figure_facts import page_facts
from threegates.pages.notebooks import modules, opened_chapters, opens_study, read_notebook
from threegates.pages.other_pages import every_rate, studies_of
from threegates.pages.parameters import TAG, checked, declared
from threegates.pages.plain_markdown import plain_notebook
from threegates.pages.stated_values import stated_values
from threegates.records.provenance import build_folder, build_state, importlib_version, project_root
from threegates.records.store import remove_leftovers
from threegates.study import Study

# A notebook that imports this shows tables of published pairs.
_MEASURED = "threegates.jobs.measured_pairs"
#: Parameters of a notebook that `Study.open` takes too.
STUDY_PARAMETERS = ("pairs", "base", "tuned", "subject", "layers", "matrices", "draws", "seed")
#: Parameter of a notebook that looks at other pages: their names.
PAGES = "pages"
_DRAWING = ("matplotlib", "seaborn", "ipykernel", "ipython")
# A kernel starts in two seconds; papermill gives up after 60, which a busy machine can need.
_START_SECONDS = 600
# One thread and one hash seed: outputs must not depend on cores or on the order of a set.
_KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(r"Cell In\[\d+\], line (\d+)")


@dataclass(frozen=True)
class NotebookRun:
    """Where an executed notebook is, the files it rests on, its verdicts, and whether it ran just now."""

    page: Path
    records: list[Path] = field(default_factory=list)
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    executed: bool = True


@dataclass(frozen=True)
class _Plan:
    """A notebook with everything that decides its output."""

    path: Path
    page: str
    notebook: NotebookNode
    parameters: dict[str, object]
    studies: list[Study]

    @property
    def chapter(self) -> str:
        return self.path.stem

    @property
    def study(self) -> Study | None:
        """The notebook's own study, of those that it opens."""
        return next((study for study in self.studies if study.chapter == self.chapter), None)

    def digest(self) -> str:
        """sha256 over all that decides the executed notebook."""
        cells = [
            [cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))]
            for cell in self.notebook.cells
        ]
        claims = _claims()
        versions = {name: importlib_version(name) for name in _DRAWING} | runtime_versions()
        return value_digest(
            {
                "page": self.page,
                "cells": cells,
                "parameters": self.parameters,
                "code": code_digest(__name__, *modules(self.notebook)),
                "studies": [[study.chapter, study.about.name, study.digest()] for study in self.studies],
                "claims": [
                    claim.model_dump()
                    for study in self.studies
                    for claim in claims.of(study.chapter, study.about.name)
                ]
                + [claim.model_dump() for claim in claims.of(self.chapter) if not self.study],
                "versions": versions,
                **({"measured": measured_digest()} if _MEASURED in modules(self.notebook) else {}),
            }
        )


def _claims() -> Claims:
    return read_claims(project_root() / "claims.yaml")


def run_notebook(
    path: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    page: str | None = None,
    output: Path | None = None,
    sources: Mapping[str, str] | None = None,
    workers: int = 1,
    measure: bool = True,
) -> NotebookRun:
    """Execute a notebook with papermill, unless what it would give is there already.

    Parameters
    ----------
    path : the notebook's source.
    parameters : values for some of the parameters that it declares.
    page : name of the page that it becomes, and of its figures; the notebook's own by default.
    output : folder of the executed notebook and its figures: build/notebooks by default, where the book is
        made of them; in any other, prose is plain Markdown, which every viewer shows.
    sources : folders of checkpoints by the labels that parameters use for them.
    workers : processes that measure missing records.
    measure : whether they are measured at all.

    Raises
    ------
    MissingRecordError : a record is missing and not to be measured.
    NotebookError : unknown or wrong parameters, a failing cell, or a path of this machine in the output. The
        last good output stays in place.
    """
    notebook = read_notebook(path)
    values = checked(declared(notebook, path.stem), parameters or {}, path.stem)
    os.environ[VARIABLE] = json.dumps(dict(sources or {}))
    plan = _Plan(path, page or path.stem, notebook, values, _studies(path, notebook, values, measure))
    for study in plan.studies:
        study.ensure(workers).require()
    digest, place = plan.digest(), (output or build_folder() / "notebooks") / f"{plan.page}.ipynb"
    fresh = _is_fresh(place, digest)
    if not fresh:
        _execute(plan, digest, place, alone=output is not None)
    verdicts = plan.study.verdicts() if plan.study else judge_computed(_claims(), plan.chapter)
    return NotebookRun(place, [file for study in plan.studies for file in study.paths()], verdicts, not fresh)


def _studies(path: Path, notebook: NotebookNode, values: Mapping[str, object], measure: bool) -> list[Study]:
    """The studies that a notebook opens, with the parameters that decide what they measure.

    A notebook with a parameter ``pages`` looks at what those pages found, and at every learning rate.
    """
    known = declared(notebook, path.stem)
    if PAGES in known:
        pages: Any = values.get(PAGES, known[PAGES].default)
        return [*studies_of(pages, measure).values(), every_rate(measure)]
    chapters = opened_chapters(notebook)
    if not opens_study(notebook):
        return []
    options: dict[str, Any] = {name: known[name].default for name in STUDY_PARAMETERS if name in known}
    options |= {name: values[name] for name in options if name in values}
    return [Study.open(chapter, **options, measure=measure) for chapter in chapters or [path.stem]]


def page_studies(path: Path, parameters: Mapping[str, object]) -> list[Study]:
    """The studies that a notebook opens with these parameters."""
    notebook = read_notebook(path)
    values = checked(declared(notebook, path.stem), parameters, path.stem)
    return _studies(path, notebook, values, measure=True)


def execute_cells(
    path: Path, parameters: Mapping[str, object], page: str, cells: Sequence[int], target: Path
) -> None:
    """Execute some cells of a notebook alone, and put the figures that they publish into a folder.

    Raises
    ------
    NotebookError : a cell fails; the folder keeps what it had.
    """
    notebook = read_notebook(path)
    notebook.cells = [notebook.cells[number] for number in cells]
    values = checked(declared(notebook, path.stem), parameters, path.stem)
    plan = _Plan(path, page, notebook, values, [])
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".running-{page}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".ipynb", dir=work, delete=False) as source:
            nbformat.write(notebook, source)
        _papermill(plan, work, Path(source.name))
        target.mkdir(exist_ok=True)
        for drawn in sorted((work / "figures" / page).glob("*")):
            os.replace(drawn, target / drawn.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sidecar(page: Path) -> Path:
    return page.with_suffix(".json")


def sidecar(page: Path) -> dict:
    """What is known of an executed page beside its content; empty where nothing is."""
    try:
        return json.loads(_sidecar(page).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _is_fresh(page: Path, digest: str) -> bool:
    """Whether the executed notebook is there, unharmed, and made from the same things."""
    made = sidecar(page)
    return made.get("digest") == digest and page.is_file() and made.get("notebook") == file_digest(page)


def _execute(plan: _Plan, digest: str, page: Path, alone: bool) -> None:
    work = page.parent / f".running-{plan.page}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    remove_leftovers(page.parent)
    try:
        executed = _papermill(plan, work)
        _refuse_paths(plan, executed)
        shown = _titled(plan, _stripped(executed))
        if alone:
            shown = plain_notebook(shown, stated_values(_claims()), project_root() / "book" / "refs.bib")
        text = nbformat.writes(shown)
        _put_in_place(plan, work, page, text if text.endswith("\n") else text + "\n")
        facts = {"digest": digest, "notebook": file_digest(page), "parameters": plan.parameters}
        subjects = {_named(study): study.subject for study in plan.studies}
        state = build_state()
        figures = _figure_facts(plan, page, state)
        write_json(_sidecar(page), {**facts, **state, "subjects": subjects, "figures": figures})
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            # Of a page that failed, in a folder that was made for it, nothing stays.
            page.parent.rmdir()


def _named(study: Study) -> str:
    """A study's chapter, with its subject where that is not the lab."""
    return study.chapter if study.about.name in ("", LAB) else f"{study.chapter} ({study.about.name})"


def _figure_facts(plan: _Plan, page: Path, state: dict) -> dict[str, dict]:
    """Where every figure of the page comes from."""
    made = {
        "code": code_digest(*modules(plan.notebook)),
        "versions": {name: importlib_version(name) for name in _DRAWING} | runtime_versions(),
        "threads": 1,
        **state,
    }
    folder = page.parent / "figures" / plan.page
    return page_facts(plan.path, plan.page, plan.notebook, plan.parameters, plan.studies, folder, made)


def _put_in_place(plan: _Plan, work: Path, page: Path, text: str) -> None:
    # Without its sidecar a page counts as not made: a kill between these steps only means another run.
    _sidecar(page).unlink(missing_ok=True)
    drawn, shown = work / "figures" / plan.page, page.parent / "figures" / plan.page
    shutil.rmtree(shown, ignore_errors=True)
    if drawn.is_dir():
        shown.parent.mkdir(parents=True, exist_ok=True)
        os.replace(drawn, shown)
    write_text(page, text)


def _papermill(plan: _Plan, work: Path, source: Path | None = None) -> NotebookNode:
    with tempfile.TemporaryDirectory(prefix="threegates-") as scratch:
        try:
            return papermill.execute_notebook(
                str((source or plan.path).resolve()),
                str(work / "executed.ipynb"),
                parameters=plan.parameters,
                kernel_name="python3",
                language="python",
                progress_bar=sys.stderr.isatty(),
                kernel_manager_class=_kernel_manager(Path(scratch), plan, work),
                record_timing=False,
                start_timeout=_START_SECONDS,
            )
        except PapermillExecutionError as error:
            raise _failed_cell(plan, error) from None
        except RuntimeError as error:
            where = f"notebooks/{plan.path.name}"
            raise NotebookError(
                "a notebook's kernel ended before its cells did", where=where, found=str(error)
            ) from None


def _kernel_manager(scratch: Path, plan: _Plan, work: Path) -> type:
    """A kernel of this interpreter, whatever kernels and profiles the user has installed, in a folder.

    papermill would change the folder of this whole process, in which other notebooks may run.
    """
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    places = {
        "THREEGATES_BUILD": str(build_folder()),
        "THREEGATES_ROOT": str(project_root()),
        "PYTHONPATH": path,
        # Empty on a notebook's own page, whatever the environment of this process says.
        PAGE_VARIABLE: plan.page if plan.page != plan.chapter else "",
    }
    environment = {**_KERNEL_ENVIRONMENT, **places, "IPYTHONDIR": str(scratch)}
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=command, display_name="Python 3", language="python", env=environment)

    class OwnKernel(AsyncKernelManager):
        kernel_spec = property(lambda self: spec)

        def __init__(self, **options: Any) -> None:
            # Sockets in the file system: no port that another kernel could take, and nothing on the network.
            super().__init__(**options, connection_file=str(scratch / "kernel.json"), transport="ipc")

        async def interrupt_kernel(self) -> None:  # type: ignore[override]
            """Nothing: no cell is ever interrupted, and an idle kernel would call it an error at its end."""

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**{**options, "cwd": str(work)})

    return OwnKernel


def _stripped(notebook: NotebookNode) -> NotebookNode:
    """The notebook without anything that differs from run to run: times, random ids, standard error."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def _titled(plan: _Plan, notebook: NotebookNode) -> NotebookNode:
    """The notebook with its subject in the title, where it is one that can show several."""
    first = notebook.cells[0]
    if plan.study is not None and "subject" in declared(plan.notebook, plan.chapter):
        title, line, rest = first.source.partition("\n")
        first.source = f"{title} ({plan.study.about.title}){line}{rest}"
    return notebook


def _refuse_paths(plan: _Plan, notebook: NotebookNode) -> None:
    places = {str(build_folder()), str(project_root()), str(PACKAGE.parent), sys.prefix} - {"/", "/usr"}
    for number, cell in enumerate(notebook.cells):
        shown = json.dumps([_stripped_outputs(cell), cell.source])
        for place in places:
            if place in shown:
                raise NotebookError(
                    "an output shows a path of this machine",
                    where=_place(plan, number),
                    found=place,
                    remedy="print names, not paths: pages must be the same on every machine",
                )


def _stripped_outputs(cell: NotebookNode) -> list:
    return [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]


def _failed_cell(plan: _Plan, error: Any) -> NotebookError:
    lines = error.source.splitlines()
    numbers = _LINE.findall(_COLOUR.sub("", "\n".join(error.traceback)))
    line = (
        lines[int(numbers[-1]) - 1].strip()
        if numbers and int(numbers[-1]) <= len(lines)
        else lines[0]
        if lines
        else ""
    )
    return NotebookError(
        f"a cell of {plan.chapter} failed; the last good output stays",
        where=f"{_place(plan, error.cell_index)}, line: {line}",
        found=f"{error.ename}: {_COLOUR.sub('', error.evalue)}",
        remedy="open the notebook in Jupyter and run it up to this cell",
    )


def _place(plan: _Plan, index: int) -> str:
    """Number of a cell in the source; papermill's own cell with the parameters does not count."""
    tagged = [
        number for number, cell in enumerate(plan.notebook.cells) if TAG in cell.metadata.get("tags", [])
    ]
    injected = bool(plan.parameters) and bool(tagged) and index > tagged[0]
    return f"notebooks/{plan.path.name}, cell {index + 1 - injected}"


def results_text(run: NotebookRun) -> str:
    """What a run ends with: where its page and records are, and its verdicts."""
    made = "made just now" if run.executed else "nothing had changed"
    lines = [f"page:    {_shown(run.page)}  ({made})"]
    folders: Sequence[str] = sorted({_shown(path.parent) for path in run.records})
    lines += [f"records: {folder}/" for folder in folders]
    if not run.verdicts.empty:
        for row in rules(run.verdicts).itertuples():
            lines.append(f"verdict: {row.claim}: {row.verdict} ({row.subject})")
            lines.append(f"         {row.reason}")
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """A path as short as it can be given from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
