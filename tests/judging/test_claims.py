from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate, missing
from threegates.judging import claims
from threegates.judging.claims import Rule, Standing, judge, not_run, read_claims, verdict_table
from threegates.judging.verdicts import Judgement
from threegates.pages.contents import book_pages

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "claims.yaml"
CLAIMS = read_claims(FILE)
BY_ID = {claim.id: claim for claim in CLAIMS.claims}


def interval(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 3, "seeds")


def judged(monkeypatch, claim: str, **values: Estimate) -> claims.Verdict:
    monkeypatch.setattr(claims, "estimate", lambda name, tables, confidence: values[name])
    return judge(BY_ID[claim], object(), "planted")


#: A claim on RL against SFT whose controls can all be computed.
KEEPS = "rl-keeps-the-spectrum"
HELD = {rule.estimate: interval(3.0) for rule in (BY_ID[KEEPS].rule, *BY_ID[KEEPS].controls)}
RATIO, STYLE, RATE = "drift_nss_ratio", "drift_nss_ratio_same_style", "drift_nss_ratio_equal_rate"
NORM = "drift_nss_ratio_equal_norm"
CASES = [
    ({}, Judgement.reproduced),
    ({STYLE: interval(1.2)}, Judgement.by_data),
    # A control explains a claim with its whole interval alone.
    ({STYLE: interval(1.255)}, Judgement.cannot_tell),
    ({STYLE: interval(1.255), RATE: interval(1.0)}, Judgement.by_rate),
    ({STYLE: interval(1.255), NORM: missing("no such runs")}, Judgement.cannot_tell),
    ({RATE: interval(0.5)}, Judgement.by_rate),
    ({NORM: interval(1.2)}, Judgement.by_size),
    ({NORM: interval(1.0), STYLE: interval(1.0), RATE: interval(1.0)}, Judgement.by_size),
    # What is not tested stands in the way of `reproduced` alone.
    ({NORM: missing("no such runs")}, Judgement.untestable),
    ({NORM: missing("no such runs"), RATE: interval(1.0)}, Judgement.by_rate),
    ({RATIO: interval(2.005)}, Judgement.cannot_tell),
    ({RATIO: interval(1.9)}, Judgement.no_effect),
    ({RATIO: interval(1.0)}, Judgement.no_effect),
    ({RATIO: interval(0.6)}, Judgement.no_effect),
    ({RATIO: interval(0.495)}, Judgement.not_reproduced),
    ({RATIO: interval(0.48)}, Judgement.contradicted),
    ({RATIO: missing("one seed")}, Judgement.untestable),
    ({RATIO: interval(0.4), RATE: missing("none")}, Judgement.contradicted),
]


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_an_estimate_pushed_past_its_tolerance_changes_the_verdict(monkeypatch, values, expected):
    verdict = judged(monkeypatch, KEEPS, **{**HELD, **values})
    assert verdict.judgement is expected and verdict.reason


def test_a_reason_says_where_an_effect_is_turned_round_and_where_the_contrary_one_is_not(monkeypatch):
    turned = judged(monkeypatch, KEEPS, **{**HELD, NORM: interval(0.5)})
    assert "the contrary effect" in turned.reason
    assert "contrary" not in judged(monkeypatch, KEEPS, **{**HELD, NORM: interval(1.0)}).reason
    against = judged(monkeypatch, KEEPS, **{**HELD, RATIO: interval(0.4), STYLE: interval(1.0)})
    assert against.judgement is Judgement.contradicted and "not so" in against.reason


def test_the_reason_names_what_else_explains_the_claim(monkeypatch):
    found = {NORM: interval(1.0), STYLE: interval(1.0), RATE: interval(1.0)}
    verdict = judged(monkeypatch, KEEPS, **{**HELD, **found})
    assert verdict.reason.endswith("; as well by data and by rate")
    assert "; as well" not in judged(monkeypatch, KEEPS, **{**HELD, RATE: interval(1.0)}).reason


@pytest.mark.parametrize(
    ("rule", "found", "standing"),
    [
        ({"at_least": 0.1, "neutral": 0}, interval(-0.2), Standing.contrary),
        ({"at_least": 0.1, "neutral": 0}, interval(-0.1, 0.05), Standing.excluded),
        ({"at_least": 0.1, "neutral": 0}, interval(0.0, 0.05), Standing.none),
        ({"at_least": 0.1, "neutral": 0}, interval(0.0, 0.2), Standing.open),
        ({"at_least": 1.25, "neutral": 1}, interval(0.75), Standing.contrary),
        ({"at_least": 1.25, "neutral": 1}, interval(0.85), Standing.none),
        # No worse by more than a margin: being better does not speak against it.
        ({"at_least": -0.03, "neutral": 0}, interval(0.2), Standing.holds),
        ({"at_least": -0.03, "neutral": 0}, interval(-0.03), Standing.open),
        ({"at_least": -0.03, "neutral": 0}, interval(-0.1), Standing.contrary),
        ({"at_most": 2.0, "neutral": 1}, interval(0.1), Standing.holds),
        ({"at_most": 2.0, "neutral": 1}, interval(2.0), Standing.open),
        ({"at_most": 2.0, "neutral": 1}, interval(2.5), Standing.contrary),
        # A level has nothing to be mirrored about.
        ({"at_least": 0.363}, interval(0.3), Standing.excluded),
        ({"at_least": 0.363, "contradicted_below": 0.188}, interval(0.1), Standing.contrary),
    ],
)
def test_margins_are_symmetric_about_what_is_neutral(rule, found, standing):
    assert Rule(estimate="x", **rule).standing(found) is standing


@pytest.mark.parametrize(
    "wrong",
    [
        {"at_least": 0.1, "neutral": 0, "contradicted_below": 0.0},
        {"at_most": -0.1, "neutral": 0},
        {"at_most": 0.1},
        {"at_least": 0.1, "at_most": 0.2, "neutral": 0},
    ],
)
def test_a_rule_that_says_two_things_is_refused(wrong):
    with pytest.raises(ValueError, match="a rule|contradicted_below|at_most"):
        Rule(estimate="x", **wrong)


def test_a_theorem_fails_where_it_fails_once_and_says_nothing_without_its_assumption(monkeypatch):
    name, claim = "leash_of_one_step_holds_response", "one-step-stays-on-the-leash"
    assert judged(monkeypatch, claim, **{name: interval(0.995)}).judgement is Judgement.fails
    assert judged(monkeypatch, claim, **{name: Estimate(1, 1, 1, 3, "seeds")}).judgement is Judgement.holds
    name, claim = "fisher_norm_bound_holds", "step-norm-stays-within-fisher-bound"
    unmet = replace(Estimate(1, 1, 1, 3, "seeds"), unmet="no μ > 0")
    verdict = judged(monkeypatch, claim, **{name: unmet})
    assert (verdict.judgement, verdict.reason) == (Judgement.unmet, "no μ > 0")


def test_every_claim_on_rl_against_sft_has_the_whole_panel():
    wanted = {one.name: one.kind for one in CLAIMS.panel}
    against = [claim for claim in CLAIMS.claims if claim.against_sft]
    # A claim that compares both and is not of them would choose its controls.
    pattern = re.compile(r"sft", re.IGNORECASE)
    compares = [
        claim
        for claim in CLAIMS.claims
        if pattern.search(claim.title) and claim.nature == "effect" and claim.chapter != "precision-lens"
    ]
    # One is itself the panel's equal norm, on linear layers, of another claim that awaits it on whole models.
    itself = {"rl-sparser-than-sft-at-equal-norm"}
    assert {claim.id for claim in compares if not claim.awaits} - {claim.id for claim in against} == itself
    for claim in against:
        found = {control.panel: control.kind for control in claim.controls if control.panel}
        assert set(found) == set(wanted), claim.id


def test_a_panel_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    text = FILE.read_text()
    path.write_text(text.replace("panel: own-style, estimate: drift_nss", "estimate: drift_nss", 1))
    with pytest.raises(ClaimError, match="leaves out of the panel: own-style"):
        read_claims(path)
    path.write_text(
        text.replace("panel: own-style, estimate: drift_nss", "panel: other, estimate: drift_nss", 1)
    )
    with pytest.raises(ClaimError, match="the panel has no control 'other'"):
        read_claims(path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, Judgement.reproduced), (0.095, Judgement.cannot_tell), (0.12, Judgement.contradicted)],
)
def test_an_equivalence_holds_only_with_its_whole_interval_inside(monkeypatch, value, expected):
    assert (
        judged(monkeypatch, "rft-as-sparse-as-rl", sparsity_gap_rl_rft=interval(value)).judgement is expected
    )
    assert (
        judged(monkeypatch, "rft-as-sparse-as-rl", sparsity_gap_rl_rft=interval(-value)).judgement is expected
    )


def test_what_needs_other_checkpoints_says_so(monkeypatch):
    verdict = judged(monkeypatch, "rl-sparsity-level", sparsity_level_of_paper_pairs=missing("none there"))
    assert verdict.judgement is Judgement.untestable and "paper checkpoints" in verdict.reason


def test_reasons_give_interval_and_rule(monkeypatch):
    verdict = judged(monkeypatch, KEEPS, **{**HELD, RATIO: interval(2.005)})
    told = "2 [1.99, 2.01] over 3 seeds, on both sides of the tolerance"
    assert verdict.reason == f"{told}, but the rule is: whole interval at or above 2"


def test_the_table_has_a_row_for_the_rule_and_one_for_each_control(monkeypatch):
    frame = verdict_table(
        [
            judged(monkeypatch, KEEPS, **HELD),
            not_run(BY_ID["rows-stand-out-in-qkv"], "no pairs"),
        ]
    )
    kinds = [control.kind for control in BY_ID[KEEPS].controls]
    assert list(frame["kind"]) == ["rule", *kinds, "rule", "storage"]
    number = 1 + len(kinds)
    assert list(frame["holds"])[:number] == [True] * number and frame["holds"][number] is None
    assert set(frame["verdict"]) == {"reproduced", "not run"} and math.isnan(frame["value"][number])


def test_a_claim_has_a_page_or_awaits_one():
    pages = {page.notebook for page in book_pages(ROOT)}
    for claim in CLAIMS.claims:
        assert claim.chapter in pages or claim.awaits, claim.id
        assert claim.figure is None or claim.figure.startswith(f"{claim.chapter}/"), claim.id
    assert CLAIMS.confidence == 0.95


def numbers_in(places: list[str], name: str) -> set[int]:
    """Numbers of all places called so: "Figs 4 and 16–18" are 4, 16, 17 and 18."""
    found: set[int] = set()
    for place in places:
        for listed in re.findall(rf"{name}\.?s? ([0-9a-e ,and–to]+)", place):
            for first, last in re.findall(r"(\d+)[a-e]?(?:(?:–| to )(\d+))?", listed):
                found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_place_of_the_paper_that_makes_a_claim_has_a_row():
    places = [claim.paper.place for claim in CLAIMS.claims]
    assert numbers_in(places, "Fig") == set(range(1, 19))
    assert numbers_in(places, "Table") == {1, 2, 3, 4, 5}
    text = "; ".join(places)
    for place in ("Def. 2.1", "Prop. 3.1", "Prop. 3.2", "Thm 3.3", "Cor. 3.4", "3.5", "Cor. 3.6"):
        assert place in text
    for place in ("Lemma E.1", "Lemma E.2", "Lemma F.9", "App. D", "App. E", "text, no figure"):
        assert place in text


def test_the_verdict_on_what_awaits_runs_is_not_run():
    known = BY_ID["rl-walks-where-it-is-flat"]
    verdict = claims.judge(known.model_copy(update={"awaits": "other runs"}), claims.NoTables(), "the lab")
    assert verdict.judgement == "not run" and "it awaits other runs" in verdict.reason


def test_a_claim_that_awaits_what_can_be_computed_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    text = FILE.read_text()
    path.write_text(text.replace("    needs: paper-checkpoints\n", "    awaits: more\n", 1))
    with pytest.raises(ClaimError, match="every estimate that it names can be computed"):
        claims.read_claims(path)


def test_claims_that_need_no_checkpoint_are_judged_without_one():
    table = claims.judge_computed(CLAIMS, "errata").set_index("claim")
    assert len(table) == len(CLAIMS.of("errata")) and set(table["about"]) == {"computed"}
    assert table.loc["wedin-as-printed-in-general", "verdict"] == "does not hold"
    assert table.loc["wedin-corrected-in-general", "verdict"] == "holds"
    with pytest.raises(ClaimError, match="reads no table"):
        claims.NoTables().table("tensor")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_least: 0.10,", "at_lest: 0.10,", r"'rl-sparser-than-sft' → rule → at_lest"),
        ("sparsity_gap_own_lr", "sparsity_gap", "no estimate 'sparsity_gap'"),
        ("id: rl-sparsity-level", "id: rl-sparser-than-sft", "used twice"),
        ("made_by: us", "made_by: them", "'paper', 'reading of the paper' or 'us'"),
        ("within: [-0.10, 0.10], ", "", "either at_least, at_most or within"),
        ("version: 1", "version: [", "not YAML"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_where_it_does(tmp_path, old, new, message):
    path = tmp_path / "claims.yaml"
    path.write_text(FILE.read_text().replace(old, new, 1))
    with pytest.raises(ClaimError, match=message):
        read_claims(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ClaimError, match="no file of claims"):
        read_claims(tmp_path / "claims.yaml")


def test_two_claims_on_one_theorem_say_which_question_each_asks():
    in_general, on_updates = (BY_ID[f"wedin-as-printed-{one}"] for one in ("in-general", "holds"))
    assert (
        in_general.title.startswith("In general, for any update")
        and "for any update" in in_general.paper.says
    )
    assert on_updates.title.startswith("On these updates") and "of the runs at hand" in on_updates.paper.says
    for claim in (in_general, on_updates):
        assert "another question" in " ".join(claim.measure.split())


def test_no_two_claims_have_one_title():
    titles = [claim.title for claim in CLAIMS.claims]
    assert sorted(titles) == sorted(set(titles))


def test_the_id_of_what_is_rotated_back_says_what_its_rule_asks_for():
    # The rule asks for a loss of overlap that stays.
    (claim,) = [one for one in CLAIMS.claims if one.rule.estimate == "rotation_loss_rotated_back"]
    assert claim.id == "overlap-stays-lost-when-rotated-back" and claim.title.endswith("stays lost")
    assert claim.rule.at_least > 0 and "overlap-returns" in claim.changed[0].was
