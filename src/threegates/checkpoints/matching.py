"""Which names of two checkpoints mean one tensor, found from names and shapes: no family is asked.

First the few re-prefixings p → q of the tuned side's names under which most names that have no match get one,
in equal shape, and none collide. Then experts that one side stacks and the other holds one by one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from threegates.checkpoints.experts import Cuts, Side, cuts, is_expert
from threegates.checkpoints.formats.families import gate_first, hidden_size, known_family, vocabulary_size
from threegates.checkpoints.formats.headers import BITS
from threegates.checkpoints.formats.roles import block, role
from threegates.checkpoints.matched import (
    FAMILY,
    PREFIX,
    RENAME,
    ROWS,
    Rule,
    matched,
    renamed,
    rules_of,
    told,
)
from threegates.checkpoints.quantised import COMPARABLE
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import as_stored
from threegates.errors import CheckpointError

#: Re-prefixings of a pair, and candidates that are looked at for each.
MOST, CANDIDATES = 4, 16
#: Names that two unlike prefixes have to bring together before they are taken for one; those in blocks count
#: twice, for there a number agrees as well.
STRONG = 8
#: Segments that a rule names; with more, it holds for all names with its prefix.
HEADS = 16
#: Names that end alike are looked at no further where this many do.
_ALIKE = 8
_GENERIC = {"weight", "bias"}
#: Roles of matrices with a row for each token.
_PER_TOKEN = ("embedding", "head")
#: Words of a path that say to which of a model's stacks a tensor belongs.
_STACKS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "vision": ("visual", "vision", "image", "vit"),
    "audio": ("audio", "speech"),
    "mtp": ("mtp",),
}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Matching:
    """Rules for the names of either side, and what was left alone for it has no one answer."""

    base: tuple[Rule, ...] = ()
    tuned: tuple[Rule, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A re-prefixing, the names that it brings together, and those of them whose sizes alone differ."""

    old: str
    new: str
    hits: dict[str, str]
    resized: tuple[str, ...]

    @property
    def rule(self) -> Rule:
        """The rule that does it, for the segments after the prefix that it was found on."""
        names = (*self.hits, *self.resized)
        heads = sorted({name.removeprefix(self.old).split(".")[0] for name in names})
        numbered = any(head.isdecimal() for head in heads)
        return (PREFIX, self.old, self.new, *(() if numbered or len(heads) > HEADS else heads))


def match(base: Checkpoint, tuned: Checkpoint) -> Matching:
    """What brings the names of two checkpoints together; nothing where all have their match already.

    Headers alone are read for it, but where experts of square matrices may lie either way round.
    """
    left, right = _shapes(base), _shapes(tuned)
    renames: tuple[Rule, ...] = ()
    if left.keys() - right.keys() and right.keys() - left.keys():
        renames = _prefixes(left, right)
        renames += _nested(left, {_renamed(name, renames): shape for name, shape in right.items()})
    found = _experts(base, tuned, renames)
    rows = _common_rows(base, tuned, renames)
    now = {_renamed(name, renames): shape for name, shape in right.items()}
    beside = tuple(_beside(found, _patterns(_without(left, now)), _patterns(_without(now, left))))
    of_tuned = (*renames, *beside, *found.tuned, *rows[1])
    return Matching((*found.base, *rows[0]), of_tuned, found.undecided)


def brought_together(base: Checkpoint, tuned: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints under names that they have in common; the same objects where nothing is to be done."""
    of_base, of_tuned = _lent(base, tuned), _lent(tuned, base)
    found = match(matched(base, of_base), matched(tuned, of_tuned))
    return matched(base, (*of_base, *found.base)), matched(tuned, (*of_tuned, *found.tuned))


def _lent(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Rule, ...]:
    """The other side's family for a side of none that is known, where more names are common then."""
    family = known_family(other.config)
    if family is None or known_family(checkpoint.config) is not None:
        return ()
    rule = (FAMILY, family, str(other.config.get("model_type")))
    wanted = _shapes(other).items()
    with suppress(CheckpointError):
        lent = _shapes(matched(checkpoint, (rule,)))
        return (rule,) if len(lent.items() & wanted) > len(_shapes(checkpoint).items() & wanted) else ()
    return ()


def matching_notes(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """What was done to the names of a pair, a sentence each, and what was left alone."""
    notes = [
        f"names of the {side}: {told(rule)}"
        for side, one in (("base", base), ("tuned", tuned))
        for rule in rules_of(one)
    ]
    return [*notes, *match(base, tuned).undecided]


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in checkpoint.infos.items() if info.alias_of is None}


def _experts(base: Checkpoint, tuned: Checkpoint, renames: Sequence[Rule]) -> Cuts:
    """What becomes of experts on either side, after the tuned side's names were replaced."""
    return cuts(_side(base, ()), _side(tuned, renames))


def _beside(found: Cuts, base: Mapping[str, Mapping], tuned: Mapping[str, Mapping]) -> Iterator[Rule]:
    """What lies beside experts, such as their router, under the module that holds them on the other side."""
    holders = {_holder(str(rule[1])): _holder(str(rule[2])) for rule in found.tuned}
    holders |= {_holder(str(rule[2])): _holder(str(rule[1])) for rule in found.base}
    for old, new in holders.items():
        for name in tuned if old != new and old and new else ():
            other = new + name.removeprefix(old)
            if name.startswith(old) and base.get(other) == tuned[name]:
                yield (RENAME, name, other)


def _holder(name: str) -> str:
    """The path of what holds a block's experts."""
    found = re.match(r"(.*\.)(?:experts|switch_mlp)\.", name)
    return found[1] if found else ""


def _side(checkpoint: Checkpoint, renames: Sequence[Rule]) -> Side:
    stored = {_renamed(name, renames): name for name in _shapes(checkpoint)}
    # Where an entry takes less than a byte, a stack cannot be cut.
    whole = {new: info for new, old in stored.items() if BITS[(info := checkpoint.infos[old]).dtype] >= 8}
    shapes = {name: info.shape for name, info in whole.items()}

    def read(name: str) -> Tensor | None:
        info = whole[name]
        if as_stored(checkpoint).kept_digest is not None or info.dtype not in COMPARABLE or not info.size:
            return None
        stack = len(info.shape) == 3
        values = rows_of(checkpoint, info.name, 0, 1)[0] if stack else checkpoint.stored(info.name)
        return values.double()

    return Side(shapes, hidden_size(checkpoint.config), read, gate_first(checkpoint.config))


def _common_rows(
    base: Checkpoint, tuned: Checkpoint, renames: Sequence[Rule]
) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Embeddings and heads of which one side has more rows, padded or with tokens added at the end."""
    left, right = _vocabularies(base, ()), _vocabularies(tuned, renames)
    rules: tuple[list[Rule], list[Rule]] = ([], [])
    for name in sorted(left.keys() & right.keys()):
        (rows, *width), (others, *other_width) = left[name], right[name]
        if rows != others and width == other_width:
            rules[rows < others].append((ROWS, name, min(rows, others)))
    return tuple(rules[0]), tuple(rules[1])


def _vocabularies(checkpoint: Checkpoint, renames: Sequence[Rule]) -> Shapes:
    """Matrices outside of blocks with a row for every token of the config; by role where it tells of none."""
    tokens = vocabulary_size(checkpoint.config)
    found = {}
    for info in checkpoint.infos.values():
        name = _renamed(info.name, renames)
        matrix = len(info.shape) == 2 and info.size and block(name) is None and info.dtype in COMPARABLE
        if not matrix or info.alias_of is not None:
            continue
        if info.shape[0] >= tokens if tokens is not None else role(name, info.shape) in _PER_TOKEN:
            found[name] = info.shape
    return found


def _without(shapes: Shapes, others: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name not in others}


def _renamed(name: str, rules: Sequence[Rule]) -> str:
    for rule in rules:
        name = renamed(name, rule)
    return name


def _prefixes(base: Shapes, tuned: Shapes) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    names = dict(tuned)
    while len(rules) < MOST and (rule := _best(base, names)):
        rules.append(rule)
        names = {renamed(name, rule): shape for name, shape in names.items()}
    return tuple(rules)


def _nested(base: Shapes, tuned: Shapes) -> tuple[Rule, ...]:
    """Names in blocks that one side has with a word more, as `router.layer` and `router` are, by pattern.

    Both are the only ones of their blocks that would fit, in the same shapes.
    """
    left, right = _patterns(_without(base, tuned)), _patterns(_without(tuned, base))
    fits = {old: [new for new in left if _is_nested(old, new, left, right)] for old in right}
    times = Counter(new for found in fits.values() for new in found)
    sure = {old: found[0] for old, found in fits.items() if len(found) == 1 and times[found[0]] == 1}
    return tuple((RENAME, old, new) for old, new in sorted(sure.items()))


def _patterns(shapes: Shapes) -> dict[str, dict[tuple[str, ...], tuple[int, ...]]]:
    """Shapes by name with `*` for numbers, and by these numbers; of blocks, without experts."""
    found: dict[str, dict[tuple[str, ...], tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        words = name.split(".")
        numbers = tuple(word for word in words if word.isdecimal())
        if numbers and "expert" not in name:
            found[".".join("*" if word.isdecimal() else word for word in words)][numbers] = shape
    return found


def _is_nested(old: str, new: str, left: Mapping[str, Mapping], right: Mapping[str, Mapping]) -> bool:
    few, many = sorted((old.split("."), new.split(".")), key=len)
    common = left[new].keys() & right[old].keys()
    return (
        len(few) < len(many)
        and few[-1] == many[-1]
        and _within(few, many)
        and _stacks(old) == _stacks(new)
        and bool(common)
        and all(left[new][one] == right[old][one] for one in common)
    )


def _best(base: Shapes, tuned: Shapes) -> Rule | None:
    """The re-prefixing with the most hits that no other one disputes."""
    left, right = _without(base, tuned), _without(tuned, base)
    votes: Counter[tuple[str, str]] = Counter(_votes(left, right))
    found = [_candidate(old, new, left, right) for (old, new), _ in votes.most_common(CANDIDATES)]
    likely = sorted((one for one in found if _holds(one, base, tuned)), key=lambda one: -len(one.hits))
    return next((one.rule for one in likely if not _disputed(one, likely)), None)


def _votes(left: Shapes, right: Shapes) -> Iterator[tuple[str, str]]:
    """For each name, what stands in front of the longest end that it shares with names of equal shape."""
    ends: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, shape in left.items():
        for end in _ends(name):
            ends[end, shape].append(name)
    for name, shape in right.items():
        for end in _ends(name):
            if alike := ends.get((end, shape)):
                yield from ((_front(name, end), _front(one, end)) for one in alike[:_ALIKE])
                break


def _ends(name: str) -> Iterator[str]:
    """The ends of a name at whole segments, the longest first; a bare `weight` is none."""
    parts = name.split(".")
    for start in range(len(parts)):
        if start == 0 or len(parts) - start > 1 or parts[start] not in _GENERIC:
            yield ".".join(parts[start:])


def _front(name: str, end: str) -> str:
    return name[: len(name) - len(end)]


def _candidate(old: str, new: str, left: Shapes, right: Shapes) -> _Candidate:
    pairs = {name: new + name.removeprefix(old) for name in right if name.startswith(old)}
    resized = tuple(a for a, b in pairs.items() if b in left and left[b][1:] == right[a][1:] != ())
    return _Candidate(old, new, {a: b for a, b in pairs.items() if left.get(b) == right[a]}, resized)


def _holds(one: _Candidate, base: Shapes, tuned: Shapes) -> bool:
    """Whether a re-prefixing is more than chance, and takes nothing from what matches already."""
    if not one.hits or not _alike(one):
        return False
    rule = one.rule
    moved = {name: new for name in tuned if (new := renamed(name, rule)) != name}
    lost = any(name in base for name in moved)
    collides = any(new in tuned and new not in moved for new in moved.values())
    waiting = [name for name in moved if not is_expert(name)]
    return not lost and not collides and 2 * len(one.hits) > len(waiting)


def _alike(one: _Candidate) -> bool:
    """Whether prefixes may stand for one another: no other number or stack, and enough names for it."""
    if re.findall(r"\d+", one.old) != re.findall(r"\d+", one.new):
        return False
    old, new = _stacks(one.old), _stacks(one.new)
    if old != new and ("mtp" in old | new or (one.old and one.new)):
        name, other = next(iter(one.hits.items()))
        if "mtp" in old | new or _stacks(name) != _stacks(other):
            return False
    if not one.old or not one.new:
        return len(one.hits) > 1 or _is_one_of_its_kind(one)
    words = (one.old.split("."), one.new.split("."))
    nested = _within(*words) or _within(*words[::-1])
    weight = sum(1 + bool(re.search(r"\d", name.removeprefix(one.old))) for name in one.hits)
    return len(one.hits) > 1 and (nested or weight >= STRONG)


def _is_one_of_its_kind(one: _Candidate) -> bool:
    """Whether a single name is told apart by what it ends in: more than a bare `weight`."""
    ((old, new),) = one.hits.items()
    rest = old.removeprefix(one.old)
    return new.endswith(rest) and rest not in _GENERIC


def _within(few: Sequence[str], many: Sequence[str]) -> bool:
    """Whether one path is the other one with words left out."""
    rest = iter(many)
    return all(word in rest for word in few)


def _stacks(path: str) -> set[str]:
    words = re.split(r"[._]", path.lower())
    return {stack for stack, names in _STACKS.items() if any(word.startswith(names) for word in words)}


def _disputed(one: _Candidate, others: Sequence[_Candidate]) -> bool:
    """Whether another re-prefixing has as many hits, and wants the same tensors."""
    return any(
        other is not one
        and len(other.hits) == len(one.hits)
        and (other.hits.keys() & one.hits.keys() or set(other.hits.values()) & set(one.hits.values()))
        for other in others
    )
