"""The verdicts' page: every claim in one table, plain enough to be read without JavaScript.

Effects come first, and they alone are counted; identities, theorems and what holds by choice stand apart.
Claims that are judged on several subjects stand in a smaller table besides, one row a claim, one column a
subject: what holds as trained, and what with size, data or rate held fixed, or beside what storage gives.
"""

from __future__ import annotations

from html import escape

import pandas as pd

from threegates.estimates.verdict_frame import EFFECT, controls, is_rule, rule_of, rules
from threegates.figures.numbers import interval, number
from threegates.jobs.subjects import described
from threegates.judging.cards import VerdictCards
from threegates.judging.verdicts import CONTROLS, MAKERS, OPEN, VERDICTS, holding

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
    effects = ordered["nature"] == EFFECT
    return (
        "# Verdicts\n\n"
        + _summary(ordered)
        + figure
        + "\n## Every effect\n\n"
        + _EXPLAINED
        + _claims_table("All verdicts on effects", ordered[effects])
        + "\n"
        + _apart(ordered[~effects])
        + _subjects_section(ordered)
        + _without_page(ordered)
    )


def _claims_table(label: str, verdicts: pd.DataFrame) -> str:
    rows = "\n".join(_row(group) for _, group in verdicts.groupby(_BY_SUBJECT, sort=False))
    return _table(label, "tg-verdicts", _HEAD, rows)


def _apart(verdicts: pd.DataFrame) -> str:
    """What is no effect of training: its own table, and no count."""
    if verdicts.empty:
        return ""
    return (
        "## Premises, arithmetic, theorems, what holds by choice, and what noise does\n\n"
        "These are not counted above. A premise is of the base alone and knows of no run. An identity or\n"
        "a theorem holds or does not, whatever was trained, and\n"
        "a theorem whose assumption is not met says nothing. What holds by choice follows from a learning\n"
        "rate or a number of steps that was chosen here, and would turn round at another. What rounded\n"
        "noise does where nothing is trained is a null of the effects, and none of them.\n\n"
        + _claims_table("Verdicts on premises, arithmetic, theorems, choices and noise", verdicts)
        + "\n"
    )


def _summary(verdicts: pd.DataFrame) -> str:
    """How many claims, the paper's and ours, got which verdict."""
    judged = rules(verdicts)
    effects = judged[judged["nature"] == EFFECT]
    # A claim can be undecided for want of a number, and such a verdict rests on none.
    said = effects[~effects["verdict"].isin(OPEN) & effects["low"].notna()]
    without = int((~effects["verdict"].isin(OPEN) & effects["low"].isna()).sum())
    counts = effects["verdict"].value_counts()
    others = [f"{counts[name]} {name}" for name in OPEN if name in counts]
    rest = " and ".join([*([f"{without} are judged without an interval"] if without else []), *others])
    told = [
        f"Of the {len(own)} on {maker.claims}: {_counted(own)}."
        for made_by, maker in MAKERS.items()
        if len(own := said[said["made_by"] == made_by])
    ]
    return (
        f"The register holds {judged['claim'].nunique()} claims, {effects['claim'].nunique()} of them on "
        "effects of training, each judged on its subjects by one rule. "
        + _known_before(judged)
        + (f"{len(said)} verdicts on effects rest" if len(said) != 1 else "1 verdict on effects rests")
        + " on numbers"
        + (f", {rest}" if rest else "")
        + f". {' '.join(told)}{_after_holm(said)}\n\n"
    )


def _known_before(judged: pd.DataFrame) -> str:
    """Of how many claims something was known when their rule was written, or was changed."""
    claims = judged.drop_duplicates("claim")
    late = claims["informed_by_prototype"].astype(bool) | (claims["changed"] != "")
    if not late.any():
        return "All rules were fixed before any outcome was known. "
    return (
        f"Of {int(late.sum())} of them the outcome was known, from a prototype or an earlier build, when the "
        "rule was written, or the rule was changed since; each says so, with the reason. "
    )


def _after_holm(said: pd.DataFrame) -> str:
    """How many of each maker's reproduced effects stand when all rules are adjusted for together."""
    shown = said[said["verdict"].isin([word for word, kind in VERDICTS.items() if kind.supports])]
    if "holds_holm" not in shown or shown["holds_holm"].dropna().empty:
        return ""
    tested = shown.dropna(subset="holds_holm")
    told = [
        f"{int(own['holds_holm'].astype(bool).sum())} of {len(own)} ({maker.name})"
        for made_by, maker in MAKERS.items()
        if len(own := tested[tested["made_by"] == made_by])
    ]
    return f" After Holm's adjustment for all of them there stand, of the reproduced ones, {', '.join(told)}."


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
        "A claim as trained, with its verdict; below it the same under every control, with what that holds\n"
        "fixed: size, data or learning rate; *beyond storage* asks for more than rounding gives any update.\n"
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
    maker = MAKERS[rule["made_by"]]
    facts["by"] = maker.name
    data = "".join(f' data-{name}="{escape(str(value), quote=True)}"' for name, value in facts.items())
    place = f"{maker.row}{escape(rule['place'])} · {escape(facts['subject'])}{_known(rule)}"
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
    short = rule.replace("whole interval at or above", "≥").replace("whole interval at or below", "≤")
    return escape(short.replace("whole interval ", ""))


def _decisive(named: pd.DataFrame) -> str:
    """Of a claim's controls the one that names its verdict, else one that fails, else the nearest to it."""
    known = named[named["value"].notna()]
    if named.empty:
        return "none named"
    if known.empty:
        return holding(None)
    failed = known[known["holds"] == False]  # noqa: E712
    explain = known[known["names"]]
    margin = (known["low"] - known["at_least"]) / known["at_least"].abs().clip(lower=1e-12)
    nearest = known.iloc[int(margin.fillna(0).to_numpy().argmin())]
    row = explain.iloc[0] if len(explain) else failed.iloc[0] if len(failed) else nearest
    state = holding(row["holds"])
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
