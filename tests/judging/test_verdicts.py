"""The table of verdicts is whole, and style sheet, prose and rules know the same ones."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np
import pytest

from tests.planted import planted
from threegates.judging.verdicts import (
    CONTROLS,
    NO_LETTER,
    OPEN,
    VERDICTS,
    Controlled,
    Judgement,
    holding,
)

STYLE = (planted.ROOT / "book" / "_static" / "threegates.css").read_text(encoding="utf-8")
READING = (planted.ROOT / "book" / "reading.md").read_text(encoding="utf-8")


def test_every_judgement_has_one_entry_and_the_order_is_the_other_way_round():
    """Of what says nothing of a claim the table has the untestable first, as the enumeration has it last."""
    assert set(VERDICTS) == set(Judgement) and all(VERDICTS[word].word == word for word in VERDICTS)
    said = [word for word in reversed(Judgement) if word not in OPEN]
    assert list(VERDICTS) == [*said, *OPEN]


@pytest.mark.parametrize("kind", VERDICTS.values(), ids=lambda kind: kind.word)
def test_a_verdict_says_something_for_or_against_or_nothing(kind):
    assert kind.meaning and kind.short and not (kind.negative and kind.open)
    assert (kind.letter == NO_LETTER) == kind.open
    assert re.fullmatch(r"#[0-9A-F]{6}", kind.colour)


def test_colours_marks_and_letters_tell_verdicts_apart():
    said = [kind for kind in VERDICTS.values() if not kind.open]
    for told in ("colour", "marker", "letter", "cell_marker", "short", "meaning"):
        assert len({getattr(kind, told) for kind in said}) == len(said), told
    nothing = {VERDICTS[word].colour for word in OPEN}
    assert not nothing & {kind.colour for kind in said}


def test_the_style_sheet_colours_just_the_looks_of_the_table():
    coloured = re.findall(r"^((?:\.tg-[\w-]+(?:, )?)+) \{ border-color:", STYLE, re.MULTILINE)
    classes = {name.removeprefix(".") for names in coloured for name in names.split(", ")}
    assert classes == {kind.look for kind in VERDICTS.values()}


def test_the_page_on_reading_explains_every_verdict_in_the_tables_order():
    section = READING.split("## A verdict")[1].split("\n## ")[0]
    assert re.findall(r"^(.+)\n: ", section, re.MULTILINE) == list(VERDICTS)


def test_the_precedence_on_that_page_is_that_of_the_judgements():
    told = re.search(r"What comes first in the list of precedence wins: (.*?)\. ", READING)
    assert told
    assert re.findall(r"\*([^*]+)\*", told[1]) == list(Judgement)


def test_every_kind_of_control_turns_a_verdict_of_its_own_that_says_so():
    assert set(CONTROLS) == set(get_args(Controlled))
    turned = [control.verdict for control in CONTROLS.values()]
    assert len(set(turned)) == len(turned)
    assert turned == [f"explained by {name}" for name in CONTROLS]
    # Which of two failed controls decides is the precedence of their verdicts.
    assert turned == sorted(turned, key=list(Judgement).index)


@pytest.mark.parametrize("none", [None, math.nan])
def test_whether_a_rule_holds_is_said_in_one_way(none):
    assert {holding(one) for one in (True, np.True_)} == {"holds"}
    assert {holding(one) for one in (False, np.False_)} == {"does not hold"}
    assert holding(True, "one seed only") == "holds"
    assert holding(none) == "not tested" and holding(none, "one seed") == "not tested: one seed"
