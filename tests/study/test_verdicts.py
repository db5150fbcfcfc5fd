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


def _rows(page: str) -> list[list[str]]:
    """Cells of the table's body, as HTML."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [
        re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def _text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_every_claim_of_the_study_has_one_row_and_a_link_to_its_card():
    table = verdict_table([not_run(claim, "no pairs") for claim in CLAIMS])
    page = verdict_page(table)
    rows = _rows(page)
    links = [re.search(r'href="([^"]+)"', row[0])[1] for row in rows]
    assert links == [f"{claim.chapter}.html#verdict-{claim.id}" for claim in CLAIMS]
    assert [_text(row[0]) for row in rows] == [claim.paper.says for claim in CLAIMS]
    anchors = re.findall(r'id="([^"]+)"', VerdictCards(table).html())
    assert [link.split("#")[1] for link in links] == anchors
    assert {tuple(row[2:5]) for row in rows} == {("<strong>not run</strong>", "–", "no interval")}
    assert [row[5] for row in rows] == [f"0 of {len(c.controls)}" if c.controls else "none" for c in CLAIMS]


def test_a_row_shows_verdict_estimate_interval_controls_and_subject():
    second = CONTROL | {"holds": True}
    third = CONTROL | NOTHING
    row = _rows(verdict_page(pd.DataFrame([CLAIM, CONTROL, second, third])))[0]
    assert [_text(cell) for cell in row] == [
        "Masks show stripes.", "Fig. 2", "reproduced", "1.8", "[1.7, 1.9]", "1 of 3", "7 checkpoints",
    ]  # fmt: skip


def test_a_row_without_an_interval_and_without_controls_says_so():
    row = _rows(verdict_page(pd.DataFrame([CLAIM | {"low": math.nan, "high": math.nan}])))[0]
    assert row[3:6] == ["1.8", "no interval", "none"]


def test_head_and_rows_have_the_same_columns():
    page = verdict_page(pd.DataFrame([CLAIM, CONTROL]))
    assert page.count("<th>") == len(_rows(page)[0]) == 7


def test_text_of_claims_does_not_become_markup():
    fields = dict.fromkeys(("says", "place", "verdict", "subject"), "<i>1 & 2</i>")
    page = verdict_page(pd.DataFrame([CLAIM | fields]))
    assert "<i>" not in page
    row = _rows(page)[0]
    assert [_text(row[n]) for n in (0, 1, 2, 6)] == ["<i>1 & 2</i>"] * 4


def test_the_page_is_myst_with_a_title_and_the_table_scrolls_alone():
    page = verdict_page(pd.DataFrame([CLAIM]))
    assert page.startswith("# Verdicts\n\n")
    assert "{doc}`reading`" in page
    # A blank line inside would end the HTML block, and MyST would read the rest as text.
    assert "\n\n" not in page[page.index("<div") :]
    assert 'class="tg-scroll" role="region"' in page and 'tabindex="0"' in page
