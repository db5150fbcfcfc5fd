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
from threegates.judging.verdicts import CONTROLS, Judgement

ROOT = Path(__file__).resolve().parents[2]
KNOWN = claims.read_claims(ROOT / "claims.yaml")
#: Estimates that read no table: no record can push them.
EXACT = set(getattr(register, "EXACT", ()))
#: Half-width of the units' values around their mean, and the distance from a tolerance.
SPREAD, STEP = 0.004, 1e-5


def computable(claim: Claim) -> bool:
    """Whether records decide on a claim: its runs have been made, and it is no exact computation."""
    return not claim.awaits and claim.rule.estimate not in EXACT and claim.id not in UNMET


#: Theorems whose assumption no build meets, so that no number moves their verdict.
UNMET = ("one-step-stays-on-the-leash",)
CLAIMS = [claim for claim in KNOWN.claims if computable(claim)]
#: What a claim needs otherwise than the common tables have it: where RFT is as sparse as RL, which is a claim
#: of its own, RL cannot be sparser than RFT.
START = {
    "rl-sparser-than-sft": {"sparsity_gap_rft": 0.4},
    "rotated-overlap-is-random": {"rotated_back_excess_jaccard": 0.0},
}


def start(claim: Claim) -> Given:
    """Tables on which a claim is reproduced, as far as its controls have been measured."""
    tables = Given(baseline())
    for name, value in START.get(claim.id, {}).items():
        tables = planted(name, [value] * PLANTERS[name].units, tables)
    return tables


def good(claim: Claim) -> Judgement:
    """The best verdict that a claim can get: a control that awaits its runs stands in the way of more."""
    if any(control.awaits for control in claim.controls):
        return Judgement.untestable
    return Judgement.reproduced if claim.nature in ("effect", "premise") else Judgement.holds


def rules(claim: Claim) -> list[Rule]:
    """The claim's own rule and those of the controls that can be computed."""
    return [claim.rule, *(control for control in claim.controls if not control.awaits)]


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


@dataclass(frozen=True)
class Past:
    """Verdicts past a tolerance: on both sides of it, wholly past it, wholly at the contrary or beyond."""

    open: Judgement
    none: Judgement
    excluded: Judgement
    contrary: Judgement


EFFECT = Past(Judgement.cannot_tell, Judgement.no_effect, Judgement.not_reproduced, Judgement.contradicted)
STATEMENT = Past(Judgement.cannot_tell, Judgement.fails, Judgement.fails, Judgement.fails)
EXPLAINED = {name: Past(Judgement.cannot_tell, *[kind.verdict] * 3) for name, kind in CONTROLS.items()}


def pushes(claim: Claim, rule: Rule, past: Past) -> list[Push]:
    """Both sides of every tolerance of a rule."""
    found = broken(claim, rule, past) if in_shares(rule.estimate) else moved(claim, rule, past)
    return [Push(claim, rule.estimate, *one) for one in found]


def broken(claim: Claim, rule: Rule, past: Past) -> list[tuple[str, np.ndarray, Judgement]]:
    """None broken, one, all: a theorem fails where it fails once."""
    name, n = rule.estimate, PLANTERS[rule.estimate].units
    assert rule.at_least == 1.0
    found = [("none broken", shares(name, broken=0), good(claim))]
    if claim.nature not in ("effect", "premise"):
        found.append(("one broken", shares(name, broken=1), past.excluded))
    return [
        *found,
        ("all broken", shares(name, broken=n), past.excluded if rule.contrary is None else past.contrary),
    ]


def moved(claim: Claim, rule: Rule, past: Past) -> list[tuple[str, np.ndarray, Judgement]]:
    """The interval's end just on either side of each bound."""
    name, well = rule.estimate, good(claim)
    if rule.within is not None:
        low, high = rule.within
        return [
            ("inside the lower bound", around(name, low=low + STEP), well),
            ("across the lower bound", around(name, low=low - STEP), past.open),
            ("below the lower bound", around(name, high=low - STEP), past.contrary),
            ("inside the upper bound", around(name, high=high - STEP), well),
            ("across the upper bound", around(name, high=high + STEP), past.open),
            ("above the upper bound", around(name, low=high + STEP), past.contrary),
        ]
    if rule.at_most is not None:
        return [
            ("below", around(name, high=rule.at_most - STEP), well),
            ("across", around(name, high=rule.at_most + STEP), past.open),
            ("above", around(name, low=rule.at_most + STEP), past.contrary),
        ]
    assert rule.at_least is not None
    found = [
        ("above", around(name, low=rule.at_least + STEP), well),
        ("across", around(name, low=rule.at_least - STEP), across(claim, rule, past)),
    ]
    return found + below(rule, past)


def across(claim: Claim, rule: Rule, past: Past) -> Judgement:
    """A theorem or an identity whose mean lies below its bound fails."""
    middle = np.mean(around(rule.estimate, low=(rule.at_least or 0) - STEP))
    statement = rule is claim.rule and claim.nature in ("theorem", "identity")
    return past.excluded if statement and middle < (rule.at_least or 0) else past.open


def below(rule: Rule, past: Past) -> list[tuple[str, np.ndarray, Judgement]]:
    """Wholly below a threshold, and about its mirror image."""
    name, bound, mirror = rule.estimate, float(rule.at_least or 0), mirrored(rule)
    whole = around(name, high=bound - STEP)
    if mirror is None or mirror == bound:
        return [("wholly below", whole, past.excluded if mirror is None else past.contrary)]
    wide = t_estimate(np.log(whole) if PLANTERS[name].log else whole, "units", KNOWN.confidence).low
    inside = (math.exp(wide) if PLANTERS[name].log else wide) > mirror
    beside = past.excluded if rule.neutral is None or not inside else past.none
    return [
        ("wholly below", whole, beside),
        ("across the contrary", around(name, high=mirror + STEP), past.excluded),
        ("contrary", around(name, high=mirror - STEP), past.contrary),
    ]


def mirrored(rule: Rule) -> float | None:
    """A threshold as far on the other side of no effect; itself where it lies there."""
    assert rule.at_least is not None
    if rule.neutral is None:
        return rule.contradicted_below
    if rule.at_least <= rule.neutral:
        return rule.at_least
    return 1 / rule.at_least if rule.neutral == 1 else 2 * rule.neutral - rule.at_least


WALK = [
    push
    for claim in CLAIMS
    for push in (
        *pushes(claim, claim.rule, EFFECT if claim.nature in ("effect", "premise") else STATEMENT),
        *(
            push
            for rule in claim.controls
            if not rule.awaits
            for push in pushes(claim, rule, EXPLAINED[rule.kind])
        ),
    )
]


def test_every_estimate_that_reads_a_table_can_be_planted():
    assert set(PLANTERS) == set(register.ESTIMATES) - EXACT


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_walk_starts_where_every_claim_is_reproduced(claim):
    assert judged(claim, start(claim)) == good(claim)


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
    names = [rule.estimate for rule in rules(claim)]
    before = {name: register.estimate(name, start(claim)) for name in names}
    for name in names:
        values = shares(name, broken=1) if in_shares(name) else around(name, low=PLANTERS[name].at)
        tables = planted(name, values, start(claim))
        for other in set(names) - {name}:
            found = register.estimate(other, tables)
            assert (found.low, found.high) == pytest.approx((before[other].low, before[other].high), abs=1e-8)


@pytest.mark.parametrize("push", WALK, ids=str)
def test_a_record_past_a_tolerance_changes_the_verdict(push):
    assert judged(push.claim, planted(push.estimate, push.values, start(push.claim))) == push.expected


@pytest.mark.parametrize("name", UNMET)
@pytest.mark.parametrize("broken", [0, 1])
def test_no_record_moves_a_theorem_whose_assumption_is_unmet(name, broken):
    (claim,) = [one for one in KNOWN.claims if one.id == name]
    tables = planted(claim.rule.estimate, shares(claim.rule.estimate, broken=broken))
    verdict = claims.judge(claim, tables, "planted tables", KNOWN.confidence)
    assert (verdict.judgement, verdict.reason) == (Judgement.unmet, verdict.estimate.unmet)


def test_the_walk_passes_every_rule_and_control():
    walked = {(push.claim.id, push.estimate) for push in WALK if push.expected != good(push.claim)}
    assert walked == {(claim.id, rule.estimate) for claim in CLAIMS for rule in rules(claim)}


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
    past = EFFECT if claim.nature in ("effect", "premise") else STATEMENT
    bounds = [
        (good(claim), {"at_least": found.low - STEP}),
        (past.excluded, {"at_least": found.high + STEP}),
        (past.contrary, {"at_least": found.high + STEP, "contradicted_below": found.high + STEP}),
    ]
    for expected, bound in bounds:
        rule = Rule(estimate=claim.rule.estimate, **bound)
        assert judged(claim.model_copy(update={"rule": rule, "controls": []}), Given({})) == expected


def test_every_claim_is_walked_computed_or_awaits_its_runs():
    awaiting = {claim.id for claim in KNOWN.claims if claim.awaits}
    walked = {claim.id for claim in (*CLAIMS, *COMPUTED)}
    assert awaiting | walked | set(UNMET) == {claim.id for claim in KNOWN.claims}
