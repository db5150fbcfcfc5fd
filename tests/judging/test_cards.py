"""Cards of verdicts: every word that a reader needs is text, and nothing of a claim becomes markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from threegates.judging.cards import VerdictCards, verdict_summary
from threegates.judging.verdicts import Judgement

CLAIM: dict[str, Any] = {
    "claim": "masks-are-striped", "chapter": "stripe-masks", "made_by": "paper", "nature": "effect",
    "informed_by_prototype": False, "measure": "Variance over the binomial one.", "changed": "",
    "place": "Fig. 2", "says": "Masks show stripes.", "verdict": "reproduced",
    "reason": "every control passes", "subject": "7 checkpoints", "kind": "rule", "estimate": "stripe_excess",
    "value": 1.8, "low": 1.7, "high": 1.9, "n": 5, "unit": "runs", "missing": "",
    "rule": "whole interval at or above 1.5", "holds": True, "about": "lab", "page": "stripe-masks",
    "title": "Masks are striped", "figure": "stripe-masks/dispersion", "free": "eta",
    "needs": "", "awaits": "", "error": 0.03, "scale": "linear", "at_least": 1.5, "lower": None,
    "upper": None, "neutral": 1.0,
    "contrary": 1 / 1.5, "names": False,
}  # fmt: skip


CONTROL = CLAIM | {
    "kind": "storage", "says": "over storage noise", "estimate": "stripe_excess_storage", "value": -0.25,
    "low": -0.5, "high": 0.0, "rule": "whole interval at or above 1.25", "holds": False, "at_least": 1.25,
}  # fmt: skip


NOTHING = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "holds": None}


class _Text(HTMLParser):
    """Tags and text of a piece of HTML; complains of tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _cards(*rows: dict[str, Any]) -> VerdictCards:
    return VerdictCards(pd.DataFrame(list(rows)))


def _read(*rows: dict[str, Any]) -> _Text:
    return _Text(_cards(*rows).html())


def test_a_card_says_verdict_place_claim_estimate_rule_subject_and_reason():
    page = _read(CLAIM, CONTROL)
    assert page.text.split("\n")[1:] == [
        "Reproduced. Fig. 2: Masks show stripes.",
        "the claim: Variance over the binomial one: 1.8 [1.7, 1.9] over 5 runs; "
        "rule: whole interval at or above 1.5; holds"
        "over storage noise: −0.25 [−0.5, 0] over 5 runs; rule: whole interval at or above 1.25; "
        "does not hold",
        "7 checkpoints. every control passes.",
        "",
    ]
    assert page.tags.count("li") == 2
    assert page.attributes[0] == {"class": "tg-verdict tg-reproduced", "id": "verdict-masks-are-striped"}


@pytest.mark.parametrize("judgement", list(Judgement))
def test_every_verdict_is_a_word_and_not_only_a_colour(judgement):
    page = _read(CLAIM | {"verdict": str(judgement)})
    assert str(judgement).capitalize() + "." in page.text
    colour = re.fullmatch(r"tg-verdict (tg-\w+)", str(page.attributes[0]["class"]))
    assert colour
    expected = {
        "reproduced": "tg-reproduced",
        "holds": "tg-reproduced",
        "not_reproduced": "tg-not",
        "no_effect": "tg-not",
        "contradicted": "tg-not",
        "fails": "tg-not",
    }
    other = "tg-explained" if judgement.name.startswith("by_") else "tg-open"
    assert colour[1] == expected.get(judgement.name, other)


def test_what_is_not_known_is_a_dash_no_interval_and_the_reason_why():
    control = CONTROL | NOTHING | {"missing": "one of the runs gives no interval"}
    page = _read(CLAIM | NOTHING | {"missing": "no runs"}, control)
    assert (
        "binomial one: – no interval; rule: whole interval at or above 1.5; not tested: no runs" in page.text
    )
    assert "over storage noise: – no interval; rule:" in page.text
    assert page.text.count("not tested: one of the runs gives no interval") == 1
    assert "nan" not in page.text.lower()
    assert "over 0" not in page.text


def test_what_an_estimate_says_of_itself_stands_behind_what_became_of_its_rule():
    page = _read(CLAIM, CONTROL | {"holds": False, "missing": "the grid leaves <b>it</b> open"})
    assert "does not hold (the grid leaves <b>it</b> open)" in page.text and "b" not in page.tags
    assert "not tested" not in page.text


@pytest.mark.parametrize("holds", [np.True_, np.False_, True, False])
def test_whether_a_rule_holds_reads_the_same_from_a_record_as_from_memory(holds):
    page = _read(CLAIM | {"holds": holds})
    assert page.text.count("holds" if holds else "does not hold") == 1
    assert "not tested" not in page.text


@pytest.mark.parametrize("field", ["place", "says", "reason", "subject", "unit", "rule"])
def test_no_text_of_a_claim_becomes_markup(field):
    nasty = '<script>alert("1")</script> & more'
    page = _read(CLAIM | {field: nasty})
    assert "script" not in page.tags
    assert nasty in page.text
    assert page.tags == _read(CLAIM).tags


def test_controls_and_reasons_for_missing_numbers_are_escaped_too():
    page = _read(CLAIM, CONTROL | NOTHING | {"says": "<b>bold</b>", "missing": "<u>why</u>"})
    assert not {"b", "u"} & set(page.tags)
    assert "<b>bold</b>: –" in page.text
    assert "not tested: <u>why</u>" in page.text


def test_an_identifier_cannot_leave_its_attribute():
    page = _read(CLAIM | {"claim": 'x" onclick="run()'})
    assert page.attributes[0] == {"class": "tg-verdict tg-reproduced", "id": 'verdict-x" onclick="run()'}


def test_our_own_controls_and_known_outcomes_say_so():
    plain = _read(CLAIM).text
    assert "Our control." not in plain
    assert "prototype" not in plain
    ours = _read(CLAIM | {"made_by": "us", "informed_by_prototype": True}).text
    assert "Reproduced. Our control. Fig. 2: " in ours
    read = _read(CLAIM | {"made_by": "reading of the paper"}).text
    assert "Reproduced. Our reading of the paper. Fig. 2: " in read
    assert "Its outcome in a prototype was known when the rule was written." in ours


def test_each_claim_has_one_card_in_the_order_of_the_claims():
    second = CLAIM | {"claim": "a-later-one", "verdict": "contradicted"}
    page = _read(CLAIM, CONTROL, second, CONTROL | {"claim": "a-later-one"})
    ids = [attributes["id"] for attributes in page.attributes if "id" in attributes]
    assert ids == ["verdict-masks-are-striped", "verdict-a-later-one"]


def test_a_notebook_gets_the_cards_and_plain_text():
    bundle = _cards(CLAIM, CONTROL)._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/html"] == _cards(CLAIM, CONTROL).html()
    assert "masks-are-striped" in bundle["text/plain"]
    assert "reproduced" in bundle["text/plain"]
    assert set(bundle) == {"text/html", "text/plain"}


def test_a_chapter_without_claims_says_so():
    bundle = VerdictCards(pd.DataFrame())._repr_mimebundle_()
    assert bundle == {"text/html": "<p>This chapter judges no claim.</p>", "text/plain": "no claims"}


def test_a_changed_rule_says_why():
    card = VerdictCards(pd.DataFrame([CLAIM | {"changed": "It was <biased>."}])).html()
    assert "The rule was changed: It was &lt;biased&gt;." in card
    assert "rule was changed" not in VerdictCards(pd.DataFrame([CLAIM])).html()


def test_the_summary_sorts_a_pages_claims_by_what_holds():
    second = CLAIM | {"claim": "b", "says": "Rows_stand *out*.", "verdict": "contradicted"}
    third = CLAIM | {"claim": "c", "says": "Columns too.", "verdict": "explained by size"}
    text = verdict_summary(pd.DataFrame([second, CLAIM, CONTROL, third]))
    assert text.split("\n") == [
        "**In short**, on 7 checkpoints:",
        "",
        "- **Hold as trained and in every control** (1 of 3): *Masks show stripes*",
        "- **Hold as trained, but not at equal size** (1 of 3): *Columns too*",
        "- **Contradicted: the contrary effect is as large as the rule asks for** (1 of 3): "
        "*Rows\\_stand \\*out\\**",
    ]


@pytest.mark.parametrize("judgement", list(Judgement))
def test_no_verdict_is_left_out_of_the_summary(judgement):
    assert "Masks show stripes" in verdict_summary(pd.DataFrame([CLAIM | {"verdict": str(judgement)}]))


def test_a_page_without_claims_says_so_in_its_summary():
    assert verdict_summary(pd.DataFrame()) == "This page judges no claim."


def test_a_card_says_in_how_many_cells_its_verdict_stands():
    assert "the same in 58 of 60 cells" in _read(CLAIM | {"cells": 60, "cells_same": 58}).text
    assert "cells" not in _read(CLAIM | {"cells": 0, "cells_same": 0}).text
