"""Changes to a manifest that people write: whatever is not changed keeps its bytes, comments and order."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from threegates.atomic import atomic_path
from threegates.checkpoints.manifests.manifest import (
    Entry,
    Hub,
    Manifest,
    compose,
    construct,
    parse_manifest,
    read_text,
)
from threegates.errors import ManifestError

#: Where a new key goes: behind the last one that comes before it in the schema.
_ORDER = {
    "entry": [str(field.validation_alias or name) for name, field in Entry.model_fields.items()],
    "source": [str(field.validation_alias or name) for name, field in Hub.model_fields.items()],
}
# Some readers of YAML take these for numbers, though the one used here does not.
_LIKE_A_NUMBER = re.compile(r"[\d._]+(e[\d_]*)?", re.IGNORECASE)
_WIDE = 1 << 30

Changes = Mapping[str, Mapping[str, Any]]
#: Start and end of what goes, and what comes in its place.
_Edit = tuple[int, int, str]


def edit_manifest(
    path: str | os.PathLike,
    changes: Changes,
    added: Sequence[Mapping[str, Any]] = (),
    *,
    before: Manifest | None = None,
) -> bool:
    """Change entries of a manifest and append new ones, all or nothing; says whether the file has changed.

    Only the bytes of what changes are touched. The file is replaced in one step, and only when the new text
    means the old one with these changes, and is a valid manifest.

    Parameters
    ----------
    path : the manifest.
    changes : by name of an entry, its keys with their new values. `source` is merged into the one that is
        there, every other value takes the old one's place.
    added : entries to append, as mappings.
    before : the manifest that `changes` were worked out from; an entry that has changed since is refused.

    Raises
    ------
    ManifestError : there is no such entry, it has changed meanwhile, the result would break the schema, or
        the file's layout (anchors, aliases) leaves no place for the change. Nothing is written then.
    """
    path = Path(path)
    with _alone(path):
        text = read_text(path)
        manifest = parse_manifest(path, text)
        for name in changes:
            if manifest.entry(name) != (before or manifest).entry(name):
                raise _changed_meanwhile(path, name)
        new = edited_text(path, text, changes, added)
        if new == text:
            return False
        with atomic_path(path.resolve()) as temporary:
            temporary.write_bytes(new.encode("utf-8"))
            os.chmod(temporary, path.stat().st_mode & 0o777)
        return True


def edited_text(path: Path, text: str, changes: Changes, added: Sequence[Mapping[str, Any]] = ()) -> str:
    """The manifest's text with the changes; see edit_manifest, which writes it.

    Raises
    ------
    ManifestError : the new text would break the schema, or would not mean what it should.
    """
    tree = compose(path, text)
    newline = "\r\n" if "\r\n" in text else "\n"
    checkpoints = _value(tree, "checkpoints")
    edits: list[_Edit] = []
    for entry in checkpoints.value:
        wanted = changes.get(_value(entry, "name").value)
        if wanted:
            edits += _entry_edits(text, newline, entry, wanted)
    edits += _appended(text, newline, checkpoints, added)
    new = _applied(text, edits)
    _check(path, text, new, changes, added)
    return new


def _entry_edits(text: str, newline: str, entry: yaml.Node, wanted: Mapping[str, Any]) -> Iterator[_Edit]:
    for key in sorted(wanted, key=_ORDER["entry"].index):
        if key == "source":
            source = _value(entry, "source")
            for inner in sorted(wanted[key], key=_ORDER["source"].index):
                yield from _set(text, newline, source, inner, wanted[key][inner], _ORDER["source"])
        else:
            yield from _set(text, newline, entry, key, wanted[key], _ORDER["entry"])


def _set(
    text: str, newline: str, mapping: yaml.Node, key: str, value: Any, order: Sequence[str]
) -> Iterator[_Edit]:
    """Edits that give a key of a mapping its value, whether the key is there or not."""
    old = next((node for name, node in mapping.value if name.value == key), None)
    column = mapping.value[0][0].start_mark.column
    if old is None:
        earlier = order[: order.index(key)]
        behind = [node for name, node in mapping.value if name.value in earlier] or [mapping.value[-1][1]]
        end = max(_end(text, node) for node in behind)
        if mapping.flow_style:
            yield end, end, f", {key}: {_flow(value)}"
        else:
            line = _line_end(text, end)
            yield line, line, newline + _line(newline, column, key, value)
    elif not isinstance(value, Mapping):
        if construct(Path(), old) != value:
            end = _end(text, old)
            start = old.start_mark.index
            yield start, end, (" " if text[start - 1 : start] == ":" else "") + _flow(value)
    else:
        yield from _set_mapping(text, newline, old, value, None if mapping.flow_style else column)


def _set_mapping(
    text: str, newline: str, old: yaml.Node, value: Mapping[str, Any], column: int | None
) -> Iterator[_Edit]:
    """Edits that turn one mapping into another, value by value where the keys are the same."""
    start, end = old.start_mark.index, _end(text, old)
    there = {name.value: node for name, node in old.value} if isinstance(old, yaml.MappingNode) else {}
    if set(there) == set(value) and value:
        for key in there:
            yield from _set(text, newline, old, key, value[key], [])
    elif column is None or not value:
        yield start, end, _flow(value)
    elif old.flow_style:
        # The colon's space goes too, so that no line ends in one.
        start = len(text[:start].rstrip(" "))
        yield start, end, "".join(newline + _line(newline, column + 2, *item) for item in value.items())
    else:
        column = old.start_mark.column
        lines = [_line(newline, column, *item) for item in value.items()]
        yield start, end, newline.join(lines).lstrip(" ")


def _appended(
    text: str, newline: str, checkpoints: yaml.Node, added: Sequence[Mapping[str, Any]]
) -> Iterator[_Edit]:
    """Edits that append entries to the list, in the list's own style."""
    if not added:
        return
    end = _end(text, checkpoints)
    if checkpoints.flow_style and checkpoints.value:
        last = _end(text, checkpoints.value[-1])
        yield last, last, "".join(", " + _flow(entry) for entry in added)
    elif checkpoints.flow_style:
        start = len(text[: checkpoints.start_mark.index].rstrip(" "))
        yield start, end, "".join(newline + _item(newline, 2, entry) for entry in added)
    else:
        column, line = checkpoints.start_mark.column, _line_end(text, end)
        yield line, line, "".join(newline + _item(newline, column, entry) for entry in added)


def _item(newline: str, column: int, entry: Mapping[str, Any]) -> str:
    lines = [" " * (column + 2) + f"{key}: {_flow(value)}" for key, value in entry.items()]
    return newline.join([" " * column + "- " + lines[0].lstrip(" "), *lines[1:]])


def _line(newline: str, column: int, key: str, value: Any) -> str:
    """A key and its value in block style, without the last line end."""
    if isinstance(value, Mapping) and value:
        inner = [_line(newline, column + 2, *item) for item in value.items()]
        return newline.join([" " * column + f"{_flow(key)}:", *inner])
    return " " * column + f"{_flow(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """A value on one line, quoted where it needs to be, inside brackets too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    quoted = isinstance(value, str) and (_LIKE_A_NUMBER.fullmatch(value) or not value.isprintable())
    options = {"default_style": '"'} if quoted else {"allow_unicode": True}
    line = yaml.safe_dump([value], default_flow_style=True, width=_WIDE, **options)
    return line.strip()[1:-1]


def _value(mapping: yaml.Node, key: str) -> Any:
    for name, node in mapping.value:
        if name.value == key:
            return node
    raise _no_place(f"line {mapping.start_mark.line + 1}")


def _end(text: str, node: yaml.Node) -> int:
    """Where a node's own text ends: a block's marks reach to the next key, over the comments between."""
    if isinstance(node, yaml.ScalarNode):
        block = node.style is not None and node.style in "|>"
        return len(text[: node.end_mark.index].rstrip()) if block else node.end_mark.index
    if node.flow_style:
        return node.end_mark.index
    last = node.value[-1]
    return _end(text, last[1] if isinstance(last, tuple) else last)


def _line_end(text: str, place: int) -> int:
    found = re.compile(r"\r?\n|\Z").search(text, place)
    return found.start() if found else len(text)


def _applied(text: str, edits: Sequence[_Edit]) -> str:
    parts, done = [], 0
    # Edits at one place stay in the order in which they were worked out.
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        parts += [text[done:start], new]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def _check(path: Path, text: str, new: str, changes: Changes, added: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a text that means something else than the old one with the changes."""
    expected = construct(path, compose(path, text))
    for entry in expected["checkpoints"]:
        for key, value in changes.get(entry["name"], {}).items():
            entry[key] = {**entry[key], **value} if key == "source" else _plain(value)
    expected["checkpoints"] = [*expected["checkpoints"], *map(_plain, added)]
    try:
        found = construct(path, compose(path, new))
    except ManifestError:
        found = None
    if found != expected:
        raise _no_place(path)
    parse_manifest(path, new)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One editor of a folder's manifests at a time, so that none undoes what another wrote meanwhile."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        # There is no such folder, which reading the manifest says better.
        yield
        return
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _no_place(where: object) -> ManifestError:
    return ManifestError(
        "the manifest's layout leaves no place for this change",
        where=where,
        expected="plain YAML without anchors and aliases",
        remedy="write the entry out in full, then run again; nothing was written",
    )


def _changed_meanwhile(path: Path, name: str) -> ManifestError:
    return ManifestError(
        f"the entry '{name}' was changed by someone else meanwhile",
        where=path,
        remedy="run the same command again; nothing was written",
    )
