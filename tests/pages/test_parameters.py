from __future__ import annotations

import nbformat
import pytest

from threegates.errors import NoDrawsError, NotebookError
from threegates.pages.parameters import checked, declared, parsed

SOURCE = """\
pairs: list[str] = []  # names of tuned checkpoints; none: those of the study
rank: int = 49  # of the leading subspaces
rate: float = 0.5
title: str = "x"
shown: bool = True
base: str | None = None  # own base
sizes: list[int] = [
    1,
    2,
]  # many
"""


def notebook(source=SOURCE, tag="parameters"):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": [tag]})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), cell])


KNOWN = declared(notebook(), "demo")


def test_names_types_defaults_and_meanings_are_read():
    assert list(KNOWN) == ["pairs", "rank", "rate", "title", "shown", "base", "sizes"]
    assert (KNOWN["rank"].type, KNOWN["rank"].default) == ("int", 49)
    assert KNOWN["rank"].meaning == "of the leading subspaces"
    assert KNOWN["sizes"].default == [1, 2] and KNOWN["sizes"].meaning == "many"
    assert declared(notebook(tag="other"), "demo") == {}


@pytest.mark.parametrize("line", ["rank = 3", "x: int = len('a')", "print(1)"])
def test_a_line_that_cannot_be_checked_is_refused(line):
    with pytest.raises(NotebookError, match="cannot be checked"):
        declared(notebook(line), "demo")


def test_an_unknown_parameter_is_refused_with_all_known_ones():
    with pytest.raises(NotebookError) as caught:
        checked(KNOWN, {"drawn": 3}, "demo")
    message = str(caught.value)
    assert "demo has no parameter 'drawn'" in message
    assert all(name in message for name in KNOWN) and "of the leading subspaces" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 3.5),
        ("rank", True),
        ("rank", "3"),
        ("title", 3),
        ("shown", 1),
        ("pairs", "a"),
        ("pairs", [1]),
        ("base", 3),
        ("rate", "0.1"),
        ("rate", False),
        ("sizes", ["1"]),
    ],
)
def test_a_wrong_type_is_refused_with_name_type_and_value(name, value):
    with pytest.raises(NotebookError) as caught:
        checked(KNOWN, {name: value}, "demo")
    message = str(caught.value)
    assert f"parameter '{name}' of demo has the wrong type" in message
    assert f"expected: {KNOWN[name].type}" in message and f"found: {value!r}" in message


def test_a_number_of_draws_is_refused_with_what_to_do():
    for give in (
        lambda: checked(KNOWN, {"draws": 19}, "demo"),
        lambda: parsed(KNOWN, {"draws": "19"}, "demo"),
    ):
        with pytest.raises(
            NoDrawsError, match=r"(?s)laws are computed.*parameter 'draws' of demo.*leave it out"
        ):
            give()


def test_right_values_pass_and_ints_become_floats():
    given = {"rank": 3, "rate": 1, "base": None, "pairs": ["a"]}
    assert checked(KNOWN, given, "demo") == {"rank": 3, "rate": 1.0, "base": None, "pairs": ["a"]}
    assert isinstance(checked(KNOWN, {"rate": 1}, "demo")["rate"], float)


def test_typed_texts_are_read_as_their_types():
    texts = {"rank": "9", "rate": "1e-3", "title": "7", "shown": "false", "pairs": "a,b", "base": "null"}
    expected = {"rank": 9, "rate": 1e-3, "title": "7", "shown": False, "pairs": ["a", "b"], "base": None}
    assert parsed(KNOWN, texts, "demo") == expected
    assert parsed(KNOWN, {"sizes": "[3, 4]"}, "demo") == {"sizes": [3, 4]}


@pytest.mark.parametrize("texts", [{"rank": "many"}, {"rate": "fast"}, {"shown": "1"}, {"sizes": "a,b"}])
def test_typed_texts_of_a_wrong_type_are_refused(texts):
    with pytest.raises(NotebookError, match="wrong type"):
        parsed(KNOWN, texts, "demo")
