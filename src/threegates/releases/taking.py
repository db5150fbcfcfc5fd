"""What a build takes from the release because it would make the very same itself.

Trained again, a run of an unchanged digest is the same to the last bit, and so are its records. The profile
`mini` trains its first subject on the spot and takes its second from the release: all of its runs with all
records that its pages need, or none. Where code, recipes or versions have changed since the release was made,
the second is trained and measured like the first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from threegates.atomic import write_json
from threegates.errors import ThreeGatesError
from threegates.jobs.released import planned
from threegates.lab.runs import Run, is_finished
from threegates.pages.opened import Opened, open_book
from threegates.records.places import Places
from threegates.releases.making import released
from threegates.releases.notes import freshness, release_note
from threegates.releases.packing import Release, unpack_records, unpack_runs
from threegates.study import Study

#: Subjects that a profile's build takes.
TAKEN: Mapping[str, tuple[str, ...]] = {"mini": ("encoder",)}
#: In a build's lab: which release it took them from.
FILE = "taken.json"


def take(profile: str, build: Path) -> Collection[str]:
    """Lay out below `build` what the profile takes from the release; names of its runs, or none of them."""
    from threegates.lab.train import is_trained

    runs = _runs(profile)
    if all(is_trained(build / "lab", run) for run in runs):
        return ()
    try:
        if not _was_taken(profile, build, runs) and not _lay_out(profile, build, runs):
            return ()
    except ThreeGatesError:
        # Without a release, or with a damaged one, there is only more to train.
        return ()
    return {run.name for run in runs}


def taken_note(pages: Iterable[Opened], profile: str, build: Path, *, named: bool = False) -> str:
    """The note of the pages that rest on records taken from the release; empty where no page does.

    named : whether the note names them, on a page that is none of them.
    """
    place = build / "lab" / FILE
    chosen = [page for page in pages if _is_taken(page, profile)] if place.is_file() else []
    studies = [study for page in chosen for study in page.studies]
    models = [pair.tuned.checkpoint for study in studies for pair in study.pairs]
    if not any(model.kept_digest for model in models):
        return ""
    told = json.loads(place.read_text(encoding="utf-8"))
    release = Release(place.parent, told["profile"], told["made"], {}, {})
    found = freshness(studies, release.profile)
    return release_note(release, found, [page.name for page in chosen] if named else [])


def _runs(profile: str) -> list[Run]:
    subjects = TAKEN.get(profile, ())
    return [item.run for item in planned(profile) if item.draft.subject in subjects] if subjects else []


def _is_taken(page: Opened, profile: str) -> bool:
    return page.given.get("subject") in TAKEN.get(profile, ())


def _was_taken(profile: str, build: Path, runs: Iterable[Run]) -> bool:
    if not (build / "lab" / "manifest.yaml").is_file() or not _are_there(build, runs):
        return False
    return _are_measured(_asked(profile, build))


def _are_there(build: Path, runs: Iterable[Run]) -> bool:
    return all(is_finished(build / "lab", run) for run in runs)


def _are_measured(studies: Iterable[Study]) -> bool:
    return all(study.pairs and not study.missing() for study in studies)


def _asked(profile: str, build: Path) -> list[Study]:
    """The studies of all pages on what is taken, with the checkpoints and records below a folder."""
    return [study for page in open_book(Places(build)) if _is_taken(page, profile) for study in page.studies]


def _lay_out(profile: str, build: Path, runs: Collection[Run]) -> bool:
    """Lay the runs out with their records, unless something that is needed would be missing."""
    release, scratch = released(), build / ".taking"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        unpack_runs(release, scratch, {run.folder for run in runs})
        if not _are_there(scratch, runs):
            return False
        studies = _asked(profile, scratch)
        unpack_records(release, scratch, {job.digest for study in studies for job in study.jobs})
        if not _are_measured(studies):
            return False
        _move(scratch, build, runs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(build / "lab" / FILE, {"profile": release.profile, "made": release.made})
    return True


def _move(scratch: Path, build: Path, runs: Iterable[Run]) -> None:
    # Runs come last: one that is there has its records.
    records = [path.relative_to(scratch) for path in scratch.glob("records/*/*.parquet")]
    folders = [Path("lab", "runs", run.folder) for run in runs]
    for place in [*records, *(folder for folder in folders if not (build / folder).exists())]:
        (build / place).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / place, build / place)
