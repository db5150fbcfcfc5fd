"""Digests of code by what it reaches: the definitions that some roots name, those that these name, and so on.

A root is the dotted name of a definition, or of a module, which stands for all its definitions. A definition
(`threegates.canonical`) refers to others by name: resolved as Python's scopes do it, through aliases,
sub-modules and re-exports, to the place where it is defined. Its *colour* is the sha256 of its form with the
colour of each definition in the place of its name. So names of modules and of definitions, files, the style
of imports, order, comments and docstrings do not count, nor does a neighbour that nothing reached refers to.
A changed constant, operator, default, decorator or call counts wherever it is reached.

Definitions that refer to each other in a circle are coloured together: as many rounds as there are members,
in each of which a member's colour is taken anew from those of the last round.

Effects, the top-level statements that are neither definitions nor imports, count for every module in which
something reached is defined, and for its parent packages.

What is not followed: names below one of the prefixes in `outside`, but for those below a longer one in
`inside`; the package's module `errors` always is outside, because what an error says computes no number. A
reference there counts by its last name alone.

What this cannot see, so that roots have to name it: what is looked up by a string (`getattr`, a registry that
decorators or other modules fill); classes of values that no reached annotation or call names, such as
subclasses of an annotated class; a module-level value that code changes which is not reached; effects of a
module that is imported for nothing else; the order in which modules are imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from threegates.canonical import Module, read_module

PACKAGE = Path(__file__).resolve().parent
_EFFECTS, _WHOLE = "<effects>", "<module>"
_UNCOUNTED = {"__all__"}


class Node(NamedTuple):
    """A definition of a module; the effects of a module; or a module that is used as a value."""

    module: str
    name: str


@dataclass(frozen=True)
class Boundary:
    """Prefixes of names that are not followed, and of those below them that are."""

    outside: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def excludes(self, name: str) -> bool:
        """Whether the longest prefix of a dotted name is one of those that are not followed."""
        found = [(len(prefix), True) for prefix in self.outside if _is_below(name, prefix)]
        found += [(len(prefix), False) for prefix in self.inside if _is_below(name, prefix)]
        return max(found, default=(0, False))[1]


@dataclass(frozen=True)
class Reach:
    """What decides some numbers: the names to start from, and where to stop."""

    roots: tuple[str, ...]
    outside: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


def code_digest(
    *roots: str, root: Path = PACKAGE, outside: Sequence[str] = (), inside: Sequence[str] = ()
) -> str:
    """sha256 of the definitions that the roots reach by name, and of the effects of their modules.

    Parameters
    ----------
    roots : dotted names of modules or of definitions, such as ``"threegates.measures.changes.PairTensors"``.
    root : folder of the package.
    outside : prefixes of dotted names that are not followed; inside : longer ones that are.

    Raises
    ------
    ModuleNotFoundError : a root is neither a module nor a definition of the package.
    """
    return closure(*roots, root=root, outside=outside, inside=inside).digest


def reached(
    *roots: str, root: Path = PACKAGE, outside: Sequence[str] = (), inside: Sequence[str] = ()
) -> Mapping[str, Path]:
    """Files of all definitions that the roots reach, by dotted name; arguments as `code_digest` has them."""
    return closure(*roots, root=root, outside=outside, inside=inside).files()


def closure(
    *roots: str, root: Path = PACKAGE, outside: Sequence[str] = (), inside: Sequence[str] = ()
) -> Closure:
    """The same with all that is known of it, found once as long as no file of the package changes."""
    boundary = Boundary((f"{root.name}.errors", *outside), tuple(inside))
    return _closure(root, roots, boundary, _state(root))


@lru_cache(maxsize=256)
def _closure(root: Path, roots: tuple[str, ...], boundary: Boundary, state: object) -> Closure:
    return Closure(_tree(root, state), roots, boundary)


@lru_cache(maxsize=8)
def _tree(root: Path, state: object) -> Tree:
    return Tree(root)


def _state(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, time and size of every file of Python code below a folder."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                stat = os.stat(path)
                found.append((path, stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))


class Tree:
    """The modules of a package's folder, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """A module of the package; None for any other name."""
        if name not in self._modules:
            path = self.path(name)
            self._modules[name] = None if path is None else read_module(path, name)
        return self._modules[name]

    def path(self, name: str) -> Path | None:
        """The file of a module."""
        package, *rest = name.split(".")
        if package != self.root.name:
            return None
        place = self.root.joinpath(*rest)
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
        file = place.with_name(place.name + ".py")
        return file if rest and file.is_file() else None

    def defined(self, name: str) -> list[Node]:
        """The definitions that a root stands for.

        Raises
        ------
        ModuleNotFoundError : there is neither a module nor a definition of that name.
        """
        if (module := self.module(name)) is not None:
            return _all_of(name, module)
        place, _, own = name.rpartition(".")
        module = self.module(place)
        if module is not None and own in module.definitions:
            return [Node(place, own)]
        if module is not None and own in module.imports:
            origin = module.imports[own]
            return self.defined(".".join([origin.module, *origin.chain]))
        message = f"no module or definition {name!r} in the package {self.root.name!r}"
        raise ModuleNotFoundError(message, name=name)


def _all_of(name: str, module: Module) -> list[Node]:
    return [Node(name, one) for one in sorted(module.definitions) if one not in _UNCOUNTED]


_Resolved = tuple[str | Node, ...]


class Closure:
    """What some roots reach in a tree, within a boundary."""

    def __init__(self, tree: Tree, roots: Iterable[str], boundary: Boundary) -> None:
        self.tree, self.boundary = tree, boundary
        self.roots = [tree.defined(name) for name in roots]
        self.forms: dict[Node, _Resolved] = {}
        waiting = [node for nodes in self.roots for node in nodes]
        for name in roots:
            waiting += self._effects(name) if tree.module(name) else []
        while waiting:
            node = waiting.pop()
            if node not in self.forms:
                self.forms[node] = self._form(node)
                waiting += [one for one in self.forms[node] if isinstance(one, Node)]
                waiting += self._effects(node.module)

    @cached_property
    def digest(self) -> str:
        """sha256 over the roots' colours and those of all effects."""
        roots = sorted({self.colours[node] for nodes in self.roots for node in nodes})
        return _sha256("\n".join([*roots, _EFFECTS, *sorted(self.effects())]))

    @cached_property
    def colours(self) -> dict[Node, str]:
        """The colour of everything reached."""
        colours: dict[Node, str] = {}
        for members in components(self.forms):
            colours |= _coloured(members, self.forms, colours)
        return colours

    def effects(self) -> dict[str, Node]:
        """Modules' effects by colour."""
        return {self.colours[node]: node for node in self.forms if node.name == _EFFECTS}

    def files(self) -> dict[str, Path]:
        """Files of everything reached, by dotted name."""
        return {self.name(node): self.place(node) for node in sorted(self.forms)}

    def name(self, node: Node) -> str:
        """The dotted name of something reached."""
        return f"{node.module}.{node.name}"

    def place(self, node: Node) -> Path:
        """The file of something reached."""
        path = self.tree.path(node.module)
        assert path is not None
        return path

    def _effects(self, module: str) -> Iterator[Node]:
        while module:
            facts = self.tree.module(module)
            if facts is not None and facts.effects:
                yield Node(module, _EFFECTS)
            module = module.rpartition(".")[0]

    def _form(self, node: Node) -> _Resolved:
        module = self.tree.module(node.module)
        assert module is not None
        if node.name == _WHOLE:
            return tuple(part for one in _all_of(*node[:1], module) for part in (one.name, one))
        form = module.effects_form() if node.name == _EFFECTS else module.form(node.name)
        parts: list[str | Node] = []
        for part in form:
            parts += [part] if isinstance(part, str) else self.resolved(part.module, part.chain)
        return tuple(parts)

    def resolved(self, module: str, chain: Sequence[str], seen: frozenset[Node] = frozenset()) -> _Resolved:
        """What a name of a module stands for: a definition with attributes, or a text where there is none."""
        facts = self.tree.module(module)
        head, rest = (chain[0], chain[1:]) if chain else ("", ())
        # What a name outside imports may lie inside, so the origin decides.
        if facts is not None and head in facts.imports and (here := Node(module, head)) not in seen:
            origin = facts.imports[head]
            return self.resolved(origin.module, (*origin.chain, *rest), seen | {here})
        if self.boundary.excludes(".".join([module, *chain])):
            return (self._outside(module, chain),)
        if facts is None:
            return (f"<ext:{'.'.join([module, *chain])}>",)
        if not chain:
            return (Node(module, _WHOLE),)
        if head in facts.definitions:
            return (Node(module, head), _attributes(rest))
        if self.tree.module(f"{module}.{head}") is not None:
            return self.resolved(f"{module}.{head}", rest, seen)
        return self._starred(facts, chain, seen) or (Node(module, _WHOLE), _attributes(chain))

    def _starred(self, facts: Module, chain: Sequence[str], seen: frozenset[Node]) -> _Resolved:
        """The same of a name that `import *` may bring."""
        here = Node(facts.name, "*")
        for place in facts.stars if here not in seen else ():
            module = self.tree.module(place)
            if module is None or module.knows(chain[0]):
                return self.resolved(place, chain, seen | {here})
        return ()

    def _outside(self, module: str, chain: Sequence[str]) -> str:
        """The mark of what is not followed: its name without its place, and the attributes taken of it."""
        while chain and self.tree.module(f"{module}.{chain[0]}") is not None:
            module, chain = f"{module}.{chain[0]}", chain[1:]
        name, rest = (chain[0], chain[1:]) if chain else (module.rpartition(".")[2], ())
        return f"<outside:{name}>{_attributes(rest)}"


def _attributes(names: Iterable[str]) -> str:
    return "".join("." + name for name in names)


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _coloured(
    members: Sequence[Node], forms: Mapping[Node, _Resolved], known: Mapping[Node, str]
) -> dict[Node, str]:
    """Colours of definitions that refer to each other in a circle, or of a single one."""
    own = dict.fromkeys(members, "circle")
    circular = len(members) > 1 or members[0] in forms[members[0]]
    for _ in range(len(members) + circular):
        own = {node: _colour(node, forms[node], own, known) for node in members}
    return own


def _colour(node: Node, form: _Resolved, own: Mapping[Node, str], known: Mapping[Node, str]) -> str:
    parts = [f"<#{own.get(part) or known[part]}>" if isinstance(part, Node) else part for part in form]
    return _sha256(f"{node.name if node.name == _WHOLE else ''}{''.join(parts)}")


def components(forms: Mapping[Node, _Resolved]) -> Iterator[list[Node]]:
    """Strongly connected components, each after all that it refers to (Tarjan 1972, without recursion)."""
    order: dict[Node, int] = {}
    low: dict[Node, int] = {}
    stack: list[Node] = []
    waiting: set[Node] = set()
    for start in forms:
        calls = [] if start in order else [(start, _entered(start, forms, order, low, stack, waiting))]
        while calls:
            node, others = calls[-1]
            for other in others:
                if other not in order:
                    calls.append((other, _entered(other, forms, order, low, stack, waiting)))
                    break
                if other in waiting:
                    low[node] = min(low[node], order[other])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[node])
                if low[node] == order[node]:
                    yield _left(node, stack, waiting)


def _entered(
    node: Node,
    forms: Mapping[Node, _Resolved],
    order: dict[Node, int],
    low: dict[Node, int],
    stack: list[Node],
    waiting: set[Node],
) -> Iterator[Node]:
    order[node] = low[node] = len(order)
    stack.append(node)
    waiting.add(node)
    return iter([one for one in forms[node] if isinstance(one, Node)])


def _left(node: Node, stack: list[Node], waiting: set[Node]) -> list[Node]:
    place = stack.index(node)
    members = stack[place:]
    del stack[place:]
    waiting -= {*members}
    return members


def differences(old: Closure, new: Closure) -> list[tuple[str, str]]:
    """Definitions that make two closures differ, as "file:name" in the one and in the other.

    Both are walked from their roots, in the order in which these were given. Where two definitions say the
    same and differ only by what they refer to, the cause is further down. An empty text stands for nothing
    on that side.
    """
    found: list[tuple[str, str]] = []
    pairs = [pair for one, other in zip(old.roots, new.roots, strict=True) for pair in _paired(one, other)]
    fewer, more = old.effects(), new.effects()
    for colour in sorted(fewer.keys() ^ more.keys()):
        pairs.append((fewer.get(colour), more.get(colour)))
    seen: set[tuple[Node | None, Node | None]] = set()
    while pairs:
        here, there = pair = pairs.pop(0)
        if pair in seen or (here and there and old.colours[here] == new.colours[there]):
            continue
        seen.add(pair)
        if here and there and _said(old.forms[here]) == _said(new.forms[there]):
            pairs += zip(_nodes(old.forms[here]), _nodes(new.forms[there]), strict=True)
        else:
            found.append((_told(old, here), _told(new, there)))
    return found or _whole_roots(old, new)


def _whole_roots(old: Closure, new: Closure) -> list[tuple[str, str]]:
    """Where no single definition differs, circles are wired otherwise: then the roots are told."""
    if old.digest == new.digest:
        return []
    pairs = [pair for one, other in zip(old.roots, new.roots, strict=True) for pair in _paired(one, other)]
    return [(_told(old, here), _told(new, there)) for here, there in pairs]


def _paired(one: Sequence[Node], other: Sequence[Node]) -> Iterator[tuple[Node | None, Node | None]]:
    if len(one) == len(other) == 1:
        yield one[0], other[0]
        return
    left, right = ({node.name: node for node in nodes} for nodes in (one, other))
    for name in sorted(left.keys() | right.keys()):
        yield left.get(name), right.get(name)


def _said(form: _Resolved) -> list[str]:
    """A form without what it refers to."""
    return ["<#>" if isinstance(part, Node) else part for part in form]


def _nodes(form: _Resolved) -> list[Node]:
    return [part for part in form if isinstance(part, Node)]


def _told(closure: Closure, node: Node | None) -> str:
    if node is None:
        return ""
    return f"{closure.place(node).relative_to(closure.tree.root)}:{node.name}"
