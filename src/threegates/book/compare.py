"""Two builds of the book side by side: which verdicts, numbers and figures moved, and by how much.

A number's move is held against both builds' intervals: |a − b| over the root of the sum of their squares, of
standard errors (`errors`) or of half intervals (`share`); on the logarithmic scale where the estimate was
averaged on it. This counts the builds as independent. Builds of equal seeds are not, and should move less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from threegates.book.summary import Summary, read_summary
from threegates.estimates import verdict_frame
from threegates.jobs.subjects import LAB

_CLAIM = ["about", "claim"]
_NUMBER = [*_CLAIM, "kind", "estimate"]
_RULE = ("rule", "neutral", "contrary")
_NUMBERS = ("value", "low", "high", "error")


@dataclass(frozen=True)
class Comparison:
    """What differs between a first and a second build; every table may be empty.

    verdicts : about, claim, title, before, after, reason_before, reason_after, rule_changed.
    rules : about, claim, kind, estimate, before, after; a rule or control of one build alone has a dash.
    numbers : about, claim, title, kind, estimate, value, low, high of both builds (``_before``, ``_after``),
        difference, errors, share, beyond.
    claims : about, claim, title, only ("first" or "second").
    figures : figure, state (same, changed, only first, only second), change, column.
    values : key, before, after.
    made : what, before, after.
    """

    first: Summary
    second: Summary
    verdicts: pd.DataFrame
    rules: pd.DataFrame
    numbers: pd.DataFrame
    claims: pd.DataFrame
    figures: pd.DataFrame
    values: pd.DataFrame
    made: pd.DataFrame

    @property
    def moved(self) -> bool:
        """Whether a verdict moved, or a claim is judged in one build alone."""
        return not (self.verdicts.empty and self.claims.empty)


def compare_builds(first: Path, second: Path) -> Comparison:
    """Compare the builds of two folders.

    Raises
    ------
    RecordError : one of them is no finished build.
    """
    one, two = read_summary(first), read_summary(second)
    rules = changed_rules(one.verdicts, two.verdicts)
    return Comparison(
        one,
        two,
        moved_verdicts(one.verdicts, two.verdicts, rules),
        rules,
        moved_numbers(one.verdicts, two.verdicts),
        lone_claims(one.verdicts, two.verdicts),
        moved_figures(one, two),
        differing(one.values, two.values, "key"),
        differing(_made(one), _made(two), "what"),
    )


def moved_verdicts(first: pd.DataFrame, second: pd.DataFrame, rules: pd.DataFrame) -> pd.DataFrame:
    """Claims of both builds whose verdicts differ; `rule_changed` where their rules differ too."""
    both = _rules(first).merge(_rules(second), on=_CLAIM, suffixes=("_before", "_after"))
    moved = both[both["verdict_before"] != both["verdict_after"]]
    changed = set(zip(rules["about"], rules["claim"], strict=True))
    return pd.DataFrame(
        {
            "about": moved["about"],
            "claim": moved["claim"],
            "title": moved["title_after"],
            "before": moved["verdict_before"],
            "after": moved["verdict_after"],
            "reason_before": moved["reason_before"],
            "reason_after": moved["reason_after"],
            "rule_changed": [key in changed for key in zip(moved["about"], moved["claim"], strict=True)],
        }
    ).reset_index(drop=True)


def changed_rules(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rules and controls, of claims in both builds, that are not the same in both."""
    shared = set(map(tuple, _rules(first)[_CLAIM].values)) & set(map(tuple, _rules(second)[_CLAIM].values))
    texts = [_rule_texts(table) for table in (first, second)]
    keys = [key for key in dict.fromkeys([*texts[0], *texts[1]]) if key[:2] in shared]
    rows = [(*key, *(text.get(key, "–") for text in texts)) for key in keys]
    differ = [row for row in rows if row[-2] != row[-1]]
    return pd.DataFrame(differ, columns=[*_NUMBER, "before", "after"])


def moved_numbers(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Every estimate of both builds whose number differs, the largest move against its intervals first."""
    known = [*_NUMBER, "title", "scale", *_NUMBERS]
    # Two controls of one claim may hold the same estimate against two rules: one number all the same.
    one, two = (table[known].drop_duplicates(_NUMBER) for table in (first, second))
    both = one.merge(two, on=_NUMBER, suffixes=("_before", "_after"))
    before, after = (both[f"value_{when}"].astype(float) for when in ("before", "after"))
    both = both[~((before == after) | (before.isna() & after.isna()))].reset_index(drop=True)
    both["difference"] = both["value_after"].astype(float) - both["value_before"].astype(float)
    moves = [_move(row) for row in both.to_dict("records")]
    both["errors"], both["share"] = (pd.Series([one[i] for one in moves], dtype=float) for i in (0, 1))
    both["beyond"] = both["share"] > 1
    numbers = [f"{name}_{when}" for name in ("value", "low", "high") for when in ("before", "after")]
    both = both.assign(title=both["title_after"])[
        [*_CLAIM, "title", "kind", "estimate", *numbers, "difference", "errors", "share", "beyond"]
    ]
    return both.sort_values("share", ascending=False, kind="stable", na_position="first", ignore_index=True)


def lone_claims(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Claims that are judged in one of the builds alone."""
    both = _rules(first).merge(_rules(second), on=_CLAIM, how="outer", indicator="only")
    lone = both[both["only"] != "both"]
    return pd.DataFrame(
        {
            "about": lone["about"],
            "claim": lone["claim"],
            "title": lone["title_x"].fillna(lone["title_y"]),
            "only": lone["only"].astype(str).map({"left_only": "first", "right_only": "second"}),
        }
    ).reset_index(drop=True)


def differing(first: dict, second: dict, name: str) -> pd.DataFrame:
    """Entries that are not the same in two mappings, or in one alone."""
    keys = dict.fromkeys([*first, *second])
    rows = [(key, str(first.get(key, "–")), str(second.get(key, "–"))) for key in keys]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=[name, "before", "after"])


def moved_figures(first: Summary, second: Summary) -> pd.DataFrame:
    """Each figure of either build: whether its data are the same, and the largest relative change."""
    rows = [_figure(name, first, second) for name in sorted({*first.figures, *second.figures})]
    return pd.DataFrame(rows, columns=["figure", "state", "change", "column"])


def largest_change(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, str]:
    """Largest |a − b| over the largest |a| of its column, and that column; infinite where shapes differ.

    Text that differs counts as infinite, too: the rows are no longer about the same things.
    """
    if list(first.columns) != list(second.columns):
        return np.inf, "columns differ"
    if len(first) != len(second):
        return np.inf, "rows differ"
    changes = {str(name): _change(first[name], second[name]) for name in first}
    column = max(changes, key=lambda name: changes[name], default="")
    return changes.get(column, 0.0), column


def _change(before: pd.Series, after: pd.Series) -> float:
    numeric = all(pd.api.types.is_numeric_dtype(one) for one in (before, after))
    if not numeric:
        return 0.0 if before.astype(str).equals(after.astype(str)) else np.inf
    a, b = before.to_numpy(float), after.to_numpy(float)
    if (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    # Infinities that agree leave no difference; those that do not leave an infinite one.
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
    size = np.nanmax(np.abs(a[np.isfinite(a)]), initial=0.0)
    largest = float(np.nanmax(gap, initial=0.0))
    return largest / size if size else np.inf * largest if largest else 0.0


def _figure(name: str, first: Summary, second: Summary) -> tuple[str, str, float, str]:
    if name not in second.figures:
        return name, "only first", np.nan, ""
    if name not in first.figures:
        return name, "only second", np.nan, ""
    if first.figures[name] == second.figures[name]:
        return name, "same", 0.0, ""
    try:
        frames = [pd.read_csv(build.figure(name, "csv")) for build in (first, second)]
    except (OSError, ValueError):
        return name, "changed", np.nan, "the data are no longer there"
    return name, "changed", *largest_change(*frames)


def _rules(table: pd.DataFrame) -> pd.DataFrame:
    return verdict_frame.rules(table)[[*_CLAIM, "title", "verdict", "reason"]]


def _rule_texts(table: pd.DataFrame) -> dict[tuple, str]:
    """Each rule in words, with the bounds that its words leave out."""
    texts: dict[tuple, str] = {}
    for row in table.to_dict("records"):
        bounds = [f"{name.replace('_', ' ')} {row[name]:g}" for name in _RULE[1:] if pd.notna(row.get(name))]
        key, text = tuple(row[name] for name in _NUMBER), "; ".join([row["rule"], *bounds])
        texts[key] = f"{texts[key]} and {text}" if key in texts else text
    return texts


def _move(row: dict) -> tuple[float, float]:
    """The move over both standard errors, and over both half intervals; NaN where a build has none."""
    log = row["scale_before"] == row["scale_after"] == "log"
    before, after = (
        [_scaled(row[f"{name}_{when}"], log) for name in ("value", "low", "high")]
        for when in ("before", "after")
    )
    gap = abs(after[0] - before[0])
    error = np.hypot(_scaled(row["error_before"], False), _scaled(row["error_after"], False))
    half = np.hypot((before[2] - before[1]) / 2, (after[2] - after[1]) / 2)
    return _over(gap, float(error)), _over(gap, float(half))


def _scaled(value: float | None, log: bool) -> float:
    number = np.nan if value is None else float(value)
    return float(np.log(number)) if log and number > 0 else number


def _over(gap: float, spread: float) -> float:
    if np.isnan(gap) or np.isnan(spread):
        return np.nan
    return float(gap / spread) if spread > 0 else np.inf if gap > 0 else 0.0


def _made(build: Summary) -> dict[str, object]:
    return {"profile": build.profile, **build.made, **build.versions}


def told_subject(about: str) -> str:
    """A claim's subject as it stands before its name; nothing for the lab."""
    return "" if about == LAB else f"{about}: "
