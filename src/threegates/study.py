"""A chapter's study: which pairs it looks at, which records it needs, and its tables and verdicts.

A notebook opens its study and asks it for tables. What is missing is measured first, in jobs whose digest
covers the checkpoints, the parameters, the code they reach and the versions that can change a number; a
record that exists is never measured again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from threegates.checkpoints.manifests.manifest import Entry, Manifest
from threegates.definitions import Reach
from threegates.digest import file_digest, value_digest
from threegates.errors import RecordError, refuse_draws
from threegates.estimates.rows import MissingRecordError
from threegates.jobs.batches import run_jobs
from threegates.jobs.jobs import Job
from threegates.jobs.kinds.known import KINDS, jobs_of, tables_of
from threegates.jobs.nulls import FOUNDING, asked_for
from threegates.jobs.released import as_released
from threegates.jobs.sources import (
    StudyPair,
    chapter_pairs,
    lab_manifest,
    manifest_of,
    named_pairs,
    narrowed,
    own_pairs,
)
from threegates.jobs.subjects import LAB, Subject, described, foreign, of_pairs
from threegates.judging import claims
from threegates.judging.robustness import COLUMNS, cells, counted
from threegates.measures.by_tensor import typed
from threegates.records.known_digests import known_digest
from threegates.records.places import Places
from threegates.records.provenance import project_root, record_provenance
from threegates.records.store import Records, read_columns, read_parquet, remove_leftovers
from threegates.register import chapter_of

#: Facts of a pair, the columns of `Study.frame` before the labels.
FACTS = {
    "pair": "str",
    "base": "str",
    "method": "str",
    "algorithm": "str",
    "run": "str",
    "data": "str",
    "step": "Int64",
    "updates": "Int64",
    "learning_rate": "float64",
    "seed": "Int64",
    "final": "bool",
    "rate": "str",
}
_RUN_FACTS = ("base", "method", "algorithm", "data", "seed", "learning_rate", "rate")
_LOGS = ("log", "evaluation")


class Study:
    """The pairs, records, tables and verdicts of one chapter."""

    def __init__(
        self,
        chapter: str,
        pairs: Sequence[StudyPair],
        *,
        records: Records,
        seed: int,
        nulls: Sequence[str] = FOUNDING,
        about: Subject,
        subject: str,
        measure: bool = True,
    ) -> None:
        self.chapter, self.pairs, self.records = chapter, list(pairs), records
        self.seed, self.about, self.subject = seed, about, subject
        self.nulls = nulls
        self.measure = measure
        # A page asks for its verdicts more than once; what they rest on is in the digest.
        self._judged: dict[str, pd.DataFrame] = {}

    @classmethod
    def open(
        cls,
        chapter: str,
        *,
        manifest: Path | None = None,
        pairs: Sequence[str] | None = None,
        base: str | None = None,
        tuned: str | None = None,
        subject: str = LAB,
        layers: Sequence[int | str] | None = None,
        matrices: Sequence[str] | None = None,
        records: Path | None = None,
        places: Places | None = None,
        seed: int = 0,
        nulls: Sequence[str] | None = None,
        measure: bool = True,
        draws: int | None = None,
    ) -> Study:
        """Open the study of a chapter on the pairs the lab's manifest has for it, or on pairs of one's own.

        Parameters
        ----------
        manifest : the one that `places` have by default.
        pairs : names of tuned entries, instead of those the manifest has for the chapter.
        base, tuned : two checkpoints of one's own, each a folder, an entry's name or
            ORG/REPO[@REVISION][:SUBFOLDER]; tuned may be a series of them.
        subject : whose pairs of the manifest, by their label; nothing with pairs, base or tuned.
        layers, matrices : only these blocks, and only tensors of these roles; all of them by default.
        records : folder of the records, that of `places` by default.
        places : where the lab's manifest and the records lie; those that the environment names by default.
        seed : of what is drawn beside the nulls' laws.
        nulls : names of those that stand beside what was measured; the founding ones by default.
        measure : whether records that are missing are measured; if not, what needs one is not run.
        draws : refused, for the nulls are laws.

        Raises
        ------
        ManifestError, CheckpointError, PairError : a name stands for nothing that can be opened.
        GeometryError : there is no null of such a name.
        NoDrawsError : a number of draws is given.
        """
        refuse_draws(draws, "Study.open(draws=…)", "draws")
        if base or tuned:
            whose = _of_checkpoints(base, tuned, places)
        elif pairs:
            whose = _of_names(pairs, manifest_of(pairs, manifest, places))
        else:
            whose = _of_chapter(chapter, subject, lab_manifest(manifest, places))
        return cls(
            chapter,
            narrowed(whose.pairs, layers, matrices),
            records=Records(Path(records).absolute() if records else (places or Places.here()).records),
            seed=seed,
            nulls=asked_for(nulls),
            about=whose.about,
            subject=whose.told + _choice(layers, matrices),
            measure=measure,
        )

    def unmeasured(self) -> Study:
        """The same study, which measures nothing that is missing."""
        if not self.measure:
            return self
        other = copy(self)
        other.measure = False
        return other

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a pair: its name, its base, what the manifest knows of its training, and its labels."""
        facts = [pair.facts() for pair in self.pairs]
        labels = sorted({key for row in facts for key in row} - set(FACTS))
        return typed(facts, {**FACTS, **dict.fromkeys(labels, "str")})

    @cached_property
    def jobs(self) -> list[Job]:
        """Everything that has to be measured for the chapter, done or not."""
        jobs = jobs_of(chapter_of(self.chapter).jobs, self.pairs, self.seed, self.nulls)
        return as_released(jobs, self.records)

    def missing(self) -> list[Job]:
        """Jobs some of whose records are not there yet."""
        return [job for job in self.jobs if not job.is_done(self.records)]

    def ensure(self, workers: int | None = 1, tables: Sequence[str] | None = None) -> Study:
        """Measure what is missing, over processes of one thread each; each base matrix is decomposed once.

        With `tables` only what those need.
        """
        missing = self.missing() if self.measure else []
        missing = [job for job in missing if tables is None or set(job.tables) & set(tables)]
        if missing:
            remove_leftovers(self.records.folder)
            run_jobs(missing, self.records, workers, f"measure {self.chapter}")
        return self

    def require(self, *tables: str) -> Study:
        """Refuse to go on without a record of these tables, or of any.

        Raises
        ------
        MissingRecordError : one is missing, or is a released one that is too old; the message names its table
            and pair, and says how many more are missing.
        """
        wanted = [(table, job) for job in self.jobs for table in job.tables if not tables or table in tables]
        lost = [
            f"{table}/{job.name}"
            for table, job in wanted
            if not self.records.exists(table, job.name, job.digest)
        ]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise MissingRecordError(
                "a record is missing",
                where=f"{lost[0]}{more}",
                remedy="run the chapter again, with measuring",
            )
        for table, job in wanted:
            if job.stale:
                _refuse_old(job, table, read_columns(self.records.path(table, job.name, job.digest)))
        return self

    def table(self, name: str) -> pd.DataFrame:
        """A table of the chapter, measured first if need be, joined with the facts of its pairs or runs.

        ``log`` and ``evaluation`` are the training logs and final evaluations of the lab's runs and of their
        base, which has no facts here because it is the tuned side of no pair. A label whose name the table
        has for a column of its own is called ``label_…`` there.

        Raises
        ------
        RecordError : the chapter has no such table.
        MissingRecordError : one of its records is missing, in a study that measures nothing.
        """
        if name in _LOGS:
            return self._logs(name)
        columns = self._columns(name)
        self.ensure(tables=(name,)).require(name)
        frames = [self._read(job, name) for job in self.jobs if name in job.tables]
        # Empty frames would only blur the columns' types.
        frames = [frame for frame in frames if len(frame)] or frames[:1]
        return self._joined(pd.concat(frames, ignore_index=True) if frames else typed([], columns))

    def digest(self) -> str:
        """sha256 over the content of every record and log that the chapter reads, or that one is missing."""
        self.ensure()
        records = {
            f"{table}/{job.name}": self._content(table, job) for job in self.jobs for table in job.tables
        }
        logs = {f"{run}/{path.name}": file_digest(path) for run, path in self._log_files()}
        facts = [pair.facts() for pair in self.pairs]
        return value_digest({"records": records, "logs": logs, "pairs": facts, "subject": self.subject})

    def verdicts(self) -> pd.DataFrame:
        """Judge the chapter's claims on its subject and keep the table as a record.

        Columns: those of `claims.verdict_table`; `about`, the subject's name; `cells` and `cells_same`, in
        how many cells of the sweeps the claim was judged, and in how many its verdict is the same.
        """
        provenance = self._verdict_provenance()
        digest = value_digest(provenance)
        if digest not in self._judged:
            self._judged[digest] = self._judge(digest, provenance)
        return self._judged[digest].copy()

    def _judge(self, digest: str, provenance: dict) -> pd.DataFrame:
        known = self._claims()
        judged = [
            claims.judge(claim, self, self.subject, known.confidence)
            if self.pairs
            else claims.not_run(claim, "the manifest has no pairs for this chapter")
            for claim in known.of(self.chapter, self.about.name)
        ]
        frame = counted(claims.verdict_table(judged).assign(about=self.about.name), self.cells())
        if judged and not self.records.exists("verdict", self.chapter, digest):
            self.records.write("verdict", self.chapter, digest, frame, provenance)
        return frame

    def cells(self) -> pd.DataFrame:
        """The chapter's claims over the choices that they leave open, kept as a record.

        Columns: those of `robustness.COLUMNS`, and `about`. No rows where a single pair gives no interval.
        """
        own = self._claims().of(self.chapter, self.about.name)
        if len(self.pairs) < 2 or not any(claim.free for claim in own):
            return typed([], {**COLUMNS, "about": "str"})
        provenance = self._verdict_provenance("threegates.judging.robustness")
        digest = value_digest(provenance)
        if not self.records.exists("cell", self.chapter, digest):
            found = cells(own, self, self._claims().confidence)
            self.records.write("cell", self.chapter, digest, found, provenance)
        return self.records.read("cell", self.chapter, digest).assign(about=self.about.name)

    def files(self, tables: Sequence[str] | None = None) -> list[Path]:
        """Files of the records and logs of some tables; of all that are measured, without names."""
        records = [
            self.records.path(table, job.name, job.digest)
            for job in self.jobs
            for table in job.tables
            if tables is None or table in tables
        ]
        return records + [path for _, path in self._log_files() if path.stem in (tables or ())]

    def paths(self) -> list[Path]:
        """Files of the chapter's records. The file of its verdicts comes last, where it has claims."""
        files = [self.records.path(table, job.name, job.digest) for job in self.jobs for table in job.tables]
        if not self._claims().of(self.chapter, self.about.name):
            return files
        verdict = self.records.path("verdict", self.chapter, value_digest(self._verdict_provenance()))
        return [*files, verdict]

    def _content(self, table: str, job: Job) -> str:
        path = self.records.path(table, job.name, job.digest)
        return known_digest(path) if path.is_file() else "missing"

    def _claims(self) -> claims.Claims:
        return claims.read_claims(project_root() / "claims.yaml")

    def _verdict_provenance(self, module: str = "threegates.judging.claims") -> dict:
        own = self._claims().of(self.chapter, self.about.name)
        inputs = {"study": self.digest(), "claims": value_digest(own), "subject": self.subject}
        return record_provenance(Reach((module,)), inputs=inputs, seed=self.seed)

    def _columns(self, name: str) -> Mapping[str, str]:
        tables = tables_of(chapter_of(self.chapter).jobs)
        if name not in tables:
            raise RecordError(
                f"the chapter {self.chapter} has no table '{name}'",
                expected=", ".join([*tables, *_LOGS]),
                found=name,
            )
        return tables[name]

    def _read(self, job: Job, table: str) -> pd.DataFrame:
        frame = self.records.read(table, job.name, job.digest)
        # A record of fewer nulls than the founding ones: what was not drawn has no number.
        lost = sorted(set(KINDS[job.kind].tables[table]) - set(frame))
        frame = frame.assign(**dict.fromkeys(lost, math.nan))
        return frame.assign(**{key: value for key, value in job.facts.items() if key not in frame})

    def _joined(self, frame: pd.DataFrame) -> pd.DataFrame:
        if "pair" in frame:
            facts = self.frame.drop(columns=[c for c in self.frame if c in frame and c != "pair"])
            return frame.merge(facts, on="pair", how="left", validate="many_to_one")
        if "run" in frame:
            # A label that is called like one of the table's columns stands beside it: `label_kl`, say.
            labels = {c: f"label_{c}" if c in frame else c for c in self.frame if c not in FACTS}
            known = [c for c in self.frame if c in labels or (c in _RUN_FACTS and c not in frame)]
            facts = self.frame.drop_duplicates("run")[["run", *known]].rename(columns=labels)
            return frame.merge(facts, on="run", how="left", validate="many_to_one")
        if "run_a" in frame:
            # A run is named by its pair where two are compared.
            seeds = self.frame.drop_duplicates("pair").set_index("pair")["seed"]
            return frame.assign(seed_a=frame["run_a"].map(seeds), seed_b=frame["run_b"].map(seeds))
        return frame

    def _log_files(self) -> list[tuple[str, Path]]:
        folders: dict[str, Path] = {}
        for source in [source for pair in self.pairs for source in (pair.base, pair.tuned)]:
            if source.entry is not None and source.run_folder is not None:
                folders[source.entry.run or source.label] = source.run_folder
        files = [(run, folder / f"{name}.parquet") for run, folder in folders.items() for name in _LOGS]
        return [(run, path) for run, path in files if path.is_file()]

    def _logs(self, name: str) -> pd.DataFrame:
        frames = [read_parquet(path).assign(run=run) for run, path in self._log_files() if path.stem == name]
        if not frames:
            raise RecordError(
                f"none of the chapter's runs has a table '{name}'",
                remedy="only runs of the lab have training logs",
            )
        return self._joined(pd.concat(frames, ignore_index=True))


def _refuse_old(job: Job, table: str, columns: Sequence[str]) -> None:
    """Refuse a released record that lacks columns which the chapter reads by now."""
    if lost := sorted(set(KINDS[job.kind].tables[table]) - set(columns)):
        raise MissingRecordError(
            "a released record is too old for this chapter",
            where=f"{table}/{job.name}",
            expected=f"the columns {', '.join(lost)}",
            remedy="pack the release again",
        )


class _Whose(NamedTuple):
    """Pairs, whom they are about, and what a verdict says of both."""

    pairs: list[StudyPair]
    about: Subject
    told: str


def _of_checkpoints(base: str | None, tuned: str | None, places: Places | None) -> _Whose:
    pairs, about = own_pairs(base, tuned, places=places), foreign(base, tuned)
    return _Whose(pairs, about, about.short)


def _of_names(names: Sequence[str], known: Manifest) -> _Whose:
    pairs = named_pairs(names, known)
    about = of_pairs(_entries(pairs), known.profile)
    return _Whose(pairs, about, f"{about.short}: {_checkpoints(pairs, known.profile, chosen=True)}")


def _of_chapter(chapter: str, subject: str, known: Manifest) -> _Whose:
    pairs = chapter_pairs(chapter, known, subject, chapter_of(chapter).follows_steps)
    about = described(subject, known.profile)
    return _Whose(pairs, about, f"{about.short}: {_checkpoints(pairs, known.profile, chosen=False)}")


def _choice(layers: Sequence[int | str] | None, matrices: Sequence[str] | None) -> str:
    """Which part of the models a verdict rests on, if it is a part."""
    blocks = f", blocks {', '.join(map(str, layers))}" if layers else ""
    return blocks + (f", tensors {', '.join(matrices)}" if matrices else "")


def _entries(pairs: Sequence[StudyPair]) -> list[Entry]:
    return [entry for pair in pairs if (entry := pair.tuned.entry) is not None]


def _checkpoints(pairs: Sequence[StudyPair], profile: str | None, chosen: bool) -> str:
    """How many checkpoints a verdict rests on, and where they are listed."""
    seeds = sorted({entry.seed for entry in _entries(pairs) if entry.seed is not None})
    of_seeds = f", {len(seeds)} seed{'s' * (len(seeds) != 1)}" if seeds else ""
    of_profile = f"profile {profile}" if profile else "the manifest"
    kind = f"{'chosen ' * chosen}checkpoint{'s' * (len(pairs) != 1)}"
    return f"{len(pairs)} {kind} of {of_profile}{of_seeds}"
