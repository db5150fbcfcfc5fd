"""The pages of the book that are executed: a name, a notebook, and the parameters that it is executed with.

`book/_toc.yml` gives their order. A notebook named there is its own page; `book/pages.yaml` lists those that
are a notebook executed once more, so that one source shows two subjects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from threegates.errors import NotebookError

FILE = "pages.yaml"


@dataclass(frozen=True)
class Page:
    """One executed page: its name in the book, the notebook it is made from, and its parameters."""

    name: str
    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)


def book_pages(root: Path) -> list[Page]:
    """The executed pages in the order of the table of contents.

    Raises
    ------
    NotebookError : pages.yaml lists a page without its notebook, or one that the contents do not name.
    """
    known = _listed(root)
    contents = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    if lost := sorted(set(known) - set(files)):
        raise NotebookError(
            "a page is not in the table of contents", where=f"book/{FILE}", found=", ".join(lost)
        )
    own = {name: Page(name, name) for name in files if _source(root, name).is_file()}
    return [page for name in files if (page := known.get(name, own.get(name))) is not None]


def find_page(root: Path, name: str) -> Page | None:
    """The page of that name in pages.yaml; None for any other, a notebook's own page among them."""
    return _listed(root).get(name)


def page_of(root: Path, notebook: str, parameters: Mapping[str, object]) -> Page | None:
    """The page that a notebook with these parameters is; None where the book has no such page."""
    listed = [Page(notebook, notebook), *_listed(root).values()]
    return next((p for p in listed if p.notebook == notebook and dict(p.parameters) == parameters), None)


def _listed(root: Path) -> dict[str, Page]:
    path = root / "book" / FILE
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return {name: _page(root, name, entry) for name, entry in (found or {}).items()}


def _page(root: Path, name: str, entry: object) -> Page:
    if not isinstance(entry, dict) or set(entry) != {"notebook", "parameters"}:
        raise NotebookError(
            "a page is listed in a way that cannot be read",
            where=f"book/{FILE}, {name}",
            expected="{notebook: NAME, parameters: {NAME: VALUE}}",
            found=str(entry),
        )
    if not _source(root, entry["notebook"]).is_file():
        raise NotebookError(
            "a page has no notebook", where=f"book/{FILE}, {name}", found=str(entry["notebook"])
        )
    return Page(name, entry["notebook"], entry["parameters"])


def _source(root: Path, notebook: str) -> Path:
    return root / "notebooks" / f"{notebook}.ipynb"
