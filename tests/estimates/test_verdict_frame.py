"""The frame of verdicts: it has the columns that are declared, and rules are told from controls."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.planted import planted
from threegates.book import compare, evidence
from threegates.estimates.statistics import with_statistics
from threegates.estimates.verdict_frame import (
    ADDED,
    COLUMNS,
    OF_CLAIM,
    are_rules,
    controls,
    is_rule,
    rule_of,
    rules,
)
from threegates.judging.claims import not_run, read_claims, verdict_table

CLAIMS = read_claims(planted.ROOT / "claims.yaml")


@pytest.fixture(scope="module")
def frame():
    return verdict_table(not_run(claim, "nothing was trained") for claim in CLAIMS.claims)


def test_a_table_of_verdicts_has_the_declared_columns_and_types_and_no_others(frame):
    declared = {name: column.dtype for name, column in COLUMNS.items()}
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == declared
    assert list(verdict_table([])) == list(declared) and list(frame)[: len(OF_CLAIM)] == list(OF_CLAIM)


def test_rules_and_controls_are_all_rows_each_once(frame):
    assert len(rules(frame)) == len(CLAIMS.claims)
    assert len(controls(frame)) == sum(len(claim.controls) for claim in CLAIMS.claims) > 0
    assert pd.concat([rules(frame), controls(frame)]).sort_index().equals(frame)
    assert are_rules(frame).to_list() == [is_rule(row) for _, row in frame.iterrows()]
    assert are_rules(frame).to_list() == [is_rule(row) for row in frame.to_dict("records")]


def test_the_rule_of_a_claim_is_found_wherever_it_stands(frame):
    named = {claim.id: claim.rule.estimate for claim in CLAIMS.claims}
    found = {name: rule_of(own[::-1])["estimate"] for name, own in frame.groupby("claim")}
    assert found == named


def test_columns_of_a_claim_are_the_same_in_all_its_rows(frame):
    assert (frame.groupby("claim")[list(OF_CLAIM)].nunique() == 1).all(axis=None)


def test_what_is_added_later_is_declared_too(frame):
    added = set(with_statistics(frame)) - set(COLUMNS)
    assert added == {"p", "p_holm", "holds_holm", "detectable"} and added <= set(ADDED)
    known = {**COLUMNS, **ADDED}
    assert not set(COLUMNS) & set(ADDED)
    shown = (*evidence._CLAIM, *evidence._NUMBERS, *evidence._SURE)
    compared = (*compare._NUMBER, *compare._RULE, *compare._NUMBERS)
    assert {*shown, *compared} <= set(known)
