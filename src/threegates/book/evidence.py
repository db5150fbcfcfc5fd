"""Evidence: for each claim and subject one file with everything that its verdict rests on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from threegates.appendices.verdicts import evidence_place
from threegates.atomic import write_text
from threegates.estimates.verdict_frame import controls, rule_of

_CLAIM = (
    *("title", "place", "says", "made_by", "nature", "informed_by_prototype", "measure", "changed"),
    *("chapter", "page", "figure", "free", "needs", "awaits"),
)
_NUMBERS = (
    *(
        "estimate",
        "value",
        "low",
        "high",
        "n",
        "unit",
        "error",
        "scale",
        "rule",
        "at_least",
        "lower",
        "upper",
    ),
    *("contrary", "neutral", "holds", "missing"),
)
_SURE = ("cells", "cells_same", "p", "p_holm", "holds_holm", "detectable")


def write_evidence(
    folder: Path, verdicts: pd.DataFrame, cells: pd.DataFrame, records: dict[str, list[dict]]
) -> None:
    """Write one JSON file for each claim and subject below a folder.

    Parameters
    ----------
    verdicts : the table of a whole build, with `about` and `page`.
    cells : of all pages, `robustness.COLUMNS` with `about`.
    records : of each page the records that it read, as name and digest.
    """
    for (claim, about), group in verdicts.groupby(["claim", "about"], sort=False):
        rule = rule_of(group)
        own = cells[(cells["claim"] == claim) & (cells["about"] == about)] if len(cells) else cells
        path = folder / evidence_place(rule)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = evidence(group, own, records.get(rule["page"], []))
        write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def evidence(group: pd.DataFrame, cells: pd.DataFrame, records: list[dict]) -> dict[str, Any]:
    """What the verdict on one claim and subject rests on: rule, estimate, controls, cells, records."""
    rule = rule_of(group)
    return {
        "claim": rule["claim"],
        "subject": {"name": rule["about"], "told": rule["subject"]},
        "verdict": rule["verdict"],
        "reason": rule["reason"],
        "register": _plain(rule, _CLAIM),
        "rule": _plain(rule, _NUMBERS),
        "controls": [_plain(row, ("kind", "says", *_NUMBERS)) for _, row in controls(group).iterrows()],
        "how sure": _plain(rule, _SURE),
        "cells": [_plain(row, tuple(cells.columns)) for _, row in cells.iterrows()],
        "records": records,
    }


def _plain(row: pd.Series, names: tuple[str, ...]) -> dict[str, Any]:
    """Values as JSON has them: no NaN, no numpy types."""
    return {name: _value(row[name]) for name in names if name in row.index}


def _value(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or value is pd.NA:
        return None
    return value.item() if hasattr(value, "item") else value
