"""Verdicts as they stand on a page: a card each, readable without colour and without JavaScript."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

import pandas as pd

from threegates.estimates.verdict_frame import controls, is_rule, rule_of, rules
from threegates.figures.numbers import interval, number
from threegates.judging.verdicts import MAKERS, VERDICTS, holding


def verdict_summary(verdicts: pd.DataFrame) -> str:
    """The page's statements by verdict, in Markdown: what holds raw, at matched norm, beyond storage."""
    if verdicts.empty:
        return "This page judges no claim."
    judged = rules(verdicts)
    lines = [f"**In short**, on {judged['subject'].iloc[0]}:", ""]
    for verdict in VERDICTS.values():
        says = [f"*{_plain(text)}*" for text in judged.loc[judged["verdict"] == verdict.word, "says"]]
        if says:
            lines.append(f"- **{verdict.meaning}** ({len(says)} of {len(judged)}): {' · '.join(says)}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([*_`<>\[\]$])", r"\\\1", text.rstrip("."))


@dataclass(frozen=True)
class VerdictCards:
    """A chapter's verdicts; what a notebook cell returns to show them."""

    verdicts: pd.DataFrame

    def html(self) -> str:
        """One card a claim: verdict, claim, estimate, and each control with whether it holds."""
        if self.verdicts.empty:
            return "<p>This chapter judges no claim.</p>"
        return "\n".join(_card(rows) for _, rows in self.verdicts.groupby("claim", sort=False))

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        columns = ["claim", "kind", "value", "low", "high", "holds", "verdict"]
        plain = self.verdicts[columns].to_string(index=False) if len(self.verdicts) else "no claims"
        return {"text/html": self.html(), "text/plain": plain}


def _card(rows: pd.DataFrame) -> str:
    rule = rule_of(rows)
    known = " Its outcome in a prototype was known when the rule was written." * bool(
        rule["informed_by_prototype"]
    )
    changed = f" The rule was changed: {escape(rule['changed'])}" if rule["changed"] else ""
    whose = MAKERS[rule["made_by"]].card
    lines = "".join(_line(row) for _, row in rows.iterrows())
    place = escape(rule["place"])
    cells = int(rule.get("cells", 0))
    same = f" The verdict is the same in {int(rule.get('cells_same', 0))} of {cells} cells of the sweep."
    told = f"{escape(rule['subject'])}. {escape(rule['reason'])}.{same * (cells > 0)}{known}{changed}"
    return (
        f'<div class="tg-verdict {VERDICTS[rule["verdict"]].look}" id="verdict-{escape(rule["claim"])}">\n'
        f"<p><strong>{escape(rule['verdict'].capitalize())}.</strong> {whose}<em>{place}</em>: "
        f"{escape(rule['says'])}</p>\n<ul>{lines}</ul>\n"
        f"<p><small>{told}</small></p>\n</div>"
    )


def _line(row: pd.Series) -> str:
    what = f"the claim: {row['measure']}" if is_rule(row) else row["says"]
    state = holding(row["holds"], row["missing"])
    # Why there is no interval is told already.
    noted = f" ({escape(row['missing'])})" if row["missing"] and state == holding(row["holds"]) else ""
    units = f" over {row['n']} {row['unit']}" if row["n"] else ""
    measured = f"{number(row['value'])} {interval(row['low'], row['high'])}{escape(units)}"
    return (
        f"<li>{escape(str(what).rstrip('.'))}: {measured}; "
        f"rule: {escape(row['rule'])}; <strong>{escape(state)}</strong>{noted}</li>"
    )


def rule_view(verdicts: pd.DataFrame) -> pd.DataFrame:
    """What a chapter's claims are judged by, before any result: claim, measure, rule, controls' rules."""
    judged, held = rules(verdicts), controls(verdicts)
    told = (held["says"] + ": " + held["rule"]).groupby(held["claim"]).agg("; ".join)
    return pd.DataFrame(
        {
            "claim": judged["title"],
            "measure": judged["measure"],
            "rule": judged["rule"],
            "control": judged["claim"].map(told),
        }
    ).reset_index(drop=True)
