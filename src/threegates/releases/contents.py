"""What goes into a release: records, checkpoints, what is kept of them, and the parts that it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from threegates.checkpoints.manifests.manifest import Entry, Manifest
from threegates.digest import runtime_versions
from threegates.jobs.kept import NORM, UPDATE, kept_columns, kept_table, read_kept
from threegates.jobs.kinds.norm_partners import PARTNERS
from threegates.jobs.released import place_of, run_folder_of
from threegates.jobs.sources import StudyPair
from threegates.jobs.subjects import subject_of
from threegates.records.provenance import build_state
from threegates.records.store import read_provenance
from threegates.register import chapter_of
from threegates.study import Study

#: Files of records by table and by name without extension.
Paths = Mapping[str, Mapping[str, Path]]


@dataclass(frozen=True)
class Contents:
    """What goes into a release.

    kept : what is kept of checkpoints, by their places. parts : as release.json lists them, see `part_facts`.
    rekeyed : likewise, what `scripts/rekey_release.py` proved of records and runs that were there before.
    """

    manifest: Manifest
    records: Paths
    kept: Mapping[str, pa.Table]
    parts: Sequence[Mapping[str, Any]]
    rekeyed: Sequence[Mapping[str, Any]] = ()


def records_of(studies: Iterable[Study]) -> dict[str, dict[str, Path]]:
    """The records of all jobs of these studies."""
    files: dict[str, dict[str, Path]] = {}
    for study in studies:
        for job in study.jobs:
            for table in job.tables:
                path = study.records.path(table, job.name, job.digest)
                files.setdefault(table, {})[path.stem] = path
    return files


def kept_of(studies: Iterable[Study]) -> dict[str, pa.Table]:
    """What later jobs about several runs need of the checkpoints of these studies, by their places.

    Of a checkpoint without weights it is what was kept of it before, if anything was.
    """
    pairs: dict[str, StudyPair] = {}
    wanted: dict[str, set[str]] = {}
    for study in studies:
        for pair in study.pairs:
            if pair.tuned.entry is not None and (columns := _columns_of(study.chapter, pair)):
                place = place_of(pair.tuned.entry)
                pairs[place] = pair
                wanted.setdefault(place, set()).update(columns)
    found = {place: _kept(pair, wanted[place]) for place, pair in pairs.items()}
    return {place: table for place, table in sorted(found.items()) if table is not None}


def _columns_of(chapter: str, pair: StudyPair) -> set[str]:
    """What another run's job of this chapter may read of a tuned checkpoint, now or when runs are added."""
    kinds, facts = set(chapter_of(chapter).jobs), pair.facts()
    untouched = pair.base.entry is not None and pair.base.entry.base is None
    is_partner = facts["method"] == "rl" and facts["algorithm"] in PARTNERS
    update = "group" in kinds or ("rotation" in kinds and untouched)
    norm = bool(kinds & {"drift", "overlap"}) and is_partner
    return {column for column, wanted in ((UPDATE, update), (NORM, norm)) if wanted}


def _kept(pair: StudyPair, wanted: set[str]) -> pa.Table | None:
    base, tuned = pair.base.checkpoint, pair.tuned.checkpoint
    old = read_kept(tuned.folder)
    gone = base.kept_digest is not None or tuned.kept_digest is not None
    if gone or wanted <= kept_columns(old):
        return old
    return kept_table(base, tuned, wanted | kept_columns(old))


def part_facts(
    name: str,
    entries: Sequence[Entry],
    records: Paths,
    kept: Mapping[str, pa.Table],
    about: Sequence[Entry] = (),
) -> dict[str, Any]:
    """What release.json says of a part, made now: what it holds, counted, and the code that measured it.

    entries, records, kept : those of the part alone. about : where it has no checkpoint of its own, the
    release's that its records are about, each with the chapters that these are of.
    """
    told = [read_provenance(path) for paths in records.values() for path in paths.values()]
    codes = {json.dumps(one.get("measured_by", one.get("code")), sort_keys=True) for one in told}
    updates = [place for place, table in kept.items() if UPDATE in kept_columns(table)]
    return {
        "name": name,
        **contents_of(entries or about),
        "made": build_state(),
        "versions": runtime_versions(),
        "counts": {
            "checkpoints": len(entries),
            "runs": len({run_folder_of(entry) for entry in entries}),
            "records": len(told),
            "updates": len(updates),
        },
        "measured_by": [json.loads(code) for code in sorted(codes)],
    }


def contents_of(entries: Iterable[Entry]) -> dict[str, list]:
    """Bases, subjects, chapters and seeds of checkpoints."""
    known = list(entries)
    return {
        "bases": sorted({entry.name for entry in known if entry.method == "pretrain"}),
        "subjects": sorted({subject_of(entry) for entry in known}),
        "chapters": sorted({chapter for entry in known for chapter in entry.chapters}),
        "seeds": sorted({entry.seed for entry in known if entry.seed is not None and entry.base is not None}),
    }
