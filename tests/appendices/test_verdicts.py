"""The verdicts' page: one row a claim, with a link to where it is measured."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pandas as pd

from tests.judging.test_cards import CLAIM, CONTROL, NOTHING
from threegates.appendices.verdicts import PAGE, verdict_page
from threegates.judging.cards import VerdictCards
from threegates.judging.claims import not_run, read_claims, verdict_table

CLAIMS = read_claims(Path(__file__).resolve().parents[2] / "claims.yaml").claims


def _rows(page: str, look: str = "tg-verdicts") -> list[dict[str, str]]:
    """Cells of a table's body as HTML, by the names of their columns."""
    table = page.split(f'class="tg-table {look}"')[1].split("</table>")[0]
    names = re.findall(r"<th>(.*?)</th>", table)
    body = table.split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [dict(zip(names, row, strict=True)) for row in cells]


def _text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_every_claim_of_the_study_has_one_row_and_a_link_to_its_card():
    table = verdict_table([not_run(claim, "no pairs") for claim in CLAIMS])
    table = table.assign(about="lab", page=table["chapter"])
    page = verdict_page(table)
    rows = [*_rows(page), *_rows(page.split("## Premises, arithmetic, theorems")[1])]
    links = [re.findall(r'<a href="([^"]+)"><strong>(.*?)</strong></a>', row["claim"]) for row in rows]
    # Effects stand first.
    claims = sorted(CLAIMS, key=lambda claim: claim.nature != "effect")
    assert [link for ((link, _),) in links] == [f"{c.chapter}.html#verdict-{c.id}" for c in claims]
    assert [unescape(title) for ((_, title),) in links] == [claim.title for claim in claims]
    anchors = re.findall(r'id="([^"]+)"', VerdictCards(table).html())
    assert sorted(link.split("#")[1] for ((link, _),) in links) == sorted(anchors)
    assert {_text(row["verdict"]) for row in rows} == {"not runno pairs"}
    assert {row["ours"] for row in rows} == {"–"}
    nulls = ["not tested" if claim.controls else "none named" for claim in claims]
    assert [row["decisive null or control"] for row in rows] == nulls


def test_a_row_shows_verdict_estimate_interval_control_place_and_subject():
    second = CONTROL | {"holds": True, "low": 1.3, "value": 1.4, "high": 1.5}
    third = CONTROL | NOTHING
    row = _rows(verdict_page(pd.DataFrame([CLAIM, CONTROL, second, third])))[0]
    shown = {name: _text(cell) for name, cell in row.items()}
    assert shown["claim"] == "Masks are stripedMasks show stripes.Fig. 2 · the miniature lab"
    assert shown["verdict"] == "reproduced" and "tg-reproduced" in row["verdict"]
    assert shown["ours"] == "1.8 [1.7, 1.9]5 runs; rule ≥ 1.5of whatVariance over the binomial one."
    decisive = "beyond storage: −0.25 [−0.5, 0], does not holdover storage noise; 1 of 3 hold"
    assert shown["decisive null or control"] == decisive
    assert 'href="stripe-masks.html#fig-stripe-masks-dispersion"' in row["see"]
    assert 'href="evidence/lab/masks-are-striped.json"' in row["see"]


def test_of_controls_that_hold_the_one_nearest_to_its_tolerance_is_decisive():
    wide = CONTROL | {"holds": True, "low": 3.0, "value": 3.1, "high": 3.2, "says": "far"}
    near = CONTROL | {"holds": True, "low": 1.26, "value": 1.4, "high": 1.5, "says": "near"}
    row = _rows(verdict_page(pd.DataFrame([CLAIM, wide, near])))[0]
    assert "near; 2 of 2 hold" in _text(row["decisive null or control"])


def test_a_control_without_an_interval_is_not_said_to_hold():
    lone = CONTROL | {"holds": None, "low": float("nan"), "high": float("nan")}
    row = _rows(verdict_page(pd.DataFrame([CLAIM, lone])))[0]
    assert "−0.25 no interval, not tested" in _text(row["decisive null or control"])


def test_how_sure_tells_cells_holm_and_for_a_negative_verdict_what_could_be_seen():
    sure = {"cells": 60, "cells_same": 58, "p": 1e-4, "p_holm": 2e-3, "holds_holm": True, "detectable": 1.6}
    held = _rows(verdict_page(pd.DataFrame([CLAIM | sure])))[0]["how sure"]
    assert _text(held) == "58 of 60 cellsrule survives Holm"
    lost = CLAIM | sure | {"verdict": "contradicted", "holds": False, "holds_holm": False}
    told = _text(_rows(verdict_page(pd.DataFrame([lost])))[0]["how sure"])
    assert told == "58 of 60 cellsdetectable at power .8: 1.6"
    assert _rows(verdict_page(pd.DataFrame([CLAIM])))[0]["how sure"] == "–"


def test_what_was_computed_says_so_and_without_controls_none_is_named():
    row = _rows(verdict_page(pd.DataFrame([CLAIM | {"error": 0.0, "low": 1.8, "high": 1.8}])))[0]
    assert _text(row["ours"]) == "1.8computed over 5 runsof whatVariance over the binomial one."
    assert row["decisive null or control"] == "none named"


def test_the_summary_counts_effects_with_numbers_apart_from_open_ones():
    rows = [
        CLAIM,
        CLAIM | {"claim": "b", "verdict": "contradicted"},
        CLAIM | {"claim": "c", "verdict": "not run"},
        CLAIM | {"claim": "d", "made_by": "us"},
        CLAIM | {"claim": "e", "made_by": "reading of the paper", "verdict": "cannot be told"},
    ]
    text = verdict_page(pd.DataFrame(rows)).split("## Every effect")[0]
    assert "5 claims, 5 of them on effects" in text
    assert "4 verdicts on effects rest on numbers, 1 not run." in text
    assert "Of the 2 on claims of the paper: **1** reproduced; **1** contradicted." in text
    assert "Of the 1 on our reading of the paper, which names no such number: **1** cannot be told." in text
    assert "Of the 1 on our own controls and corrections: **1** reproduced." in text
    assert "All rules were fixed before any outcome was known." in text and "Holm" not in text


def test_identities_theorems_and_choices_stand_apart_and_are_not_counted():
    theorem = CLAIM | {"claim": "b", "nature": "theorem", "verdict": "holds", "title": "A theorem"}
    page = verdict_page(pd.DataFrame([CLAIM, theorem]))
    summary, effects, apart = re.split(
        "## Every effect|## Premises, arithmetic, theorems, what holds by choice, and what noise does", page
    )
    assert "2 claims, 1 of them on effects" in summary and "**1** holds" not in summary
    assert "1 verdict on effects rests on numbers" in summary
    assert "A theorem" not in effects and "A theorem" in apart


def test_a_verdict_without_an_interval_is_not_counted_among_those_on_numbers():
    bare = CLAIM | NOTHING | {"claim": "b", "verdict": "cannot be told"}
    premise = CLAIM | {"claim": "c", "nature": "premise", "title": "A premise"}
    page = verdict_page(pd.DataFrame([CLAIM, bare, premise]))
    assert "1 verdict on effects rests on numbers, 1 are judged without an interval" in page
    assert "2 of them on effects" in page and "A premise" in page.split("## Premises, arithmetic")[1]


def test_the_summary_says_how_many_outcomes_were_known_and_how_many_stand_after_holm():
    known = CLAIM | {"claim": "b", "informed_by_prototype": True, "holds_holm": False}
    late = CLAIM | {"claim": "c", "changed": "Seen.", "holds_holm": True}
    ours = CLAIM | {"claim": "d", "made_by": "us", "holds_holm": True}
    page = verdict_page(pd.DataFrame([CLAIM | {"holds_holm": True}, known, late, ours]))
    text = page.split("## Every effect")[0]
    assert "Of 2 of them the outcome was known" in text
    assert "there stand, of the reproduced ones, 2 of 3 (the paper), 1 of 1 (this study)." in text


def test_a_claim_without_a_page_has_its_card_here():
    page = verdict_page(pd.DataFrame([CLAIM, CLAIM | {"claim": "later", "page": PAGE, "verdict": "not run"}]))
    row = _rows(page)[1]
    assert 'href="#verdict-later"' in row["claim"] and "figure" not in row["see"]
    assert page.count('id="verdict-later"') == 1 and 'id="verdict-masks-are-striped"' not in page


def test_rows_carry_what_the_filters_choose_by():
    page = verdict_page(pd.DataFrame([CLAIM]))
    row = re.findall(r"<tr (data-[^>]*)>", page)[0]
    expected = {"verdict": "reproduced", "subject": "the miniature lab", "chapter": "stripe-masks"}
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', row))
    assert found == expected | {"by": "the paper"}


def test_text_of_claims_does_not_become_markup():
    nasty = "<i>1 & 2</i>"
    told = dict.fromkeys(("title", "says", "place"), nasty)
    page = verdict_page(pd.DataFrame([CLAIM | told])).split("## Every effect")[1]
    assert "<i>" not in page
    assert sum(_text(cell).count(nasty) for cell in _rows(page)[0].values()) == 3


def test_the_page_is_myst_with_a_title_and_the_table_scrolls_alone():
    page = verdict_page(pd.DataFrame([CLAIM]))
    assert page.startswith("# Verdicts\n\n")
    assert "{doc}`reading`" in page
    # A blank line inside would end the HTML block, and MyST would read the rest as text.
    table = page[page.index('<div class="tg-scroll"') :]
    assert "\n\n" not in table[: table.index("</div>")]
    assert 'class="tg-scroll" role="region"' in page and 'tabindex="0"' in page


def test_what_was_known_before_stands_beside_the_verdict():
    plain = CLAIM | {"claim": "a"}
    known = CLAIM | {"claim": "b", "informed_by_prototype": True, "changed": "Seen."}
    rows = _rows(verdict_page(pd.DataFrame([plain, known])))
    assert "known before" not in rows[0]["claim"]
    assert "known before: <em>prototype, rule changed</em>" in rows[1]["claim"]


def test_the_rule_stands_short_beside_the_interval_it_asks_for():
    rules = [
        "whole interval at or above 1.5",
        "whole interval within -0.1 to 0.1",
        "whole interval at or below 2",
    ]
    rows = _rows(verdict_page(pd.DataFrame([CLAIM | {"claim": rule, "rule": rule} for rule in rules])))
    shown = [row["ours"].split("rule ")[1].split("</small>")[0] for row in rows]
    assert shown == ["≥ 1.5", "within -0.1 to 0.1", "≤ 2"]


ENCODER = {"about": "encoder", "page": "stripe-masks-encoder", "subject": "an encoder: 3 checkpoints"}
TWO = [CLAIM, CONTROL, CLAIM | ENCODER | {"value": 0.9, "low": 0.8, "high": 1.0, "holds": False}]


def test_a_claim_has_one_row_for_each_subject_with_its_own_page():
    other = CLAIM | {"claim": "b"}
    rows = _rows(verdict_page(pd.DataFrame([*TWO[:2], other, TWO[2]])))
    links = [re.findall(r'href="([^"]+)"', row["claim"])[0] for row in rows]
    assert links == [
        "stripe-masks.html#verdict-masks-are-striped",
        "stripe-masks-encoder.html#verdict-masks-are-striped",
        "stripe-masks.html#verdict-b",
    ]
    assert [_text(row["claim"]).split(" · ")[1] for row in rows][:2] == ["the miniature lab", "the encoder"]
    assert [row["ours"].split(" ")[0] for row in rows][:2] == ["1.8", "0.9"]


def test_subjects_stand_side_by_side_with_every_control():
    page = verdict_page(pd.DataFrame([*TWO, CLAIM | {"claim": "b"}]))
    rows = [{name: _text(cell) for name, cell in row.items()} for row in _rows(page, "tg-subjects")]
    assert rows == [
        {
            "claim and controls": "Masks show stripes.",
            "the miniature lab": "reproduced1.8 [1.7, 1.9], holds",
            "the encoder": "reproduced0.9 [0.8, 1], does not hold",
        },
        {
            "claim and controls": "beyond storage: over storage noise",
            "the miniature lab": "−0.25 [−0.5, 0], does not hold",
            "the encoder": "not judged",
        },
    ]
    assert "tg-subjects" not in verdict_page(pd.DataFrame(TWO[:2]))
