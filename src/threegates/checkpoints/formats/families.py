"""What a family of models calls its weights, and how it fuses them, from a table: families.yaml.

Canonical names are Llama's: ``model.layers.3.self_attn.q_proj.weight``, ``model.embed_tokens.weight``,
``lm_head.weight``. There is one way for all families: a tensor's name loses what stands in front of it and is
renamed, or the tensor is cut into the rows of the matrices that it holds. Which of these, the table says; how
many rows, the config.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from threegates.checkpoints.formats.headers import BITS, TensorInfo
from threegates.checkpoints.formats.roles import block
from threegates.checkpoints.formats.wrappers import kept, unwrapped
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError

TABLE = Path(__file__).with_name("families.yaml")
# A fused tensor is its weight or its bias; scales of a quantised one are not cut.
SUFFIX = r"(?P<suffix>\.weight|\.bias|)"
#: Stacks whose modules the table knows apart from families.
TOWERS = ("vision", "audio")
_IN_BLOCK = re.compile(r"(?P<front>.*?\.\d+\.)(?P<module>.+?)(?P<suffix>\.weight|\.bias)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fused(_Strict):
    """Modules whose rows one stored module holds, in that order, each with a product of sizes."""

    into: dict[str, str]
    columns: str
    over: str | None = None


class Entry(_Strict):
    """A family of the table."""

    model_types: tuple[str, ...]
    gate_first: bool = False
    rename: dict[str, str] = {}
    fused: dict[str, Fused] = {}


class Towers(_Strict):
    """What the blocks of towers for images and sound call their modules, in all families."""

    rename: dict[str, str]
    thirds: dict[str, tuple[str, str, str]]


class Table(_Strict):
    """families.yaml; what the keys mean stands there."""

    wrappers: tuple[str, ...]
    prefixes: tuple[str, ...]
    body: tuple[str, ...]
    head: tuple[str, ...]
    decoder: tuple[str, ...]
    sizes: dict[str, tuple[str, ...]]
    towers: Towers
    families: dict[str, Entry]


@dataclass(frozen=True)
class Family:
    """The family of a checkpoint; `note` says in a sentence what was made of its names."""

    name: str
    model_type: str
    known: bool
    note: str


@dataclass(frozen=True)
class Part:
    """Where a canonical tensor is stored: a whole tensor, or `rows` of it with all leading axes made one."""

    stored: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Naming:
    """Canonical names, the parts they stand for, and what headers would say of them."""

    parts: dict[str, Part]
    infos: dict[str, TensorInfo]

    @property
    def changes(self) -> bool:
        """Whether any tensor is renamed or cut."""
        return any(Part(name) != part for name, part in self.parts.items())


@cache
def table() -> Table:
    """The table of families that is installed with the package."""
    return Table.model_validate(yaml.safe_load(TABLE.read_text(encoding="utf-8")))


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint by its config, and what was made of its names; views are looked through.

    Raises
    ------
    CheckpointError : as in `naming`.
    """
    while isinstance(inner := getattr(checkpoint, "inner", None), Checkpoint):
        checkpoint = inner
    kind, name = _kind(checkpoint.config)
    found = naming(checkpoint)
    if name is None:
        told = f"model_type '{kind}'" if kind else "a config without model_type"
        note = (
            f"{told} is in no family known here: tensors are taken by the names they are stored under, roles "
            "are guessed from these, only 2-D tensors are matrices, and fused matrices stay fused"
        )
        told = _without_wrappers(found) + _of_towers(found) + _with_wrappers(found)
        return Family("unknown", kind, False, note + told)
    return Family(name, kind, True, _note(name, found) + _with_wrappers(found))


def known_family(config: Mapping[str, Any]) -> str | None:
    """The family of a config in the table; None for one that the table lacks."""
    return _kind(config)[1]


def naming(checkpoint: Checkpoint, family: str | None = None) -> Naming:
    """Canonical names of a checkpoint's tensors, sorted; of an unknown family, the names without wrappers.

    family : a family of the table that is taken in place of the one that the config tells.
    A tied head stays an alias, of the embedding under its canonical name.

    Raises
    ------
    CheckpointError : two stored tensors have one canonical name, or a fused tensor does not have the shape
        that the config says.
    """
    name = family or known_family(checkpoint.config)
    own = {key: info for key, info in checkpoint.infos.items() if info.alias_of is None}
    rules = _Rules(table(), table().families[name] if name is not None else None, checkpoint)
    parts: dict[str, Part] = {}
    infos: dict[str, TensorInfo] = {}
    for key, bare in unwrapped(own, table().wrappers).items():
        for part, told in rules.parts(replace(own[key], name=bare)):
            if told.name in parts:
                raise _twice(checkpoint, told.name, parts[told.name].stored, key)
            parts[told.name], infos[told.name] = replace(part, stored=key), told
    for alias in checkpoint.infos.values():
        if alias.alias_of is not None and alias.name not in parts:
            _follow(alias, parts, infos)
    return Naming(parts, dict(sorted(infos.items())))


def _follow(alias: TensorInfo, parts: dict[str, Part], infos: dict[str, TensorInfo]) -> None:
    """List an alias under the canonical name of the whole tensor that it stands for."""
    target = next((name for name, part in parts.items() if part == Part(str(alias.alias_of))), None)
    if target is not None:
        parts[alias.name] = Part(alias.name)
        infos[alias.name] = replace(alias, alias_of=target)


def gate_first(config: Mapping[str, Any]) -> bool:
    """Whether a config's family is known to stack gate before up, one below the other, in one tensor."""
    name = known_family(config)
    return name is not None and table().families[name].gate_first


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """Width of a config's text model, if it says."""
    size = _configs(config)[-1].get("hidden_size")
    return size if type(size) is int else None


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Number of tokens of a config's text model, if it says."""
    size = _configs(config)[-1].get("vocab_size")
    return size if type(size) is int else None


def _kind(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """model_type of a config and its family. A config of no family is asked for its text_config's."""
    known = {kind: name for name, entry in table().families.items() for kind in entry.model_types}
    kinds = [str(one.get("model_type") or "") for one in _configs(config)]
    found = next((kind for kind in kinds if kind in known), None)
    return (found, known[found]) if found is not None else (kinds[0], None)


def _configs(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]


@dataclass(frozen=True)
class _Rules:
    """A family's rules for the names of one checkpoint; of an unknown one, those for towers alone."""

    table: Table
    entry: Entry | None
    checkpoint: Checkpoint

    def parts(self, info: TensorInfo) -> Iterator[tuple[Part, TensorInfo]]:
        """What a stored tensor holds: parts, and what a header would say of each under its canonical name."""
        tower = _IN_BLOCK.fullmatch(info.name)
        if tower and (found_in := block(info.name)) is not None and found_in[0] in TOWERS:
            yield from self.of_tower(info, tower)
            return
        if self.entry is None:
            yield Part(info.name), info
            return
        front, rest = self.stripped(info.name, self.entry)
        for pattern, fused in self.entry.fused.items():
            found = re.fullmatch(expression(pattern) + SUFFIX, rest)
            # Where an entry takes less than a byte, a row may start inside a byte: no cut can be made there.
            if found and BITS[info.dtype] >= 8:
                yield from self.cut(info, front, found, fused)
                return
        yield Part(info.name), replace(info, name=front + self.renamed(rest, self.entry))

    def of_tower(self, info: TensorInfo, found: re.Match) -> Iterator[tuple[Part, TensorInfo]]:
        """What a tensor of a tower's block holds: itself, or queries, keys and values in equal shares."""
        module, suffix = found["module"], found["suffix"]
        thirds = self.table.towers.thirds.get(module)
        if thirds is None or info.shape[0] % 3 or BITS[info.dtype] < 8:
            renamed = self.table.towers.rename.get(module, module)
            yield Part(info.name), replace(info, name=found["front"] + renamed + suffix)
            return
        height = info.shape[0] // 3
        for place, name in enumerate(thirds):
            told = replace(info, name=found["front"] + name + suffix, shape=(height, *info.shape[1:]))
            yield cut_rows(told, info, place * height)

    def stripped(self, name: str, entry: Entry) -> tuple[str, str]:
        """The canonical front of a name, such as `model.`, and its rest. Outside the decoder all is rest."""
        fronts = dict.fromkeys(self.table.body, "model.") | dict.fromkeys(self.table.head, "")
        for module, meant in entry.rename.items():
            fronts[module.split(".")[0]] = fronts.get(meant.split(".")[0], "model.")
        for prefix in self.table.prefixes:
            first = name.removeprefix(prefix).split(".")[0]
            if name.startswith(prefix) and (first in fronts or prefix in self.table.decoder):
                return fronts.get(first, "model."), name.removeprefix(prefix)
        return "", name

    def renamed(self, rest: str, entry: Entry) -> str:
        """Canonical name of a module's tensor."""
        for pattern, name in entry.rename.items():
            found = re.fullmatch(expression(pattern) + r"(?P<suffix>\..*)", rest)
            if found:
                return filled(name, found) + found["suffix"]
        return rest

    def cut(
        self, info: TensorInfo, front: str, found: re.Match, fused: Fused
    ) -> Iterator[tuple[Part, TensorInfo]]:
        """The parts of a fused tensor."""
        rows = {name: self.product(size, info) for name, size in fused.into.items()}
        count = self.product(fused.over, info) if fused.over else 1
        tail = () if found["suffix"] == ".bias" else (self.product(fused.columns, info),)
        expected = (*((count,) if fused.over else ()), sum(rows.values()), *tail)
        if info.shape != expected:
            raise self.misfit(info, fused, expected)
        suffix, start = found["suffix"] or ".weight", 0
        for number in range(count):
            for name, height in rows.items():
                canonical = front + filled(name, found).replace("#", str(number)) + suffix
                yield cut_rows(replace(info, name=canonical, shape=(height, *tail)), info, start)
                start += height

    def product(self, text: str, info: TensorInfo) -> int:
        """A product of the table's sizes, such as 'heads * head_dim', by the config."""
        return math.prod(self.size(name.strip(), info) for name in text.split("*"))

    def size(self, name: str, info: TensorInfo) -> int:
        """One of the table's sizes by the config, by the text_config where there is one."""
        config = _configs(self.checkpoint.config)[-1]
        for formula in self.table.sizes[name]:
            values = [config.get(key.strip()) for key in formula.split("/")]
            if all(type(value) is int and value > 0 for value in values):
                return self.quotient(formula, values, info)
        keys = re.findall(r"\w+", " ".join(self.table.sizes[name]))
        raise CheckpointError(
            f"config.json does not say how the fused tensor '{info.name}' is to be cut",
            where=f"{self.checkpoint.folder}, config.json",
            expected=" or ".join(self.table.sizes[name]) + ", a whole number above 0",
            found=", ".join(f"{key}: {config[key]}" for key in keys if key in config) or "none of these",
            remedy="take the config.json that belongs to these weights",
        )

    def quotient(self, formula: str, values: Sequence[Any], info: TensorInfo) -> int:
        """The first value, divided by the others without a rest."""
        first, divisor = values[0], math.prod(values[1:])
        if first % divisor:
            raise CheckpointError(
                f"config.json does not say how the fused tensor '{info.name}' is to be cut",
                where=f"{self.checkpoint.folder}, config.json",
                expected=f"a whole number as {formula}",
                found=f"{first} / {divisor}",
                remedy="take the config.json that belongs to these weights",
            )
        return first // divisor

    def misfit(self, info: TensorInfo, fused: Fused, expected: tuple[int, ...]) -> CheckpointError:
        """The refusal of a fused tensor that the config does not fit."""
        rows = " + ".join(f"{name.rpartition('.')[2]} {size}" for name, size in fused.into.items())
        return CheckpointError(
            f"the fused tensor '{info.name}' does not have the shape that its config says",
            where=f"{info.file}, tensor '{info.name}'",
            expected=f"shape {list(expected)}, rows being {rows}",
            found=f"shape {list(info.shape)}",
            remedy="take the config.json that belongs to these weights; a layout that the family does not "
            "have, such as a transposed one, has to be loaded and saved anew by transformers",
        )


def cut_rows(told: TensorInfo, whole: TensorInfo, start: int) -> tuple[Part, TensorInfo]:
    """Rows of a stored tensor from `start` on, and where their bytes lie."""
    height = told.shape[0]
    size = told.size * BITS[whole.dtype] // 8
    before = whole.offsets[0] + start * (size // height)
    # A checkpoint that was released without its weights has no bytes.
    empty = whole.offsets[0] == whole.offsets[1]
    offsets = whole.offsets if empty else (before, before + size)
    return Part(whole.name, (start, start + height)), replace(told, offsets=offsets)


@cache
def expression(pattern: str) -> str:
    """A regular expression of a module's pattern, in which each `*` is a number."""
    return re.escape(pattern).replace(r"\*", "([0-9]+)")


def filled(name: str, found: re.Match) -> str:
    """A canonical name with the numbers of the stored one."""
    numbers = iter(found.groups())
    return re.sub(r"\*", lambda _: next(numbers), name)


def _twice(checkpoint: Checkpoint, name: str, first: str, second: str) -> CheckpointError:
    return CheckpointError(
        f"two stored tensors mean the same: '{first}' and '{second}'",
        where=checkpoint.folder,
        expected=f"one tensor for '{name}'",
        found=f"'{first}' and '{second}'",
        remedy="save the model anew; a checkpoint with two weights in one place does not say which is used",
    )


def _note(name: str, found: Naming) -> str:
    cut = Counter(part.stored for part in found.parts.values() if part.rows is not None)
    whole = [key for key, part in found.parts.items() if part.rows is None and part.stored != key]
    told = [f"{len(cut)} fused tensors are cut into {cut.total()}"] if cut else []
    told += [f"{len(whole)} tensors are renamed, such as '{found.parts[whole[0]].stored}'"] if whole else []
    return f"{name}: " + ("; ".join(told) or "names as stored")


def _without_wrappers(found: Naming) -> str:
    stored = dict.fromkeys(part.stored for part in found.parts.values())
    bare = [key for key, name in unwrapped(stored, table().wrappers).items() if name != key]
    return f"; {len(bare)} names lose the words of a wrapper, such as '{bare[0]}'" if bare else ""


def _of_towers(found: Naming) -> str:
    bare = unwrapped(dict.fromkeys(part.stored for part in found.parts.values()), table().wrappers)
    names = dict.fromkeys(part.stored for key, part in found.parts.items() if bare[part.stored] != key)
    told = "tensors of a tower's blocks have other names here or are cut, such as"
    return f"; {len(names)} {told} '{next(iter(names))}'" if names else ""


def _with_wrappers(found: Naming) -> str:
    names = kept((part.stored for part in found.parts.values()), table().wrappers)
    told = "keep the words of a wrapper, for other tensors have the names without"
    return f"; {len(names)} names {told}: '{names[0]}'" if names else ""
