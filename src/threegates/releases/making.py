"""Making a release from a build, and laying one out to be rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from threegates.errors import RecordError
from threegates.jobs.sources import lab_manifest
from threegates.lab.plans.profiles import GPU
from threegates.lab.subjects import LARGER
from threegates.pages.opened import open_book
from threegates.records.places import Places
from threegates.records.provenance import build_folder, project_root
from threegates.register import WITH_JOBS
from threegates.releases.packing import Release, pack, read_release, unpack
from threegates.study import Study

#: Folder of the project that holds releases, one a profile.
RESULTS = "results"
#: The profile whose release the book is rendered from.
RELEASED_PROFILE = "full"


def release_build(target: Path | None = None, workers: int = 1) -> Release:
    """Pack what this build's checkpoints gave; what a chapter lacks is measured first.

    Raises
    ------
    RecordError : the build's checkpoints are of no profile of the lab.
    """
    own, manifest = release_folder(), lab_manifest()
    opened = opened_studies(manifest.profile, Places.here())
    studies = [study.ensure(workers) for study in opened if study.pairs]
    return pack(studies, manifest, target or own)


def release_folder() -> Path:
    """Where the build's profile has its release.

    Raises
    ------
    RecordError : the build's checkpoints are of no profile of the lab.
    """
    profile = lab_manifest().profile
    if profile is None:
        raise RecordError(
            "only checkpoints of a profile can be released",
            where=build_folder() / "lab",
            expected="a manifest that `threegates train` wrote",
        )
    return project_root() / RESULTS / profile


def opened_studies(profile: str | None, places: Places) -> Iterator[Study]:
    """Every study whose records a release of that profile holds, on the checkpoints of a build."""
    return _larger(places) if profile == GPU else _of_pages(places)


def _larger(places: Places) -> Iterator[Study]:
    """The larger model's study of every chapter."""
    return (Study.open(chapter, subject=LARGER, places=places) for chapter in WITH_JOBS)


def _of_pages(places: Places) -> Iterator[Study]:
    """Every study that a page of the book opens, as the page opens it."""
    for page in open_book(places):
        yield from page.studies


def released() -> Release:
    """The release that the book is rendered from, with its files checked.

    Raises
    ------
    RecordError : it is missing, of another version, or damaged.
    """
    return read_release(project_root() / RESULTS / RELEASED_PROFILE)


def unpacked(build: Path) -> Release:
    """The same, laid out in a build's folder."""
    release = released()
    unpack(release, build)
    return release
