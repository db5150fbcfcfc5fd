"""The frame of verdicts: its columns, and how rows of rules are told from rows of controls.

It has one row for each claim's own estimate and one for each control of that claim; `kind` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pandas as pd

#: What `kind` says of a claim's own rule; of a control it says what is controlled for.
RULE = "rule"
#: Nature of a claim that is tested; the others are identities, theorems, choices and what noise does.
EFFECT: Final = "effect"


@dataclass(frozen=True)
class Column:
    """A column of the frame: its pandas type, and what stands in it."""

    dtype: str
    meaning: str


#: Columns that are the same in all rows of a claim on one subject.
OF_CLAIM = {
    "claim": Column("str", "id of the claim"),
    "title": Column("str", "the claim, short enough for an axis"),
    "chapter": Column("str", "the notebook that judges it"),
    "figure": Column("str", "where it is seen, chapter/figure, or empty"),
    "made_by": Column("str", "paper, reading of the paper, or us"),
    "nature": Column("str", "effect, premise, identity, theorem, choice or noise"),
    "informed_by_prototype": Column("bool", "whether its outcome in a prototype was known"),
    "measure": Column("str", "what is measured, in words"),
    "free": Column("str", "choices that the measure leaves open, by commas"),
    "needs": Column("str", "what no build on this machine has, or empty"),
    "awaits": Column("str", "runs that have not been made, or empty"),
    "changed": Column("str", "why its rule was changed, or empty"),
    "place": Column("str", "where the paper makes it"),
    "verdict": Column("str", "one of the words of judging.verdicts"),
    "reason": Column("str", "why this verdict"),
    "subject": Column("str", "what it was judged on, in words"),
}
#: Columns of the row's own rule and of the estimate that it is applied to.
OF_ROW = {
    "kind": Column("str", "rule, or what a control controls for"),
    "says": Column("str", "the claim's or the control's words"),
    "estimate": Column("str", "name of the estimate"),
    "value": Column("float64", "the estimate; missing where there is none"),
    "low": Column("float64", "lower end of its interval"),
    "high": Column("float64", "upper end of its interval"),
    "n": Column("int64", "units that it is over"),
    "unit": Column("str", "what these units are"),
    "error": Column("float64", "standard error on the estimate's scale; zero of what is computed"),
    "scale": Column("str", "linear, or log of a geometric mean"),
    "missing": Column("str", "why there is no interval, or what to note, or empty"),
    "rule": Column("str", "the rule in words"),
    "at_least": Column("float64", "the tolerance of a lower threshold; missing of others"),
    "lower": Column("float64", "lower tolerance of an equivalence"),
    "upper": Column("float64", "upper tolerance of an equivalence, or of an upper threshold"),
    "contrary": Column("float64", "an interval at or below it contradicts; missing where nothing does"),
    "neutral": Column("float64", "the value without an effect; missing of a check"),
    "holds": Column("object", "True, False, or None where the rule cannot be applied"),
    "names": Column("bool", "whether it is the control that names the verdict"),
}
#: Columns of the frame as `judging.claims.verdict_table` makes it.
COLUMNS = OF_CLAIM | OF_ROW
#: Columns that are added later: by a study, by a page, and by `estimates.statistics` for a whole build.
ADDED = {
    "about": Column("str", "name of the subject, of computed claims `computed`"),
    "cells": Column("int64", "cells of the sweeps in which the claim was judged; zero beside controls"),
    "cells_same": Column("int64", "cells in which the verdict is the same"),
    "page": Column("str", "the page that has the card"),
    "p": Column("float64", "one-sided p-value of a rule against its tolerance"),
    "p_holm": Column("float64", "the same, adjusted for all rules of the build"),
    "holds_holm": Column("object", "whether the rule holds family-wise, None where it is no test"),
    "detectable": Column("float64", "smallest true value that would have been shown with power .8"),
}


def are_rules(frame: pd.DataFrame) -> pd.Series:
    """Of every row whether it is a claim's own rule and not a control."""
    return frame["kind"] == RULE


def rules(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the claims' own rules."""
    return frame[are_rules(frame)]


def controls(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of controls."""
    return frame[~are_rules(frame)]


def rule_of(frame: pd.DataFrame) -> pd.Series:
    """The row of the rule, among the rows of one claim on one subject."""
    return rules(frame).iloc[0]


def is_rule(row: Mapping | pd.Series) -> bool:
    """Whether a row is a claim's own rule and not a control."""
    return bool(row["kind"] == RULE)
