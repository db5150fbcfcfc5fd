"""Adding a part to a release: what a build has and the release lacks is measured and merged into it.

The release and the part are laid out as one build, in which jobs about several runs find the runs of earlier
parts by what was kept of them. Then all of it is packed, whole or not at all. A record about several runs
makes room for the one of the same name about more of them; nothing else that the release has is lost, and a
run or record that the part has otherwise is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from threegates.checkpoints.manifests.manifest import Entry, Manifest, read_manifest, write_manifest
from threegates.checkpoints.places import Place
from threegates.checkpoints.tensors import WITHOUT_WEIGHTS, Checkpoint
from threegates.errors import RecordError
from threegates.jobs.batches import run_jobs
from threegates.jobs.jobs import Job
from threegates.jobs.kept import kept_columns, runs_lacking
from threegates.jobs.kinds.known import tables_of
from threegates.jobs.released import FILE, place_of, planned, run_folder_of
from threegates.jobs.sources import lab_manifest
from threegates.jobs.subjects import subject_of
from threegates.records.places import Places
from threegates.records.provenance import build_folder
from threegates.records.store import Records, read_provenance
from threegates.register import WITH_JOBS
from threegates.releases.contents import Contents, Paths, contents_of, kept_of, part_facts
from threegates.releases.making import opened_studies, release_folder
from threegates.releases.packing import (
    MANIFEST,
    PROVENANCE,
    Release,
    is_same_record,
    read_kept_tables,
    read_release,
    unpack,
    write_release,
)
from threegates.study import Study
from threegates.workers import is_running

#: Method of checkpoints that runs start from.
BASE = "pretrain"
#: More names than this are told by their number.
LONGEST = 12
_LAID_OUT = ".adding"


@dataclass(frozen=True)
class Choice:
    """What a part takes of a build: all, or only what is of these subjects, chapters and seeds."""

    subjects: tuple[str, ...] = ()
    chapters: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def name(self, number: int) -> str:
        """Name of the part with that number in its release."""
        chosen = [*self.subjects, *self.chapters, *(f"seed-{seed}" for seed in self.seeds)]
        return "-".join([str(number), *(chosen or ["all"])])

    def entries(self, manifest: Manifest) -> list[Entry]:
        """The chosen checkpoints and all that they were trained from, each with the chosen chapters alone."""
        known = {entry.name: entry for entry in manifest.checkpoints}
        names = {entry.name for entry in known.values() if self._takes(entry)}
        if not names and not self.seeds and all(entry.method == BASE for entry in known.values()):
            # Bases alone are of no chapter themselves, and there are records about them in some.
            names = {entry.name for entry in known.values() if self._of_subject(entry)}
        waiting = list(names)
        while waiting:
            base = known[waiting.pop()].base
            if base is not None and base not in names:
                names.add(base)
                waiting.append(base)
        return [self._narrowed(entry) for entry in known.values() if entry.name in names]

    def has(self, study: Study) -> bool:
        """Whether a study is of a chosen chapter and subject."""
        return (not self.chapters or study.chapter in self.chapters) and (
            not self.subjects or study.about.name in self.subjects
        )

    def _takes(self, entry: Entry) -> bool:
        return (
            self._of_subject(entry)
            and (not self.chapters or bool(set(self.chapters) & set(entry.chapters)))
            and (not self.seeds or entry.seed in self.seeds)
        )

    def _of_subject(self, entry: Entry) -> bool:
        return not self.subjects or subject_of(entry) in self.subjects

    def _narrowed(self, entry: Entry) -> Entry:
        kept = [one for one in entry.chapters if not self.chapters or one in self.chapters]
        return entry.model_copy(update={"chapters": kept})


def add_part(
    choice: Choice | None = None, target: Path | None = None, workers: int = 1, *, replace: bool = False
) -> Release:
    """Merge what this build has into its profile's release, or begin one; what is missing is measured first.

    target : folder of the release, results/PROFILE of the project by default.
    replace : whether what the part has otherwise takes the place of what the release has.

    Raises
    ------
    RecordError : nothing is chosen or new; a run or record of the same name is another one in the release; a
        job needs a run of an earlier part of which nothing was kept. The release stays as it was.
    """
    manifest, choice = lab_manifest(), choice or Choice()
    target = target or release_folder()
    held = read_release(target) if (target / FILE).is_file() else None
    _check_profile(manifest, held)
    with _scratch(build_folder()) as scratch:
        merging = _Merging(manifest, choice, held, build_folder(), scratch, replace)
        merging.lay_out()
        return write_release(merging.contents(workers), target)


@contextmanager
def _scratch(build: Path) -> Iterator[Path]:
    """A new folder, removed in the end; what killed processes left of theirs is removed before.

    Its name is never used twice: a process that has opened a checkpoint at a place does not open it again.
    """
    for left in build.glob(f"{_LAID_OUT}-*"):
        if not is_running(int(left.name.split("-")[1])):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{_LAID_OUT}-{os.getpid()}-", dir=build) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class _Merging:
    """A release and a part of a build, laid out together in a folder."""

    manifest: Manifest
    choice: Choice
    held: Release | None
    build: Path
    scratch: Path
    replace: bool

    @cached_property
    def part(self) -> list[Entry]:
        """Checkpoints of the part."""
        found = self.choice.entries(self.manifest)
        if not found:
            raise RecordError(
                "the build has nothing of what is to be added",
                where=self.manifest.folder,
                expected=_listed(f"{key} {', '.join(map(str, all_of))}" for key, all_of in self._known()),
                found=self.choice.name(0).partition("-")[2],
                remedy="choose among these, or train it first: `threegates train`",
            )
        return found

    @cached_property
    def before(self) -> dict[str, Entry]:
        """Checkpoints of the release, by name."""
        known = read_manifest(self.held.folder / MANIFEST).checkpoints if self.held else []
        return {entry.name: entry for entry in known}

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Digests of the release's checkpoints that the part has otherwise, by name."""
        both = [entry for entry in self.part if entry.name in self.before]
        found = {entry.name: self._digest_before(entry) for entry in both if self._is_other(entry)}
        if found and not self.replace:
            raise _other("checkpoints", found)
        return found

    def lay_out(self) -> None:
        """Write the folder: the release, beside it the part's runs as links, and the build's records."""
        if self.held is not None:
            unpack(self.held, self.scratch)
        replaced = {run_folder_of(entry) for entry in self.part if entry.name in self.replaced}
        for entry in self.part:
            _lay_beside(
                self.manifest.folder / place_of(entry),
                self.scratch / "lab" / place_of(entry),
                anew=run_folder_of(entry) in replaced,
            )
        for path in (self.build / "records").glob("*/*.parquet"):
            place = self.scratch / "records" / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(path)
        write_manifest(self.scratch / "lab" / MANIFEST, self._merged())

    def contents(self, workers: int) -> Contents:
        """All of the release with the part, measured, once it is laid out."""
        pages = opened_studies(self.manifest.profile, Places(self.scratch))
        known = [study for study in pages if study.pairs]
        studies = [study for study in known if self.choice.has(study)]
        jobs = list(self._jobs(studies))
        read = [job for study in known for job in study.jobs]
        dropped = self._dropped(jobs, {job.digest for job in read}) | self._unread(read)
        # What is measured takes long, and would be lost with a refusal.
        self._check_orphans(dropped)
        missing = [job for job in jobs if not job.is_done(self._records)]
        if lacking := runs_lacking(missing):
            raise _not_kept(lacking, missing, self.manifest.profile or "")
        run_jobs(missing, self._records, workers, "measure the part")
        own = _paths(jobs, self._records)
        records = _joined(self._paths_before, own, dropped)
        kept = self._kept(studies)
        parts = [*self._parts_before(), self._facts(own, dropped, kept)]
        rekeyed = self.held.rekeyed if self.held else ()
        return Contents(self._read_merged(), records, kept, parts, rekeyed)

    # ------------------------------------------------------------------------------------- checkpoints

    def _known(self) -> Iterator[tuple[str, list]]:
        return (
            (key, value) for key, value in contents_of(self.manifest.checkpoints).items() if key != "bases"
        )

    def _digest_before(self, entry: Entry) -> str:
        return Checkpoint.open(self.scratch / "lab" / place_of(self.before[entry.name])).digest()

    def _is_other(self, entry: Entry) -> bool:
        told = [one.model_dump(exclude={"chapters"}) for one in (entry, self.before[entry.name])]
        return told[0] != told[1] or self._digest_of(entry) != self._digest_before(entry)

    def _merged(self) -> Manifest:
        """All entries, in the order of the profile's plan as far as it has them."""
        own = {entry.name: entry for entry in self.part}
        whole = {entry.name: entry.chapters for entry in self.manifest.checkpoints}
        entries = [
            self._with_chapters(own.get(name, before), whole.get(name, []))
            for name, before in self.before.items()
        ]
        entries += [entry for name, entry in own.items() if name not in self.before]
        places = {item.run.name: number for number, item in enumerate(planned(self.manifest.profile or ""))}
        entries.sort(key=lambda entry: places.get(entry.run or entry.name, len(places)))
        return Manifest(version=1, profile=self.manifest.profile, checkpoints=entries)

    def _with_chapters(self, entry: Entry, order: Sequence[str]) -> Entry:
        """An entry with its chapters in the release and in the part, in the build's order."""
        both = {*self.before[entry.name].chapters, *entry.chapters}
        chapters = [one for one in order if one in both]
        chapters += [one for one in self.before[entry.name].chapters if one not in chapters]
        return entry.model_copy(update={"chapters": chapters})

    def _read_merged(self) -> Manifest:
        return read_manifest(self.scratch / "lab" / MANIFEST)

    def _kept(self, studies: Sequence[Study]) -> dict[str, pa.Table]:
        """What is kept of checkpoints: what was, unless they were replaced, and what these studies need."""
        places = {place_of(entry) for name, entry in self.before.items() if name not in self.replaced}
        before = {place: table for place, table in self._kept_before.items() if place in places}
        return dict(sorted({**before, **kept_of(studies)}.items()))

    @cached_property
    def _kept_before(self) -> dict[str, pa.Table]:
        return read_kept_tables(self.held) if self.held else {}

    # ----------------------------------------------------------------------------------------- records

    @property
    def _records(self) -> Records:
        return Records(self.scratch / "records")

    def _jobs(self, studies: Iterable[Study]) -> Iterator[Job]:
        """Jobs about a run of the part, or about its bases alone, each once."""
        runs = {run_folder_of(entry) for entry in self.part}
        tuned = {run_folder_of(entry) for entry in self.part if entry.base is not None}
        found = {job.digest: job for study in studies for job in study.jobs}
        for job in found.values():
            its = {Path(Place.parse(text).folder).parent.name for text in job.arguments["places"].values()}
            if its & tuned or its <= runs:
                yield job

    @cached_property
    def _paths_before(self) -> dict[str, dict[str, Path]]:
        """The release's records, as they are laid out."""
        if self.held is None:
            return {}
        provenance = json.loads((self.held.folder / PROVENANCE).read_text(encoding="utf-8"))
        told = {table: known.values() for table, known in provenance.items()}
        paths = {
            table: [self._records.path(table, one["job"], one["digest"]) for one in known]
            for table, known in told.items()
        }
        return {table: {path.stem: path for path in found} for table, found in paths.items()}

    @cached_property
    def _told_before(self) -> dict[Path, dict[str, Any]]:
        """What each of them says of itself."""
        return {
            path: read_provenance(path) for found in self._paths_before.values() for path in found.values()
        }

    @cached_property
    def _about_replaced(self) -> set[Path]:
        """Those that are about a run which is replaced."""
        gone = set(self.replaced.values())
        return {
            path
            for path, told in self._told_before.items()
            if gone & set(told["inputs"]["checkpoints"].values())
        }

    def _dropped(self, jobs: Iterable[Job], opened: Collection[str]) -> set[Path]:
        """Records that those of the part take the place of.

        opened : digests of jobs that a page needs, so that their records stay.
        """
        named: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
        for path, told in self._told_before.items():
            named.setdefault((path.parent.name, told["job"]), []).append((path, told))
        widened: set[Path] = set()
        others: set[Path] = set()
        for job in jobs:
            for table in job.tables:
                for path, told in named.get((table, job.name), []):
                    if told["digest"] == job.digest:
                        others |= self._other_content(path, table)
                    elif told["digest"] not in opened:
                        same = told["inputs"]["checkpoints"] == job.inputs["checkpoints"]
                        (others if same else widened).add(path)
        if others and not self.replace:
            raise _other("records", sorted(f"{path.parent.name}/{path.stem}" for path in others))
        return widened | others

    def _unread(self, jobs: Iterable[Job]) -> set[Path]:
        """Records about replaced runs of which no page reads any of that name: they go with the runs."""
        read = {(table, job.name) for job in jobs for table in job.tables}
        return {
            path
            for path in self._about_replaced
            if (path.parent.name, self._told_before[path]["job"]) not in read
        }

    def _other_content(self, path: Path, table: str) -> set[Path]:
        """The record's path if the build has it with another content; then the build's is laid out there."""
        own = self.build / "records" / table / path.name
        if not own.is_file() or is_same_record(path, own):
            return set()
        if self.replace:
            path.unlink()
            path.symlink_to(own)
        return {path}

    def _check_orphans(self, dropped: Collection[Path]) -> None:
        """Refuse to leave records of a run that is no longer in the release."""
        left = [f"{path.parent.name}/{path.stem}" for path in self._about_replaced - set(dropped)]
        if left:
            raise RecordError(
                "runs would be replaced that other records of the release are about",
                where=_listed(sorted(left)),
                expected="a part with all chapters of the runs that it replaces",
                found=_listed(self.replaced),
                remedy="leave --chapter and --subject out, or train what these records compare the runs with",
            )

    # ------------------------------------------------------------------------------------------- parts

    def _parts_before(self) -> list[Mapping[str, Any]]:
        """Parts of the release; a release of before there were parts is one, of which nothing was kept."""
        if self.held is None or self.held.parts:
            return list(self.held.parts) if self.held else []
        facts = part_facts("1-all", list(self.before.values()), self._paths_before, {})
        return [facts | {"made": self.held.made, "versions": self.held.versions}]

    def _facts(self, own: Paths, dropped: Collection[Path], kept: Mapping[str, pa.Table]) -> dict[str, Any]:
        """What is said of the part: of what the release did not have as it is now."""
        entries = [entry for entry in self.part if self._is_new(entry)]
        held = {path for paths in self._paths_before.values() for path in paths.values()} - set(dropped)
        records = {
            table: {stem: path for stem, path in paths.items() if path not in held}
            for table, paths in own.items()
        }
        columns = {place: kept_columns(table) for place, table in self._kept_before.items()}
        more = {
            place: one for place, one in kept.items() if not kept_columns(one) <= columns.get(place, set())
        }
        if not (entries or more or any(records.values())):
            raise RecordError(
                "the release has all of this already",
                where=self.held.folder if self.held else None,
                found=_listed(entry.name for entry in self.part),
                remedy="train what it lacks: `threegates train --unreleased`",
            )
        name = self.choice.name(len(self._parts_before()) + 1)
        return part_facts(name, entries, records, more, self._about(records))

    def _about(self, records: Paths) -> list[Entry]:
        """Checkpoints of the part that records are about, each with the chapters that they are of."""
        chapters: dict[str, set[str]] = {}
        for table, paths in records.items():
            of_table = {
                chapter
                for chapter, kinds in WITH_JOBS.items()
                if table in tables_of(kinds) and chapter in (self.choice.chapters or WITH_JOBS)
            }
            for path in paths.values():
                for digest in read_provenance(path)["inputs"]["checkpoints"].values():
                    chapters.setdefault(digest, set()).update(of_table)
        digests = {entry.name: self._digest_of(entry) for entry in self.part}
        return [
            entry.model_copy(update={"chapters": sorted(chapters[digests[entry.name]])})
            for entry in self.part
            if digests[entry.name] in chapters
        ]

    def _digest_of(self, entry: Entry) -> str:
        return Checkpoint.open(self.manifest.folder / place_of(entry)).digest()

    def _is_new(self, entry: Entry) -> bool:
        before = self.before.get(entry.name)
        return (
            before is None or entry.name in self.replaced or not set(entry.chapters) <= set(before.chapters)
        )


def _lay_beside(source: Path, place: Path, *, anew: bool) -> None:
    """Put a build's checkpoint, a folder in its run's, where a release was laid out, without copying weights.

    A run that the release has keeps its logs and what was kept of it. anew : whether the run is replaced.
    """
    run = place.parent
    if anew and run.is_dir() and not run.is_symlink():
        shutil.rmtree(run)
    if not run.exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        run.symlink_to(source.parent)
    elif run.is_symlink():
        return
    elif not place.exists():
        place.symlink_to(source)
    elif (place / WITHOUT_WEIGHTS).is_file() and not (source / WITHOUT_WEIGHTS).is_file():
        (place / WITHOUT_WEIGHTS).unlink()
        for path in source.iterdir():
            (place / path.name).unlink(missing_ok=True)
            os.symlink(path, place / path.name)


def _paths(jobs: Iterable[Job], records: Records) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for job in jobs:
        for table in job.tables:
            path = records.path(table, job.name, job.digest)
            found.setdefault(table, {})[path.stem] = path
    return found


def _joined(before: Paths, own: Paths, dropped: Collection[Path]) -> dict[str, dict[str, Path]]:
    left = {
        table: {stem: path for stem, path in paths.items() if path not in dropped}
        for table, paths in before.items()
    }
    return {table: {**left.get(table, {}), **own.get(table, {})} for table in sorted({*left, *own})}


def _check_profile(manifest: Manifest, held: Release | None) -> None:
    if manifest.profile is None or (held is not None and held.profile != manifest.profile):
        raise RecordError(
            "a part is added to the release of its own profile",
            where=held.folder if held else build_folder() / "lab",
            expected=f"profile {held.profile}" if held else "a manifest that `threegates train` wrote",
            found=manifest.profile,
            remedy="train the release's profile, or give another folder by --out",
        )


def _other(what: str, found: Collection[str]) -> RecordError:
    return RecordError(
        f"{len(found)} {what} of the release are others in this build",
        where=_listed(found),
        expected="the same digest and content under the same name",
        remedy="make them with the code and versions that the release was made with, or give --replace",
    )


def _not_kept(runs: Sequence[str], missing: Sequence[Job], profile: str) -> RecordError:
    names = sorted(f"{job.kind} {job.name}" for job in missing if runs_lacking([job]))
    again = " ".join(f"--only {run}" for run in runs)
    return RecordError(
        "jobs of this part compare its runs with released ones of which nothing was kept",
        where=_listed(names),
        expected="weights, or what was kept of the runs when their part was made",
        found=_listed(runs),
        remedy=f"train these again: `threegates train --profile {profile} {again}`; then give the command "
        "that trained the part once more, which lists all that is there",
    )


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - LONGEST} more" if len(known) > LONGEST else ""
    return ", ".join(known[:LONGEST]) + more
