"""What a figure was made from: its cells, parameters, models, records, code, and the figure's own digest.

Nothing here names a user, a machine or a folder outside the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from threegates.digest import file_digest
from threegates.pages.parameters import declared
from threegates.pages.slices import Slice, figures_of, slice_of
from threegates.records.known_digests import known_digest
from threegates.study import Study


def page_facts(
    source: Path,
    page: str,
    notebook: NotebookNode,
    parameters: Mapping[str, object],
    studies: Sequence[Study],
    folder: Path,
    made: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Facts of every figure that a page shows, by "page/figure".

    Parameters
    ----------
    source : the notebook's file; page : what it became; parameters : those that were given.
    studies : that the notebook opens; folder : where its figures lie, as <figure>.csv.
    made : what all figures of the page share: code digest, versions, commit, dirty flag, time.
    """
    known = declared(notebook, source.stem)
    values = {name: parameters.get(name, one.default) for name, one in known.items()}
    shared = {"notebook": f"notebooks/{source.name}", "page": page, "parameters": values}
    found = {}
    for figure in figures_of(notebook):
        name = figure.partition("/")[2]
        csv = folder / f"{name}.csv"
        if not csv.is_file():
            # A figure that this page's data did not call for.
            continue
        own = slice_of(notebook, figure)
        facts = {**shared, "cells": [number + 1 for number in own.cells], **_read(own, studies, values)}
        found[f"{page}/{name}"] = {**facts, "data": file_digest(csv), **made}
    return found


def _read(own: Slice, studies: Sequence[Study], values: Mapping[str, object]) -> dict[str, Any]:
    """Subject, seeds, models and records that the figure's cells look at."""
    # A notebook that looks at other pages opens studies that its cells do not name: all of them count.
    opened = [study for study in studies if study.chapter in own.tables or not own.tables]
    facts: dict[str, Any] = {"subject": "; ".join(study.subject for study in opened) or "no checkpoint"}
    training = sorted({int(s) for study in opened for s in study.frame["seed"].dropna().unique()})
    facts["seeds"] = {"of the nulls": values.get("seed", "none"), "of training": training}
    facts["models"] = {name: digest for study in opened for name, digest in models(study).items()}
    facts["records"] = {
        f"{path.parent.name}/{path.name}": known_digest(path)
        for study in opened
        for path in study.files(own.tables.get(study.chapter))
    }
    return facts


def models(study: Study) -> dict[str, str]:
    """Every checkpoint of a study by name: its digest, after its commit on the Hub where it has one."""
    found = {}
    for pair in study.pairs:
        for source in (pair.base, pair.tuned):
            revision = source.checkpoint.revision
            found[source.label] = (f"{revision} " if revision else "") + source.checkpoint.digest()
    return found
