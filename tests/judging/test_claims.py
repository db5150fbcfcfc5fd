from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate, missing
from threegates.judging import claims
from threegates.judging.claims import judge, not_run, read_claims, verdict_table
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


SPARSER = {
    "sparsity_gap_own_lr": interval(0.4),
    "sparsity_gap_matched_lr": interval(0.3),
    "sparsity_gap_same_style": interval(0.25),
    "sparsity_excess_over_equal_norm_noise": interval(0.2),
}
CASES = [
    ({}, Judgement.reproduced),
    ({"sparsity_excess_over_equal_norm_noise": interval(0.055)}, Judgement.storage),
    ({"sparsity_excess_over_equal_norm_noise": interval(-0.2)}, Judgement.storage),
    ({"sparsity_gap_matched_lr": interval(0.105)}, Judgement.gone_when_matched),
    ({"sparsity_gap_same_style": interval(0.02)}, Judgement.gone_when_matched),
    (
        {"sparsity_gap_matched_lr": interval(0.0), "sparsity_excess_over_equal_norm_noise": interval(0.0)},
        Judgement.gone_when_matched,
    ),
    ({"sparsity_gap_own_lr": interval(0.105)}, Judgement.not_reproduced),
    ({"sparsity_gap_own_lr": interval(0.005)}, Judgement.not_reproduced),
    ({"sparsity_gap_own_lr": interval(-0.02)}, Judgement.contradicted),
    ({"sparsity_gap_own_lr": missing("one seed")}, Judgement.untestable),
    ({"sparsity_gap_matched_lr": missing("no such runs")}, Judgement.untestable),
    (
        {"sparsity_gap_own_lr": interval(-0.02), "sparsity_gap_matched_lr": missing("none")},
        Judgement.contradicted,
    ),
]


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_an_estimate_pushed_past_its_tolerance_changes_the_verdict(monkeypatch, values, expected):
    verdict = judged(monkeypatch, "rl-sparser-than-sft", **{**SPARSER, **values})
    assert verdict.judgement is expected and verdict.reason


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, Judgement.reproduced), (0.095, Judgement.not_reproduced)]
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
    verdict = judged(
        monkeypatch, "rl-sparser-than-sft", **{**SPARSER, "sparsity_gap_own_lr": interval(0.105)}
    )
    assert (
        verdict.reason == "0.105 [0.095, 0.115] over 3 seeds, but the rule is: whole interval at or above 0.1"
    )


def test_the_table_has_a_row_for_the_rule_and_one_for_each_control(monkeypatch):
    frame = verdict_table(
        [
            judged(monkeypatch, "rl-sparser-than-sft", **SPARSER),
            not_run(BY_ID["rows-stand-out-in-qkv"], "no pairs"),
        ]
    )
    assert list(frame["kind"]) == ["rule", "matched", "matched", "storage", "rule", "storage"]
    assert list(frame["holds"])[:4] == [True] * 4 and frame["holds"][4] is None
    assert set(frame["verdict"]) == {"reproduced", "not run"} and math.isnan(frame["value"][4])


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
    assert table.loc["wedin-as-printed-in-general", "verdict"] == "contradicted"
    assert table.loc["wedin-corrected-in-general", "verdict"] == "reproduced"
    with pytest.raises(ClaimError, match="reads no table"):
        claims.NoTables().table("tensor")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_least: 0.10,", "at_lest: 0.10,", r"'rl-sparser-than-sft' → rule → at_lest"),
        ("sparsity_gap_own_lr", "sparsity_gap", "no estimate 'sparsity_gap'"),
        ("id: rl-sparsity-level", "id: rl-sparser-than-sft", "used twice"),
        ("made_by: us", "made_by: them", "'paper' or 'us'"),
        ("within: [-0.10, 0.10]", "contradicted_below: 0.0", "either at_least or within"),
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
