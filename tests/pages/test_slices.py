"""What a figure needs of its notebook, by planted notebooks and on all of the project's own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.planted.pages import NOTEBOOKS
from threegates.errors import NotebookError
from threegates.jobs.kinds.known import tables_of
from threegates.pages.slices import figures_of, slice_of
from threegates.register import CHAPTERS

LOGS = {"log", "evaluation"}


def notebook(*cells: str) -> nbformat.NotebookNode:
    first = nbformat.v4.new_code_cell("seed: int = 3", metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), first, *rest])


def test_cells_that_bind_what_is_used_are_taken_and_no_others():
    planted = notebook(
        "import numpy as np\na = 1\nb = 2",
        "c = 5",
        "publish(draw(a), 'demo/one')",
        "publish(draw(c), 'demo/two')",
    )
    assert figures_of(planted) == {"demo/one": 4, "demo/two": 5}
    assert slice_of(planted, "demo/one").cells == (1, 2, 4)
    assert slice_of(planted, "demo/two").cells == (1, 3, 5)


@pytest.mark.parametrize(
    "change",
    [
        "a['x'] = 2",
        "a.b = 2",
        "a += [2]",
        "a.append(2)",
        "change(a)",
        "del a[0]",
        "for a in [[1]]:\n    pass",
    ],
)
def test_whatever_may_change_a_value_is_taken(change):
    planted = notebook("a = [1]", change, "unused = 3", "publish(draw(a), 'demo/one')")
    assert slice_of(planted, "demo/one").cells == (1, 2, 3, 5)


def test_showing_a_value_changes_nothing():
    planted = notebook("a = 1", "display(a)", "publish(draw(a), 'demo/zero')", "publish(draw(a), 'demo/one')")
    assert slice_of(planted, "demo/one").cells == (1, 2, 5)


def test_a_figure_inside_a_condition_and_a_definition_count():
    planted = notebook(
        "def f(x):\n    return x", "ok = True", "if ok:\n    display(publish(f(1), 'demo/one'))"
    )
    assert slice_of(planted, "demo/one").cells == (1, 2, 3, 4)


def test_tables_are_named_by_the_chapter_of_their_study():
    planted = notebook(
        "study = Study.open('emergence', seed=seed)\nother = Study.open('update-sparsity')",
        "rows = study.table('emergence')\nmore = other.table('tensor')",
        "publish(draw(rows), 'demo/one')",
    )
    found = slice_of(planted, "demo/one")
    assert found.tables == {"emergence": ("emergence",), "update-sparsity": ("tensor",)}


def test_a_name_that_is_not_written_out_and_one_that_does_not_exist_are_refused():
    with pytest.raises(NotebookError, match="not written out"):
        figures_of(notebook("publish(draw(1), f'demo/{x}')"))
    with pytest.raises(NotebookError, match="demo/one"):
        slice_of(notebook("publish(draw(1), 'demo/one')"), "demo/two")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_of_the_book_has_a_slice_that_reads_tables_of_its_chapter(path: Path):
    source = nbformat.read(path, as_version=4)
    figures = figures_of(source)
    assert figures and all(name.startswith(f"{path.stem}/") for name in figures)
    for name, cell in figures.items():
        found = slice_of(source, name)
        assert found.cells[-1] == cell and len(found.cells) < len(source.cells)
        for chapter, tables in found.tables.items():
            known = {*tables_of(CHAPTERS[chapter].jobs)} | LOGS
            assert set(tables) <= known and tables
