"""Experts that one checkpoint stacks in a tensor and the other holds one by one: how the stack is to be cut.

Order comes from names (gate before up in `gate_up_proj`; w1, w3, w2 are gate, up, down), sizes from shapes
of the single ones. A stack is cut along rows, [experts, rows, columns], or, where it holds them transposed,
along columns; one whose square matrices leave that open is left alone. Two stacks of one name of which one is
the other transposed are turned the same way round.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from threegates.checkpoints.matched import CUT, SWAP, TURN, Rule

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
_SINGLE = re.compile(rf"(?P<front>.*\.)?experts\.(?P<number>\d+)\.(?P<leaf>{'|'.join(KINDS)})\.weight")
_STACK = re.compile(rf"(?P<front>.*\.)(?P<leaf>{'|'.join(STACKS)})(?:\.weight)?")
_KIND = {"rows": CUT, "transposed": TURN}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Cuts:
    """How stacks of either side are cut, and which are left alone."""

    base: tuple[Rule, ...] = ()
    tuned: tuple[Rule, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Single:
    """One kind of module of a block's experts: its name with `#` for the expert, its shape, how many."""

    name: str
    shape: tuple[int, ...]
    count: int


def is_expert(name: str) -> bool:
    """Whether a name is that of one expert's matrix, or may be that of a stack of them."""
    return bool(_SINGLE.fullmatch(name)) or bool(re.search(r"\b(experts|switch_mlp)\b", name))


def cuts(base: Shapes, tuned: Shapes) -> Cuts:
    """How the stacks among names that have no match are cut into the other side's experts."""
    of_base, told = _of_side(base, tuned)
    of_tuned, more = _of_side(tuned, base)
    return Cuts(of_base, of_tuned, (*told, *more))


def swaps(base: Shapes, tuned: Shapes) -> tuple[Rule, ...]:
    """Stacks of experts that the tuned side holds transposed, under the name that the base has for them."""
    found: dict[str, list[bool]] = defaultdict(list)
    for name, shape in tuned.items():
        other = base.get(name)
        if other is not None and len(shape) == 3 == len(other) and _STACK.fullmatch(name) and is_expert(name):
            found[_pattern(name)].append(other == (shape[0], shape[2], shape[1]) and other != shape)
    return tuple((SWAP, pattern, pattern) for pattern, turned in sorted(found.items()) if all(turned))


def _of_side(stacked: Shapes, singles: Shapes) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    wanted = _singles(singles)
    rules: dict[str, list[Rule]] = defaultdict(list)
    alone: list[str] = []
    for block, stacks in _stacks(stacked).items():
        kinds = wanted.get(block)
        if kinds is None:
            continue
        layouts = {name: _layouts(leaf, stacked[name], kinds) for name, leaf in stacks.items()}
        # One program wrote them all: what one shape leaves open, another one decides.
        common = set.intersection(*layouts.values())
        if len(common) != 1:
            alone += [_why(name, common) for name in stacks]
            continue
        for name, leaf in stacks.items():
            rules[_pattern(name)].append((_KIND[min(common)], *_rule(name, leaf, kinds)))
    return tuple(_merged(rules)), tuple(dict.fromkeys(alone))


def _stacks(shapes: Shapes) -> dict[str, dict[str, str]]:
    """Stacked tensors by the block that holds them: name and last module."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, shape in shapes.items():
        stack = _STACK.fullmatch(name)
        if stack and len(shape) == 3:
            found[_block(stack["front"])][name] = stack["leaf"]
    return found


def _singles(shapes: Shapes) -> dict[str, dict[str, _Single]]:
    """Experts held one by one, by block and kind; where all numbers from 0 on are there, in one shape."""
    found: dict[tuple[str, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        single = _SINGLE.fullmatch(name)
        if single and len(shape) == 2:
            front = single["front"] or ""
            key = (_block(front), f"{front}experts.#.{single['leaf']}.weight")
            found[key][single["number"]] = shape
    blocks: dict[str, dict[str, _Single]] = defaultdict(dict)
    for (block, name), experts in found.items():
        whole = set(experts) == {str(number) for number in range(len(experts))}
        if whole and len(set(experts.values())) == 1:
            kind = KINDS[name.split(".")[-2]]
            blocks[block][kind] = _Single(name, next(iter(experts.values())), len(experts))
    return blocks


def _block(front: str) -> str:
    """What stands in front of the experts, up to the last number."""
    numbered = re.match(r".*\b\d+(?=\.)", front)
    return numbered[0] if numbered else ""


def _layouts(leaf: str, shape: tuple[int, ...], kinds: Mapping[str, _Single]) -> set[str]:
    """Which layouts a stack's shape allows: rows as those of single experts, or transposed."""
    parts = [kinds.get(kind) for kind in STACKS[leaf]]
    if any(part is None or part.count != shape[0] for part in parts):
        return set()
    shapes = [part.shape for part in parts if part is not None]
    rows, columns = sum(one[0] for one in shapes), {one[1] for one in shapes}
    if len(columns) != 1:
        return set()
    (width,) = columns
    found = {"rows"} if shape[1:] == (rows, width) else set()
    return found | ({"transposed"} if shape[1:] == (width, rows) else set())


def _rule(name: str, leaf: str, kinds: Mapping[str, _Single]) -> Rule:
    parts = [kinds[kind] for kind in STACKS[leaf]]
    told = [value for part in parts for value in (_pattern(part.name), part.shape[0])]
    return (_pattern(name), *told)


def _pattern(name: str) -> str:
    """A name with `*` for its numbers; the expert's is `#` already."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _merged(rules: Mapping[str, Iterable[Rule]]) -> list[Rule]:
    """One rule a pattern; a pattern whose blocks differ is left alone, for no rule would fit them all."""
    found = {pattern: set(ways) for pattern, ways in rules.items()}
    return [next(iter(ways)) for _, ways in sorted(found.items()) if len(ways) == 1]


def _why(name: str, layouts: set[str]) -> str:
    if layouts == {"rows", "transposed"}:
        return f"{name} is left alone: its square matrices may be stored either way round"
    return f"{name} is left alone: its shape is not that of the other side's experts together"
