"""Verdicts as they stand on a page: a card each, readable without colour and without JavaScript."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

import pandas as pd

from threegates.figures.numbers import interval, number

_CLASSES = {
    "reproduced": "tg-reproduced",
    "reproduced, not distinguishable from storage": "tg-storage",
    "reproduced raw, gone when matched": "tg-matched",
    "not reproduced": "tg-not",
    "contradicted": "tg-not",
}
#: What each verdict says of a claim, in the order of a page's summary.
_SUMMARY = {
    "reproduced": "Hold as trained and in every control",
    "reproduced, not distinguishable from storage": "Hold as trained, but not beyond what storage gives",
    "reproduced raw, gone when matched": "Hold as trained, but not at matched norm or learning rate",
    "not reproduced": "Not shown, for the interval does not meet the rule",
    "contradicted": "Contradicted",
    "cannot be tested here": "Cannot be tested here",
    "not run": "Not run",
}
_MARKS = {True: "holds", False: "does not hold"}


def look(verdict: str) -> str:
    """The class that colours a verdict."""
    return _CLASSES.get(verdict, "tg-open")


def verdict_summary(verdicts: pd.DataFrame) -> str:
    """The page's statements by verdict, in Markdown: what holds raw, at matched norm, beyond storage."""
    if verdicts.empty:
        return "This page judges no claim."
    rules = verdicts[verdicts["kind"] == "rule"]
    lines = [f"**In short**, on {rules['subject'].iloc[0]}:", ""]
    for verdict, meaning in _SUMMARY.items():
        says = [f"*{_plain(text)}*" for text in rules.loc[rules["verdict"] == verdict, "says"]]
        if says:
            lines.append(f"- **{meaning}** ({len(says)} of {len(rules)}): {' · '.join(says)}")
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
    rule = rows[rows["kind"] == "rule"].iloc[0]
    known = " Its outcome in a prototype was known when the rule was written." * bool(
        rule["informed_by_prototype"]
    )
    changed = f" The rule was changed: {escape(rule['changed'])}" if rule["changed"] else ""
    whose = "" if rule["made_by"] == "paper" else "Our control. "
    lines = "".join(_line(row) for _, row in rows.iterrows())
    place = escape(rule["place"])
    cells = int(rule.get("cells", 0))
    same = f" The verdict is the same in {int(rule.get('cells_same', 0))} of {cells} cells of the sweep."
    told = f"{escape(rule['subject'])}. {escape(rule['reason'])}.{same * (cells > 0)}{known}{changed}"
    return (
        f'<div class="tg-verdict {look(rule["verdict"])}" id="verdict-{escape(rule["claim"])}">\n'
        f"<p><strong>{escape(rule['verdict'].capitalize())}.</strong> {whose}<em>{place}</em>: "
        f"{escape(rule['says'])}</p>\n<ul>{lines}</ul>\n"
        f"<p><small>{told}</small></p>\n</div>"
    )


def _line(row: pd.Series) -> str:
    what = {"rule": f"the claim: {row['measure']}", "matched": row["says"], "storage": row["says"]}[
        row["kind"]
    ]
    untested = f"not tested: {row['missing']}" if row["missing"] else "not tested"
    state = _MARKS.get(row["holds"], untested)
    noted = f" ({escape(row['missing'])})" if row["missing"] and state != untested else ""
    units = f" over {row['n']} {row['unit']}" if row["n"] else ""
    measured = f"{number(row['value'])} {interval(row['low'], row['high'])}{escape(units)}"
    return (
        f"<li>{escape(str(what).rstrip('.'))}: {measured}; "
        f"rule: {escape(row['rule'])}; <strong>{escape(state)}</strong>{noted}</li>"
    )


def rule_view(verdicts: pd.DataFrame) -> pd.DataFrame:
    """What a chapter's claims are judged by, before any result: claim, measure, rule, controls' rules."""
    rules = verdicts[verdicts["kind"] == "rule"]
    controls = verdicts[verdicts["kind"] != "rule"]
    told = (controls["says"] + ": " + controls["rule"]).groupby(controls["claim"]).agg("; ".join)
    return pd.DataFrame(
        {
            "claim": rules["title"],
            "measure": rules["measure"],
            "rule": rules["rule"],
            "control": rules["claim"].map(told),
        }
    ).reset_index(drop=True)
