"""Experts that checkpoints stack in a tensor or hold one by one, made one by one on both sides.

Order comes from names (gate before up in `gate_up_proj`; w1, w3, w2 are gate, up, down), sizes from shapes of
the single ones. A stack is cut along rows, [experts, rows, columns], or, where it holds its matrices
transposed, along columns; of square matrices contents decide. Where both sides stack them, both are cut.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from threegates.checkpoints.matched import CUT, RENAME, TURN, Rule

#: What single modules are called, and in which order a stack holds them.
KINDS = {
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "down_proj": "down",
    "w2": "down",
}
STACKS = {
    **{name: (kind,) for name, kind in KINDS.items()},
    "gate_up_proj": ("gate", "up"),
    "input_linear": ("gate", "up"),
    "output_linear": ("down",),
}
#: Gate and up as one matrix, where nothing says which of its rows are which.
TOGETHER = "gate_up"
#: Of two ways round, the nearer one has to be nearer by this factor.
NEARER = 0.5
_SINGLE = re.compile(rf"(?P<front>.*\.)?experts\.(?P<number>\d+)\.(?P<leaf>{'|'.join(KINDS)})\.weight")
_STACK = re.compile(rf"(?P<front>.*\.)(?P<leaf>{'|'.join(STACKS)})(?:\.weight)?")
_HOLDER = re.compile(r"(?:experts|switch_mlp)\.$")
ROWS, TRANSPOSED = "rows", "transposed"
_RULES = {ROWS: CUT, TRANSPOSED: TURN}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Side:
    """One checkpoint: shapes by name, its hidden size, and what reads a matrix, or a stack's first one.

    gate_first : whether it is known that a stack of both holds gate before up, one below the other.
    """

    shapes: Shapes
    hidden: int | None = None
    read: Callable[[str], Tensor | None] = lambda _: None
    gate_first: bool = False


@dataclass(frozen=True)
class Cuts:
    """How stacks of either side are cut, and which are left alone."""

    base: tuple[Rule, ...] = ()
    tuned: tuple[Rule, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Single:
    """One kind of module of a block's experts: its name with `#` for the expert, its shape, how many.

    first : reads the first expert's.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    first: Callable[[], Tensor | None]


@dataclass
class _Rules:
    """What is found for the stacks of one side."""

    side: Side
    ways: dict[str, Rule] = field(default_factory=dict)
    undecided: list[str] = field(default_factory=list)
    #: Which way round patterns of square matrices lie, by contents: the first block decides for all. Beside a
    #: base whose own way round is open, each of its ways is a case of its own.
    seen: dict[str, str | None] = field(default_factory=dict)
    case: str = ""

    def rules(self) -> tuple[Rule, ...]:
        """One rule a pattern; one a name where they differ, or others of that pattern have another shape."""
        return tuple(_merged(self.ways, self.side.shapes))


def is_expert(name: str) -> bool:
    """Whether a name is that of one expert's matrix, or may be that of a stack of them."""
    return bool(_SINGLE.fullmatch(name)) or bool(re.search(r"\b(experts|switch_mlp)\b", name))


def cuts(base: Side, tuned: Side) -> Cuts:
    """How stacks are cut so that both sides have their experts one by one, under one name."""
    left, right = _Rules(base), _Rules(tuned)
    stacks = _stacks(base.shapes), _stacks(tuned.shapes)
    singles = _singles(base), _singles(tuned)
    for block in dict.fromkeys((*stacks[0], *stacks[1])):
        stacked = stacks[0].get(block), stacks[1].get(block)
        single = singles[0].get(block), singles[1].get(block)
        if stacked[0] and single[1]:
            _cut(left, stacked[0], single[1])
        elif stacked[1] and single[0]:
            _cut(right, stacked[1], single[0])
        elif stacked[0] and stacked[1]:
            _cut_both(left, right, stacked[0], stacked[1])
    told = tuple(dict.fromkeys((*left.undecided, *right.undecided)))
    return Cuts(left.rules(), (*_renames(*singles), *right.rules()), told)


def _stacks(shapes: Shapes) -> dict[str, dict[str, str]]:
    """Stacked tensors by the block that holds them: name and last module."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, shape in shapes.items():
        stack = _STACK.fullmatch(name)
        if stack and len(shape) == 3:
            found[_block(stack["front"])][name] = stack["leaf"]
    return found


def _singles(side: Side) -> dict[str, dict[str, _Single]]:
    """Experts held one by one, by block and kind; where all numbers from 0 on are there, in one shape."""
    found: dict[tuple[str, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in side.shapes.items():
        single = _SINGLE.fullmatch(name)
        if single and len(shape) == 2:
            front = single["front"] or ""
            key = (_block(front), f"{front}experts.#.{single['leaf']}.weight")
            found[key][single["number"]] = shape
    blocks: dict[str, dict[str, _Single]] = defaultdict(dict)
    for (block, name), experts in found.items():
        whole = set(experts) == {str(number) for number in range(len(experts))}
        if whole and len(set(experts.values())) == 1:
            kind, shape = KINDS[name.split(".")[-2]], next(iter(experts.values()))
            blocks[block][kind] = _Single(name, shape, len(experts), _reads(side, name.replace("#", "0")))
    return blocks


def _reads(side: Side, name: str) -> Callable[[], Tensor | None]:
    return lambda: side.read(name)


def _block(front: str) -> str:
    """What stands in front of the experts, up to the last number."""
    numbered = re.match(r".*\b\d+(?=\.)", front)
    return numbered[0] if numbered else ""


# One side stacks


def _cut(
    found: _Rules, stacks: Mapping[str, str], wanted: Mapping[str, _Single], otherwise: str | None = None
) -> None:
    """Cut the stacks of a block into these experts; `otherwise` is the way round that nothing tells."""
    shapes = found.side.shapes
    kinds = {name: _kinds(leaf, wanted) for name, leaf in stacks.items()}
    ways = {name: _ways(shapes[name], [wanted.get(kind) for kind in kinds[name]]) for name in stacks}
    if not all(ways.values()):
        found.undecided += [f"{name} is left alone: {_MISFIT}" for name in stacks]
        return
    for name in [name for name, way in ways.items() if len(way) > 1]:
        seen = _by_contents(found, name, [wanted[kind] for kind in kinds[name]])
        ways[name] = {seen} if seen else ways[name]
    # One program wrote them all: what nothing else decides, another tensor's shape does.
    sure = {next(iter(way)) for way in ways.values() if len(way) == 1}
    usual = next(iter(sure)) if len(sure) == 1 else otherwise
    if usual is None and any(len(way) > 1 for way in ways.values()):
        found.undecided += [f"{name} is left alone: {_EITHER}" for name in stacks]
        return
    for name, way in ways.items():
        chosen = next(iter(way)) if len(way) == 1 else str(usual)
        found.ways[name] = _rule(name, chosen, [wanted[kind] for kind in kinds[name]])


_MISFIT = "its shape is not that of the other side's experts together"
_EITHER = "its square matrices may be stored either way round"


def _kinds(leaf: str, wanted: Mapping[str, _Single]) -> tuple[str, ...]:
    kinds = STACKS[leaf]
    return (TOGETHER,) if len(kinds) > 1 and TOGETHER in wanted else kinds


def _ways(shape: tuple[int, ...], parts: Sequence[_Single | None]) -> set[str]:
    """Which layouts a stack's shape allows: rows as those of single experts, or transposed."""
    known = [part for part in parts if part is not None and part.count == shape[0]]
    rows, columns = sum(one.shape[0] for one in known), {one.shape[1] for one in known}
    if len(known) != len(parts) or len(columns) != 1:
        return set()
    (width,) = columns
    found = {ROWS} if shape[1:] == (rows, width) else set()
    return found | ({TRANSPOSED} if shape[1:] == (width, rows) else set())


def _by_contents(found: _Rules, name: str, parts: Iterable[_Single]) -> str | None:
    """Which way round square matrices lie, where one way is far nearer to the other side's."""
    key = f"{found.case} {_pattern(name)}"
    if key not in found.seen:
        found.seen[key] = _nearer(found.side.read(name), parts)
    return found.seen[key]


def _nearer(stack: Tensor | None, parts: Iterable[_Single]) -> str | None:
    start, straight, turned = 0, 0.0, 0.0
    for part in parts:
        one, rows = part.first(), slice(start, start + part.shape[0])
        if stack is None or one is None:
            return None
        straight += float((stack[rows] - one).square().sum())
        turned += float((stack.T[rows] - one).square().sum())
        start += part.shape[0]
    if min(straight, turned) < NEARER**2 * max(straight, turned):
        return ROWS if straight < turned else TRANSPOSED
    return None


def _rule(name: str, way: str, parts: Iterable[_Single]) -> Rule:
    told = [value for part in parts for value in (part.name, part.shape[0])]
    return (_RULES[way], name, *told)


# Both sides stack


def _cut_both(left: _Rules, right: _Rules, base: Mapping[str, str], tuned: Mapping[str, str]) -> None:
    """Cut the stacks of a block on both sides, into experts as the base's names and shapes give them."""
    kinds = [sorted(STACKS[leaf] for leaf in side.values()) for side in (base, tuned)]
    flat = [sorted(kind for one in side for kind in one) for side in kinds]
    if flat[0] != flat[1] or len(set(flat[0])) != len(flat[0]):
        return
    apart = kinds[0] != kinds[1] or (left.side.gate_first and right.side.gate_first)
    tries = [_try(left, right, base, tuned, way, apart) for way in _own_ways(left.side, base)]
    able = [one for one in tries if one.found.ways]
    if not able:
        right.undecided += tries[0].found.undecided
        return
    key = " ".join(sorted(map(_pattern, base)))
    if len(able) > 1 and key not in left.seen:
        left.seen[key] = _nearest(able)
    one = next((one for one in able if one.way == left.seen.get(key)), able[0])
    right.ways |= one.found.ways
    for name, leaf in base.items():
        parts = [one.wanted[kind] for kind in _kinds(leaf, one.wanted)]
        left.ways[name] = _rule(name, one.way, parts)


@dataclass(frozen=True)
class _Try:
    """One way round of the base's stacks, the experts that they hold then, and how the tuned ones are cut."""

    way: str
    wanted: dict[str, _Single]
    found: _Rules
    tuned: Mapping[str, str]

    def distance(self) -> float:
        """Squared distance of the first experts of both sides, where the tuned stacks are cut so."""
        total = 0.0
        for name, leaf in self.tuned.items():
            stack = self.found.side.read(name)
            if stack is None:
                return 0.0
            upright = stack if self.found.ways[name][0] == CUT else stack.T
            start = 0
            for part in (self.wanted[kind] for kind in _kinds(leaf, self.wanted)):
                one = part.first()
                rows = upright[start : start + part.shape[0]]
                total += 0.0 if one is None else float((rows - one).square().sum())
                start += part.shape[0]
        return total


def _try(
    left: _Rules, right: _Rules, base: Mapping[str, str], tuned: Mapping[str, str], way: str, apart: bool
) -> _Try:
    wanted = dict(_of_stacks(left.side, base, way, apart))
    found = _Rules(right.side, seen=right.seen, case=way)
    _cut(found, tuned, wanted, _own_ways(right.side, tuned)[0])
    return _Try(way, wanted, found, tuned)


def _nearest(able: Sequence[_Try]) -> str | None:
    """The way round of the base's stacks that contents tell, if they do."""
    near, far = sorted(able, key=_Try.distance)
    return near.way if near.distance() < NEARER**2 * far.distance() else None


def _of_stacks(side: Side, stacks: Mapping[str, str], way: str, apart: bool) -> Iterator[tuple[str, _Single]]:
    """The experts that a side's stacks hold this way round, as if they were held one by one."""
    for name, leaf in stacks.items():
        count, *sizes = side.shapes[name]
        height, width = sizes if way == ROWS else sizes[::-1]
        kinds = STACKS[leaf] if apart and height % len(STACKS[leaf]) == 0 else (TOGETHER,)
        kinds = kinds if len(STACKS[leaf]) > 1 else STACKS[leaf]
        rows = height // len(kinds)
        for place, kind in enumerate(kinds):
            front = _HOLDER.sub("", name[: -len(leaf) - (len(".weight") if name.endswith(".weight") else 0)])
            single = f"{front}experts.#.{kind}_proj.weight"
            first = _reads_part(side, name, way, slice(place * rows, (place + 1) * rows))
            yield kind, _Single(single, (rows, width), count, first)


def _reads_part(side: Side, name: str, way: str, rows: slice) -> Callable[[], Tensor | None]:
    def first() -> Tensor | None:
        whole = side.read(name)
        return None if whole is None else (whole if way == ROWS else whole.T)[rows]

    return first


def _own_ways(side: Side, stacks: Mapping[str, str]) -> list[str]:
    """Which way round a side's stacks are, by its hidden size or by how their sizes fit together; or both."""
    shapes = {STACKS[leaf][0]: (side.shapes[name][1:], len(STACKS[leaf])) for name, leaf in stacks.items()}
    turned = {kind: (shape[::-1], count) for kind, (shape, count) in shapes.items()}
    fits = [way for way, one in ((ROWS, shapes), (TRANSPOSED, turned)) if _is_upright(one, side.hidden)]
    return fits if len(fits) == 1 else [ROWS, TRANSPOSED]


def _is_upright(shapes: Mapping[str, tuple[tuple[int, ...], int]], hidden: int | None) -> bool:
    """Whether gate, up and down of [rows, columns] take what the model has, and give it back."""
    inner = {shape[1] if kind == "down" else shape[0] / count for kind, (shape, count) in shapes.items()}
    outer = {shape[0] if kind == "down" else shape[1] for kind, (shape, _) in shapes.items()}
    return len(inner) == 1 == len(outer) and (hidden is None or outer == {hidden})


# Neither side stacks


def _renames(
    base: Mapping[str, Mapping[str, _Single]], tuned: Mapping[str, Mapping[str, _Single]]
) -> Iterator[Rule]:
    """Experts of one block, kind and shape that the tuned side calls otherwise."""
    found: dict[str, set[str]] = defaultdict(set)
    for block, kinds in tuned.items():
        for kind, one in kinds.items():
            other = base.get(block, {}).get(kind)
            if other is not None and (other.shape, other.count) == (one.shape, one.count):
                found[_pattern(one.name)].add(_pattern(other.name))
    for old, new in sorted(found.items()):
        if new != {old} and len(new) == 1:
            yield (RENAME, old.replace("#", "*"), next(iter(new)).replace("#", "*"))


# Rules


def _pattern(name: str) -> str:
    """A name with `*` for its numbers; the expert's is `#` already."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _general(rule: Rule) -> Rule:
    return tuple(_pattern(one) if isinstance(one, str) else one for one in rule)


def _merged(ways: Mapping[str, Rule], shapes: Shapes) -> Iterator[Rule]:
    patterns: dict[str, list[str]] = defaultdict(list)
    for name in ways:
        patterns[_pattern(name)].append(name)
    alike: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name, shape in shapes.items():
        if len(shape) == 3:
            alike[_pattern(name)].add(shape)
    for pattern, names in sorted(patterns.items()):
        general = {_general(ways[name]) for name in names}
        one_rule = len(general) == 1 and len(alike[pattern]) == 1
        yield from general if one_rule else (ways[name] for name in names)
