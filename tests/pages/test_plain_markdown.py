"""Pages that stand alone: nothing of Sphinx is left in them, and nothing else is changed."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests.planted import planted
from threegates.errors import NotebookError
from threegates.judging.claims import read_claims
from threegates.pages.plain_markdown import cited, plain, plain_notebook
from threegates.pages.stated_values import stated_values

BOOK = planted.ROOT / "book"
WORKS = {"one": ("Hu", "2025"), "two": ("Zhu et al.", "2025")}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It is {val}`a.b`.", "It is 0.25."),
        ("{cite:t}`two` claim", "Zhu et al. (2025) claim"),
        ("so {cite:p}`one,two`", "so (Hu, 2025; Zhu et al., 2025)"),
        ("of {cite:t}`nobody`", "of nobody"),
        ("see {doc}`update-sparsity` and {doc}`this <that>`", "see *update-sparsity* and *this*"),
        ("`{val}` stays, and $x_{val}$ too", "`{val}` stays, and $x_{val}$ too"),
        (
            ":::{admonition} Exercise\n:class: tip\nWhy?\n\nHow?\n:::\nend",
            "> **Exercise**\n> \n> Why?\n> \n> How?\n\nend",
        ),
        (
            "::::{note} A\n:::{note} B\nin\n:::\nout\n::::",
            "> **A**\n> \n> > **B**\n> > \n> > in\n> \n> out\n",
        ),
        (":class: is a word", ":class: is a word"),
    ],
)
def test_what_sphinx_resolves_is_written_out(text, wanted):
    assert plain(text, {"a.b": "0.25"}, WORKS) == wanted


def test_a_value_that_nothing_states_is_refused():
    with pytest.raises(NotebookError, match="nothing states"):
        plain("{val}`a`", {}, {})


def test_authors_are_named_as_a_text_does(tmp_path):
    bibliography = tmp_path / "refs.bib"
    bibliography.write_text(
        "@misc{a, author = {Hu}, year = {2025}}\n@misc{b, author = {Wedin and Li}, year = 1972}\n"
        "@misc{c, author = {Zhu and others}, year = {2025}}\n@misc{d, author = {A and B and C}}\n"
    )
    assert cited(bibliography) == {
        "a": ("Hu", "2025"),
        "b": ("Wedin and Li", "1972"),
        "c": ("Zhu et al.", "2025"),
        "d": ("A et al.", ""),
    }
    assert cited(tmp_path / "none.bib") == {}


@pytest.mark.parametrize(
    "path", sorted((planted.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_nothing_of_sphinx_is_left_in_any_chapter(path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            outputs=[
                nbformat.v4.new_output("display_data", {"text/markdown": "{cite:t}`zhu2025path`"}),
                nbformat.v4.new_output("display_data", {"text/markdown": "{val}`x`", "text/html": "figure"}),
            ]
        )
    )
    values = stated_values(read_claims(planted.ROOT / "claims.yaml"))
    made = plain_notebook(notebook, values, BOOK / "refs.bib")
    *cells, last = made.cells
    told = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not re.search(r"\{[a-z:]+\}`|^:::", told, re.M)
    assert [output.data["text/markdown"] for output in last.outputs] == ["Zhu et al. (2025)", "{val}`x`"]
