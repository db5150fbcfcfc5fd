"""A page that stands alone: what Sphinx resolves in the book is written out, so that any viewer shows it.

Numbers in prose, citations, links to chapters and boxes become plain Markdown. What is left out is only how
the book lays them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nbformat import NotebookNode

from threegates.errors import NotebookError

_ROLE = re.compile(r"\{(val|doc|ref|numref|term|cite:p|cite:t)\}`([^`]*)`")
_TARGET = re.compile(r"(.*?)\s*<[^>]*>")
_OPENS = re.compile(r":{3,}\{[a-z]+\}\s*(.*)")
_CLOSES = re.compile(r":{3,}\s*")
_OPTION = re.compile(r":[a-z-]+:.*")


def plain_notebook(notebook: NotebookNode, values: Mapping[str, str], bibliography: Path) -> NotebookNode:
    """The notebook with plain Markdown in its cells and outputs.

    Parameters
    ----------
    values : by key, the values that prose prints, such as `threegates.pages.stated_values.stated_values`.
    bibliography : the book's BibTeX file; without one a citation shows its key.

    Raises
    ------
    NotebookError : a key of prose has no value.
    """
    works = cited(bibliography)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, values, works)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            # Figures come as HTML beside; their Markdown is the book's alone.
            if "text/markdown" in data and "text/html" not in data:
                data["text/markdown"] = plain(data["text/markdown"], values, works)
    return notebook


def plain(text: str, values: Mapping[str, str], works: Mapping[str, tuple[str, str]]) -> str:
    """Some MyST Markdown as plain Markdown; `works` are authors and year by key."""

    def resolved(found: re.Match) -> str:
        role, content = found.groups()
        if role == "val":
            if content not in values:
                raise NotebookError("prose prints a value that nothing states", found=content)
            return values[content]
        if role.startswith("cite"):
            return _citation(content.split(","), works, textual=role == "cite:t")
        named = _TARGET.fullmatch(content)
        return f"*{named[1] if named else content}*"

    return _ROLE.sub(resolved, "\n".join(_unboxed(text)))


def cited(bibliography: Path) -> dict[str, tuple[str, str]]:
    """Authors, as a text names them, and year of every work in a BibTeX file."""
    if not bibliography.is_file():
        return {}
    from pybtex.database import parse_file

    entries = parse_file(str(bibliography)).entries
    return {
        key: (
            _names([" ".join(person.last_names) for person in entry.persons.get("author", [])]),
            entry.fields.get("year", ""),
        )
        for key, entry in entries.items()
    }


def _names(authors: list[str]) -> str:
    if len(authors) > 2 or "others" in authors:
        return f"{authors[0]} et al."
    return " and ".join(authors)


def _citation(keys: list[str], works: Mapping[str, tuple[str, str]], textual: bool) -> str:
    known = [works.get(key.strip(), (key.strip(), "")) for key in keys]
    if textual:
        return ", ".join(f"{names} ({year})" if year else names for names, year in known)
    return "(" + "; ".join(f"{names}, {year}" if year else names for names, year in known) + ")"


def _unboxed(text: str) -> list[str]:
    """Lines with boxes as quotations, their titles in bold."""
    depth, options, lines = 0, False, []
    for line in text.split("\n"):
        opens = _OPENS.fullmatch(line)
        if opens:
            depth, options = depth + 1, True
            lines += ["> " * depth + f"**{opens[1]}**", "> " * depth]
        elif depth and _CLOSES.fullmatch(line):
            depth -= 1
            lines.append("> " * depth)
        elif not (options and _OPTION.fullmatch(line)):
            options = False
            lines.append("> " * depth + line)
    return lines
