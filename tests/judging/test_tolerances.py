"""Every tolerance of claims.yaml decides: a record that is pushed past it changes the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.planted.planted_tables import PLANTERS, TESTED, Given, baseline, planted
from threegates import register
from threegates.estimates.intervals import Estimate, t_estimate
from threegates.judging import claims
from threegates.judging.claims import Claim, Rule
from threegates.judging.verdicts import Judgement

ROOT = Path(__file__).resolve().parents[2]
KNOWN = claims.read_claims(ROOT / "claims.yaml")
#: Estimates that read no table: no record can push them.
EXACT = set(getattr(register, "EXACT", ()))
#: Half-width of the units' values around their mean, and the distance from a tolerance.
SPREAD, STEP = 0.004, 1e-5


def computable(claim: Claim) -> bool:
    """Whether records decide on a claim: its runs have been made, and it is no exact computation."""
    return not claim.awaits and claim.rule.estimate not in EXACT


CLAIMS = [claim for claim in KNOWN.claims if computable(claim)]


def judged(claim: Claim, tables: Given) -> Judgement:
    return claims.judge(claim, tables, "planted tables", KNOWN.confidence).judgement


def units(name: str) -> np.ndarray:
    """Values around zero, one for each unit of an estimate; an exact number has no spread."""
    return SPREAD * (not PLANTERS[name].exact) * np.linspace(-1, 1, PLANTERS[name].units)


def around(name: str, *, low: float = math.nan, high: float = math.nan) -> np.ndarray:
    """Values for the units of an estimate whose interval begins, or ends, at that point."""
    reach = t_estimate(units(name), "units", KNOWN.confidence).high
    if PLANTERS[name].log:
        middle = math.log(low) + reach if math.isfinite(low) else math.log(high) - reach
        return np.exp(middle + units(name))
    return (low + reach if math.isfinite(low) else high - reach) + units(name)


def shares(name: str, *, broken: int) -> np.ndarray:
    """A whole for every unit but for those that are broken."""
    part = 0.0 if PLANTERS[name].counted else 1 - 1 / TESTED
    return np.where(np.arange(PLANTERS[name].units) < broken, part, 1.0)


def in_shares(name: str) -> bool:
    """Whether an estimate's units are whole or broken and nothing between."""
    return PLANTERS[name].tenths or PLANTERS[name].counted


@dataclass(frozen=True)
class Push:
    """Values for the units of an estimate, and the verdict that they must give a claim."""

    claim: Claim
    estimate: str
    says: str
    values: np.ndarray
    expected: Judgement

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.estimate}, {self.says}"


def pushes(claim: Claim, rule: Rule, past: Judgement) -> list[Push]:
    """Both sides of every tolerance of a rule: just within it holds, just past it the verdict is `past`."""
    found = broken(rule, past) if in_shares(rule.estimate) else moved(rule, past)
    return [Push(claim, rule.estimate, *one) for one in found]


def broken(rule: Rule, past: Judgement) -> list[tuple[str, np.ndarray, Judgement]]:
    """None broken, one, more than the bound of contradiction allows."""
    name, n = rule.estimate, PLANTERS[rule.estimate].units
    assert rule.at_least == 1.0
    found = [("none broken", shares(name, broken=0), Judgement.reproduced)]
    found.append(("one broken", shares(name, broken=1), past))
    if rule.contradicted_below is not None:
        found.append(("all broken", shares(name, broken=n), Judgement.contradicted))
    return found


def moved(rule: Rule, past: Judgement) -> list[tuple[str, np.ndarray, Judgement]]:
    """The interval's end just on either side of each bound."""
    name, good = rule.estimate, Judgement.reproduced
    lower = rule.at_least if rule.within is None else rule.within[0]
    found = [
        ("within", around(name, low=lower + STEP), good),
        ("past", around(name, low=lower - STEP), past),
    ]
    if rule.within:
        found.append(("below the upper bound", around(name, high=rule.within[1] - STEP), good))
        found.append(("above the upper bound", around(name, high=rule.within[1] + STEP), past))
    if rule.contradicted_below is not None:
        bound = rule.contradicted_below
        found.append(("not contradicted", around(name, high=bound + STEP), past))
        found.append(("contradicted", around(name, high=bound - STEP), Judgement.contradicted))
    return found


KINDS = {"matched": Judgement.gone_when_matched, "storage": Judgement.storage}
WALK = [
    push
    for claim in CLAIMS
    for push in (
        *pushes(claim, claim.rule, Judgement.not_reproduced),
        *(push for rule in claim.controls for push in pushes(claim, rule, KINDS[rule.kind])),
    )
]


def test_every_estimate_that_reads_a_table_can_be_planted():
    assert set(PLANTERS) == set(register.ESTIMATES) - EXACT


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_walk_starts_where_every_claim_is_reproduced(claim):
    assert judged(claim, Given(baseline())) == Judgement.reproduced


@pytest.mark.parametrize("name", PLANTERS)
def test_what_was_planted_is_what_the_estimate_finds(name):
    planter = PLANTERS[name]
    values = shares(name, broken=2) if in_shares(name) else around(name, low=planter.at)
    scale = np.log if planter.log else np.asarray
    wanted = t_estimate(scale(values), "units", KNOWN.confidence)
    found = register.estimate(name, planted(name, values), KNOWN.confidence)
    assert found.n == planter.units
    middle, low, high = scale([found.value, found.low, found.high])
    assert middle == pytest.approx(wanted.value, abs=1e-8)
    ends = (middle, middle) if planter.counted else (wanted.low, wanted.high)
    assert (low, high) == pytest.approx(ends, abs=1e-8)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_planted_value_leaves_the_other_numbers_of_its_claim_alone(claim):
    names = [rule.estimate for rule in (claim.rule, *claim.controls)]
    before = {name: register.estimate(name, Given(baseline())) for name in names}
    for name in names:
        values = shares(name, broken=1) if in_shares(name) else around(name, low=PLANTERS[name].at)
        tables = planted(name, values)
        for other in set(names) - {name}:
            found = register.estimate(other, tables)
            assert (found.low, found.high) == pytest.approx((before[other].low, before[other].high), abs=1e-8)


@pytest.mark.parametrize("push", WALK, ids=str)
def test_a_record_past_a_tolerance_changes_the_verdict(push):
    assert judged(push.claim, planted(push.estimate, push.values)) == push.expected


def test_the_walk_passes_every_rule_and_control():
    walked = {(push.claim.id, push.estimate) for push in WALK if push.expected != Judgement.reproduced}
    rules = {(claim.id, rule.estimate) for claim in CLAIMS for rule in (claim.rule, *claim.controls)}
    assert walked == rules


COMPUTED = [claim for claim in KNOWN.claims if claim.rule.estimate in EXACT]


@cache
def computed(name: str) -> Estimate:
    return register.estimate(name, claims.NoTables(), KNOWN.confidence)


@pytest.mark.parametrize("claim", COMPUTED, ids=lambda claim: claim.id)
def test_a_tolerance_past_a_computed_number_changes_the_verdict(claim, monkeypatch):
    """No record can be pushed here, so that the tolerance goes past the number instead."""
    monkeypatch.setattr(claims, "estimate", lambda name, tables, confidence: computed(name))
    assert all(control.estimate in EXACT for control in claim.controls)
    found = computed(claim.rule.estimate)
    rules = {
        Judgement.reproduced: {"at_least": found.low - STEP},
        Judgement.not_reproduced: {"at_least": found.low + STEP},
        Judgement.contradicted: {"at_least": found.high + STEP, "contradicted_below": found.high + STEP},
    }
    for expected, bounds in rules.items():
        rule = Rule(estimate=claim.rule.estimate, **bounds)
        assert judged(claim.model_copy(update={"rule": rule, "controls": []}), Given({})) == expected


def test_every_claim_is_walked_computed_or_awaits_its_runs():
    awaiting = {claim.id for claim in KNOWN.claims if claim.awaits}
    assert awaiting | {claim.id for claim in (*CLAIMS, *COMPUTED)} == {claim.id for claim in KNOWN.claims}
