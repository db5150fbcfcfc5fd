"""New pairs in a manifest: entries for a tuned checkpoint and, where it is not there yet, for its base."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from threegates.checkpoints.hub.addresses import WRITTEN, Address, parse_address
from threegates.checkpoints.hub.repository import COMMIT
from threegates.checkpoints.manifests.editing import edit_manifest
from threegates.checkpoints.manifests.licences import is_noncommercial
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest, Method, read_manifest
from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, ManifestError

_NAME = re.compile(r"\w[\w.+-]{0,95}")
_LABEL = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
# What a Hub's access token looks like: a manifest is published.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_LONGEST = 400


@dataclass(frozen=True)
class AddedPair:
    """What `add_pair` wrote: the pair's name, its base's, the new entries, and what to look at."""

    path: Path
    name: str
    base: str
    written: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """What was written, and how to go on."""
        reused = "" if self.base in self.written else f"\nbase: {self.base}, which was there already"
        remarks = "".join(f"\nlook at {remark}" for remark in self.remarks)
        return (
            f"added to {self.path}: {', '.join(self.written)}{reused}{remarks}\n"
            f"next: `threegates lock {' '.join(self.written)}`, "
            f"then `threegates run NOTEBOOK --pair {self.name}`"
        )


@dataclass(frozen=True)
class Facts:
    """What is known of the tuned checkpoint: its fields in the manifest, see manifest.Entry.

    `method` says how it was trained, one of manifest.Method; whatever else is not known is left out.
    """

    method: str
    algorithm: str | None = None
    data: str | None = None
    chapters: Sequence[str] = ()
    licence: str | None = None
    learning_rate: float | None = None
    step: int | None = None
    seed: int | None = None
    gated: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    def check(self, known_chapters: Collection[str] | None) -> None:
        """Refuse what a manifest cannot say, or should not.

        Raises
        ------
        ManifestError : a method, chapter or label's name is none, or a text is not for others' eyes.
        """
        _check_method(self.method, "method")
        _check_chapters(self.chapters, known_chapters)
        texts = {"algorithm": self.algorithm, "data": self.data, "licence": self.licence, "note": self.note}
        _check_texts({**texts, **self.labels}, self.labels)

    def entry(self, name: str, source: Mapping[str, Any], base: str) -> dict[str, Any]:
        """The tuned checkpoint's entry, in the order in which a manifest is read."""
        entry = {
            "name": name,
            "source": source,
            "licence": self.licence,
            "base": base,
            "method": self.method,
            "algorithm": self.algorithm,
            "data": self.data,
            "step": self.step,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "chapters": list(self.chapters) or None,
            "labels": dict(self.labels) or None,
            "checked": False,
            "gated": self.gated or None,
            "noncommercial": is_noncommercial(self.licence) or None,
            "note": self.note,
        }
        return _without_nones(entry)


def add_pair(
    manifest_path: str | os.PathLike,
    base: str,
    tuned: str,
    facts: Facts,
    *,
    name: str | None = None,
    base_name: str | None = None,
    base_method: str = "mixed",
    known_chapters: Collection[str] | None = None,
) -> AddedPair:
    """Append a pair to a manifest; comments, order and layout of what is there are kept.

    Parameters
    ----------
    manifest_path : the manifest, such as data_manifest.yaml.
    base : the checkpoint that training started from: the name of an entry, ORG/REPO[@REVISION][:SUBFOLDER] of
        the Hub, or a folder inside the manifest's. One that is an entry already is not written again.
    tuned : the checkpoint that training ended with, given likewise but not by an entry.
    facts : what is known of the tuned checkpoint.
    name, base_name : names of the entries; the repositories' or folders' own names by default.
    base_method : how the base was trained, if it gets an entry; "mixed" says nothing certain.
    known_chapters : chapters that there are; any other is refused. None takes every well-formed name.

    Raises
    ------
    ManifestError : an argument is not of that kind, a name is taken, the pair is there already, or the result
        would break the schema. CheckpointError : a folder holds no checkpoint that is read here, such as an
        adapter. Nothing is written then.
    """
    path = Path(manifest_path)
    manifest = read_manifest(path)
    facts.check(known_chapters)
    _check_method(base_method, "base method")
    left = _base_entry(manifest, base, base_name, base_method)
    source = _source(manifest, tuned, "tuned")
    _check_new(manifest, source, left)
    right = facts.entry(_new_name(manifest, name or _own_name(source), [left["name"]]), source, left["name"])
    known = {entry.name for entry in manifest.checkpoints}
    added = [right] if left["name"] in known else [_without_nones(left), right]
    remarks = [_checked_side(manifest, entry["name"], entry["source"]) for entry in added]
    edit_manifest(path, {}, added)
    names = tuple(entry["name"] for entry in added)
    return AddedPair(path, right["name"], left["name"], names, tuple(filter(None, remarks)))


def _checked_side(manifest: Manifest, name: str, source: Mapping[str, Any]) -> str:
    """Refuse a folder that is no checkpoint; of a repository, whether it may have been meant as a folder."""
    if "folder" in source:
        Checkpoint.open(manifest.folder / source["folder"])
        return ""
    owner = str(source["hub"]).partition("/")[0]
    near = [place for place in (Path(owner), manifest.folder / owner) if place.is_dir()]
    return f"{name}: a repository of the Hub, for there is no folder {source['hub']}" if near else ""


def _base_entry(manifest: Manifest, base: str, name: str | None, method: str) -> dict[str, Any]:
    """The base's entry: one that is there, by its name or its source, or a new one."""
    named = [entry for entry in manifest.checkpoints if entry.name == base]
    if named:
        return {"name": named[0].name, "source": _as_written(named[0])}
    source = _source(manifest, base, "base")
    there = [entry for entry in manifest.checkpoints if _same_place(source, entry)]
    if len(there) > 1:
        raise ManifestError(
            "several entries stand for that base",
            where=base,
            expected="the name of one: " + ", ".join(entry.name for entry in there),
            found=base,
            remedy="give that name as the base",
        )
    if there:
        return {"name": there[0].name, "source": source}
    chosen = _new_name(manifest, name or _own_name(source), [])
    return {"name": chosen, "source": source, "method": method, "checked": False}


def _source(manifest: Manifest, text: str, side: str) -> dict[str, Any]:
    """A side of the pair as the manifest writes it: a folder, where there is one of that name, or the Hub."""
    folder = Path(text).expanduser() if text and text.isprintable() else None
    inside = _inside(manifest, folder) if folder is not None else None
    if inside is not None:
        return {"folder": inside}
    address = _address(text)
    if address is None or (folder is not None and folder.is_dir()):
        raise ManifestError(
            f"the {side} side is neither a repository of the Hub nor a folder inside the manifest's",
            where=manifest.folder,
            expected=f"{WRITTEN}, or a folder in there",
            found=text[:_LONGEST],
            remedy="correct it; a folder elsewhere can be measured with --base and --tuned, without an entry",
        )
    is_commit = bool(COMMIT.fullmatch(address.revision or ""))
    named = {"ref": None if is_commit else address.revision, "subfolder": address.subfolder or None}
    revision = address.revision if is_commit else None
    return {"hub": address.repo, **_without_nones(named), "revision": revision}


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except CheckpointError:
        return None


def _inside(manifest: Manifest, folder: Path) -> str | None:
    """A folder relative to the manifest's own, if it lies inside."""
    for place in (manifest.folder / folder, folder.absolute()):
        if place.is_dir() and place.resolve().is_relative_to(manifest.folder.resolve()):
            relative = place.resolve().relative_to(manifest.folder.resolve()).as_posix()
            return relative if stays_inside(relative) and relative != "." else None
    return None


def _same_place(source: Mapping[str, Any], entry: Entry) -> bool:
    if isinstance(entry.source, Folder):
        return entry.source.path == source.get("folder")
    wanted = source.get("revision")
    # Names of repositories are one whatever their capitals.
    same = entry.source.repo.casefold() == str(source.get("hub", "")).casefold()
    inside = all(getattr(entry.source, key) == source.get(key) for key in ("ref", "subfolder"))
    return same and inside and wanted in (None, entry.source.revision)


def _one_checkpoint(source: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    places = [str(one.get("hub") or one.get("folder")).casefold() for one in (source, other)]
    commits = {one.get("revision") for one in (source, other)} - {None}
    inside = all(source.get(key) == other.get(key) for key in ("ref", "subfolder"))
    return places[0] == places[1] and inside and len(commits) < 2


def _check_new(manifest: Manifest, source: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    if _one_checkpoint(source, base["source"]):
        raise ManifestError(
            "base and tuned are one checkpoint", found=next(iter(source.values())), remedy="give two"
        )
    for entry in manifest.checkpoints:
        if entry.base == base["name"] and _same_place(source, entry):
            raise ManifestError(
                f"the manifest has that pair already, as '{entry.name}'",
                where=manifest.folder,
                found=next(iter(source.values())),
                remedy=f"use it: --pair {entry.name}; another revision of it is given as ORG/REPO@REVISION",
            )


def _new_name(manifest: Manifest, name: str, taken: Sequence[str]) -> str:
    if not _NAME.fullmatch(name) or _TOKEN.search(name):
        raise ManifestError(
            "an entry's name has to be plain",
            expected="letters, digits, dots, dashes, plus signs and underscores, at most 96",
            found=repr(name)[:_LONGEST],
            remedy="give another name",
        )
    # Records and pages are named after pairs, and some file systems take no notice of capitals.
    clash = [
        one for one in (*(e.name for e in manifest.checkpoints), *taken) if one.casefold() == name.casefold()
    ]
    if clash:
        raise ManifestError(
            f"the manifest has an entry '{clash[0]}' already",
            where=manifest.folder,
            expected="a name of its own",
            found=name,
            remedy="give the new entry another name",
        )
    return name


def _own_name(source: Mapping[str, Any]) -> str:
    own = str(source.get("hub") or source["folder"]).rsplit("/", 1)[-1]
    inside = (str(source[key]) for key in ("ref", "subfolder") if source.get(key))
    return "-".join([own, *(re.sub(r"[^\w.+-]", "-", name) for name in inside)])


def _as_written(entry: Entry) -> dict[str, Any]:
    if isinstance(entry.source, Hub):
        named = {"ref": entry.source.ref, "subfolder": entry.source.subfolder}
        return {"hub": entry.source.repo, **_without_nones(named), "revision": entry.source.revision}
    return {"folder": entry.source.path}


def _check_method(method: str, what: str) -> None:
    if method not in get_args(Method):
        raise ManifestError(
            f"there is no such {what}",
            expected="one of " + ", ".join(get_args(Method)),
            found=repr(method)[:_LONGEST],
            remedy="choose the nearest, and give the algorithm's own name as the algorithm",
        )


def _check_chapters(chapters: Sequence[str], known: Collection[str] | None) -> None:
    for chapter in chapters:
        if not _LABEL.fullmatch(chapter) or (known is not None and chapter not in known):
            raise ManifestError(
                "there is no such chapter",
                expected=", ".join(sorted(known))
                if known is not None
                else "a chapter, such as spectral-drift",
                found=repr(chapter)[:_LONGEST],
                remedy="correct it, or leave it away: --pair shows the pair in any chapter",
            )


def _check_texts(facts: Mapping[str, str | None], labels: Mapping[str, str]) -> None:
    for key in labels:
        if not _LABEL.fullmatch(key):
            raise ManifestError(
                "a label's name has to be plain",
                expected="small letters, digits, dashes",
                found=repr(key)[:_LONGEST],
            )
    for key, text in facts.items():
        if text is not None and not _is_harmless(text):
            raise ManifestError(
                f"'{key}' is no text for a manifest that is published",
                expected=f"one line of at most {_LONGEST} characters, no token, no folder of this machine",
                # A token must not reach a terminal's log either.
                found="a text that looks like an access token"
                if _TOKEN.search(text)
                else repr(text)[:_LONGEST],
                remedy="correct it",
            )


def _is_harmless(text: str) -> bool:
    private = _TOKEN.search(text) or re.search(
        r"(^|[\s'\"=:])(~/|/(home|root|Users|mnt|tmp)/|[A-Za-z]:\\)", text
    )
    return bool(text.strip()) and text.isprintable() and len(text) <= _LONGEST and not private


def _without_nones(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}
