"""Which checkpoints a name or a chapter stands for: folders, manifest entries, Hub repositories, pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from threegates.checkpoints.hub import open_entry, open_named
from threegates.checkpoints.manifest import Entry, Folder, Manifest, PairEntry, read_manifest
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import ManifestError, PairError, ThreeGatesError
from threegates.study.provenance import build_folder, project_root
from threegates.study.subjects import LAB, SUBJECTS, subject_of

# Folders of this machine by the labels that notebooks use for them, so that no page shows a path.
VARIABLE = "THREEGATES_SOURCES"
# The manifest that chapters take their pairs from, where it is not the lab's: the paper profile sets it.
MANIFEST_VARIABLE = "THREEGATES_MANIFEST"


# Chapters that look at every kept step of a run.
_FOLLOWING = ("emergence", "precision-lens")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint, the label it goes by, and the manifest's entry if it has one."""

    label: str
    checkpoint: Checkpoint
    entry: Entry | None = None

    @property
    def run_folder(self) -> Path | None:
        """Folder of a lab run, which holds the log beside the checkpoints."""
        lab = self.entry is not None and isinstance(self.entry.source, Folder)
        return self.checkpoint.folder.parent if lab else None


@dataclass(frozen=True)
class StudyPair:
    """A tuned checkpoint and its base."""

    name: str
    base: Source
    tuned: Source

    def facts(self) -> dict:
        """What the manifest knows of the tuned checkpoint's training, and its labels."""
        entry = self.tuned.entry
        if entry is None:
            return {
                "pair": self.name,
                "base": self.base.label,
                "run": self.name,
                "method": "unknown",
                "final": True,
            }
        known = entry.model_dump(
            include={"method", "data", "step", "updates", "learning_rate", "seed", "final"}
        )
        named = {"algorithm": entry.algorithm or entry.method, "run": entry.run or entry.name}
        return {"pair": self.name, "base": self.base.label, **known, **named, **entry.labels}


def lab_manifest(path: Path | None = None) -> Manifest:
    """The given manifest, or the one that a profile chose, or the one the lab wrote last."""
    chosen = os.environ.get(MANIFEST_VARIABLE)
    return read_manifest(path or (Path(chosen) if chosen else build_folder() / "lab" / "manifest.yaml"))


def known_manifests() -> list[Manifest]:
    """The lab's manifest and the tracked one, those that exist; outside the project there are none."""
    try:
        project_root()
    except ThreeGatesError:
        return []
    paths = (build_folder() / "lab" / "manifest.yaml", project_root() / "data_manifest.yaml")
    return [read_manifest(path) for path in paths if path.is_file()]


def open_source(name: str, known: Iterable[Manifest]) -> Source:
    """Open what a name stands for: a folder, else an entry of a manifest, else ORG/REPO or ORG/REPO@COMMIT.

    Raises
    ------
    CheckpointError, ManifestError : it stands for nothing, or what it stands for cannot be opened.
    """
    folder = _labelled().get(name, name)
    if Path(folder).is_dir():
        return Source(Path(name).resolve().name, Checkpoint.open(folder))
    known = list(known)
    for manifest in known:
        for entry in manifest.checkpoints:
            if entry.name == name:
                return Source(name, open_entry(manifest, entry), entry)
    if "/" in name or not known:
        return Source(name.replace("/", "--").replace("@", "-"), open_named(name))
    raise _nothing(name, known)


def folder_labels(names: Iterable[str]) -> dict[str, str]:
    """Path of each name that is a folder, by a label: its last parts, as many as keep the folders apart."""
    folders = {Path(name).resolve() for name in names if Path(name).is_dir()}
    depth = 1
    while len({_tail(path, depth) for path in folders}) < len(folders):
        depth += 1
    return {_tail(path, depth): str(path) for path in sorted(folders)}


def chapter_pairs(chapter: str, manifest: Manifest, subject: str = LAB) -> list[StudyPair]:
    """The pairs that the manifest has for a chapter and subject: final checkpoints, or every step of a run.

    Raises
    ------
    ManifestError : no subject has that name.
    """
    known = {*SUBJECTS, *map(subject_of, manifest.checkpoints)}
    if subject not in known:
        raise ManifestError(
            "there is no such subject", where="labels", expected=", ".join(sorted(known)), found=subject
        )
    pairs = [pair for pair in manifest.pairs(chapter) if subject_of(pair.tuned) == subject]
    return _open_pairs(manifest, [pair for pair in pairs if pair.tuned.final or chapter in _FOLLOWING])


def named_pairs(names: Sequence[str], manifest: Manifest) -> list[StudyPair]:
    """Pairs by the names of their tuned entries.

    Raises
    ------
    ManifestError : there is no such entry, or it names no base.
    """
    pairs = {pair.name: pair for pair in manifest.pairs()}
    for name in names:
        if manifest.entry(name).base is None:
            raise ManifestError(
                "that entry is no pair: it names no base", where=name, remedy="choose an entry with a base"
            )
    return _open_pairs(manifest, [pairs[name] for name in dict.fromkeys(names)])


def own_pair(base: str | None, tuned: str | None) -> StudyPair:
    """A pair of two checkpoints that the user names.

    Raises
    ------
    PairError : one side is not given.
    CheckpointError, ManifestError : a side stands for nothing that can be opened.
    """
    if not (base and tuned):
        found = f"base {base!r}, tuned {tuned!r}"
        raise PairError("a pair of one's own needs both sides", found=found, remedy="give base and tuned")
    known = known_manifests()
    left, right = open_source(base, known), open_source(tuned, known)
    return StudyPair(right.label, left, right)


def _open_pairs(manifest: Manifest, pairs: Sequence[PairEntry]) -> list[StudyPair]:
    opened: dict[str, Source] = {}
    for pair in pairs:
        for entry in (pair.base, pair.tuned):
            if entry.name not in opened:
                opened[entry.name] = Source(entry.name, open_entry(manifest, entry), entry)
    return [StudyPair(pair.name, opened[pair.base.name], opened[pair.tuned.name]) for pair in pairs]


def _tail(path: Path, depth: int) -> str:
    return "-".join(path.parts[-depth:])


def _labelled() -> dict[str, str]:
    return json.loads(os.environ.get(VARIABLE, "{}"))


def _nothing(name: str, known: Iterable[Manifest], limit: int = 20) -> ManifestError:
    names = [entry.name for manifest in known for entry in manifest.checkpoints]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ManifestError(
        "there is neither a folder nor a manifest's entry of that name",
        where=name,
        expected=f"a folder, ORG/REPO[@COMMIT] on the Hub, or one of: {', '.join(names[:limit])}{more}",
        remedy="check the spelling; `threegates train` makes the lab's checkpoints",
    )
