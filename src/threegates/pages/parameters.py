"""A notebook's parameters: what its tagged cell declares, and whether given values fit it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from nbformat import NotebookNode

from threegates.errors import NotebookError, refuse_draws
from threegates.pages.syntax import syntax_tree

TAG = "parameters"
_SIMPLE = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "None": type(None),
}


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default  # meaning`` of the cell tagged `parameters`."""

    name: str
    type: str
    default: Any
    meaning: str

    def text(self) -> str:
        """The line as the notebook has it."""
        return f"{self.name}: {self.type} = {self.default!r}" + (
            f"  # {self.meaning}" if self.meaning else ""
        )

    def fits(self, value: object) -> bool:
        """Whether a value is of the declared type; an int passes for a float, a bool for nothing else."""
        return _fits(value, _expression(self.type))

    def parse(self, text: str) -> object:
        """A value typed on the command line; what cannot be read as the type stays text, and does not fit."""
        if self.type == "str" or (text == "" and self.fits("")):
            return text
        if self.type.startswith("list") and not text.startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        if self.type.startswith("float"):
            # YAML takes 1e-3 for text.
            try:
                return float(text)
            except ValueError:
                return text
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def declared(notebook: NotebookNode, name: str) -> dict[str, Parameter]:
    """The parameters that a notebook declares, by name.

    Raises
    ------
    NotebookError : a line of the tagged cell is not ``name: type = literal  # meaning``.
    """
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    source = cells[0].source if cells else ""
    lines = source.splitlines()
    found = [_parameter(node, lines, name) for node in syntax_tree(source).body]
    return {parameter.name: parameter for parameter in found}


def checked(known: Mapping[str, Parameter], given: Mapping[str, object], name: str) -> dict[str, object]:
    """The given values, ints made floats where floats are declared.

    Raises
    ------
    NotebookError : a value for a parameter that does not exist, or of another type.
    NoDrawsError : a number of draws, which no notebook of this study takes.
    """
    if "draws" not in known:
        refuse_draws(given.get("draws"), f"parameter 'draws' of {name}")
    for key, value in given.items():
        if key not in known:
            raise _error(f"{name} has no parameter '{key}'", known, key, "one of its parameters")
        if not known[key].fits(value):
            found = f"{value!r} ({type(value).__name__})"
            raise _error(f"parameter '{key}' of {name} has the wrong type", known, found, known[key].type)
    floats = {key for key in given if known[key].type == "float"}
    return {key: float(value) if key in floats else value for key, value in given.items()}  # type: ignore[arg-type]


def parsed(known: Mapping[str, Parameter], texts: Mapping[str, str], name: str) -> dict[str, object]:
    """Values typed on the command line, read as the declared types and checked."""
    given = {key: known[key].parse(text) if key in known else text for key, text in texts.items()}
    return checked(known, given, name)


def _parameter(node: ast.stmt, lines: list[str], name: str) -> Parameter:
    line = lines[node.lineno - 1]
    target = node.target if isinstance(node, ast.AnnAssign) else None
    if isinstance(node, ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise _malformed(name, line) from None
        meaning = lines[(node.end_lineno or node.lineno) - 1].partition("#")[2].strip()
        return Parameter(target.id, ast.unparse(node.annotation), default, meaning)
    raise _malformed(name, line)


def _expression(text: str) -> ast.expr:
    statement = syntax_tree(text).body[0]
    assert isinstance(statement, ast.Expr)
    return statement.value


def _fits(value: object, kind: ast.expr) -> bool:
    if isinstance(kind, ast.BinOp):
        return _fits(value, kind.left) or _fits(value, kind.right)
    if isinstance(kind, ast.Subscript):
        item = kind.slice
        return isinstance(value, list) and all(_fits(one, item) for one in value)
    expected = _SIMPLE[ast.unparse(kind)]
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, expected) or (expected is float and isinstance(value, int))


def _malformed(name: str, line: str) -> NotebookError:
    return NotebookError(
        f"{name} declares a parameter in a way that cannot be checked",
        found=line.strip(),
        expected="name: type = value  # meaning",
    )


def _error(what: str, known: Mapping[str, Parameter], found: str, expected: str) -> NotebookError:
    listed = "".join(f"\n    {parameter.text()}" for parameter in known.values()) or " none"
    return NotebookError(what, found=found, expected=expected, remedy=f"its parameters are:{listed}")
