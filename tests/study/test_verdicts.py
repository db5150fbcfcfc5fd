"""The verdicts' page: one row a claim, with a link to where it is measured."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path

import pandas as pd

from tests.study.test_cards import CLAIM, CONTROL, NOTHING
from threegates.study.cards import VerdictCards
from threegates.study.claims import not_run, read_claims, verdict_table
from threegates.study.verdicts import verdict_page

CLAIMS = read_claims(Path(__file__).resolve().parents[2] / "claims.yaml").claims


def _rows(page: str, look: str = "tg-verdicts") -> list[dict[str, str]]:
    """Cells of a table's body as HTML, by the names of their columns."""
    table = page.split(f'class="tg-table {look}"')[1].split("</table>")[0]
    names = re.findall(r"<th>(.*?)</th>", table)
    body = table.split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [dict(zip(names, row, strict=True)) for row in cells]


def _text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_every_claim_of_the_study_has_one_row_and_a_link_to_its_card():
    table = verdict_table([not_run(claim, "no pairs") for claim in CLAIMS])
    table = table.assign(about="lab", page=table["chapter"])
    page = verdict_page(table)
    rows = _rows(page)
    links = [re.findall(r'<a href="([^"]+)">(.*?)</a>', row["claim"]) for row in rows]
    assert [link for ((link, _),) in links] == [f"{c.chapter}.html#verdict-{c.id}" for c in CLAIMS]
    assert [unescape(says) for ((_, says),) in links] == [claim.paper.says for claim in CLAIMS]
    anchors = re.findall(r'id="([^"]+)"', VerdictCards(table).html())
    assert [link.split("#")[1] for ((link, _),) in links] == anchors
    assert {row["verdict"] for row in rows} == {"<strong>not run</strong>"}
    assert {(row["estimate"], row["interval"]) for row in rows} == {("–", "no interval")}
    held = [f"0 of {len(claim.controls)}" if claim.controls else "none" for claim in CLAIMS]
    assert [row["controls that hold"] for row in rows] == held


def test_a_row_shows_verdict_estimate_interval_controls_place_and_subject():
    second = CONTROL | {"holds": True}
    third = CONTROL | NOTHING
    row = _rows(verdict_page(pd.DataFrame([CLAIM, CONTROL, second, third])))[0]
    shown = {name: _text(cell) for name, cell in row.items()}
    assert shown["claim"].startswith("Masks show stripes.")
    assert (shown["verdict"], shown["estimate"], shown["interval"]) == ("reproduced", "1.8", "[1.7, 1.9]")
    assert shown["controls that hold"] == "1 of 3"
    everything = " ".join(shown.values())
    assert "Fig. 2" in everything and "7 checkpoints" in everything


def test_a_row_without_an_interval_and_without_controls_says_so():
    row = _rows(verdict_page(pd.DataFrame([CLAIM | {"low": math.nan, "high": math.nan}])))[0]
    shown = [row[name] for name in ("estimate", "interval", "controls that hold")]
    assert shown == ["1.8", "no interval", "none"]


def test_text_of_claims_does_not_become_markup():
    nasty = "<i>1 & 2</i>"
    page = verdict_page(pd.DataFrame([CLAIM | dict.fromkeys(("says", "place", "verdict", "subject"), nasty)]))
    assert "<i>" not in page
    assert sum(_text(cell).count(nasty) for cell in _rows(page)[0].values()) == 4


def test_the_page_is_myst_with_a_title_and_the_table_scrolls_alone():
    page = verdict_page(pd.DataFrame([CLAIM]))
    assert page.startswith("# Verdicts\n\n")
    assert "{doc}`reading`" in page
    # A blank line inside would end the HTML block, and MyST would read the rest as text.
    assert "\n\n" not in page[page.index("<div") : page.index("</div>")]
    assert 'class="tg-scroll" role="region"' in page and 'tabindex="0"' in page


def test_what_was_known_before_stands_beside_the_verdict():
    plain = CLAIM | {"claim": "a"}
    known = CLAIM | {"claim": "b", "informed_by_prototype": True, "changed": "Seen."}
    rows = _rows(verdict_page(pd.DataFrame([plain, known])))
    assert "known before" not in rows[0]["claim"]
    assert "known before: <em>prototype, rule changed</em>" in rows[1]["claim"]


def test_the_rule_stands_short_beside_the_interval_it_asks_for():
    rules = ["whole interval at or above 1.5", "whole interval within -0.1 to 0.1"]
    rows = _rows(verdict_page(pd.DataFrame([CLAIM | {"claim": rule, "rule": rule} for rule in rules])))
    assert [row["rule"] for row in rows] == ["≥ 1.5", "within -0.1 to 0.1"]


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
    assert [_text(row["subject"]) for row in rows][:2] == [
        "the miniature lab7 checkpoints",
        "the encoder3 checkpoints",
    ]
    assert [row["estimate"] for row in rows][:2] == ["1.8", "0.9"]


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
