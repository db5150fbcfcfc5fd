"""The verdicts' page: every claim in one table, plain enough to be read without JavaScript.

Claims that are judged on several subjects stand in a smaller table before it, one row a claim, one column a
subject: what holds as trained, what at matched norm or rate, and what storage alone would give.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import pandas as pd

from threegates.estimates.verdict_frame import controls, is_rule, rule_of, rules
from threegates.figures.numbers import interval, number
from threegates.jobs.subjects import COMPUTED, described
from threegates.judging.cards import VerdictCards
from threegates.judging.verdicts import CONTROLS, OPEN, VERDICTS, holding

_HEAD = ("claim", "verdict", "ours", "decisive null or control", "how sure", "see")
_BY_SUBJECT = ["claim", "about"]
_EXPLAINED = """
One row a claim and subject; *ours* stands with its 95 % interval. A null or control is *decisive* that the
claim fails, or else the one that it passes most narrowly. *How sure* says in how many cells of the sweep over
$k$, $\\alpha$ and $\\eta$ the verdict is the same, whether the rule still holds after Holm's adjustment for
all rules of this build, and, where a verdict is negative, which effect these units could have shown with a
power of .8. *Prototype* marks a claim whose outcome in a throw-away prototype was known when its rule was
written, *rule changed* one whose rule was changed since; the card has the reason.
{doc}`reading` says how a verdict is made.

"""


def verdict_page(verdicts: pd.DataFrame, figure: str = "") -> str:
    """The page in MyST: counts and the figure that sums up, claims by subject, one row a claim and subject.

    Columns: those of `estimates.verdict_frame`; what a build or a sweep adds may be missing. `page` is the
    verdicts' own where the book has none for the chapter.

    Parameters
    ----------
    figure : the summary's figure in MyST.
    """
    order = {claim: number for number, claim in enumerate(dict.fromkeys(verdicts["claim"]))}
    ordered = verdicts.sort_values("claim", key=lambda claims: claims.map(order), kind="stable")
    rows = "\n".join(_row(group) for _, group in ordered.groupby(_BY_SUBJECT, sort=False))
    return (
        "# Verdicts\n\n"
        + _summary(ordered)
        + figure
        + "\n## Every claim\n\n"
        + _EXPLAINED
        + _table("All verdicts", "tg-verdicts", _HEAD, rows)
        + "\n"
        + _subjects_section(ordered)
        + _without_page(ordered)
    )


def _summary(verdicts: pd.DataFrame) -> str:
    """How many claims, the paper's and ours, got which verdict."""
    judged = rules(verdicts)
    open_ = judged["verdict"].isin(OPEN)
    counts = judged["verdict"].value_counts()
    rest = " and ".join(f"{counts[name]} {name}" for name in OPEN if name in counts)
    told = [
        f"Of the {len(own)} on {whose}: {_counted(own)}."
        for whose, chosen in _KINDS.items()
        if len(own := judged[~open_ & chosen(judged)])
    ]
    late = judged.loc[judged["changed"] != "", "claim"].nunique()
    return (
        f"The register holds {judged['claim'].nunique()} claims, each judged on its subjects by one rule "
        "that was fixed beforehand"
        + (f" ({late} changed later, marked as such, with the reason)" if late else "")
        + f": {int((~open_).sum())} verdicts on numbers"
        + (f", {rest}" if rest else "")
        + f". {' '.join(told)}\n\n"
    )


#: Whose claims a summary tells apart, and what they are about: those computed need no trained model.
_KINDS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "claims of the paper, on trained models": lambda rows: (
        (rows["made_by"] == "paper") & (rows["about"] != COMPUTED)
    ),
    "the paper's arithmetic and theorems, computed": lambda rows: (
        (rows["made_by"] == "paper") & (rows["about"] == COMPUTED)
    ),
    "our own controls and corrections": lambda rows: rows["made_by"] != "paper",
}


def _counted(judged: pd.DataFrame) -> str:
    """Verdicts with their numbers, in the order of what they say."""
    counts = judged["verdict"].value_counts()
    return "; ".join(f"**{counts[name]}** {name}" for name in VERDICTS if name in counts)


def _without_page(verdicts: pd.DataFrame) -> str:
    """Cards of claims whose chapter has no page yet."""
    own = verdicts[verdicts["page"] == PAGE]
    if own.empty:
        return ""
    return (
        "## Claims without a page yet\n\n"
        "Their rules are fixed; the runs or checkpoints that they need do not exist here.\n\n"
        + '<details class="tg-details"><summary>Measures and rules</summary>\n\n'
        + VerdictCards(own).html()
        + "\n</details>\n"
    )


#: The page itself, for claims whose chapter has none.
PAGE = "verdicts"


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
        first = rows.iloc[0]
        says = escape(first["says"])
        named = (
            f"<strong>{says}</strong>"
            if is_rule(first)
            else f"<em>{CONTROLS[first['kind']].short}:</em> {says}"
        )
        found = {row["about"]: row for _, row in rows.iterrows()}
        cells = [_subjects_cell(found[name]) if name in found else "not judged" for name in subjects]
        lines.append(f"<tr><td>{named}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(lines)


def _subjects_cell(row: pd.Series) -> str:
    if not is_rule(row):
        return _held(row)
    return f'<a href="{_card(row)}"><strong>{escape(row["verdict"])}</strong></a><br>{_held(row)}'


def _held(row: pd.Series) -> str:
    return f"{number(row['value'])} {interval(row['low'], row['high'])}, {holding(row['holds'])}"


def subject_title(name: str) -> str:
    """Name of a subject at the head of a column; that of a pair of one's own is empty."""
    return described(name).title


def _card(rule: pd.Series) -> str:
    place = "" if rule["page"] == PAGE else f"{escape(rule['page'])}.html"
    return f"{place}#verdict-{escape(rule['claim'])}"


def _row(group: pd.DataFrame) -> str:
    rule = rule_of(group)
    facts = {"verdict": rule["verdict"], "subject": subject_title(rule["about"]), "chapter": rule["chapter"]}
    facts["by"] = "the paper" if rule["made_by"] == "paper" else "this study"
    data = "".join(f' data-{name}="{escape(str(value), quote=True)}"' for name, value in facts.items())
    whose = "" if rule["made_by"] == "paper" else "claim of this study · "
    place = f"{whose}{escape(rule['place'])} · {escape(facts['subject'])}{_known(rule)}"
    kind = VERDICTS[rule["verdict"]]
    cells = (
        f'<a href="{_card(rule)}"><strong>{escape(rule["title"])}</strong></a><br>'
        f"{escape(rule['says'])}<br><small>{place}</small>",
        f'<strong class="{kind.look}">{escape(kind.word)}</strong>{_why_not(rule)}',
        _ours(rule),
        _decisive(controls(group)),
        "<br>".join(_sureness(rule)) or "–",
        _links(rule),
    )
    return f"<tr{data}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _ours(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return "–"
    what = f"<details><summary>of what</summary>{escape(row['measure'])}</details>"
    if row["error"] == 0:
        units = f"<small>computed over {row['n']} {escape(row['unit'])}</small>"
        return f"{number(row['value'])}<br>{units}{what}"
    units = f"<small>{row['n']} {escape(row['unit'])}; rule {_short(row['rule'])}</small>{what}"
    return f"{number(row['value'])} {interval(row['low'], row['high'])}<br>{units}"


def _short(rule: str) -> str:
    return escape(rule.replace("whole interval at or above", "≥").replace("whole interval ", ""))


def _decisive(named: pd.DataFrame) -> str:
    """Of a claim's controls the one that fails, else the one that comes nearest to its tolerance."""
    known = named[named["value"].notna()]
    if named.empty:
        return "none named"
    if known.empty:
        return holding(None)
    failed = known[known["holds"] == False]  # noqa: E712
    margin = (known["low"] - known["at_least"]) / known["at_least"].abs().clip(lower=1e-12)
    row = failed.iloc[0] if len(failed) else known.iloc[int(margin.fillna(0).to_numpy().argmin())]
    state = holding(not len(failed))
    held = f"{int((known['holds'] == True).sum())} of {len(named)}"  # noqa: E712
    found = f"{number(row['value'])} {interval(row['low'], row['high'])}, {state}"
    return f"{CONTROLS[row['kind']].short}: {found}<br><small>{escape(row['says'])}; {held} hold</small>"


def _why_not(rule: pd.Series) -> str:
    """Why there is no verdict on numbers."""
    if not VERDICTS[rule["verdict"]].open:
        return ""
    return f"<br><small>{escape(rule['reason'])}</small>"


def _sureness(rule: pd.Series) -> list[str]:
    """Stability over the free choices, adjustment for many claims, and what could have been found."""
    told = []
    if rule.get("cells", 0):
        told.append(f"{int(rule['cells_same'])} of {int(rule['cells'])} cells")
    holm = rule.get("holds_holm")
    if holm is not None and not pd.isna(holm) and rule["holds"] == True:  # noqa: E712
        told.append("rule survives Holm" if holm else "rule fails after Holm")
    could = rule.get("detectable")
    if VERDICTS[rule["verdict"]].negative and could is not None and pd.notna(could):
        told.append(f"detectable at power .8: {number(could)}")
    return told


def _links(rule: pd.Series) -> str:
    links = [f'<a href="{evidence_place(rule)}">record</a>']
    if rule["figure"] and rule["page"] != PAGE:
        name = rule["figure"].partition("/")[2]
        links.insert(0, f'<a href="{rule["page"]}.html#fig-{rule["page"]}-{name}">figure</a>')
    return "<br>".join(links)


def evidence_place(rule: pd.Series) -> str:
    """Where the evidence of a claim on a subject lies in the rendered book."""
    return f"evidence/{rule['about'] or 'pair'}/{rule['claim']}.json"


def _known(rule: pd.Series) -> str:
    """What was known of the outcome when the rule was written."""
    known = ["prototype"] * bool(rule["informed_by_prototype"]) + ["rule changed"] * bool(rule["changed"])
    return f" · known before: <em>{', '.join(known)}</em>" if known else ""
