"""data_manifest.yaml: where each checkpoint comes from, and from which base it was trained."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from threegates.atomic import write_text
from threegates.checkpoints.hub.addresses import is_ref
from threegates.checkpoints.manifests.members import fault_of, members_of
from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.series import is_series
from threegates.errors import ManifestError

Method = Literal["pretrain", "sft", "rft", "rl", "dpo", "simpo", "mixed"]


def _inside(name: str) -> str:
    if not stays_inside(name):
        raise PydanticCustomError("outside", "must be a relative path that stays inside the folder")
    return name


def _ref(name: str) -> str:
    # Of a series every branch is looked at when it is spelled.
    if not is_series(name) and not is_ref(name):
        raise PydanticCustomError("ref", "must be the name of a branch or a tag")
    return name


def _matching(pattern: str, meaning: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("pattern", "must be {meaning}", {"meaning": meaning})
        return text

    return AfterValidator(check)


RelativePath = Annotated[str, AfterValidator(_inside)]
Name = Annotated[str, _matching(r"[^\s/\\]+", "a name without spaces or slashes")]
Repository = Annotated[str, _matching(r"[\w.-]+/[\w.-]+", "a Hub id, ORG/REPO")]
Revision = Annotated[str, _matching(r"[0-9a-f]{40}", "a full commit, 40 hexadecimal digits")]
Ref = Annotated[str, AfterValidator(_ref)]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "a sha256, 64 hexadecimal digits")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)


class Folder(_Strict):
    """A checkpoint in a folder, given relative to the manifest's own folder."""

    path: RelativePath = Field(validation_alias="folder", serialization_alias="folder")


class Hub(_Strict):
    """A checkpoint in a Hugging Face Hub repository; without a revision it is not locked yet.

    ref : the branch or tag whose newest commit is meant, main without. subfolder : where in the repository it
    lies.
    """

    repo: Repository = Field(validation_alias="hub", serialization_alias="hub")
    ref: Ref | None = None
    subfolder: RelativePath | None = None
    revision: Revision | None = None


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, Folder | Hub):
        return type(value).__name__
    keys = set(value) if isinstance(value, dict) else set()
    if keys & {"folder", "path"}:
        return "Folder"
    return "Hub" if keys & {"hub", "repo"} else None


Source = Annotated[
    Annotated[Folder, Tag("Folder")] | Annotated[Hub, Tag("Hub")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message="must be {folder: PATH} or {hub: ORG/REPO, revision: COMMIT}",
    ),
]


class Entry(_Strict):
    """One checkpoint: where it is, how it was stored, and what it was trained from, how and on what."""

    name: Name
    source: Source
    files: dict[RelativePath, Sha256] = {}
    stored_dtype: str | None = None
    licence: str | None = None
    base: str | None = None
    method: Method
    algorithm: str | None = None
    data: str | None = None
    run: str | None = None
    step: int | None = None
    updates: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    final: bool = True
    chapters: list[str] = []
    labels: dict[str, str] = {}
    checked: bool = False
    gated: bool = False
    noncommercial: bool = False
    note: str | None = None

    def folder(self, manifest: Manifest) -> Path:
        """Folder of a checkpoint whose source is a folder."""
        if not isinstance(self.source, Folder):
            raise ManifestError(
                f"checkpoint '{self.name}' is in a Hub repository, not in a folder",
                where=self.source.repo,
                remedy="open it with open_entry of threegates.checkpoints.hub.snapshots, which downloads it",
            )
        return manifest.folder / self.source.path


@dataclass(frozen=True)
class PairEntry:
    """A tuned checkpoint beside the base it was trained from, named after the tuned one."""

    name: str
    base: Entry
    tuned: Entry


class Manifest(_Strict):
    """Every checkpoint of a study; an entry whose name has braces is a series, and stands for several."""

    version: Literal[1]
    profile: str | None = None
    checkpoints: list[Entry]
    _folder: Path | None = PrivateAttr(default=None)
    _members: dict[str, Entry] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_names(self) -> Manifest:
        seen: dict[str, Entry] = {}
        for index, entry in enumerate(self.checkpoints):
            if entry.name in seen:
                raise _at((index, "name"), f"must be unique; '{entry.name}' is already an entry")
            seen[entry.name] = entry
        for index, entry in enumerate(self.checkpoints):
            if fault := fault_of(entry):
                raise _at((index, fault[0]), fault[1])
            if entry.base is not None and entry.base not in seen:
                raise _at((index, "base"), f"must be the name of an entry; there is no '{entry.base}'")
            if entry.name in _ancestors(entry, seen):
                raise _at((index, "base"), f"must not lead back to '{entry.name}' itself")
        return self

    @property
    def folder(self) -> Path:
        """The folder that folder sources are relative to."""
        if self._folder is None:
            raise ManifestError(
                "this manifest was not read from a file, so its folders are relative to nothing",
                remedy="write it with write_manifest and read it back with read_manifest",
            )
        return self._folder

    @property
    def members(self) -> dict[str, Entry]:
        """What its series stand for, by name; what has an entry of its own is left out."""
        if self._members is None:
            own = {entry.name for entry in self.checkpoints}
            each = (members_of(entry) for entry in self.checkpoints)
            self._members = {name: one for found in each for name, one in found.items() if name not in own}
        return self._members

    def holds(self, name: str) -> bool:
        """Whether there is an entry of that name, by itself or in a series."""
        return any(entry.name == name for entry in self.checkpoints) or name in self.members

    def entry(self, name: str) -> Entry:
        """The entry of that name, by itself or in a series."""
        for entry in self.checkpoints:
            if entry.name == name:
                return entry
        if name in self.members:
            return self.members[name]
        names = [entry.name for entry in self.checkpoints]
        close = difflib.get_close_matches(name, names, n=3)
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise ManifestError(
            f"there is no checkpoint '{name}' in the manifest",
            where=self._folder,
            expected="one of: " + (", ".join(close) or ", ".join(names[:20]) + more),
            found=name,
            remedy="give the name of an entry",
        )

    def pair(self, name: str) -> PairEntry:
        """The entry of that name, by itself or in a series, with its base.

        Raises
        ------
        ManifestError : there is no such entry, or it names no base.
        """
        entry = self.entry(name)
        if entry.base is None:
            raise ManifestError(
                "that entry is no pair: it names no base", where=name, remedy="choose an entry with a base"
            )
        return PairEntry(name, self.entry(entry.base), entry)

    def pairs(self, chapter: str | None = None) -> list[PairEntry]:
        """Each entry that has a base, with that base; of one chapter if it is given. Series are left out."""
        return [
            PairEntry(entry.name, self.entry(entry.base), entry)
            for entry in self.checkpoints
            if entry.base is not None and (chapter is None or chapter in entry.chapters)
            if not is_series(entry.name)
        ]


def _at(place: tuple[int, str], message: str) -> PydanticCustomError:
    # A validator of the whole manifest has no place of its own; the message carries the one it means.
    return PydanticCustomError("entry", "{message}", {"message": message, "at": ("checkpoints", *place)})


def _ancestors(entry: Entry, entries: dict[str, Entry]) -> set[str]:
    found: set[str] = set()
    while entry.base in entries and entry.base not in found:
        found.add(entry.base)
        entry = entries[entry.base]
    return found


def read_manifest(path: str | os.PathLike) -> Manifest:
    """Read and check a manifest; what breaks the schema raises ManifestError with its line."""
    path = Path(path)
    return parse_manifest(path, read_text(path))


def parse_manifest(path: Path, text: str) -> Manifest:
    """Check the text of a manifest that is, or is to be, the file `path`; raises as read_manifest does."""
    manifest = _checked(path, text).model_copy(deep=True)
    manifest._folder = path.resolve().parent
    return manifest


@lru_cache(maxsize=8)
def _checked(path: Path, text: str) -> Manifest:
    # A build reads the same manifest for every page. A long profile's manifest takes half a second to read.
    tree = compose(path, text)
    _refuse_repeated_keys(path, tree)
    try:
        return Manifest.model_validate(construct(path, tree), by_alias=True, by_name=False)
    except ValidationError as error:
        raise _schema_error(path, tree, error) from None


def write_manifest(path: str | os.PathLike, manifest: Manifest) -> None:
    """Write a manifest: the same manifest gives the same bytes, and a reader never sees half of it."""
    path = Path(path)
    content = manifest.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for entry in content["checkpoints"]:
        for mapping in ("files", "labels"):
            if mapping in entry:
                entry[mapping] = dict(sorted(entry[mapping].items()))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    write_text(path, text)


def read_text(path: Path) -> str:
    """The text of a manifest with the line ends that it has; raises ManifestError where there is none."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ManifestError(
            "there is no manifest that can be read",
            where=path,
            found=error.strerror,
            remedy="give the path of a manifest; `threegates train` writes the lab's",
        ) from None
    except UnicodeDecodeError as error:
        raise _not_yaml(path, error) from None


def compose(path: Path, text: str) -> yaml.Node:
    """The nodes of a manifest's text, each with its place in it; raises ManifestError where it is no YAML."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from None
    if tree is None:
        raise ManifestError("the manifest is empty", where=path, expected="version: 1 and checkpoints: [...]")
    return tree


def _not_yaml(path: Path, error: Exception) -> ManifestError:
    mark = getattr(error, "problem_mark", None)
    return ManifestError(
        "the manifest is not plain YAML",
        where=f"{path}, line {mark.line + 1}" if mark else path,
        found=getattr(error, "problem", None) or error,
        remedy="correct the file at that line",
    )


def construct(path: Path, tree: yaml.Node) -> Any:
    """What a manifest's nodes mean: plain mappings, lists and values."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(tree)
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from None
    finally:
        loader.dispose()


def _mappings(tree: yaml.Node) -> Iterator[yaml.MappingNode]:
    # Each node once: an alias may lead back to a node above it, and such a tree has no end.
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
        if isinstance(node, yaml.CollectionNode):
            waiting += [value[1] if isinstance(value, tuple) else value for value in node.value]


def _refuse_repeated_keys(path: Path, tree: yaml.Node) -> None:
    # YAML keeps the last of two equal keys without a word, and the first one's meaning is lost.
    for mapping in _mappings(tree):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ManifestError(
                    "a key of the manifest is no text",
                    where=f"{path}, line {line}",
                    expected="key: value",
                    remedy="correct that line",
                )
            if key.value in seen:
                raise ManifestError(
                    f"the key '{key.value}' is given twice",
                    where=f"{path}, line {line}",
                    expected="each key once",
                    found=f"also on line {seen[key.value]}",
                    remedy="remove one of the two",
                )
            seen[key.value] = line


def _schema_error(path: Path, tree: yaml.Node, error: ValidationError) -> ManifestError:
    # A misspelt key is also a missing one; the misspelling is what to correct.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = tuple(first.get("ctx", {}).get("at", first["loc"]))
    line, steps = _locate(tree, place)
    others = [_locate(tree, tuple(p.get("ctx", {}).get("at", p["loc"])))[0] for p in problems[1:]]
    more = f"; {len(others)} more on line {', '.join(map(str, others[:10]))}" if others else ""
    expected, found, remedy = _explain(first, place)
    return ManifestError(
        "the manifest breaks its schema" + more,
        where=f"{path}, line {line}, {steps or 'top level'}",
        expected=expected,
        found=found,
        remedy=remedy,
    )


def _locate(tree: yaml.Node, place: tuple[int | str, ...]) -> tuple[int, str]:
    """Line of the deepest node that a pydantic location reaches, and the location as one reads it."""
    node, line, steps = tree, tree.start_mark.line + 1, ""
    for index, part in enumerate(place):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line, steps = node.start_mark.line + 1, f"{steps}[{part}]"
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((key, value) for key, value in pairs if key.value == str(part)), None)
        if match is not None:
            line, node = match[0].start_mark.line + 1, match[1]
        # A part that is no key is a missing key where it is last, else pydantic's name of a union's member.
        if match is not None or (index == len(place) - 1 and part not in ("Folder", "Hub", "[key]")):
            steps = f"{steps}.{part}" if steps else str(part)
    return line, steps


def _explain(problem: Any, place: tuple[int | str, ...]) -> tuple[str, str, str]:
    kind, key = problem["type"], place[-1] if place else ""
    if kind == "extra_forbidden":
        allowed = _allowed_keys(place)
        close = difflib.get_close_matches(str(key), allowed, n=1)
        remedy = f"did you mean '{close[0]}'?" if close else "remove the key"
        return "one of the keys " + ", ".join(allowed), f"the unknown key '{key}'", remedy
    if kind == "missing":
        return f"the key '{key}'", "no such key", f"add '{key}'"
    if kind == "string_type":
        return "a text", repr(problem["input"]), "put it in quotes"
    message = problem["msg"].removeprefix("Input should be ")
    return message, repr(problem["input"])[:200] if kind != "entry" else "see above", "correct that key"


def _allowed_keys(place: tuple[int | str, ...]) -> list[str]:
    sources: dict[str, type[BaseModel]] = {"Folder": Folder, "Hub": Hub}
    model = sources.get(str(place[3]), Entry) if len(place) > 3 else Entry if len(place) > 2 else Manifest
    return [str(field.validation_alias or name) for name, field in model.model_fields.items()]
