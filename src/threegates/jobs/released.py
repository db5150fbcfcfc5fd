"""Finding released records, and telling which of them the present code would not make the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threegates.checkpoints.manifests.manifest import Entry, Folder
from threegates.jobs.jobs import Job
from threegates.records.store import Records

if TYPE_CHECKING:
    from threegates.lab.plans.plan import Planned

#: What a release is described by; beside unpacked records it lists digests and inputs of them all.
FILE = "release.json"
#: In a build's lab: of which release and in which folders there are runs that the build did not train.
TAKEN = "taken.json"


def as_released(jobs: Sequence[Job], records: Records) -> list[Job]:
    """Jobs whose records a release holds, under the digests that they have there.

    A record of the same table, job and inputs that was made by other code, or with other versions, stands for
    the job, which is marked as stale. Without a release beside the records the jobs are given back as they
    are.
    """
    path = records.folder.parent / FILE
    if not path.is_file():
        return list(jobs)
    stat = path.stat()
    index = _index(path, stat.st_mtime_ns, stat.st_size)
    return [job if job.is_done(records) else _older(job, index) for job in jobs]


def _older(job: Job, index: Mapping[str, Sequence[Mapping[str, Any]]]) -> Job:
    inputs = json.loads(json.dumps(job.inputs))
    found = [
        {one["digest"] for one in index.get(f"{table}/{job.name}", ()) if one["inputs"] == inputs}
        for table in job.tables
    ]
    shared = set.intersection(*found) if found else set()
    return replace(job, digest=shared.pop(), stale=True) if len(shared) == 1 else job


@cache
def _index(path: Path, mtime_ns: int, size: int) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    return json.loads(path.read_text(encoding="utf-8"))["records"]


def taken_runs(lab: Path) -> Mapping[str, str]:
    """Folders by name of the runs that a build took from a release; none where it took nothing."""
    path = lab / TAKEN
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}


def stale_runs(entries: Sequence[Entry], profile: str) -> list[str]:
    """Names of the lab's runs among these entries that present code, recipes or versions train otherwise."""
    present = _present(profile)
    made = {entry.run or entry.name: run_folder_of(entry) for entry in entries}
    return sorted(name for name, folder in made.items() if present.get(name) != folder)


def _present(profile: str) -> Mapping[str, str]:
    """Folders of a profile's runs by name."""
    return {item.run.name: item.run.folder for item in planned(profile)}


@cache
def planned(profile: str) -> Sequence[Planned]:
    """A profile's plan: its digests take seconds, and a process does not change its code."""
    from threegates.lab.plans.plan import plan

    return plan(profile)


def place_of(entry: Entry) -> str:
    """Folder of a checkpoint of the lab, relative to the manifest."""
    assert isinstance(entry.source, Folder)
    return entry.source.path


def run_folder_of(entry: Entry) -> str:
    """Name of the folder of the lab's run that a checkpoint is of."""
    return place_of(entry).split("/")[1]
