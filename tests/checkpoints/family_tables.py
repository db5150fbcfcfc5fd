"""Weights made from the tables of `families/`: one model in each layout that transformers gives it.

A table tells the first layout whole, name by name: type and shape. Of the others it tells what differs:
`moved`, prefixes in another's place, the longest that fits; `lacks`, what is not there; and tensors that hold
other ones, each with the first layout's tensors in it: `*` is one of its own numbers, `#` the matrix of a
stack, `@` stands before rows, and `T` says that it holds them transposed.
`scripts/write_family_tables.py` writes the tables.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TABLES = Path(__file__).parent / "families"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
#: The inner size of experts in the tables; other ones make their matrices square.
INNER, SQUARES = 10, (16, 8)


@dataclass(frozen=True)
class Part:
    """A tensor of the first layout within another one: matrix of the stack, rows, and whether transposed."""

    name: str
    number: int | None = None
    rows: tuple[int, int] | None = None
    turned: bool = False

    def of(self, stored: Tensor) -> Tensor:
        """A view of the part, the way round that the first layout has it."""
        held = stored if self.number is None else stored[self.number]
        held = held.transpose(-1, -2) if self.turned else held
        return held if self.rows is None else held[..., slice(*self.rows), :]


@dataclass(frozen=True)
class Stored:
    """A tensor of a layout."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Family:
    """A family's table; `inner` in place of the experts' inner size that it was written for."""

    name: str
    config: dict[str, Any]
    layouts: dict[str, dict[str, Stored]]

    @property
    def first(self) -> dict[str, Stored]:
        """The layout of which the others hold parts."""
        return next(iter(self.layouts.values()))

    def values(self) -> dict[str, Tensor]:
        """Positive values for each tensor of the first layout, no two tensors alike, exact in bfloat16."""
        return {name: _values(name, one.shape) for name, one in self.first.items()}

    def built(self, layout: str, values: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        """The tensors of a layout that hold these values; exact: in the values' own types."""
        return {name: _built(one, values, exact) for name, one in self.layouts[layout].items()}


def family(name: str, inner: int = INNER) -> Family:
    """A family by its table."""
    told = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return family_of_table(name, resized(told, inner))


def family_of_table(name: str, told: Mapping[str, Any]) -> Family:
    """A family by what its table says."""
    (first, whole), *others = told["layouts"].items()
    known = {key: Stored(*_typed(text), (Part(key),)) for key, text in _expanded(whole)}
    layouts = {first: known} | {key: _other(known, one) for key, one in others}
    return Family(name, told["config"], layouts)


def resized(told: Any, inner: int) -> Any:
    """The same table where experts have another inner size: no other size equals it or its double."""
    sizes = {INNER: inner, 2 * INNER: 2 * inner}
    text = json.dumps(told, separators=(",", ": "))
    text = re.sub(r"(?<=[ ,:@])\d+(?=[,:}\" ])", lambda at: str(sizes.get(int(at[0]), int(at[0]))), text)
    return json.loads(text)


def _other(first: Mapping[str, Stored], told: Mapping[str, Any]) -> dict[str, Stored]:
    moves, lacks = told.get("moved", {}), told.get("lacks", ())
    found: dict[str, Stored] = {}
    for name, value in _expanded(
        {key: value for key, value in told.items() if key not in ("moved", "lacks")}
    ):
        found[name] = _holder(name, *value)
    held = {part.name for one in found.values() for part in one.parts}
    for name, one in first.items():
        if name not in held and name not in lacks:
            found[moved(name, moves)] = one
    return dict(sorted(found.items()))


def _holder(name: str, typed: str, *parts: str) -> Stored:
    dtype, shape = _typed(typed)
    found = [part for text in parts or (name,) for part in _parts(name, text, shape)]
    return Stored(dtype, shape, tuple(found))


def _parts(holder: str, text: str, shape: tuple[int, ...]) -> Iterator[Part]:
    name, *options = text.split(" ")
    rows = next((one[1:].split(":") for one in options if one.startswith("@")), None)
    numbers = iter(re.findall(r"(?<=\.)\d+(?=\.|$)", holder))
    name = re.sub(r"\*", lambda _: next(numbers), name)
    for number in range(shape[0]) if "#" in name else (None,):
        yield Part(
            name.replace("#", str(number)),
            number,
            (int(rows[0]), int(rows[1])) if rows else None,
            "T" in options,
        )


def moved(name: str, moves: Mapping[str, str]) -> str:
    """A name with the longest of these prefixes that it has replaced."""
    old = max((old for old in moves if name.startswith(old)), key=len, default="")
    return moves.get(old, "") + name.removeprefix(old)


def _typed(text: str) -> tuple[str, tuple[int, ...]]:
    dtype, _, shape = text.partition(" ")
    return dtype, tuple(map(int, shape.split(","))) if shape else ()


def _expanded(told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each name that a name with choices in braces stands for."""
    for name, value in told.items():
        pieces = [piece.split(",") for piece in re.split(r"[{}]", name)]
        fixed = [[",".join(one)] if place % 2 == 0 else one for place, one in enumerate(pieces)]
        yield from (("".join(words), value) for words in itertools.product(*fixed))


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.rand(*shape, generator=generator) + 0.5).to(torch.bfloat16)


def _built(one: Stored, values: Mapping[str, Tensor], exact: bool) -> Tensor:
    dtype = values[one.parts[0].name].dtype if exact and one.parts else DTYPES[one.dtype]
    stored = torch.zeros(one.shape, dtype=dtype)
    for part in one.parts:
        part.of(stored).copy_(values[part.name])
    return stored


def entries(layout: Mapping[str, Stored]) -> int:
    """Number of entries of a layout."""
    return sum(math.prod(one.shape) for one in layout.values())


def layout_facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `book/families.json` has of a family's table: kinds of model, and how layouts differ."""
    config = told["config"]
    kinds = [config["model_type"], config.get("text_config", {}).get("model_type", "")]
    one = family_of_table("", told)
    (first, _), *others = one.layouts.items()
    layouts = {
        key: _facts(one.first, layout, told["layouts"][key].get("moved", {})) for key, layout in others
    }
    return {"kinds": kinds, "layouts": {first: {}} | layouts}


def _facts(
    first: Mapping[str, Stored], layout: Mapping[str, Stored], moves: Mapping[str, str]
) -> dict[str, Any]:
    whole = {name: one.parts[0] for name, one in layout.items() if one.parts[0].number is None}
    held = [part for one in layout.values() for part in one.parts if part.number is not None]
    facts = {
        "moved": dict(moves),
        "renamed": sum(name != moved(part.name, moves) for name, part in whole.items()),
        "turned": sum(part.turned for part in whole.values()),
        "typed": sum(layout[name].dtype != first[part.name].dtype for name, part in whole.items()),
        "held": len(held),
        "holders": len(layout) - len(whole),
    }
    return {key: value for key, value in facts.items() if value}
