"""Notebooks are prose, parameters, calls and figures; each figure speaks to those who cannot see it."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from tests.planted.pages import NOTEBOOKS, ROOT, calls, keyword

ALL = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# None judges a claim of its own: one describes the lab, one computes what is printed, one looks at others,
# one is a tutorial.
WITHOUT_CLAIMS = {"miniature-lab", "errata", "sensitivity", "your-own-model"}
# Looks at no checkpoint of the study; its claims await what nobody has measured yet.
AWAITING = {"agents-rlhf"}
CHAPTERS = pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in WITHOUT_CLAIMS], ids=lambda path: path.stem
)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def prose(path):
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


@ALL
def test_a_notebook_is_valid_and_opens_with_a_title(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(r"# \S", notebook.cells[0].source)
    assert len(re.findall(r"^# ", prose(path), re.MULTILINE)) == 1


@ALL
def test_one_cell_has_the_parameters_each_with_type_and_meaning(path):
    tagged = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str|bool|list|dict) = .+  # \S.+", line), line


@ALL
def test_a_notebook_defines_no_functions_or_classes(path):
    for cell in cells(path, "code"):
        kinds = [type(node) for node in ast.walk(ast.parse(cell.source))]
        assert not {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda} & set(kinds)


@ALL
def test_figures_reach_the_page_by_publish_alone_and_have_alt_text(path):
    names = []
    for cell in cells(path, "code"):
        assert "plt." not in cell.source and "savefig" not in cell.source
        for call in calls(cell.source, "publish"):
            names.append(ast.literal_eval(call.args[1]))
            assert len(keyword(call, "alt")) > 40
            assert len(keyword(call, "caption")) > 20
            assert keyword(call, "alt") != keyword(call, "caption")
    assert names, "a chapter without figures"
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{path.stem}/") for name in names)


@CHAPTERS
def test_a_chapter_says_what_the_paper_says_defines_names_its_nulls_and_limits_and_ends_in_a_verdict(path):
    text = prose(path)
    assert "{cite:" in text
    assert "**Definitions.**" in text
    assert "null" in text.lower()
    for heading in ("## Verdict", "## Limits"):
        assert heading in text
    card = "VerdictCards(" if path.stem in AWAITING else "VerdictCards(study.verdicts())"
    assert any(card in c.source for c in cells(path, "code"))
    assert any("**What is seen.**" in c.source for c in cells(path, "code"))


@ALL
def test_a_chapter_has_an_exercise_with_a_folded_solution(path):
    text = prose(path)
    assert (
        text.count("{admonition} Exercise")
        == len(re.findall(r"\{admonition\} Solution\n:class: dropdown", text))
        >= 1
    )


@ALL
def test_no_result_is_typed_where_a_number_should_be_computed(path):
    for cell in cells(path, "code"):
        for call in calls(cell.source, "Markdown"):
            typed = [
                n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            assert not [t for t in typed if re.search(r"\d\.\d", t)]


def test_every_citation_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "refs.bib").read_text("utf-8"), re.MULTILINE))
    texts = [prose(path) for path in NOTEBOOKS] + [p.read_text("utf-8") for p in (ROOT / "book").glob("*.md")]
    cited = {
        key.strip()
        for text in texts
        for keys in re.findall(r"\{cite:\w+\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    assert cited
    assert cited <= known
