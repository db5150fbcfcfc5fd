"""What a build takes from the release instead of training it: a subject's runs and their records.

The profile `mini` trains its first subject on the spot and takes its second from the release. Trained again,
a run of an unchanged digest is the same to the last bit, on processors of one make, and so are its records.
Where code, recipes or versions have changed since, what the release has is stale: it is shown all the same,
and the pages say so by name. Only where there is no release, or a damaged one, or one that lacks the subject,
the subject is trained and measured like the first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from threegates.atomic import write_json
from threegates.checkpoints.manifests.manifest import Entry, read_manifest
from threegates.digest import value_digest
from threegates.errors import ThreeGatesError
from threegates.jobs.released import FILE, TAKEN, as_released, planned, run_folder_of
from threegates.jobs.subjects import subject_of, taken_by
from threegates.lab.runs import Run
from threegates.pages.opened import Opened, open_book
from threegates.records.places import Places
from threegates.records.provenance import project_root
from threegates.releases.making import RESULTS, released
from threegates.releases.notes import freshness, release_note
from threegates.releases.packing import (
    MANIFEST,
    Release,
    read_release,
    record_index,
    unpack_records,
    unpack_runs,
    weighted_bases,
)
from threegates.study import Study


def take(profile: str, build: Path) -> Sequence[Entry]:
    """Lay out below `build` what the profile takes from the release; the entries of its runs, or none.

    There are none where every run was trained here, and where no whole release has the subject.
    """
    from threegates.lab.train import is_trained

    runs = _runs(profile)
    if all(is_trained(build / "lab", run) for run in runs):
        forget_taken(build)
        return ()
    entries: list[Entry] = []
    try:
        release = released()
        entries = _entries(release, profile, runs)
        if entries and not _was_taken(profile, build, release, entries):
            _lay_out(profile, build, release, entries)
    except ThreeGatesError:
        # Without a release, or with a damaged one, there is only more to train.
        entries = []
    if not entries:
        forget_taken(build)
    return entries


def take_of_bases(study: Study) -> None:
    """Lay out released records that a study lacks and that are about bases alone, by their digests.

    Such a record hangs on weights that are the same here, on code and on versions, all of which its digest
    covers; measuring it again would take minutes of every build. Records about tuned checkpoints are not
    taken: what a build trains it also measures.
    """
    missing = {job.digest for job in study.missing() if set(job.arguments["places"]) == {"base"}}
    if not missing:
        return
    # Without a release, or with a damaged one, there is only more to measure.
    with suppress(ThreeGatesError):
        unpack_records(released(), study.records.folder.parent, missing)


def forget_taken(build: Path) -> None:
    """No longer show what a build took from the release: its runs are trained from now on."""
    if (build / "lab" / TAKEN).is_file():
        (build / FILE).unlink(missing_ok=True)
        (build / "lab" / TAKEN).unlink()


def leave_out_released(profile: str, build: Path) -> set[str]:
    """Names of the profile's runs that its release has, so that what is added to it is trained alone.

    Bases that the release keeps with their weights are laid out below `build`; those that it has without are
    to be trained, because runs start from them.

    Raises
    ------
    RecordError : there is no release of the profile, or it is damaged.
    """
    release = read_release(project_root() / RESULTS / profile)
    held = {run_folder_of(entry) for entry in read_manifest(release.folder / MANIFEST).checkpoints}
    items = [item for item in planned(profile) if item.run.folder in held]
    bases = weighted_bases(release) & {item.run.folder for item in items}
    _lay_out_bases(release, build, [base for base in bases if not (build / "lab" / "runs" / base).exists()])
    return {item.run.name for item in items if item.draft.method != "pretrain"}


def _lay_out_bases(release: Release, build: Path, folders: Sequence[str]) -> None:
    runs = build / "lab" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".base-", dir=build) as scratch:
        unpack_runs(release, Path(scratch), set(folders))
        for folder in folders:
            os.replace(Path(scratch, "lab", "runs", folder), runs / folder)


def taken_note(pages: Iterable[Opened], profile: str, build: Path, *, named: bool = False) -> str:
    """The note of the pages that rest on records taken from the release; empty where no page does.

    named : whether the note names them, on a page that is none of them.
    """
    place = build / "lab" / TAKEN
    chosen = [page for page in pages if _is_taken(page, profile)] if place.is_file() else []
    studies = [study for page in chosen for study in page.studies]
    models = [pair.tuned.checkpoint for study in studies for pair in study.pairs]
    if not any(model.kept_digest for model in models):
        return ""
    told = json.loads(place.read_text(encoding="utf-8"))
    release = Release(place.parent, told["profile"], told["made"], {}, {})
    found = freshness(studies, release.profile)
    lacking = [run.name for run in _runs(profile) if run.name not in told["runs"]]
    return release_note(release, found, [page.name for page in chosen] if named else [], lacking)


def _runs(profile: str) -> list[Run]:
    """The runs of a profile's plan whose subjects it takes."""
    subjects = taken_by(profile)
    return [item.run for item in planned(profile) if item.draft.subject in subjects] if subjects else []


def _is_taken(page: Opened, profile: str) -> bool:
    return page.given.get("subject") in taken_by(profile)


def _entries(release: Release, profile: str, runs: Iterable[Run]) -> list[Entry]:
    """The release's entries of runs of these names, however they were made, and of what they start from."""
    names, subjects = {run.name for run in runs}, taken_by(profile)
    known = read_manifest(release.folder / MANIFEST).checkpoints
    known = [entry for entry in known if subject_of(entry) in subjects]
    kept = {entry.name for entry in known if (entry.run or entry.name) in names}
    # What they started from may have another name in the plan by now.
    kept |= {entry.base for entry in known if entry.name in kept and entry.base}
    return [entry for entry in known if entry.name in kept]


def _folders(entries: Iterable[Entry]) -> dict[str, str]:
    """Folders of the entries' runs by name."""
    return {entry.run or entry.name: run_folder_of(entry) for entry in entries}


def _was_taken(profile: str, build: Path, release: Release, entries: Sequence[Entry]) -> bool:
    """Whether all that the release has of the entries is there, and in the manifest that training wrote."""
    lab = build / "lab"
    if not (lab / TAKEN).is_file() or not (lab / "manifest.yaml").is_file():
        return False
    listed = read_manifest(lab / "manifest.yaml").checkpoints
    there = all((lab / "runs" / folder).is_dir() for folder in _folders(entries).values())
    same = json.loads((lab / TAKEN).read_text(encoding="utf-8")) == _told(release, entries)
    if not (there and same and all(entry in listed for entry in entries)):
        return False
    return not any(study.missing() for study in _asked(profile, build))


def _told(release: Release, entries: Iterable[Entry]) -> dict[str, Any]:
    made = {"profile": release.profile, "made": release.made, "release": value_digest(release.files)}
    return made | {"runs": _folders(entries)}


def _asked(profile: str, build: Path) -> list[Study]:
    """The studies of all pages on what is taken, with the checkpoints and records below a folder."""
    return [study for page in open_book(Places(build)) if _is_taken(page, profile) for study in page.studies]


def _lay_out(profile: str, build: Path, release: Release, entries: Sequence[Entry]) -> None:
    """Lay the runs out with the records that the pages ask for, with stale ones where there are no others."""
    scratch, folders = build / ".taking", _folders(entries)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        unpack_runs(release, scratch, set(folders.values()))
        studies = _asked(profile, scratch)
        digests = {job.digest for study in studies for job in study.jobs}
        # From now on a record that the release lacks is looked for among those that other code made.
        write_json(scratch / FILE, {"records": record_index(release)})
        digests |= {job.digest for study in studies for job in as_released(study.jobs, study.records)}
        unpack_records(release, scratch, digests)
        write_json(scratch / FILE, {"records": record_index(release, digests)})
        _move(scratch, build, folders.values())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(build / "lab" / TAKEN, _told(release, entries))


def _move(scratch: Path, build: Path, runs: Iterable[str]) -> None:
    # Runs come last: one that is there has its records.
    records = [path.relative_to(scratch) for path in scratch.glob("records/*/*.parquet")]
    folders = [Path("lab", "runs", folder) for folder in runs]
    for place in [*records, Path(FILE), *(folder for folder in folders if not (build / folder).exists())]:
        (build / place).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / place, build / place)
