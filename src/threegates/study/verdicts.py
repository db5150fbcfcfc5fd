"""The verdicts' page: every claim in one table, plain enough to be read without JavaScript.

Claims that are judged on several subjects stand in a smaller table before it, one row a claim, one column a
subject: what holds as trained, what at matched norm or rate, and what storage alone would give.
"""

from __future__ import annotations

from html import escape

import pandas as pd

from threegates.study.cards import interval, number
from threegates.study.subjects import SUBJECTS

_HEAD = ("claim", "subject", "verdict", "estimate", "interval", "rule", "controls that hold")
_CONTROLS = {"matched": "matched", "storage": "beyond storage"}
_BY_SUBJECT = ["claim", "about"]


def verdict_page(verdicts: pd.DataFrame) -> str:
    """The page in MyST: what a verdict is, claims by subject, then one row a claim and subject.

    Columns: those of `claims.verdict_table`, `about` (the subject's name) and `page` (which has the card).
    """
    order = {claim: number for number, claim in enumerate(dict.fromkeys(verdicts["claim"]))}
    ordered = verdicts.sort_values("claim", key=lambda claims: claims.map(order), kind="stable")
    rows = "\n".join(_row(group) for _, group in ordered.groupby(_BY_SUBJECT, sort=False))
    return (
        "# Verdicts\n\n"
        "{doc}`reading` says how a verdict is made. A claim links to the page that measures it.\n"
        "Rules stand in `claims.yaml`, whose history shows when each was written: *prototype* marks a\n"
        "claim whose outcome in a throw-away prototype was known then, *rule changed* one whose rule was\n"
        "changed after a build had been seen, with the reason on its card. Intervals are not adjusted\n"
        "for the number of claims.\n\n"
        + _subjects_section(ordered)
        + "## Every claim\n\n"
        + _table("All verdicts", "tg-verdicts", _HEAD, rows)
    )


def _table(label: str, look: str, names: tuple[str, ...], rows: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f'<div class="tg-scroll" role="region" aria-label="{label}" tabindex="0">\n'
        f'<table class="tg-table {look}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>\n</div>\n"
    )


def _subjects_section(verdicts: pd.DataFrame) -> str:
    """Claims that were judged on several subjects, side by side; nothing where there are none."""
    several = verdicts.groupby("claim")["about"].transform("nunique") > 1
    shared = verdicts[several]
    if shared.empty:
        return ""
    subjects = tuple(dict.fromkeys(shared["about"]))
    lines = [_subjects_lines(group, subjects) for _, group in shared.groupby("claim", sort=False)]
    titles = tuple(subject_title(name) for name in subjects)
    return (
        "## What holds on which subject\n\n"
        "A claim as trained, with its verdict; below it the same under every control: *matched* in norm\n"
        "or learning rate, or *beyond storage*, which asks for more than rounding to bf16 gives any update.\n"
        "A rule holds where the whole interval over seeds meets it.\n\n"
        + _table("Verdicts by subject", "tg-subjects", ("claim and controls", *titles), "\n".join(lines))
        + "\n"
    )


def _subjects_lines(group: pd.DataFrame, subjects: tuple[str, ...]) -> str:
    """The claim's line and one for each control, a cell for each subject."""
    lines = []
    for _, rows in group.groupby(["kind", "estimate"], sort=False):
        kind, says = str(rows["kind"].iloc[0]), escape(rows["says"].iloc[0])
        named = f"<strong>{says}</strong>" if kind == "rule" else f"<em>{_CONTROLS[kind]}:</em> {says}"
        found = {row["about"]: row for _, row in rows.iterrows()}
        cells = [_subjects_cell(found[name]) if name in found else "not judged" for name in subjects]
        lines.append(f"<tr><td>{named}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(lines)


def _subjects_cell(row: pd.Series) -> str:
    if row["kind"] != "rule":
        return _held(row)
    return f'<a href="{_card(row)}"><strong>{escape(row["verdict"])}</strong></a><br>{_held(row)}'


def _held(row: pd.Series) -> str:
    state = {True: "holds", False: "does not hold"}.get(row["holds"], "not tested")
    return f"{number(row['value'])} {interval(row['low'], row['high'])}, {state}"


def subject_title(name: str) -> str:
    """Name of a subject at the head of a column; that of a pair of one's own is empty."""
    return SUBJECTS[name].title if name in SUBJECTS else name


def _checkpoints(rule: pd.Series) -> str:
    """How many checkpoints a verdict rests on; of a pair of one's own, its names."""
    return rule["subject"].rpartition(": ")[2]


def _card(rule: pd.Series) -> str:
    return f"{escape(rule['page'])}.html#verdict-{escape(rule['claim'])}"


def _row(group: pd.DataFrame) -> str:
    rule = group[group["kind"] == "rule"].iloc[0]
    controls = group[group["kind"] != "rule"]
    held = f"{int((controls['holds'] == True).sum())} of {len(controls)}" if len(controls) else "none"  # noqa: E712
    link = f'<a href="{_card(rule)}">{escape(rule["says"])}</a>'
    source = f"<small>{escape(rule['place'])}{_known(rule)}</small>"
    cells = (
        f"{link}<br>{source}",
        f"{escape(subject_title(rule['about']))}<br><small>{escape(_checkpoints(rule))}</small>",
        f"<strong>{escape(rule['verdict'])}</strong>",
        number(rule["value"]),
        interval(rule["low"], rule["high"]),
        escape(rule["rule"].replace("whole interval at or above", "≥").replace("whole interval ", "")),
        held,
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _known(rule: pd.Series) -> str:
    """What was known of the outcome when the rule was written."""
    known = ["prototype"] * bool(rule["informed_by_prototype"]) + ["rule changed"] * bool(rule["changed"])
    return f"; known before: <em>{', '.join(known)}</em>" if known else ""
