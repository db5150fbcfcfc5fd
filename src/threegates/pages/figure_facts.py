"""What a figure was made from: its cells, parameters, models, records, code, and the figure's own digest.

Nothing here names a user, a machine or a folder outside the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from threegates.digest import file_digest
from threegates.pages.opened import Opened
from threegates.pages.slices import Slice
from threegates.records.known_digests import known_digest
from threegates.study import Study


def page_facts(opened: Opened, folder: Path, made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Facts of every figure that a page shows, by "page/figure".

    Parameters
    ----------
    folder : where its figures lie, as <figure>.csv.
    made : what all figures of the page share: code digest, versions, commit, dirty flag, time.
    """
    shared = {
        "notebook": f"notebooks/{opened.path.name}",
        "page": opened.name,
        "parameters": opened.values,
    }
    found = {}
    for figure in opened.figures:
        name = figure.partition("/")[2]
        csv = folder / f"{name}.csv"
        if not csv.is_file():
            # A figure that this page's data did not call for.
            continue
        own = opened.slice_of(figure)
        facts = {**shared, "cells": [number + 1 for number in own.cells], **_read(opened, own)}
        found[f"{opened.name}/{name}"] = {**facts, "data": file_digest(csv), **made}
    return found


def _read(opened: Opened, own: Slice) -> dict[str, Any]:
    """Subject, seeds, models and records that the figure's cells look at."""
    studies = opened.studies_for(own)
    facts: dict[str, Any] = {"subject": "; ".join(study.subject for study in studies) or "no checkpoint"}
    training = sorted({int(s) for study in studies for s in study.frame["seed"].dropna().unique()})
    facts["seeds"] = {"of the nulls": opened.values.get("seed", "none"), "of training": training}
    facts["models"] = {name: digest for study in studies for name, digest in models(study).items()}
    facts["records"] = {
        f"{path.parent.name}/{path.name}": known_digest(path)
        for study in studies
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
