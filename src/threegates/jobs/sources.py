"""Which checkpoints a name or a chapter stands for: folders, manifest entries, Hub repositories, pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from threegates.checkpoints.adapters.adapted import adapted
from threegates.checkpoints.adapters.config import FILES as ADAPTER_FILES
from threegates.checkpoints.adapters.config import is_adapter, read_config
from threegates.checkpoints.adapters.deltas import adapter_digest
from threegates.checkpoints.dequantised import dequantised
from threegates.checkpoints.gguf import is_gguf, open_local
from threegates.checkpoints.hub.addresses import Address, parse_address
from threegates.checkpoints.hub.snapshots import (
    address_of,
    fetch_adapter,
    open_entry,
    open_named,
    verify_files,
)
from threegates.checkpoints.manifests.licences import accepted_licences, check_allowed, check_repository
from threegates.checkpoints.manifests.locking import check_usable
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest, PairEntry, read_manifest
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.quantised import dequantises
from threegates.checkpoints.series import Member, is_series, spelled
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import Layer, canonical, chosen, on_device
from threegates.errors import CheckpointError, ManifestError, PairError, ThreeGatesError
from threegates.jobs.series import is_folder, local_members, remote_members, settled
from threegates.jobs.settings import DOWNLOAD, HEADERS, adapter_start, device, reads
from threegates.jobs.subjects import LAB, SUBJECTS, subject_of
from threegates.records.places import Places, labelled_folders
from threegates.records.provenance import project_root, tracked_manifest

#: Profile of manifests whose checkpoints have to be locked before they are measured.
PAPER = "paper"


@dataclass(frozen=True)
class Source:
    """An opened checkpoint, the label it goes by, and the manifest's entry if it has one.

    asked : of a repository that was named, how it was named. run, step : of a member of a series, what of its
    name stands before the number, and that number.
    """

    label: str
    checkpoint: Checkpoint
    entry: Entry | None = None
    asked: str = ""
    run: str = ""
    step: int | None = None

    @property
    def run_folder(self) -> Path | None:
        """Folder of a lab run, which holds the log beside the checkpoints."""
        lab = self.entry is not None and isinstance(self.entry.source, Folder)
        return self.checkpoint.folder.parent if lab else None


@dataclass(frozen=True)
class StudyPair:
    """A tuned checkpoint and its base; `final` says that it is not one of a run's earlier steps."""

    name: str
    base: Source
    tuned: Source
    final: bool = True

    def facts(self) -> dict:
        """What the manifest knows of the tuned checkpoint's training, and its labels."""
        entry = self.tuned.entry
        if entry is None:
            return {
                "pair": self.name,
                "base": self.base.label,
                "run": self.tuned.run or self.name,
                "method": "unknown",
                "final": self.final,
                **({} if self.tuned.step is None else {"step": self.tuned.step}),
            }
        known = entry.model_dump(
            include={"method", "data", "step", "updates", "learning_rate", "seed", "final"}
        )
        named = {"algorithm": entry.algorithm or entry.method, "run": entry.run or entry.name}
        return {"pair": self.name, "base": self.base.label, **known, **named, **entry.labels}


def lab_manifest(path: Path | None = None, places: Places | None = None) -> Manifest:
    """The given manifest, or the one that these places have for chapters, or the one the lab wrote last.

    places : those of the environment by default, here and below.
    """
    places = places or Places.here()
    return read_manifest(path or places.manifest or places.lab)


def known_manifests(places: Places | None = None) -> list[Manifest]:
    """The lab's manifest and the tracked one, those that exist; outside the project there are none."""
    try:
        project_root()
    except ThreeGatesError:
        return []
    paths = ((places or Places.here()).lab, tracked_manifest())
    return [read_manifest(path) for path in paths if path.is_file()]


def manifest_of(names: Sequence[str], path: Path | None = None, places: Places | None = None) -> Manifest:
    """The manifest with entries of these names: the given or chosen one, else the lab's or the tracked one.

    Raises
    ------
    ManifestError : none has them all.
    """
    places = places or Places.here()
    if path or places.manifest:
        return lab_manifest(path, places)
    known = known_manifests(places)
    for manifest in known:
        if all(map(manifest.holds, names)):
            return manifest
    missing = [name for name in names if not any(manifest.holds(name) for manifest in known)]
    if not known:
        return lab_manifest(places=places)
    if missing:
        raise _nothing(missing[0], known)
    raise ManifestError(
        "pairs of two manifests cannot be shown at once",
        where=", ".join(names),
        remedy="choose pairs of the lab, or pairs of data_manifest.yaml",
    )


def open_source(
    name: str,
    known: Iterable[Manifest],
    way: str | None = None,
    folders: Mapping[str, str] | None = None,
) -> Source:
    """Open what a name stands for: a folder or GGUF file, a manifest's entry, ORG/REPO@REVISION:SUBFOLDER.

    way : how weights of the Hub are read, as `threegates.jobs.settings` has it by default.
    folders : by the labels that they may be called by.

    Raises
    ------
    CheckpointError, ManifestError : it stands for nothing, or what it stands for cannot be opened.
    """
    folder = (folders or {}).get(name, name)
    if _is_here(folder):
        return Source(Path(name).resolve().name, seen(open_local(folder)))
    known = list(known)
    for manifest in known:
        if manifest.holds(name):
            entry = manifest.entry(name)
            return Source(name, _of_entry(manifest, entry, way), entry)
    if "/" in name or not known:
        try:
            return Source(_safe(name), _of_hub(name, known, way), asked=name)
        except CheckpointError as error:
            raise _perhaps_a_folder(name, error) from None
    raise _nothing(name, known)


def folder_digest(folder: str) -> str:
    """Digest of the checkpoint or the adapter in a folder, or of a GGUF file."""
    path = Path(folder)
    return adapter_digest(path) if is_adapter(path) else open_local(folder).digest()


def seen(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint as it is measured: codes as floats if asked, canonical names, on the chosen device."""
    floats = dequantised(checkpoint) if dequantises() else checkpoint
    return on_device(canonical(floats), device())


def narrowed(
    pairs: Sequence[StudyPair], layers: Sequence[Layer] | None, matrices: Sequence[str] | None
) -> list[StudyPair]:
    """The same pairs with only those blocks and roles of tensors; None takes all.

    Raises
    ------
    CheckpointError : there is no such block or role, or nothing is left.
    """
    if not layers and not matrices:
        return list(pairs)

    def only(source: Source) -> Source:
        # An empty list is a notebook's way to say all.
        return replace(source, checkpoint=chosen(source.checkpoint, layers or None, matrices or None))

    return [replace(pair, base=only(pair.base), tuned=only(pair.tuned)) for pair in pairs]


def _of_entry(manifest: Manifest, entry: Entry, way: str | None = None) -> Checkpoint:
    if isinstance(entry.source, Folder):
        return seen(open_entry(manifest, entry))
    _check(manifest, entry, way)
    return _by(way, partial(open_entry, manifest, entry))


def _check(manifest: Manifest, entry: Entry, way: str | None) -> None:
    """Refuse an entry that may not be read from the Hub. Headers alone may be read of an unlocked entry."""
    if isinstance(entry.source, Folder):
        return
    check = check_usable if manifest.profile == PAPER and way != HEADERS else check_allowed
    check(entry, accepted=accepted_licences())


def _check_all(manifest: Manifest, entries: Iterable[Entry], way: str | None) -> None:
    """Refuse all that may not be read at once, before anything is opened."""
    refused: list[CheckpointError] = []
    for entry in entries:
        try:
            _check(manifest, entry, way)
        except CheckpointError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        told = "; ".join(error.what for error in refused)
        raise CheckpointError(
            f"{len(refused)} checkpoints may not be read as they are: {told}",
            remedy="do what each asks for (`threegates lock` without a name locks all of them), or choose "
            "others: `threegates run CHAPTER --pair NAME`, which may be repeated",
        )


def _safe(name: str) -> str:
    """A repository's name, revision and folder as one name that a file may have."""
    return re.sub(r"[^\w.+-]", "-", name.replace("/", "--"))


def _of_hub(text: str, known: Iterable[Manifest], way: str | None = None) -> Checkpoint:
    """A checkpoint of the Hub at the commit that its branch or tag stands for now."""
    check_repository(parse_address(text).repo, known, accepted=accepted_licences())
    try:
        (address,) = settled([text]).values()
    except CheckpointError:
        if way != HEADERS:
            raise
        # Who only looks is shown what was fetched before, where there is no network to ask.
        with suppress(CheckpointError):
            return seen(open_named(text, offline=True))
        raise
    return _by(way, partial(open_named, address))


def _by(way: str | None, opening: Callable[..., Checkpoint]) -> Checkpoint:
    """A checkpoint of the Hub, downloaded or read by ranges as `way` or the settings say."""
    way = way or reads()
    if way == HEADERS:
        with suppress(CheckpointError):
            return seen(opening(offline=True))
    return seen(opening(ranged=way != DOWNLOAD))


def folder_labels(names: Iterable[str]) -> dict[str, str]:
    """Path of each name of a folder or a series of folders, by a label: its last parts, as many as it takes.

    Labels are short, and still keep the folders apart.
    """
    return _labels(Path(name).resolve() for name in names if is_local(name))


def _labels(paths: Iterable[Path]) -> dict[str, str]:
    """Absolute paths by as many of their last parts as keep them apart."""
    apart, depth = set(paths), 1
    while len({_tail(path, depth) for path in apart}) < len(apart):
        depth += 1
    return {_tail(path, depth): str(path) for path in sorted(apart)}


def is_local(name: str) -> bool:
    """Whether a name stands for a folder or GGUF file of this machine, or for a series of folders."""
    return _is_here(name) or bool(local_members(name))


def _is_here(name: str) -> bool:
    return is_folder(name) or is_gguf(name)


def chapter_pairs(
    chapter: str, manifest: Manifest, subject: str = LAB, every_step: bool = False
) -> list[StudyPair]:
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
    return _open_pairs(manifest, [pair for pair in pairs if pair.tuned.final or every_step])


def named_pairs(names: Sequence[str], manifest: Manifest, way: str | None = None) -> list[StudyPair]:
    """Pairs by the names of their tuned entries; `way` as in `open_source`.

    Raises
    ------
    ManifestError : there is no such entry, or it names no base.
    """
    return _open_pairs(manifest, [manifest.pair(name) for name in dict.fromkeys(names)], way)


def own_pairs(
    base: str | None, tuned: str | None, way: str | None = None, places: Places | None = None
) -> list[StudyPair]:
    """Pairs of one base and each checkpoint of a series, in the order of its steps; one of what is no series.

    All members are found, and tied to commits, before any is opened. way, places : as for `own_pair`.

    Raises
    ------
    PairError : one side is not given. CheckpointError, ManifestError : a side stands for nothing that can be
        opened, the base for several, or members of the series are not there.
    """
    folders = labelled_folders() if places is None else places.sources
    named = folders.get(tuned or "", tuned or "")
    if base and is_series(base) and not is_folder(folders.get(base, base)):
        raise PairError(
            "a base is one checkpoint", where="base", found=base, remedy="give one; a series is for --tuned"
        )
    if not base or not is_series(named) or is_folder(named):
        return [own_pair(base, tuned, way, places)]
    found = local_members(named) or remote_members(named)
    _check_licences(found, places)
    at = settled([one.text for one in found if not is_folder(one.text)])
    left = open_source(base, _read_when_asked(places), way, folders)
    labels = {path: label for label, path in folder_labels([one.text for one in found]).items()}
    runs = {path: label for label, path in _labels(Path(one.run).absolute() for one in found).items()}
    ends = {one.run: one.step for one in found}

    def pair(one: Member) -> StudyPair:
        final = one.step == ends[one.run]
        if is_adapter(Path(one.text)):
            return _adapter_of_series(left, one, labels | runs, final)
        right = _member(one, at.get(one.text), labels | runs, way, places)
        return _matched(StudyPair(right.label, left, right, final=final))

    return [pair(one) for one in found]


def _adapter_of_series(left: Source, one: Member, labels: Mapping[str, str], final: bool) -> StudyPair:
    """A base with one adapter of a run on it, labelled as any member."""
    found = _with_adapter(left, _Adapter(Path(one.text).resolve(), one.text))
    label, run = labels[str(Path(one.text).resolve())], labels[str(Path(one.run).absolute())]
    tuned = replace(found.tuned, label=label, run=run, step=one.step)
    return replace(found, name=label, tuned=tuned, final=final)


def settle(names: Iterable[str]) -> None:
    """Tie what is named of the Hub, series too, to the commits of this moment, for all that is started later.

    Raises
    ------
    CheckpointError, LicenceError : as `own_pairs`.
    """
    for name in names:
        if "/" not in name or is_local(name):
            continue
        try:
            found = remote_members(name) if is_series(name) else [Member(name, "", None)]
            _check_licences(found, None)
            settled([one.text for one in found], keep=True)
        except CheckpointError as error:
            raise _perhaps_a_folder(name, error) from None


def each_named(names: Iterable[str]) -> list[str]:
    """Checkpoints that are named, series one by one, tied to their commits; errors as of `settle`."""
    found = [one for name in names for one in _each(name)]
    settle(found)
    return found


def _each(name: str) -> list[str]:
    if not is_series(name) or is_folder(name):
        return [name]
    return [one.text for one in local_members(name) or remote_members(name)]


def _check_licences(found: Sequence[Member], places: Places | None) -> None:
    known = list(_read_when_asked(places)) if any("/" in one.text for one in found) else []
    repos = {parse_address(one.text).repo for one in found if "/" in one.text and not is_folder(one.text)}
    for repo in sorted(repos):
        check_repository(repo, known, accepted=accepted_licences())


def _member(
    one: Member, at: Address | None, labels: Mapping[str, str], way: str | None, places: Places | None
) -> Source:
    """A checkpoint of a series, opened at its commit, labelled as it was asked for."""
    if at is not None:
        found = _by(way, partial(open_named, at))
        return Source(_safe(one.text), found, asked=one.text, run=_safe(one.run), step=one.step)
    source = open_source(one.text, _read_when_asked(places), way, {})
    if source.entry is not None:
        return source
    label, run = labels[str(Path(one.text).resolve())], labels[str(Path(one.run).absolute())]
    return replace(source, label=label, run=run, step=one.step)


def own_pair(
    base: str | None, tuned: str | None, way: str | None = None, places: Places | None = None
) -> StudyPair:
    """A pair of two checkpoints that the user names, or whose labels these places know.

    An adapter as the tuned side is put on the base; without a base, on the one that its config names.

    way : as in `open_source`.

    Raises
    ------
    PairError : one side is not given.
    CheckpointError, ManifestError : a side stands for nothing that can be opened.
    """
    folders = labelled_folders() if places is None else places.sources
    found = _adapter_of(tuned, folders)
    if found is None and tuned and not base:
        found = _adapter_on_hub(tuned, places)
    if found is not None:
        named = _named_base(base or read_config(found.folder).base, found.folder)
        return _with_adapter(open_source(named, _read_when_asked(places), way, folders), found)
    if not (base and tuned):
        sides = f"base {base!r}, tuned {tuned!r}"
        raise PairError("a pair of one's own needs both sides", found=sides, remedy="give base and tuned")
    left = open_source(base, _read_when_asked(places), way, folders)
    try:
        right = open_source(tuned, _read_when_asked(places), way, folders)
    except CheckpointError:
        found = _adapter_on_hub(tuned, places)
        if found is None:
            raise
        return _with_adapter(left, found)
    if adapter_start() is not None:
        raise PairError(
            "the tuned side is no adapter, so that it has no start",
            where=tuned,
            expected="a folder with adapter_config.json and no model's weights",
            remedy="leave --adapter-start out",
        )
    return _matched(StudyPair(right.label, left, right))


@dataclass(frozen=True)
class _Adapter:
    """An adapter's folder and label; of one of the Hub its commit and what was asked for, and its entry."""

    folder: Path
    label: str
    revision: str | None = None
    asked: str = ""
    entry: Entry | None = None


def _adapter_of(name: str | None, folders: Mapping[str, str]) -> _Adapter | None:
    """The adapter in a folder of this machine."""
    path = Path(folders.get(name or "", name or ""))
    return _Adapter(path.resolve(), path.resolve().name) if name and is_adapter(path) else None


def _adapter_on_hub(name: str, places: Places | None) -> _Adapter | None:
    """The adapter that a name of the Hub stands for; what has no weights of a model may be one."""
    if "/" not in name or is_local(name):
        return None
    with suppress(CheckpointError):
        check_repository(parse_address(name).repo, _read_when_asked(places), accepted=accepted_licences())
        if snapshot := fetch_adapter(parse_address(name)):
            return _Adapter(snapshot.folder, _safe(name), snapshot.revision, name)
    return None


def base_of_adapter(tuned: str | None) -> str | None:
    """What the config of an adapter in a folder names as its base; None of anything else."""
    folder = Path(tuned or "")
    return read_config(folder).base or None if tuned and is_adapter(folder) else None


def _named_base(base: str, adapter: Path) -> str:
    if base:
        return base
    raise PairError(
        "the adapter does not say what it was trained on",
        where=adapter,
        expected="base_model_name_or_path in its config",
        remedy="give the base as well",
    )


def _with_adapter(source: Source, found: _Adapter) -> StudyPair:
    """A base, and the base with an adapter on it."""
    base, tuned = adapted(source.checkpoint, found.folder, adapter_start(), found.revision)
    right = Source(found.label, tuned, found.entry, asked=found.asked)
    return StudyPair(found.label, replace(source, checkpoint=base), right)


def _matched(pair: StudyPair) -> StudyPair:
    """A pair under names that its sides have in common; the same object where they have all already."""
    sides = (pair.base.checkpoint, pair.tuned.checkpoint)
    base, tuned = brought_together(*sides)
    if base is sides[0] and tuned is sides[1]:
        return pair
    return replace(
        pair, base=replace(pair.base, checkpoint=base), tuned=replace(pair.tuned, checkpoint=tuned)
    )


def _read_when_asked(places: Places | None) -> Iterator[Manifest]:
    """The manifests that are known here. Who names two folders needs none, and a broken one is no matter."""
    yield from known_manifests(places)


def asked_pairs(
    pair: str | None, base: str | None, tuned: str | None, way: str | None = None
) -> list[StudyPair]:
    """A pair by the name of its tuned entry in a manifest that is known here, or by its two checkpoints.

    Several, where the entry's or the tuned checkpoint's name is a series. way : as in `open_source`.

    Raises
    ------
    ManifestError, CheckpointError : a name stands for nothing that can be opened. PairError : both ways, or
        half a pair.
    """
    if not pair:
        return own_pairs(base, tuned, way)
    if base or tuned:
        raise PairError("give either --pair, or --base and --tuned", found="both")
    names = spelled([pair])
    return named_pairs(names, manifest_of(names), way)


def _open_pairs(manifest: Manifest, pairs: Sequence[PairEntry], way: str | None = None) -> list[StudyPair]:
    sides = {entry.name: entry for pair in pairs for entry in (pair.base, pair.tuned)}
    _check_all(manifest, sides.values(), way)
    opened: dict[str, Source | _Adapter] = {}
    _tie(sides.values(), way)
    bases = {pair.base.name for pair in pairs}
    for name, entry in sides.items():
        opened[name] = _side_of(manifest, entry, way, adapts=name not in bases)
    return [_opened_pair(pair.name, opened[pair.base.name], opened[pair.tuned.name]) for pair in pairs]


def _side_of(manifest: Manifest, entry: Entry, way: str | None, *, adapts: bool) -> Source | _Adapter:
    """An entry's checkpoint, or the adapter that lies in its place."""
    try:
        return Source(entry.name, _of_entry(manifest, entry, way), entry)
    except CheckpointError:
        found = _adapter_of_entry(manifest, entry) if adapts else None
        if found is None:
            raise
        return found


def _adapter_of_entry(manifest: Manifest, entry: Entry) -> _Adapter | None:
    if isinstance(entry.source, Folder):
        folder = entry.folder(manifest)
        return _Adapter(folder, entry.name, entry=entry) if is_adapter(folder) else None
    try:
        snapshot = fetch_adapter(address_of(entry.source))
    except CheckpointError:
        # What kept the checkpoint from being opened says more.
        return None
    if snapshot is None:
        return None
    listed = {name: entry.files[name] for name in ADAPTER_FILES if name in entry.files}
    verify_files(snapshot.folder, listed)
    return _Adapter(snapshot.folder, entry.name, snapshot.revision, entry=entry)


def _opened_pair(name: str, left: Source | _Adapter, right: Source | _Adapter) -> StudyPair:
    assert isinstance(left, Source)
    if isinstance(right, _Adapter):
        return replace(_with_adapter(left, right), name=name)
    return _matched(StudyPair(name, left, right))


def _tie(entries: Iterable[Entry], way: str | None) -> None:
    """Pin what no commit is written of to the commits of this moment, before any of it is opened."""
    sources = [one.source for one in entries if isinstance(one.source, Hub) and not one.source.revision]
    try:
        settled(list(dict.fromkeys(str(address_of(source)) for source in sources)), keep=True)
    except CheckpointError:
        # Who only looks is shown what was fetched before, where there is no network to ask.
        if way != HEADERS:
            raise


def settle_pairs(names: Sequence[str], manifest: Manifest) -> None:
    """The same as `settle` for pairs of a manifest, of those sides that no commit is written of."""
    pairs = [manifest.pair(name) for name in names if manifest.entry(name).base]
    sides = [side for pair in pairs for side in (pair.base, pair.tuned)]
    _check_all(manifest, sides, None)
    _tie(sides, None)


def _tail(path: Path, depth: int) -> str:
    return "-".join(path.parts[-depth:])


def _perhaps_a_folder(name: str, error: CheckpointError) -> CheckpointError:
    """The error of a repository that is not to be had, where a folder may have been meant by its name."""
    beside = Path(name).parent
    if not beside.is_dir():
        return error
    here = sorted(path.name for path in beside.iterdir() if path.is_dir())
    kept = {"where": error.where, "expected": error.expected, "found": error.found}
    return type(error)(
        f"there is no folder {name}, and of a repository of that name: {error.what}",
        **kept,
        remedy=f"if a folder was meant: {beside} has {', '.join(here[:10]) or 'none'}; else {error.remedy}",
    )


def _nothing(name: str, known: Iterable[Manifest], limit: int = 20) -> ManifestError:
    names = [entry.name for manifest in known for entry in manifest.checkpoints]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ManifestError(
        "there is neither a folder nor a manifest's entry of that name",
        where=name,
        expected="a folder, ORG/REPO[@REVISION][:SUBFOLDER] on the Hub, or one of: "
        f"{', '.join(names[:limit])}{more}",
        remedy="check the spelling; `threegates train` makes the lab's checkpoints",
    )
