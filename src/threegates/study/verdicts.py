"""The verdicts' page: every claim in one table, plain enough to be read without JavaScript."""

from __future__ import annotations

from html import escape

import pandas as pd

from threegates.study.cards import interval, number

_HEAD = ("claim", "verdict", "estimate", "interval", "rule", "controls that hold")


def verdict_page(verdicts: pd.DataFrame) -> str:
    """The page in MyST: what a verdict is, then one row a claim with a link to its chapter."""
    rows = "\n".join(_row(group) for _, group in verdicts.groupby("claim", sort=False))
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    return (
        "# Verdicts\n\n"
        "{doc}`reading` says how a verdict is made. A claim links to the chapter that measures it.\n"
        "Rules stand in `claims.yaml`, whose history shows when each was written: *prototype* marks a\n"
        "claim whose outcome in a throw-away prototype was known then, *rule changed* one whose rule was\n"
        "changed after a build had been seen, with the reason on its card. Intervals are not adjusted\n"
        "for the number of claims.\n\n"
        '<div class="tg-scroll" role="region" aria-label="All verdicts" tabindex="0">\n'
        f'<table class="tg-table tg-verdicts"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>\n</div>\n"
    )


def _row(group: pd.DataFrame) -> str:
    rule = group[group["kind"] == "rule"].iloc[0]
    controls = group[group["kind"] != "rule"]
    held = f"{int((controls['holds'] == True).sum())} of {len(controls)}" if len(controls) else "none"  # noqa: E712
    link = (
        f'<a href="{escape(rule["chapter"])}.html#verdict-{escape(rule["claim"])}">{escape(rule["says"])}</a>'
    )
    source = f"<small>{escape(rule['place'])}; {escape(rule['subject'])}{_known(rule)}</small>"
    cells = (
        f"{link}<br>{source}",
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
