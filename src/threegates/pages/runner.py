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
from collections.abc import Sequence
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
from nbformat.v4 import new_markdown_cell
from papermill.exceptions import PapermillExecutionError

from threegates.atomic import write_json, write_text
from threegates.digest import (
    PACKAGE,
    code_digest,
    file_digest,
    runtime_versions,
    value_digest,
)
from threegates.environment import for_child, variable
from threegates.errors import NotebookError
from threegates.estimates.verdict_frame import rules
from threegates.figures.published import PAGE_VARIABLE
from threegates.jobs.measured_pairs import measured_digest
from threegates.jobs.subjects import LAB
from threegates.judging.claims import Claims, judge_computed, read_claims
from threegates.pages.figure_facts import page_facts
from threegates.pages.opened import Opened
from threegates.pages.pair_notes import told_of_pairs
from threegates.pages.parameters import TAG
from threegates.pages.plain_markdown import plain_notebook
from threegates.pages.stated_values import stated_values
from threegates.records.provenance import build_state, importlib_version, project_root
from threegates.records.store import remove_leftovers
from threegates.study import Study
from threegates.workers import one_thread

# A notebook that imports this shows tables of published pairs.
_MEASURED = "threegates.jobs.measured_pairs"
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


def _digest(opened: Opened) -> str:
    """sha256 over all that decides the executed notebook."""
    cells = [
        [cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))] for cell in opened.notebook.cells
    ]
    claims, studies = _claims(), opened.studies
    measured = {"measured": measured_digest(opened.places.build)} if _MEASURED in opened.modules else {}
    own = [one for study in studies for one in claims.of(study.chapter, study.about.name)]
    own += [] if opened.study else claims.of(opened.chapter)
    return value_digest(
        {
            "page": opened.name,
            "cells": cells,
            "parameters": dict(opened.given),
            "code": code_digest(__name__, *opened.modules),
            "studies": [[study.chapter, study.about.name, study.digest()] for study in studies],
            "claims": [claim.model_dump() for claim in own],
            "versions": {name: importlib_version(name) for name in _DRAWING} | runtime_versions(),
            **measured,
        }
    )


def _claims() -> Claims:
    return read_claims(project_root() / "claims.yaml")


def run_notebook(opened: Opened, *, output: Path | None = None, workers: int | None = 1) -> NotebookRun:
    """Execute a page's notebook with papermill, unless what it would give is there already.

    Parameters
    ----------
    output : folder of the executed notebook and its figures: that of the page's build by default, where the
        book is made of them; in any other, prose is plain Markdown, which every viewer shows.
    workers : processes that measure missing records; None for as many as pay.

    Raises
    ------
    MissingRecordError : a record is missing and not to be measured.
    NotebookError : a failing cell, or a path of this machine in the output. The last good output stays in
        place.
    """
    for study in opened.studies:
        study.ensure(workers).require()
    digest, place = _digest(opened), (output or opened.places.notebooks) / f"{opened.name}.ipynb"
    fresh = _is_fresh(place, digest)
    if not fresh:
        _execute(opened, digest, place, alone=output is not None)
    with one_thread():
        verdicts = opened.study.verdicts() if opened.study else judge_computed(_claims(), opened.chapter)
    records = [file for study in opened.studies for file in study.paths()]
    return NotebookRun(place, records, verdicts, not fresh)


def execute_cells(page: Opened, cells: Sequence[int], target: Path) -> None:
    """Execute some cells of a page's notebook alone, and put the figures that they publish into a folder.

    Raises
    ------
    NotebookError : a cell fails; the folder keeps what it had.
    """
    opened = page.with_cells(cells)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".running-{opened.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".ipynb", dir=work, delete=False) as source:
            nbformat.write(opened.notebook, source)
        _papermill(opened, work, Path(source.name))
        target.mkdir(exist_ok=True)
        for drawn in sorted((work / "figures" / opened.name).glob("*")):
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


def _execute(opened: Opened, digest: str, page: Path, alone: bool) -> None:
    work = page.parent / f".running-{opened.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    remove_leftovers(page.parent)
    try:
        executed = _papermill(opened, work)
        _refuse_paths(opened, executed)
        shown = _noted(opened, _titled(opened, _stripped(executed)))
        if alone:
            shown = plain_notebook(shown, stated_values(_claims()), project_root() / "book" / "refs.bib")
        text = nbformat.writes(shown)
        _put_in_place(opened, work, page, text if text.endswith("\n") else text + "\n")
        facts = {"digest": digest, "notebook": file_digest(page), "parameters": dict(opened.given)}
        subjects = {_named(study): study.subject for study in opened.studies}
        state = build_state()
        figures = _figure_facts(opened, page, state)
        write_json(_sidecar(page), {**facts, **state, "subjects": subjects, "figures": figures})
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            # Of a page that failed, in a folder that was made for it, nothing stays.
            page.parent.rmdir()


def _named(study: Study) -> str:
    """A study's chapter, with its subject where that is not the lab."""
    return study.chapter if study.about.name in ("", LAB) else f"{study.chapter} ({study.about.name})"


def _figure_facts(opened: Opened, page: Path, state: dict) -> dict[str, dict]:
    """Where every figure of the page comes from."""
    made = {
        "code": code_digest(*opened.modules),
        "versions": {name: importlib_version(name) for name in _DRAWING} | runtime_versions(),
        "threads": 1,
        **state,
    }
    return page_facts(opened, page.parent / "figures" / opened.name, made)


def _put_in_place(opened: Opened, work: Path, page: Path, text: str) -> None:
    # Without its sidecar a page counts as not made: a kill between these steps only means another run.
    _sidecar(page).unlink(missing_ok=True)
    drawn, shown = work / "figures" / opened.name, page.parent / "figures" / opened.name
    shutil.rmtree(shown, ignore_errors=True)
    if drawn.is_dir():
        shown.parent.mkdir(parents=True, exist_ok=True)
        os.replace(drawn, shown)
    write_text(page, text)


def _papermill(opened: Opened, work: Path, source: Path | None = None) -> NotebookNode:
    with tempfile.TemporaryDirectory(prefix="threegates-") as scratch:
        try:
            return papermill.execute_notebook(
                str((source or opened.path).resolve()),
                str(work / "executed.ipynb"),
                parameters=dict(opened.given),
                kernel_name="python3",
                language="python",
                progress_bar=sys.stderr.isatty(),
                kernel_manager_class=_kernel_manager(Path(scratch), opened, work),
                record_timing=False,
                start_timeout=_START_SECONDS,
            )
        except PapermillExecutionError as error:
            raise _failed_cell(opened, error) from None
        except RuntimeError as error:
            where = f"notebooks/{opened.path.name}"
            raise NotebookError(
                "a notebook's kernel ended before its cells did", where=where, found=str(error)
            ) from None


def _kernel_manager(scratch: Path, opened: Opened, work: Path) -> type:
    """A kernel of this interpreter, whatever kernels and profiles the user has installed, in a folder.

    papermill would change the folder of this whole process, in which other notebooks may run; and the
    kernel's environment is handed to it for the same reason.
    """
    environment = _kernel_environment(opened) | {"IPYTHONDIR": str(scratch)}
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=command, display_name="Python 3", language="python")

    class OwnKernel(AsyncKernelManager):
        kernel_spec = property(lambda self: spec)

        def __init__(self, **options: Any) -> None:
            # Sockets in the file system: no port that another kernel could take, and nothing on the network.
            super().__init__(**options, connection_file=str(scratch / "kernel.json"), transport="ipc")

        async def interrupt_kernel(self) -> None:  # type: ignore[override]
            """Nothing: no cell is ever interrupted, and an idle kernel would call it an error at its end."""

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**{**options, "cwd": str(work), "env": environment})

    return OwnKernel


def _kernel_environment(opened: Opened) -> dict[str, str]:
    """What a page's kernel finds: this process's environment, the page's places, one thread."""
    path = [str(PACKAGE.parent), *filter(None, [variable("PYTHONPATH")])]
    # Empty on a notebook's own page, whatever the environment of this process says.
    page = opened.name if opened.name != opened.chapter else ""
    own = {PAGE_VARIABLE: page, "PYTHONPATH": os.pathsep.join(path)}
    return for_child({**_KERNEL_ENVIRONMENT, **opened.places.variables(), **own})


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


def _titled(opened: Opened, notebook: NotebookNode) -> NotebookNode:
    """The notebook with its subject in the title, where it is one that can show several."""
    first = notebook.cells[0]
    if opened.study is not None and "subject" in opened.declared:
        title, line, rest = first.source.partition("\n")
        first.source = f"{title} ({opened.study.about.title}){line}{rest}"
    return notebook


def _noted(opened: Opened, notebook: NotebookNode) -> NotebookNode:
    """The notebook with what is to be known of the pairs that a reader chose, after its first cell."""
    study = opened.study if {"pairs", "base"} & set(opened.given) else None
    if study is not None and (told := told_of_pairs(study.pairs)):
        notebook.cells.insert(1, new_markdown_cell(told, id="of-the-pairs"))
    return notebook


def _refuse_paths(opened: Opened, notebook: NotebookNode) -> None:
    places = {str(opened.places.build), str(project_root()), str(PACKAGE.parent), sys.prefix} - {"/", "/usr"}
    for number, cell in enumerate(notebook.cells):
        shown = json.dumps([_stripped_outputs(cell), cell.source])
        for place in places:
            if place in shown:
                raise NotebookError(
                    "an output shows a path of this machine",
                    where=_place(opened, number),
                    found=place,
                    remedy="print names, not paths: pages must be the same on every machine",
                )


def _stripped_outputs(cell: NotebookNode) -> list:
    return [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]


def _failed_cell(opened: Opened, error: Any) -> NotebookError:
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
        f"a cell of {opened.chapter} failed; the last good output stays",
        where=f"{_place(opened, error.cell_index)}, line: {line}",
        found=f"{error.ename}: {_COLOUR.sub('', error.evalue)}",
        remedy="open the notebook in Jupyter and run it up to this cell",
    )


def _place(opened: Opened, index: int) -> str:
    """Number of a cell in the source; papermill's own cell with the parameters does not count."""
    tagged = [
        number for number, cell in enumerate(opened.notebook.cells) if TAG in cell.metadata.get("tags", [])
    ]
    injected = bool(opened.given) and bool(tagged) and index > tagged[0]
    return f"notebooks/{opened.path.name}, cell {index + 1 - injected}"


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
