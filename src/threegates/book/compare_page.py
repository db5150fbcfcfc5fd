"""A comparison of two builds as it is shown: lines for a terminal, and one HTML page that stands alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from threegates.atomic import write_text
from threegates.book.compare import Comparison, told_subject
from threegates.book.summary import Summary
from threegates.figures.numbers import interval, number

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 3px solid; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td { min-width: 6rem; overflow-wrap: anywhere; }
tr.beyond td { background: var(--soft); font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; } img { background: #fff; max-width: 100%; } figcaption { font-size: .85rem; }
"""
_WHAT = (
    "A move counts as beyond its intervals if it is larger than the root of the sum of the squares of both "
    "half intervals, on the scale that the estimate was averaged on. The builds are counted as independent; "
    "builds of equal seeds are not, and should move less."
)


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal: verdicts first, then the rest in counts and short lines."""
    lines = [f"first:  {_build(found.first)}", f"second: {_build(found.second)}", ""]
    lines += _listed("verdicts that moved", [_verdict(row) for row in _rows(found.verdicts)])
    lines += _listed("claims in one build alone", [_lone(row) for row in _rows(found.claims)])
    lines += _listed("rules that changed", [_rule(row) for row in _rows(found.rules)])
    beyond = found.numbers[found.numbers["beyond"]]
    lines += _listed(
        f"numbers beyond their intervals (of {len(found.numbers)} that moved)",
        [_number(row) for row in _rows(beyond)],
    )
    changed = found.figures[found.figures["state"] != "same"]
    same = f"figures that changed ({len(found.figures) - len(changed)} are the same)"
    lines += _listed(same, [_figure(row) for row in _rows(changed)])
    lines += _listed(
        "made with", [f"{r['what']}: {r['before']} → {r['after']}" for r in _rows(found.made)], limit=40
    )
    return "\n".join(lines).rstrip()


def write_comparison(path: Path, found: Comparison) -> Path:
    """Write the comparison as one HTML file, atomically."""
    write_text(path, comparison_page(found))
    return path


def comparison_page(found: Comparison) -> str:
    """The comparison as one HTML page: verdicts, rules, numbers, figures side by side, prose, versions."""
    body = "\n".join(
        (
            "<h1>Two builds compared</h1>",
            f"<p>First: {escape(_build(found.first))}<br>Second: {escape(_build(found.second))}</p>",
            _verdict_section(found),
            _section("Claims in one build alone", ("claim", "in the build"), _lone_cells(found)),
            _section("Rules that changed", ("claim", "part", "first", "second"), _rule_cells(found)),
            _number_section(found.numbers),
            _figure_section(found),
            _section("Values in the prose", ("key", "first", "second"), _plain_cells(found.values)),
            _section("What the builds were made with", ("what", "first", "second"), _plain_cells(found.made)),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Two builds compared</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n"
        "</main></body></html>\n"
    )


def _build(one: Summary) -> str:
    """A build in a line: its folder's name, profile, time and commit."""
    made = one.made
    commit = str(made.get("commit") or "no commit")[:12] + " with changes" * bool(made.get("dirty"))
    return f"{one.folder.resolve().name}, profile {one.profile}, {made.get('time', 'no time')}, {commit}"


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def _listed(title: str, entries: Sequence[str], limit: int = 20) -> list[str]:
    more = [f"  and {len(entries) - limit} more"] if len(entries) > limit else []
    return [f"{title}: {len(entries) or 'none'}", *(f"  {one}" for one in entries[:limit]), *more, ""]


def _verdict(row: dict) -> str:
    note = " (its rule changed)" if row["rule_changed"] else ""
    return f"{told_subject(row['about'])}{row['claim']}: {row['before']} → {row['after']}{note}"


def _lone(row: dict) -> str:
    return f"{told_subject(row['about'])}{row['claim']}: the {row['only']} alone"


def _rule(row: dict) -> str:
    where = f"{told_subject(row['about'])}{row['claim']}, {row['kind']} {row['estimate']}"
    return f"{where}: {row['before']} → {row['after']}"


def _number(row: dict) -> str:
    where = f"{told_subject(row['about'])}{row['claim']}, {row['estimate']}"
    return f"{where}: {_measured(row, 'before')} → {_measured(row, 'after')} ({_errors(row['errors'])})"


def _measured(row: dict, when: str) -> str:
    value, low, high = (row[f"{name}_{when}"] for name in ("value", "low", "high"))
    return f"{number(value)} {interval(low, high)}"


def _errors(errors: float) -> str:
    if np.isnan(errors):
        return "no standard error"
    return "exact numbers differ" if np.isinf(errors) else f"{number(errors)} standard errors"


def _figure(row: dict) -> str:
    return f"{row['figure']}: {_change(row)}"


def _change(row: dict) -> str:
    """How far a figure's data moved."""
    if row["state"] != "changed" or np.isnan(row["change"]):
        return row["column"] or row["state"]
    if np.isinf(row["change"]):
        return row["column"] if row["column"].endswith(" differ") else f"{row['column']}: not comparable"
    return f"{row['column']}: at most {number(100 * row['change'])} % of the column's largest value"


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A section with a table of cells that are HTML already; a word where there is none."""
    body = _table(title, head, [("", row) for row in rows]) if rows else "<p>None.</p>"
    return f"<h2>{escape(title)}</h2>\n" + (f"<p>{escape(note)}</p>\n" if note else "") + body


def _table(label: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "\n".join(
        f"<tr{look and f' class={look}'}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for look, cells in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0">\n'
        f"<table><thead><tr>{names}</tr></thead><tbody>\n{lines}\n</tbody></table></div>"
    )


def _named(row: dict) -> str:
    name = escape(told_subject(row["about"]) + row["claim"])
    return f"{escape(row['title'])}<br><small>{name}</small>" if row.get("title") else name


def _verdict_section(found: Comparison) -> str:
    rows = [
        (
            _named(row) + "<br><em>its rule changed</em>" * bool(row["rule_changed"]),
            f"<strong>{escape(row['before'])}</strong><br><small>{escape(row['reason_before'])}</small>",
            f"<strong>{escape(row['after'])}</strong><br><small>{escape(row['reason_after'])}</small>",
        )
        for row in _rows(found.verdicts)
    ]
    return _section("Verdicts that moved", ("claim", "first", "second"), rows)


def _lone_cells(found: Comparison) -> list[tuple[str, ...]]:
    return [(_named(row), f"{row['only']} alone") for row in _rows(found.claims)]


def _rule_cells(found: Comparison) -> list[tuple[str, ...]]:
    return [
        (
            _named(row),
            escape(f"{row['kind']}: {row['estimate']}"),
            escape(row["before"]),
            escape(row["after"]),
        )
        for row in _rows(found.rules)
    ]


def _number_section(numbers: pd.DataFrame) -> str:
    title = "Numbers that moved"
    if numbers.empty:
        return _section(title, (), [])
    rows = [
        (
            "beyond" if row["beyond"] else "",
            (
                _named(row) + f"<br><small>{escape(row['kind'])}: {escape(row['estimate'])}</small>",
                _measured(row, "before"),
                _measured(row, "after"),
                number(row["difference"]),
                _errors(row["errors"]),
                "beyond" if row["beyond"] else "no interval" if np.isnan(row["share"]) else "within",
            ),
        )
        for row in _rows(numbers)
    ]
    head = ("estimate", "first", "second", "difference", "in standard errors", "intervals")
    return f"<h2>{title}</h2>\n<p>{escape(_WHAT)}</p>\n" + _table(title, head, rows)


def _figure_section(found: Comparison) -> str:
    """Each figure that changed, both pictures side by side."""
    changed = found.figures[found.figures["state"] != "same"]
    parts = [
        f"<h2>Figures</h2>\n<p>{len(found.figures) - len(changed)} of {len(found.figures)} are the same.</p>"
    ]
    for row in _rows(changed):
        pictures = [
            _picture(build, row["figure"], which)
            for build, which in ((found.first, "first"), (found.second, "second"))
            if row["figure"] in build.figures
        ]
        parts.append(
            f"<h3>{escape(row['figure'])}</h3>\n<p>{escape(_change(row))}</p>\n"
            f'<div class="pair">{"".join(pictures)}</div>'
        )
    return "\n".join(parts)


def _picture(build: Summary, name: str, which: str) -> str:
    """A figure inside the page: the smaller of its two pictures, as text."""
    files = {kind: build.figure(name, kind) for kind in ("svg", "png")}
    known = {kind: path for kind, path in files.items() if path.is_file()}
    if not known:
        return f"<p>The {which} build no longer has the picture.</p>"
    kind = min(known, key=lambda one: known[one].stat().st_size)
    data = base64.b64encode(known[kind].read_bytes()).decode()
    look = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    told = escape(f"{name} in the {which} build")
    return (
        f'<figure><img src="data:{look};base64,{data}" alt="{told}"><figcaption>{told}</figcaption></figure>'
    )


def _plain_cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return [tuple(escape(str(cell)) for cell in row) for row in table.itertuples(index=False)]
