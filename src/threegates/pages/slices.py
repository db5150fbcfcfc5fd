"""Which cells of a notebook, which studies and which tables one figure needs.

A backward slice at the granularity of cells: the cell that publishes the figure, and every earlier cell that
binds, or may change, a name which a needed cell uses. What cannot be told is taken in: too many cells cost
time, too few give another figure.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

from threegates.errors import NotebookError
from threegates.pages.notebooks import opened_chapter
from threegates.pages.parameters import TAG
from threegates.pages.syntax import syntax_tree

_BUILTIN = frozenset(dir(builtins))
# Functions that show what they are given and leave it as it is.
_SHOWING = ("publish", "display", "table", "Markdown", "VerdictCards", "print")


@dataclass(frozen=True)
class Slice:
    """What a figure needs: numbers of cells in order, and by a study's chapter the tables that it reads."""

    figure: str
    cells: tuple[int, ...]
    tables: dict[str, tuple[str, ...]]


def figures_of(notebook: NotebookNode) -> dict[str, int]:
    """Names of the figures that a notebook publishes, "chapter/figure", with the number of their cell."""
    found: dict[str, int] = {}
    for number, tree in _code(notebook):
        for call in _calls(tree, "publish"):
            if len(call.args) < 2 or not isinstance(call.args[1], ast.Constant):
                raise NotebookError(
                    "a figure's name is not written out",
                    where=f"cell {number + 1}",
                    found=ast.unparse(call)[:80],
                    remedy='give the name as a string: publish(fig, "chapter/figure", …)',
                )
            found[str(call.args[1].value)] = number
    return found


def slice_of(notebook: NotebookNode, figure: str) -> Slice:
    """The slice of one figure.

    Raises
    ------
    NotebookError : the notebook publishes no figure of that name.
    """
    known = figures_of(notebook)
    if figure not in known:
        raise NotebookError(
            "the notebook has no such figure", found=figure, expected=", ".join(sorted(known)) or "none"
        )
    cells = _needed(notebook, known[figure])
    trees = [tree for number, tree in _code(notebook) if number in cells]
    return Slice(figure, tuple(sorted(cells)), _tables(trees))


def _needed(notebook: NotebookNode, last: int) -> set[int]:
    """Numbers of the cells that the cell `last` depends on, itself and the parameters among them."""
    code = dict(_code(notebook))
    tagged = [n for n, cell in enumerate(notebook.cells) if TAG in cell.metadata.get("tags", [])]
    needed, wanted = {last, *tagged}, _used(code[last])
    for number in sorted((n for n in code if n < last), reverse=True):
        if number in needed or _bound(code[number]) & wanted:
            needed.add(number)
            wanted |= _used(code[number])
    return needed


def _code(notebook: NotebookNode) -> Iterator[tuple[int, ast.Module]]:
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            yield number, syntax_tree(cell.source)


def _calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
            yield node


def _used(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names - _BUILTIN


def _bound(tree: ast.AST) -> set[str]:
    """Names that a cell binds or may change: assigned, imported, defined, or the root of a target."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found |= _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found |= _changed(node.value)
    return found


def _changed(call: ast.Call) -> set[str]:
    """Names that a call may change whose value nobody takes: its object, or what it is given."""
    if isinstance(call.func, ast.Attribute):
        return _root(call.func)
    if ast.unparse(call.func) in _SHOWING:
        return set()
    return {name for argument in call.args for name in _root(argument)}


def _root(node: ast.AST) -> set[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _tables(trees: list[ast.Module]) -> dict[str, tuple[str, ...]]:
    """Tables that are asked of each opened study, by chapter."""
    studies: dict[str, str] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and (chapter := opened_chapter(node.value)):
                studies |= {name.id: chapter for name in node.targets[:1] if isinstance(name, ast.Name)}
    tables: dict[str, list[str]] = {chapter: [] for chapter in studies.values()}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                asked = studies.get(ast.unparse(node.func.value))
                if node.func.attr == "table" and asked and isinstance(node.args[0], ast.Constant):
                    tables[asked].append(str(node.args[0].value))
    return {chapter: tuple(sorted(set(names))) for chapter, names in tables.items()}
