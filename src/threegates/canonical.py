"""The canonical form of a definition: what its statements say, apart from words, layout, names and places.

A *definition* is a top-level name of a module with all the top-level statements that bind it, in order. Its
form is a sequence of texts and of references. A text is the same under every Python from 3.11 on: fields are
named and sorted, empty ones are left out, and positions, contexts and docstrings are no part of it. A
reference is a name of a module with the attributes taken of it; `threegates.definitions` finds what it stands
for.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINED = (*_FUNCTIONS, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_IMPORTS = (ast.Import, ast.ImportFrom)
_ASSIGNED = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    *([ast.TypeAlias] if hasattr(ast, "TypeAlias") else []),
)
_TRIED = (ast.Try, ast.TryStar)
# Of no meaning to what is computed, or only of some versions of Python.
_IGNORED = {"ctx", "kind", "type_comment", "type_ignores"}
_OWN, _NEIGHBOUR = "@own", "@neighbour"


@dataclass(frozen=True)
class Reference:
    """A name of a module with the attributes taken of it; without any, the module itself."""

    module: str
    chain: tuple[str, ...] = ()


Form = tuple[str | Reference, ...]


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a syntax tree imports, attributes included; the caller picks the modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@dataclass
class _Names:
    """What a scope binds: by statements, by imports, and what it leaves to the module."""

    names: set[str] = field(default_factory=set)
    imported: dict[str, set[Reference]] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    is_class: bool = False

    def aliases(self) -> dict[str, Reference]:
        """Names that imports bind, to one thing each, and nothing else does."""
        single = {name: found for name, found in self.imported.items() if len(found) == 1}
        return {name: next(iter(found)) for name, found in single.items() if name not in self.names}

    def bound(self) -> set[str]:
        """Names that are this scope's own."""
        return (self.names | {*self.imported}) - self.globals - self.elsewhere


class Module:
    """A parsed module: its definitions, imports and effects.

    Attributes
    ----------
    definitions : the statements that bind each top-level name.
    imports : what the other top-level names stand for.
    effects : top-level statements that do something beside binding a name.
    stars : modules all of whose names are imported.
    """

    def __init__(self, name: str, tree: ast.Module, is_package: bool) -> None:
        self.name, self.is_package = name, is_package
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.effects: list[ast.stmt] = []
        self.stars: list[str] = []
        self._forms: dict[str, Form] = {}
        imported: dict[str, list[tuple[ast.stmt, Reference]]] = {}
        for statement in _flat(tree.body):
            self._sort(statement, imported)
        self.imports = self._aliases(imported)

    def _sort(self, statement: ast.stmt, imported: dict[str, list[tuple[ast.stmt, Reference]]]) -> None:
        found = self.names([statement])
        if isinstance(statement, _IMPORTS):
            for name, references in found.imported.items():
                imported.setdefault(name, []).extend((statement, one) for one in references)
            self.stars += self._starred(statement)
            return
        for name in found.bound():
            self.definitions.setdefault(name, []).append(statement)
        if not isinstance(statement, (*_DEFINED, *_ASSIGNED)) or _stores_elsewhere(statement):
            self.effects.append(statement)

    def _aliases(self, imported: dict[str, list[tuple[ast.stmt, Reference]]]) -> dict[str, Reference]:
        aliases = {}
        for name, found in imported.items():
            statements = [statement for statement, _ in found]
            if name in self.definitions or len({one for _, one in found}) > 1:
                whole = [*self.definitions.get(name, ()), *statements]
                self.definitions[name] = sorted(whole, key=lambda one: (one.lineno, one.col_offset))
            else:
                aliases[name] = found[0][1]
        return aliases

    def _starred(self, statement: ast.stmt) -> list[str]:
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            return [_absolute(statement, self.name, self.is_package)]
        return []

    def names(self, nodes: Iterable[ast.AST], *, is_class: bool = False) -> _Names:
        """What some nodes bind in the scope that they stand in."""
        found = _Names(is_class=is_class)
        for node in nodes:
            self._visit(node, found, False)
        return found

    def _visit(self, node: ast.AST, found: _Names, inner: bool) -> None:
        """Add what a node binds; of the inside of a comprehension only what `:=` binds."""
        inside = inner or isinstance(node, _COMPREHENSIONS)
        if isinstance(node, _IMPORTS):
            for name, reference in self.import_references(node):
                found.imported.setdefault(name, set()).add(reference)
        elif isinstance(node, ast.NamedExpr):
            found.names.add(node.target.id)
        elif isinstance(node, ast.Global):
            found.globals |= {*node.names}
        elif isinstance(node, ast.Nonlocal):
            found.elsewhere |= {*node.names}
        elif not inner:
            found.names |= _stored(node)
        for child in _outer_children(node):
            self._visit(child, found, inside)

    def import_references(self, node: ast.AST) -> Iterator[tuple[str, Reference]]:
        """The names that an import statement binds, each with what it stands for."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, Reference(whole)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            base = _absolute(node, self.name, self.is_package)
            for alias in node.names:
                if alias.name != "*":
                    yield alias.asname or alias.name, Reference(base, (alias.name,))

    def knows(self, name: str) -> bool:
        """Whether a name that no function binds is the module's own."""
        known = name in self.definitions or name in self.imports
        return known or (bool(self.stars) and not hasattr(builtins, name))

    def form(self, name: str) -> Form:
        """The canonical form of a definition."""
        if name not in self._forms:
            self._forms[name] = _Writer(self, name).form(self.definitions[name])
        return self._forms[name]

    def effects_form(self) -> Form:
        """The canonical form of all effects, in order."""
        return _Writer(self, None).form(self.effects)


def read_module(path: Path, name: str) -> Module:
    """The module in a file, parsed once as long as the file is the same."""
    stat = path.stat()
    return _read(path, name, stat.st_mtime_ns, stat.st_size)


@cache
def _read(path: Path, name: str, mtime_ns: int, size: int) -> Module:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    return Module(name, tree, path.name == "__init__.py")


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements that count, those under `if TYPE_CHECKING` and its `else` among them."""
    for statement in body:
        if isinstance(statement, ast.If) and _is_typing(statement.test):
            yield from _flat([*statement.body, *statement.orelse])
        elif not _says_nothing(statement) and not _is_main(statement):
            yield statement


def _is_typing(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def _says_nothing(node: object) -> bool:
    """Docstrings, other bare constants, `pass`."""
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant or isinstance(node, (ast.Pass, ast.Global))


def _stores_elsewhere(statement: ast.stmt) -> bool:
    """Whether an assignment changes an item or an attribute of something."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    nodes = [node for target in targets if target is not None for node in ast.walk(target)]
    return any(isinstance(getattr(node, "ctx", None), ast.Store) for node in nodes if _is_part(node))


def _is_part(node: ast.AST) -> bool:
    return isinstance(node, (ast.Attribute, ast.Subscript))


def _stored(node: ast.AST) -> set[str]:
    """Names that a node itself binds."""
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Load) else {node.id}
    if isinstance(node, (*_DEFINED, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    return {node.rest} if isinstance(node, ast.MatchMapping) and node.rest else set()


def _outer_children(node: ast.AST) -> Iterator[ast.AST]:
    """Children that are evaluated in the scope that a node stands in."""
    closed = isinstance(node, (*_DEFINED, ast.Lambda))
    for name, value in ast.iter_fields(node):
        if not (closed and name in ("body", "type_params")):
            yield from (one for one in _listed(value) if isinstance(one, ast.AST))


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


class _Writer:
    """Writes the form of top-level statements; `own` is the name that they define, None for effects."""

    def __init__(self, module: Module, own: str | None) -> None:
        self.module, self.own = module, own
        self.out: list[str | Reference] = []
        self.scopes: list[_Names] = []
        self.tried = 0

    def form(self, statements: Iterable[ast.stmt]) -> Form:
        for statement in statements:
            self._value(statement)
            self.out.append(";")
        return tuple(_joined(self.out))

    def _value(self, value: object) -> None:
        if isinstance(value, list):
            self.out.append("[")
            for item in value:
                before = len(self.out)
                self._value(item)
                # An import that is left out leaves no gap either.
                self.out += [","] * (len(self.out) > before)
            self.out.append("]")
        elif isinstance(value, ast.AST):
            self._node(value)
        else:
            self.out.append(ascii(value))

    def _node(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self._name(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Constant):
            self.out.append(_constant(node.value))
        elif isinstance(node, _IMPORTS):
            self._import(node)
        elif isinstance(node, (*_DEFINED, ast.Lambda)):
            self._defined(node)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node)
        else:
            self._plain(node)

    def _plain(self, node: ast.AST) -> None:
        tried = isinstance(node, _TRIED)
        self.tried += tried
        self.out.append(type(node).__name__ + "(")
        self._fields(node)
        self.out.append(")")
        self.tried -= tried

    def _fields(self, node: ast.AST, *without: str) -> None:
        for name in sorted({*node._fields} - _IGNORED - {*without}):
            value = _kept(node, name)
            if value is not None and value != []:
                self.out.append(name + "=")
                self._value(value)

    def _name(self, node: ast.Name) -> None:
        if not self.scopes and self.own is not None and not isinstance(node.ctx, ast.Load):
            self.out.append(_OWN if node.id == self.own else _NEIGHBOUR)
        elif (found := self._found(node.id)) is not None:
            self.out.append(found)
        else:
            self.out.append(f"Name({node.id})")
            self._perhaps_outside(node)

    def _perhaps_outside(self, node: ast.Name) -> None:
        """A name that a class binds is the module's until then."""
        inner = self.scopes[-1] if self.scopes else None
        read_in_class = inner is not None and inner.is_class and isinstance(node.ctx, ast.Load)
        if read_in_class and node.id in inner.bound() and self.module.knows(node.id):  # type: ignore[union-attr]
            self.out.append(Reference(self.module.name, (node.id,)))

    def _found(self, name: str) -> Reference | None:
        """What a name refers to, None where a function binds it or nothing does."""
        for scope in reversed(self.scopes):
            if name in scope.globals:
                break
            if name in scope.bound() and not (scope.is_class and scope is not self.scopes[-1]):
                return scope.aliases().get(name)
        return Reference(self.module.name, (name,)) if self.module.knows(name) else None

    def _attribute(self, node: ast.Attribute) -> None:
        chain: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        found = self._found(inner.id) if isinstance(inner, ast.Name) else None
        if found is None:
            self._plain(node)
        else:
            self.out.append(Reference(found.module, (*found.chain, *chain)))

    def _import(self, node: ast.AST) -> None:
        """Imports say nothing of their own, but where one may fail or a name has several meanings."""
        for name, reference in self.module.import_references(node):
            if self._is_told(name):
                self.out += ["import(", self._label(name), "=", reference, ")"]

    def _is_told(self, name: str) -> bool:
        if self.tried:
            return True
        if self.scopes:
            return name not in self.scopes[-1].aliases()
        return self.own in (name, None)

    def _label(self, name: str) -> str:
        if self.scopes or self.own is None:
            return ascii(name)
        return _OWN if name == self.own else _NEIGHBOUR

    def _defined(self, node: ast.AST) -> None:
        """A function, a lambda or a class: its inside is a scope, the rest is evaluated around it."""
        self.out.append(type(node).__name__ + "(")
        if isinstance(node, _DEFINED):
            self.out.append(self._label(node.name))
        parameters = _Names(names={one.name for one in getattr(node, "type_params", ())})
        with self._scope(parameters) if parameters.names else nullcontext():
            self._fields(node, "name", "body")
            with self._scope(self._inside(node)):
                self.out.append("body=")
                self._value(_kept(node, "body"))
        self.out.append(")")

    def _inside(self, node: ast.AST) -> _Names:
        body = _listed(node.body)  # type: ignore[attr-defined]
        found = self.module.names(body, is_class=isinstance(node, ast.ClassDef))  # type: ignore[arg-type]
        if not isinstance(node, ast.ClassDef):
            children = ast.iter_child_nodes(node.args)  # type: ignore[attr-defined]
            found.names |= {one.arg for one in children if isinstance(one, ast.arg)}
        return found

    @contextmanager
    def _scope(self, names: _Names) -> Iterator[None]:
        self.scopes.append(names)
        yield
        self.scopes.pop()

    def _comprehension(self, node: ast.AST) -> None:
        """Its first iterable is evaluated around it, all the rest inside."""
        first, *_ = generators = node.generators  # type: ignore[attr-defined]
        targets = [one.target for one in generators]
        self.out.append(type(node).__name__ + "(")
        self._value(first.iter)
        with self._scope(self.module.names(targets)):
            self._fields(node, "generators")
            for one in generators:
                self.out.append("for(")
                self._fields(one, *["iter"] * (one is first))
                self.out.append(")")
        self.out.append(")")


def _kept(node: ast.AST, name: str) -> object:
    """The value of a field, without statements that say nothing; annotations in quotes are read."""
    value = getattr(node, name, None)
    if name in ("annotation", "returns") and isinstance(value, ast.Constant):
        return _unquoted(value)
    if isinstance(node, ast.JoinedStr) and name == "values":
        return _merged(node.values)
    return [one for one in value if not _says_nothing(one)] if isinstance(value, list) else value


def _unquoted(value: ast.Constant) -> ast.expr:
    if isinstance(value.value, str):
        try:
            return ast.parse(value.value.strip(), mode="eval").body
        except SyntaxError:
            return value
    return value


def _merged(values: Sequence[ast.expr]) -> list[ast.expr]:
    """Parts of an f-string: versions of Python cut its texts at other places."""
    parts: list[ast.expr] = []
    for value in values:
        last = parts[-1] if parts else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            parts[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            parts.append(value)
    return parts


def _constant(value: object) -> str:
    """A constant with its type; in ASCII, as what can be printed differs between versions of Python."""
    return f"{type(value).__name__}:{value!a}"


def _joined(parts: Iterable[str | Reference]) -> Iterator[str | Reference]:
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        else:
            yield "".join(texts)
            yield part
            texts.clear()
    yield "".join(texts)
