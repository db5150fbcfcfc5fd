"""Locking: each checkpoint of a manifest tied to the sha256 of its files, one of the Hub to a commit too."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from threegates.checkpoints.hub.listing import (
    Card,
    HubUnreachableError,
    dtypes_of,
    listed_sha256,
    model_files,
    read_card,
    stored_dtypes,
)
from threegates.checkpoints.hub.transfer import REVISION, RemoteFile
from threegates.checkpoints.manifests.editing import edit_manifest
from threegates.checkpoints.manifests.licences import check_allowed, is_noncommercial, licence_name
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest, read_manifest
from threegates.checkpoints.manifests.members import members_of
from threegates.checkpoints.series import is_series, spelled
from threegates.checkpoints.tensors import INDEX, Checkpoint, sha256_of
from threegates.errors import CheckpointError, ManifestError, ThreeGatesError

#: Training facts of which two different ones cannot have left the same weights.
_TRAINING = ("base", "method", "algorithm", "data", "step", "learning_rate", "seed")


@dataclass(frozen=True)
class LockSummary:
    """What `lock` did, by names of entries.

    locked : those tied to a commit or to files now, with what is known of them.
    kept : those that were locked already and stay.
    remarks : what a person should look at: a newer commit, a licence that the card states otherwise.
    failed : those left as they were, with the reason.
    changed : whether the manifest was written.
    """

    path: Path
    locked: dict[str, str]
    kept: dict[str, str]
    remarks: dict[str, list[str]]
    failed: dict[str, ThreeGatesError]
    changed: bool

    @property
    def ok(self) -> bool:
        """Whether no entry failed."""
        return not self.failed

    def text(self) -> str:
        """One line an entry, then remarks, then failures with what to do."""
        lines = [f"locked  {name}: {told}" for name, told in self.locked.items()]
        lines += [f"kept    {name}: {told}" for name, told in self.kept.items()]
        lines += [f"look at {name}: {told}" for name, those in self.remarks.items() for told in those]
        lines += [f"failed  {name}: {_indented(error)}" for name, error in self.failed.items()]
        counts = f"{len(self.locked)} locked, {len(self.kept)} kept, {len(self.failed)} failed"
        return "\n".join([*lines, f"{counts}; {self.path} " + ("written" if self.changed else "unchanged")])


@dataclass
class _Found:
    """What an entry is to be locked to."""

    entry: Entry
    files: dict[str, str]
    moved: bool
    commit: str | None = None
    dtypes: tuple[str, ...] = ()
    card: Card | None = None
    remarks: list[str] = field(default_factory=list)

    def told(self) -> str:
        known = ", ".join([f"{len(self.files)} files", *self.dtypes])
        return f"commit {self.commit[:12]} ({known})" if self.commit else f"its folder ({known})"


def lock(
    manifest_path: str | os.PathLike,
    names: Sequence[str] | None = None,
    *,
    update: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> LockSummary:
    """Tie the entries of a manifest to the sha256 of their files; entries of the Hub to a commit too.

    The sha256 of weights on the Hub are the Hub's own; small files are fetched and hashed. No weights are
    downloaded. Of a folder, config.json, the index and the files with tensors are hashed. Licence and stored
    dtype are written where the entry has none; where they contradict it, that is told. Everything else of the
    file keeps its bytes, and it is replaced in one step, at the end. An entry that cannot be resolved stays
    as it was.

    Parameters
    ----------
    manifest_path : the manifest, such as data_manifest.yaml.
    names : entries, with braces several; none takes them all but series. A named one that is locked moves to
        the newest commit, of its branch or tag where it has one, or to the files that its folder holds now. A
        member of a series gets an entry of its own.
    update : move every entry to the newest commit, those too whose commit a person wrote.
    revision : branch, tag or commit in place of the newest, for the one entry that is named.
    endpoint : address of the Hub; HF_ENDPOINT or the public one by default.
    progress : called with a line before each entry.

    Raises
    ------
    ManifestError : the manifest breaks its schema, has no such entry, or was changed meanwhile.
    """
    path = Path(manifest_path)
    manifest = read_manifest(path)
    chosen = _chosen(manifest, names, revision)
    found: dict[str, _Found] = {}
    failed: dict[str, ThreeGatesError] = {}
    for number, entry in enumerate(chosen, 1):
        if progress:
            progress(f"{number}/{len(chosen)} {entry.name}")
        try:
            if isinstance(entry.source, Folder):
                found[entry.name] = _of_folder(manifest, entry, update or names is not None)
            else:
                found[entry.name] = _resolved(
                    entry, entry.source, names is not None, update, revision, endpoint
                )
        except HubUnreachableError as error:
            failed |= {left.name: error for left in chosen[number - 1 :]}
            break
        except ThreeGatesError as error:
            failed[entry.name] = error
    failed |= _impossible(manifest, found)
    changes = {name: _changes(one) for name, one in found.items() if name not in failed}
    failed |= _invalid(manifest, changes)
    changes = {name: keys for name, keys in changes.items() if keys and name not in failed}
    ours = {name: keys for name, keys in changes.items() if name not in manifest.members}
    added = [_own_entry(manifest.entry(name), changes[name]) for name in changes if name not in ours]
    changed = edit_manifest(path, ours, added, before=manifest)
    summary = _summary(path, found, changes, failed, changed)
    summary.remarks.update(_of_series(manifest) if names is None else {})
    return summary


def _own_entry(member: Entry, keys: Mapping[str, Any]) -> dict[str, Any]:
    """A member of a series as an entry by itself."""
    told = member.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {**told, **keys, "source": {**told["source"], **keys.get("source", {})}}


def _of_series(manifest: Manifest) -> dict[str, list[str]]:
    """What is said of entries that no lock can tie to one commit."""
    return {
        entry.name: [f"a series: its checkpoints are locked by name, such as {next(iter(members_of(entry)))}"]
        for entry in manifest.checkpoints
        if is_series(entry.name)
    }


def check_locked(entry: Entry) -> None:
    """Refuse a Hub entry that is not tied to a commit with the sha256 of its files; folders always pass.

    Raises
    ------
    CheckpointError : it has no commit, or lists no files; with what to do.
    """
    source = entry.source
    if isinstance(source, Folder) or (source.revision and _weights(entry.files)):
        return
    raise CheckpointError(
        f"checkpoint '{entry.name}' is not locked: run `threegates lock {entry.name}` first",
        where=source.repo,
        expected="a commit, and the sha256 of its files",
        found="neither" if not source.revision else "a commit alone",
        remedy=f"run `threegates lock {entry.name}` and look at what it writes into the manifest: "
        "an unlocked repository can become another model at any time",
    )


def check_listed(entry: Entry, listed: Mapping[str, str]) -> None:
    """Refuse an entry whose files have another sha256 in a repository than in the manifest.

    Parameters
    ----------
    entry : a locked Hub entry.
    listed : sha256 by name at the entry's commit, such as a RangedCheckpoint's; small files may be left out.

    Raises
    ------
    CheckpointError : a file of weights is gone or new, or any file is another; with what to do.
    """
    ours, both = entry.files, entry.files.keys() & listed.keys()
    weights = {name for name in entry.files.keys() | listed.keys() if name.endswith(".safetensors")}
    for name in sorted(weights | both):
        if listed.get(name) != ours.get(name):
            raise _changed(
                entry,
                f"{name} with sha256 {ours[name]}" if name in ours else f"no file {name}",
                f"sha256 {listed[name]}" if name in listed else "no such file",
            )


def check_usable(entry: Entry, *, accepted: Collection[str]) -> None:
    """What profile `paper` asks of an entry before it is opened: accepted conditions, and a lock.

    Raises
    ------
    LicenceError, CheckpointError : see licences.check_allowed and check_locked.
    """
    check_allowed(entry, accepted=accepted)
    check_locked(entry)


def _chosen(manifest: Manifest, names: Sequence[str] | None, revision: str | None) -> list[Entry]:
    if names is None:
        chosen = [entry for entry in manifest.checkpoints if not is_series(entry.name)]
    else:
        chosen = [manifest.entry(name) for name in dict.fromkeys(spelled(names))]
    if revision is not None and any(isinstance(entry.source, Folder) for entry in chosen if names):
        raise ManifestError(
            "a folder has no revisions",
            where=", ".join(entry.name for entry in chosen),
            expected="an entry of the Hub",
            remedy="leave the revision away: what the folder holds now is taken",
        )
    if revision is not None and (names is None or len(chosen) != 1):
        raise ManifestError(
            "a revision is one entry's",
            expected="the name of one entry beside it",
            found=", ".join(entry.name for entry in chosen) if names else "none",
            remedy="give one name, or leave the revision away",
        )
    return chosen


def _of_folder(manifest: Manifest, entry: Entry, moves: bool) -> _Found:
    """Files of a folder's entry. A locked entry that does not move has to hold the files listed for it."""
    checkpoint = Checkpoint.open(entry.folder(manifest))
    names = [path.relative_to(checkpoint.folder).as_posix() for path in checkpoint.files()]
    keeps = bool(entry.files) and not moves
    files = {
        name: sha256_of(checkpoint.folder / name)
        for name in sorted({*names, INDEX, *(entry.files if keeps else ())})
        if (checkpoint.folder / name).is_file()
    }
    if keeps:
        for name, listed in sorted(entry.files.items()):
            if files.get(name) != listed:
                now = f"sha256 {files[name]}" if name in files else "no such file"
                raise _changed(entry, f"{name} with sha256 {listed}", now)
        files = dict(entry.files)
    found = _Found(entry, files, moved=True, dtypes=dtypes_of(checkpoint.infos.values()))
    found.remarks += _contradictions(found)
    return found


def _resolved(
    entry: Entry, source: Hub, named: bool, update: bool, revision: str | None, endpoint: str | None
) -> _Found:
    card = read_card(source.repo, revision or source.ref, endpoint)
    whole = bool(source.revision and _weights(entry.files))
    # A commit without files was written by a person, and says which weights are meant.
    moves = revision is not None or update or source.revision is None or (named and whole)
    commit = card.commit if moves else str(source.revision)
    keeps = whole and not moves
    listed = _at_commit(entry, source, commit, endpoint, entry.files if keeps else ())
    if keeps:
        check_listed(entry, {name: file.sha256 for name, file in listed.items() if file.sha256})
        found = _Found(entry, dict(entry.files), moved=False, commit=commit)
    else:
        found = _taken(entry, card, commit, listed)
    if card.commit != commit:
        found.remarks.append(
            f"the Hub has a newer commit, {card.commit}; `threegates lock {entry.name}` moves to it"
        )
    return found


def _at_commit(
    entry: Entry, source: Hub, commit: str, endpoint: str | None, known: Collection[str]
) -> dict[str, RemoteFile]:
    """The model's files at a commit; one that is gone is said with the way to take the newest."""
    try:
        return model_files(source.repo, commit, endpoint, source.subfolder or "", known)
    except CheckpointError as error:
        if error.remedy == REVISION:
            raise _changed(entry, f"commit {commit}", "no such commit") from error
        raise


def _taken(entry: Entry, card: Card, commit: str, listed: Mapping[str, RemoteFile]) -> _Found:
    """What the Hub has at a commit: files with their sha256, dtype, licence."""
    files = {name: listed_sha256(file) for name, file in listed.items()}
    found = _Found(entry, files, moved=True, commit=commit, card=card)
    try:
        found.dtypes = stored_dtypes(listed)
    except CheckpointError as error:
        # The lock itself needs no dtype.
        found.remarks.append(f"the stored dtype could not be read: {error.what}")
    found.remarks += _contradictions(found)
    return found


def _contradictions(found: _Found) -> list[str]:
    entry, card, told = found.entry, found.card, []
    if card and card.licence and entry.licence and card.licence.casefold() != entry.licence.casefold():
        told.append(f"the manifest says licence {entry.licence}, the Hub's card {card.licence}")
    if card and entry.gated and not card.gated:
        told.append("the manifest says that it is gated, the Hub that it is not")
    if entry.stored_dtype and found.dtypes and found.dtypes != (entry.stored_dtype,):
        told.append(f"the manifest says stored as {entry.stored_dtype}, its files {', '.join(found.dtypes)}")
    if len(found.dtypes) > 1 and not entry.stored_dtype:
        told.append(f"its files hold several dtypes: {', '.join(found.dtypes)}")
    return told


def _changes(found: _Found) -> dict[str, Any]:
    """Keys of an entry that are to have another value, with that value."""
    entry, card = found.entry, found.card
    keys: dict[str, Any] = {}
    if isinstance(entry.source, Hub) and entry.source.revision != found.commit:
        keys["source"] = {"revision": found.commit}
    if entry.files != found.files:
        keys["files"] = found.files
    if not entry.checked:
        keys["checked"] = True
    if len(found.dtypes) == 1 and entry.stored_dtype is None:
        keys["stored_dtype"] = found.dtypes[0]
    if card and card.licence and entry.licence is None:
        keys["licence"] = licence_name(card.licence)
    if card and card.gated and not entry.gated:
        keys["gated"] = True
    if is_noncommercial(keys.get("licence")) and not entry.noncommercial:
        keys["noncommercial"] = True
    return keys


def _impossible(manifest: Manifest, found: Mapping[str, _Found]) -> dict[str, ThreeGatesError]:
    """Entries that would stand for one set of weights, though the manifest has them trained apart."""
    commits = {
        entry.name: (
            entry.source.repo,
            found[entry.name].commit if entry.name in found else entry.source.revision,
            entry.source.subfolder,
        )
        for entry in [*manifest.checkpoints, *(one.entry for one in found.values())]
        if isinstance(entry.source, Hub)
    }
    failed: dict[str, ThreeGatesError] = {}
    for name, one in found.items():
        for other, place in commits.items():
            same = other != name and place == commits.get(name) and one.moved
            if same and _trained_apart(one.entry, manifest.entry(other)):
                failed[name] = _same_weights(name, other, one)
    return failed


def _trained_apart(entry: Entry, other: Entry) -> bool:
    facts = [[getattr(one, key) for key in _TRAINING] for one in (entry, other)]
    return entry.base is not None and other.base is not None and facts[0] != facts[1]


def _same_weights(name: str, other: str, found: _Found) -> ManifestError:
    return ManifestError(
        f"'{name}' and '{other}' would be the same weights, and the manifest has them trained apart",
        where=f"{found.card.repo if found.card else name} at {found.commit}",
        expected="another commit for each",
        remedy=f"look at the repository's history, then run `threegates lock {name} --revision COMMIT`, "
        "where COMMIT may be a tag or a branch",
    )


def _invalid(manifest: Manifest, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, ThreeGatesError]:
    """Entries that would break the schema, such as by the name of a file of the repository."""
    failed: dict[str, ThreeGatesError] = {}
    for name, keys in changes.items():
        old = manifest.entry(name).model_dump(by_alias=True)
        new = {**old, **keys, "source": {**old["source"], **keys.get("source", {})}}
        try:
            Entry.model_validate(new)
        except ValidationError as error:
            failed[name] = ManifestError(
                "what the Hub says does not fit into a manifest",
                where=name,
                found=error.errors()[0]["msg"],
                remedy="take another upload of this model",
            )
    return failed


def _summary(
    path: Path,
    found: Mapping[str, _Found],
    changes: Mapping[str, object],
    failed: dict[str, ThreeGatesError],
    changed: bool,
) -> LockSummary:
    good = {name: one for name, one in found.items() if name not in failed}
    return LockSummary(
        path,
        locked={name: one.told() for name, one in good.items() if name in changes},
        kept={name: one.told() for name, one in good.items() if name not in changes},
        remarks={name: one.remarks for name, one in good.items() if one.remarks},
        failed=failed,
        changed=changed,
    )


def _changed(entry: Entry, expected: str, found: str) -> CheckpointError:
    source = entry.source
    kind = "repository" if isinstance(source, Hub) else "folder"
    place = f"{source.repo} at {source.revision}" if isinstance(source, Hub) else source.path
    return CheckpointError(
        f"the {kind} of '{entry.name}' is not what the manifest locked; `threegates lock {entry.name}` "
        "takes what it is now",
        where=place,
        expected=expected,
        found=found,
        remedy=f"find out why it changed before you run `threegates lock {entry.name}`: what was measured "
        "before is then of another model",
    )


def _weights(files: Iterable[str]) -> bool:
    return any(name.endswith(".safetensors") for name in files)


def _indented(error: ThreeGatesError) -> str:
    return str(error).replace("\n", "\n      ")
