"""A checkpoint under the names of the one it is compared with: prefixes replaced, stacked experts cut.

What is done is a list of rules, plain values that a place carries to the process that opens it anew.
`threegates.checkpoints.matching` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from threegates.checkpoints.formats.families import cut_rows, expression, filled
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import (
    CanonicalView,
    DeviceView,
    View,
    as_stored,
    canonical,
    on_device,
    outermost,
)
from threegates.errors import CheckpointError

#: ("prefix", old, new, first segments after it …), none for all;
#: ("cut", pattern, pattern of a part, its rows, …) with `*` for each number and `#` for the expert's;
#: ("turn", …) as "cut" of a stack that holds its matrices transposed, so that parts are columns of it; or
#: ("rename", pattern, pattern) for a whole tensor; ("family", its name, model_type), which comes first;
#: ("rows", name, how many) for the first rows of a tensor that has more.
Rule = tuple[str | int, ...]
PREFIX, CUT, TURN, RENAME, FAMILY, ROWS = "prefix", "cut", "turn", "rename", "family", "rows"


@dataclass(frozen=True)
class MatchedView(CanonicalView):
    """A checkpoint under another one's names, and the rules that these came by; `inner` is as stored.

    turned : columns of a tensor that is read transposed.
    """

    rules: tuple[Rule, ...] = field(kw_only=True)
    turned: dict[str, tuple[int, int]] = field(kw_only=True)

    def stored(self, name: str) -> Tensor:
        """A tensor as stored, or of one that is stored transposed its part the other way round."""
        return self._upright(name, super().stored(name))

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as stored; see `rows_of`. Of a part that is stored as columns, all is read."""
        if name in self.turned:
            return self.stored(name)[start:stop]
        return super().stored_rows(name, start, stop)

    def _upright(self, name: str, stored: Tensor) -> Tensor:
        if name not in self.turned:
            return stored
        return stored[:, slice(*self.turned[name])].T.contiguous()


def is_rule(rule: object) -> bool:
    """Whether a value is a rule, of either kind."""
    if not isinstance(rule, tuple) or len(rule) < 3:
        return False
    if rule[0] in (CUT, TURN):
        return len(rule) % 2 == 0 and all(
            type(one) is (int if place % 2 else str) for place, one in enumerate(rule[1:], 1) if place > 1
        )
    if rule[0] == ROWS:
        return len(rule) == 3 and type(rule[1]) is str and type(rule[2]) is int
    return rule[0] in (PREFIX, RENAME, FAMILY) and all(type(one) is str for one in rule)


def matched(checkpoint: Checkpoint, rules: Sequence[Rule]) -> Checkpoint:
    """A checkpoint by these rules; the same object where there are none.

    Raises
    ------
    CheckpointError : a rule does not fit the tensors, or tensors were chosen before.
    """
    if not rules:
        return checkpoint
    if isinstance(checkpoint, DeviceView):
        return on_device(matched(checkpoint.inner, rules), checkpoint.device)
    if isinstance(checkpoint, View) and not isinstance(checkpoint, CanonicalView):
        raise CheckpointError(
            "a part of a checkpoint cannot be matched with another one",
            where=checkpoint.folder,
            expected="a checkpoint as it is stored, or under canonical names",
            found=type(checkpoint).__name__,
            remedy="match first, then choose tensors and a device",
        )
    family = next((str(rule[1]) for rule in rules if rule[0] == FAMILY), None)
    named = checkpoint if family is None else canonical(as_stored(checkpoint), family)
    return _view(named, tuple(rules))


def rules_of(checkpoint: Checkpoint) -> tuple[Rule, ...]:
    """The rules by which a checkpoint has its names; views are looked through."""
    found = outermost(checkpoint, MatchedView)
    return found.rules if found else ()


def told(rule: Rule) -> str:
    """A rule in words."""
    kind, first, *rest = rule
    if kind == PREFIX:
        heads = f" before {', '.join(map(str, rest[1:]))}" if len(rest) > 1 else ""
        return f"'{rest[0]}' in place of '{first}'{heads}"
    if kind == FAMILY:
        return f"taken for those of {first}, as the other side's are"
    if kind == RENAME:
        return f"{rest[0]} in place of {first}"
    if kind == ROWS:
        return f"{first} stands for its first {rest[0]} rows, which both sides have"
    turned = ", which it holds transposed" if kind == TURN else ""
    return f"{first} is cut into {', '.join(map(str, rest[::2]))}{turned}"


def renamed(name: str, rule: Rule) -> str:
    """A name by one rule about names; those about stacks leave it."""
    if rule[0] == RENAME:
        found = re.fullmatch(expression(str(rule[1])), name)
        return filled(str(rule[2]), found) if found else name
    if rule[0] != PREFIX or not name.startswith(old := str(rule[1])):
        return name
    rest = name.removeprefix(old)
    heads = rule[3:]
    return f"{rule[2]}{rest}" if not heads or rest.split(".")[0] in heads else name


def _view(checkpoint: Checkpoint, rules: tuple[Rule, ...]) -> MatchedView:
    sources = _sources(checkpoint)
    infos: dict[str, TensorInfo] = {}
    found: dict[str, tuple[str, str, tuple[int, int] | None]] = {}
    places: dict[str, TensorInfo] = {}
    renamed: dict[str, str] = {}
    turned: dict[str, tuple[int, int]] = {}
    for info in checkpoint.infos.values():
        if info.alias_of is not None:
            continue
        read, stored, rows = sources[info.name]
        for part in _parts(info, rules):
            name = part.info.name
            if name in infos:
                raise _twice(checkpoint, name)
            infos[name], renamed[info.name] = part.info, name
            # What a name stands for is in digests: so is the way round.
            told = stored if part.columns is None else f"{stored}, columns {_told(part.columns)}, transposed"
            found[name] = (name, told, part.rows) if part.rows else (read, told, rows)
            places |= {name: part.read} if part.rows else {}
            turned |= {name: part.columns} if part.columns is not None else {}
    for info in checkpoint.infos.values():
        if info.alias_of is not None and info.name not in infos:
            meant = renamed[info.alias_of]
            infos[info.name] = replace(infos[meant], name=info.name, alias_of=meant)
            found[info.name] = found[meant]
    reader = checkpoint.reader if isinstance(checkpoint, CanonicalView) else checkpoint
    return MatchedView(
        checkpoint.folder,
        checkpoint.config,
        dict(sorted(infos.items())),
        checkpoint.revision,
        checkpoint.kept_digest,
        inner=checkpoint.inner if isinstance(checkpoint, CanonicalView) else checkpoint,
        reader=replace(reader, infos=reader.infos | places),
        sources=found,
        rules=rules,
        turned=turned,
    )


def _told(columns: tuple[int, int]) -> str:
    return f"{columns[0]} to {columns[1]}"


def _sources(checkpoint: Checkpoint) -> Mapping[str, tuple[str, str, tuple[int, int] | None]]:
    if isinstance(checkpoint, CanonicalView):
        return checkpoint.sources
    return {name: (name, name, None) for name in checkpoint.infos}


@dataclass(frozen=True)
class _Part:
    """What a tensor becomes: what headers would say of it, and the rows that are read for it, None for all.

    read : those rows as they are stored. columns : which columns of them the part is, transposed.
    """

    info: TensorInfo
    rows: tuple[int, int] | None
    read: TensorInfo
    columns: tuple[int, int] | None = None


def _parts(info: TensorInfo, rules: Sequence[Rule]) -> Iterator[_Part]:
    """What a tensor becomes: itself under its new name, or parts of it."""
    name = info.name
    for rule in rules:
        name = renamed(name, rule)
        found = re.fullmatch(expression(str(rule[1])), name) if rule[0] in _WAYS else None
        if found:
            yield from _WAYS[str(rule[0])](replace(info, name=name), found, rule)
            return
    named = replace(info, name=name)
    yield _Part(named, None, named)


def _cut(info: TensorInfo, found: re.Match, rule: Rule) -> Iterator[_Part]:
    _check_sizes(info, rule, 1)
    start = 0
    for number in range(info.shape[0]):
        for name, height in _targets(found, rule, number):
            told = replace(info, name=name, shape=(height, info.shape[2]))
            part = cut_rows(told, info, start)[1]
            yield _Part(part, (start, start + height), part)
            start += height


def _turn(info: TensorInfo, found: re.Match, rule: Rule) -> Iterator[_Part]:
    _check_sizes(info, rule, 2)
    count, width, total = info.shape
    for number in range(count):
        first, start = number * width, 0
        for name, height in _targets(found, rule, number):
            slab = cut_rows(replace(info, name=name, shape=(width, total)), info, first)[1]
            columns = (start, start + height)
            part = replace(slab, shape=(height, width))
            yield _Part(part, (first, first + width), slab, columns)
            start += height


def _rows(info: TensorInfo, found: re.Match, rule: Rule) -> Iterator[_Part]:
    stop = int(rule[2])
    if len(info.shape) != 2 or not 0 < stop < info.shape[0]:
        raise CheckpointError(
            f"the tensor '{info.name}' is not of the shape that it was when the pair was matched",
            where=f"{info.file}, tensor '{info.name}'",
            expected=f"two axes, and more than {stop} rows",
            found=list(info.shape),
            remedy="give the command again: the checkpoint was changed meanwhile",
        )
    part = cut_rows(replace(info, shape=(stop, info.shape[1])), info, 0)[1]
    yield _Part(part, (0, stop), part)


_WAYS = {CUT: _cut, TURN: _turn, ROWS: _rows}


def _targets(found: re.Match, rule: Rule, number: int) -> Iterator[tuple[str, int]]:
    """Names and heights of the parts of one expert."""
    for target, height in zip(rule[2::2], rule[3::2], strict=True):
        yield filled(str(target), found).replace("#", str(number)), int(height)


def _check_sizes(info: TensorInfo, rule: Rule, axis: int) -> None:
    total = sum(int(height) for height in rule[3::2])
    if len(info.shape) != 3 or info.shape[axis] != total:
        raise CheckpointError(
            f"the stacked tensor '{info.name}' is not of the shape that it was when the pair was matched",
            where=f"{info.file}, tensor '{info.name}'",
            expected=f"three axes, of which axis {axis} has {total} entries",
            found=list(info.shape),
            remedy="give the command again: the checkpoint was changed meanwhile",
        )


def _twice(checkpoint: Checkpoint, name: str) -> CheckpointError:
    return CheckpointError(
        f"two tensors would both be called '{name}'",
        where=checkpoint.folder,
        expected="names that stay apart",
        remedy="give the command again: the checkpoint was changed after the pair was matched",
    )
