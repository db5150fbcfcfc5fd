"""Notebooks as source: found, read, and what they import and open."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from threegates.digest import PACKAGE, imported_names
from threegates.errors import NotebookError
from threegates.pages.syntax import syntax_tree
from threegates.records.provenance import project_root


def notebook_path(name: str) -> Path:
    """The source of a chapter by its name, or of any notebook by its path.

    Raises
    ------
    NotebookError : there is none; the message lists those there are.
    """
    folder = project_root() / "notebooks"
    for path in (folder / f"{name}.ipynb", Path(name)):
        if path.suffix == ".ipynb" and path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.ipynb"))
    raise NotebookError(
        "there is no such notebook", found=name, expected=", ".join(known) or "notebooks/*.ipynb"
    )


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook's source.

    Raises
    ------
    NotebookError : it is not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookError("a notebook cannot be read", where=path.name, found=str(error)[:200]) from None


def _code(notebook: NotebookNode) -> ast.Module:
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    body: list[ast.stmt] = []
    for source in sources:
        try:
            body += syntax_tree(source).body
        except SyntaxError:
            # Magics are no Python; what they import cannot be seen. A real mistake fails when it runs.
            continue
    return ast.Module(body, [])


def modules(notebook: NotebookNode) -> list[str]:
    """Modules of this package that a notebook imports."""
    names = {
        name for name in imported_names(_code(notebook), "", False) if name.split(".")[0] == PACKAGE.name
    }
    return sorted(name for name in names if _is_module(name))


def _is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def opened_chapters(notebook: NotebookNode) -> list[str]:
    """Chapters whose studies a notebook opens, where they are written out."""
    found = (opened_chapter(node) for node in ast.walk(_code(notebook)))
    return list(dict.fromkeys(chapter for chapter in found if chapter is not None))


def opened_chapter(node: ast.AST) -> str | None:
    """The chapter that a piece of code opens, if it is the call ``Study.open("chapter", …)``."""
    if not (isinstance(node, ast.Call) and node.args and ast.unparse(node.func) == "Study.open"):
        return None
    chapter = node.args[0]
    return str(chapter.value) if isinstance(chapter, ast.Constant) else None
