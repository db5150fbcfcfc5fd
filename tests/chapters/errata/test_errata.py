"""Errata of the paper (arXiv 2511.08567 v1): what the functions compute, and oracles of another kind."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import nbformat
import numpy as np
import pytest
import torch

from tests.planted import planted
from threegates.chapters.errata import errata, plots, statements
from threegates.chapters.errata.errata import stored
from threegates.estimates import paper
from threegates.estimates.paper import tables_4_and_5
from threegates.geometry.precision import INFINITY_CODE, bf16_from_codes, ulp, unchanged_by_definition
from threegates.judging.claims import judge_computed, read_claims
from threegates.pages.asked import run_chapter

# --- Theorem 3.3


def test_theorem_3_3_as_printed_is_false():
    case = errata.counterexample(80)
    assert (round(case["sine"], 3), round(case["printed"], 3)) == (0.985, 0.501)
    assert not case["printed_holds"] and case["corrected_holds"] and case["corrected"] >= 1


def test_the_sine_of_the_counterexample_is_that_of_its_angle():
    curve = errata.counterexample_curve()
    assert curve["sine"].to_numpy() == pytest.approx(np.sin(np.radians(curve["degrees"])), abs=1e-9)
    assert curve["corrected_holds"].all()
    # Broken as soon as the sine exceeds one half, up to the trace.
    assert curve.loc[~curve["printed_holds"], "degrees"].min() == pytest.approx(30, abs=1)


def test_theorem_3_3_is_linear_in_the_update_not_quadratic():
    curve = errata.rotation_by_size()
    assert errata.order_of(curve) == pytest.approx(1, abs=0.01)
    planted = curve.assign(sine=curve["size"] ** 2)
    assert errata.order_of(planted) == pytest.approx(2)


def test_twice_the_printed_bound_is_met_where_the_printed_one_is_not():
    curve = errata.counterexample_curve()
    assert curve["twice_holds"].all() and not curve["printed_holds"].all()
    assert (curve["sine"] <= 2 * curve["printed"]).equals(curve["twice_holds"])


def test_bounds_on_singular_values_hold_of_small_and_large_updates():
    held = errata.spectrum_bounds_held()
    assert held.all() and len(held) == 125
    # Without half of the update's norm they would not: the check can fail.
    base, delta = torch.diag(torch.tensor([2.0, 1.0]).double()), torch.diag(torch.tensor([1.0, 0.0]).double())
    weyl, *_ = errata._spectrum_bounds(base, delta)
    assert weyl.holds() and weyl.measured == pytest.approx(1.0) and weyl.measured > 0.5 * weyl.bound


# --- storage: Lemma E.1, Appendix E, Corollary 3.6


def test_lemma_e_1_is_an_equality_at_binade_borders():
    normal = bf16_from_codes(torch.arange(0x80, INFINITY_CODE, dtype=torch.int32))
    relative = ulp(normal) / normal.double()
    assert float(relative.min()) > 2**-8
    assert float(relative.max()) == 2**-7  # printed: strictly below
    borders = normal[relative == 2**-7].double()
    assert torch.equal(borders, 2.0 ** torch.arange(-126, 128, dtype=torch.float64))
    assert errata.equalities_of_lemma_e_1() == len(borders) == 254


def test_half_a_ulp_suffices_everywhere_and_is_needed_but_at_powers_of_two_towards_zero():
    beyond, short = (errata.changed_around_half_a_ulp(beyond=one) for one in (True, False))
    assert beyond.all() and not short[0].any()
    normal = errata.normal_values()
    # The least normal value has a subnormal neighbour as far away as the next one is.
    assert torch.equal(normal[torch.from_numpy(short[1])].double(), 2.0 ** torch.arange(-125, 128).double())


def test_before_rounding_a_tolerance_errs_at_both_ends():
    errors = errata.errors_before_rounding()
    values = errata.normal_values().double().numpy()
    # What rounds to one value spans less than 1e-5 below 2⁻⁹, and more from there on.
    assert values[errors["invented"]].min() == pytest.approx(2**-9, rel=0.01)
    assert errors["missed"][values < 1.0].all() and not errors["missed"][values > 10.0].any()
    assert not any(one.any() for one in (errata.errors_before_rounding(1e40)["invented"],))


def test_134_ulps_are_128_codes():
    # From 1e-6 to 2e-6: as many ULPs of the smaller weight, but the spacing doubles on the way.
    assert round(errata.ulps_of_doubling(1e-6)) == errata.ULPS_BETWEEN
    for x in (3e-7, 1e-6, 0.02, 1.7):
        assert errata.codes_between(x, 2 * x) == 128


def test_the_tolerance_of_1e_5_errs_on_one_side_only_for_stored_weights():
    missed = errata.neighbours_called_unchanged()
    # Every two neighbours differ, and the rule misses exactly those below 2⁻⁹; larger weights it gets right.
    assert missed["called_unchanged"].equals(missed["lower"] < 2**-9)
    assert len(missed) == INFINITY_CODE - 1


def false_positive(before: float, after: float, tolerance: float = errata.TOLERANCE) -> dict[str, bool]:
    """Whether a tolerance calls two numbers changed that Def. 2.1 does not, as they are and as stored."""
    w, w_hat = (torch.tensor([x], dtype=torch.float64) for x in (before, after))
    distance = float((stored(after).double() - stored(before).double()).abs())
    return {
        "beyond_tolerance": after - before > tolerance,
        "unchanged_by_definition": bool(unchanged_by_definition(w, w_hat)),
        "one_code": errata.codes_between(before, after) == 0,
        "stored_beyond_tolerance": distance > tolerance,
    }


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.001), (100.0, 100.1), (0.5, 0.50002)])
def test_a_false_positive_of_1e_5_needs_numbers_that_storage_does_not_hold(before, after):
    # Further apart than 1e-5, "unchanged" to Def. 2.1 on unrounded numbers, and one code when stored.
    found = false_positive(before, after)
    assert found == {
        "beyond_tolerance": True,
        "unchanged_by_definition": True,
        "one_code": True,
        "stored_beyond_tolerance": False,
    }


def test_two_stored_numbers_are_no_false_positive():
    found = false_positive(1.0, 1.0 + 2.0**-7)
    assert not found["unchanged_by_definition"] and not found["one_code"] and found["stored_beyond_tolerance"]


def first_step(weight: float, rate: float) -> int:
    """Oracle: step by step, when an exact master has left the stored weight."""
    start = stored(weight)
    origin, t = float(start), 1
    while float(stored(origin + t * rate)) == origin:
        t += 1
    return t


@pytest.mark.parametrize(("weight", "up"), [(0.005, 16), (0.02, 62), (0.1, 245), (1.0, 3907)])
def test_the_first_step_that_changes_a_weight(weight, up):
    assert errata.exact_steps(weight, 1e-6)[0] == first_step(weight, 1e-6) == up


def test_at_a_binade_border_the_way_down_is_half_as_long():
    assert errata.exact_steps(1.0, 1e-6)[1] == first_step(1.0, -1e-6) == 1954


# --- Lemma F.9


def test_lemma_f_9_bounds_nothing_at_the_lengths_of_the_paper():
    assert round(errata.clip_bound()) == 2022
    assert errata.clip_bound(length=1) == math.log(1.28)
    assert errata.clip_bound(length=1, low=0.3) == -math.log(0.7)
    # A KL of so many nats lets a policy give any answer e^-nats of its probability: nothing is excluded.
    assert math.exp(-errata.clip_bound()) == 0.0


def test_ratios_within_the_clip_range_keep_the_bound_and_others_would_not(monkeypatch):
    assert errata.clip_bound_held().all()
    # It is far from tight: a tenth of it is broken, by ratios at both ends of the range.
    bound = errata.clip_bound(length=1)
    monkeypatch.setattr(errata, "clip_bound", lambda length: 0.1 * bound)
    assert not errata.clip_bound_held().all()


@pytest.mark.parametrize("drawn", [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.3, 0.5, 0.9]])
def test_ratios_are_drawn_as_those_of_two_distributions(drawn):
    before = np.array([0.2, 0.5, 0.3])
    ratio = errata._summing_to_one(before, 0.8 + 0.48 * np.array(drawn))
    assert (
        before @ ratio == pytest.approx(1) and (ratio >= 0.8 - 1e-12).all() and (ratio <= 1.28 + 1e-12).all()
    )


# --- tables


def test_three_averages_at_500_steps_are_wrong_and_a_fourth_is_cut_off():
    frame = paper.averages()
    wrong = frame[frame["differs"]]
    assert set(wrong["steps"]) == {500}
    assert dict(zip(wrong["mask"], zip(wrong["average"], wrong["computed"], strict=True), strict=True)) == {
        "M_princ": ("55.44", "55.53"),
        "not M_princ": ("56.90", "57.11"),
        "M_low or not M_princ": ("58.37", "58.38"),
        "random": ("56.89", "56.96"),
    }
    assert errata.order_is_kept()


def test_averages_are_exact_and_round_halves_up():
    assert (
        str(paper.exact_average("1.00 1.01")) == "1.005" and str(paper.exact_average("0.1 0.2 0.3")) == "0.2"
    )
    assert (
        str(paper.half_up(paper.exact_average("1.00 1.01"))) == "1.01"
        and str(paper.half_up(55.335)) == "55.34"
    )
    floats = tables_4_and_5()["scores"].map(lambda text: np.mean([float(x) for x in text.split()]))
    assert paper.averages()["computed"].astype(float).to_numpy() == pytest.approx(floats, abs=0.0051)


def test_which_mask_tracks_the_dense_run_depends_on_steps_and_on_the_reading():
    # Oracle: the printed scores as fractions.
    rows = tables_4_and_5()
    scores = {(one.steps, one.mask): [Fraction(x) for x in one.scores.split()] for one in rows.itertuples()}
    nearest = {}
    for steps in (320, 500):
        dense = scores[steps, "dense"]
        others = {mask: own for (when, mask), own in scores.items() if when == steps and mask != "dense"}
        averages = {mask: abs(sum(own) - sum(dense)) for mask, own in others.items()}
        tests = {
            mask: sum(abs(a - b) for a, b in zip(own, dense, strict=True)) for mask, own in others.items()
        }
        nearest[steps] = [min(found, key=found.get) for found in (averages, tests)]
        margin = sorted(averages.values())[:2]
        told = errata.nearer_than("nearest", "of_average")[steps]
        assert abs(told) == pytest.approx(float(margin[1] - margin[0]) / 4)
        assert (told > 0) == (nearest[steps][0] == "M_low or not M_princ")
    assert nearest == {320: ["M_low", "M_low"], 500: ["M_low or not M_princ", "M_low"]}


def test_the_safe_mask_ends_below_low_weights_alone_at_320_steps_and_above_them_at_500():
    for steps, gap in errata.over_low_alone().items():
        at = paper.averages().groupby("steps").get_group(steps).set_index("mask")["computed"].astype(float)
        assert gap == pytest.approx(at["M_low or not M_princ"] - at["M_low"], abs=0.011)
        assert (gap > 0) == (steps == 500)


def test_principal_weights_alone_end_last_and_the_safe_mask_is_nearer_than_a_random_one():
    printed = paper.averages()
    for steps, gap in errata.over_principal().items():
        at = printed[printed["steps"] == steps].set_index("mask")["computed"].astype(float)
        assert at.idxmin() == "M_princ" and gap == pytest.approx(at.nsmallest(2).diff().iloc[1], abs=0.011)
    assert min(errata.nearer_than("random", "of_average").values()) > 0.9
    assert min(errata.nearer_than("random", "by_test").values()) > 0.4


def test_the_shares_of_the_masks_imply_their_overlap():
    found = errata.mask_densities()
    assert (round(found["principal_not_low"], 3), round(found["both"], 3)) == (0.260, 0.240)
    # Independent masks of these densities would share .293: low weights are seldom principal.
    assert found["both"] < 0.85 * errata.PRINCIPAL_SHARE * found["low"]


def test_sparsity_of_sft_and_rl_is_an_order_of_magnitude_apart_in_the_middle_and_not_at_the_ends():
    found = errata.sparsity_factors()
    assert found["ends"] == pytest.approx(36.3 / 18.8) and found["ends"] < 2  # across bases
    # Medians of twelve and of three: between the sixth and the seventh, and the second.
    assert found["medians"] == pytest.approx((61.7 + 68.3) / 2 / 2.8)
    # Two bases have both kinds, and they say different things.
    assert set(found) == {"ends", "medians", "Qwen3-14B-Base", "Qwen3-8B-Base"}
    assert found["Qwen3-14B-Base"] == pytest.approx(68.3 / 18.8)
    assert found["Qwen3-8B-Base"] == pytest.approx(79.7 / 0.6)


def test_heads_are_gathered_by_one_permutation_on_both_sides():
    errors = errata.head_permutation_errors()
    assert errors["same"] < 1e-12 and errors["inverse"] > 0.1
    # A product with the inverse matrix is a gathering by the permutation itself.
    assert errors["matrix"] < 1e-12


def test_a_rotation_of_values_and_outputs_keeps_the_layer_s_output():
    assert errata.rotation_error() < 1e-12


# --- the page


def test_the_table_has_every_statement_that_was_checked_the_right_ones_too():
    found = statements.statements()
    table = statements.statement_table(found)
    assert list(table) == ["place", "printed", "comes out", "holds", "why it matters"]
    assert (table.map(len) > 4).all().all()
    text = " ".join(table["comes out"])
    for number in ("0.985", "0.501", "2022", "254", "128", "3907", "1954", "55.53", "133", "0.260", "1.9"):
        assert number in text + " ".join(table["why it matters"])
    # Some hold in every reading, some in one of them, some in none.
    kinds = {(any(one.readings.values()), all(one.readings.values())) for one in found}
    assert kinds == {(True, True), (True, False), (False, False)}
    places = "; ".join(table["place"])
    for place in ("Def. 2.1", "Lemma E.1", "Lemma E.2", "Table 4, averages", "Table 5, averages", "Cor. 3.4"):
        assert place in places


def told(place: str) -> str:
    """What the list says of the statements of a place."""
    return " | ".join(one.told for one in statements.statements() if one.place.startswith(place))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("Tables 4 and 5, text", "nearest mask at 320 steps: no; nearest mask at 500 steps: yes"),
        ("Tables 4 and 5, text", "nearest test by test: no; nearer than a random mask of its size: yes"),
        ("Tables 4 and 5, rows", "above it at 320 steps: no; above it at 500 steps: yes"),
        ("App. E", "in ULPs of the smaller: yes; in bf16 values: no"),
        ("App. E", "of stored values: no; of values before rounding: yes"),
        ("Lemma E.1", "both ends excluded: no; upper end included: yes"),
        ("Thm 3.3", "for any update: no; with Wedin's gap: yes; with twice the bound: yes"),
        ("text on Table 1", "of every RL and every SFT: no; of their medians: yes"),
    ],
)
def test_a_statement_that_may_be_read_in_two_ways_is_judged_in_both(place, says):
    assert says in told(place)


def test_each_reading_on_the_list_agrees_with_the_verdict_on_it():
    verdicts = judge_computed(read_claims(planted.ROOT / "claims.yaml"), "errata").set_index("claim")[
        "verdict"
    ]
    of_list = {
        one.place + " / " + reading: holds
        for one in statements.statements()
        for reading, holds in one.readings.items()
    }
    pairs = {
        "Thm 3.3 / for any update": "wedin-as-printed-in-general",
        "Thm 3.3 / with twice the bound": "wedin-holds-with-twice-the-bound",
        "Lemma F.9 / as a bound": "clip-bound-holds",
        "Lemma F.9 / as one that says something": "clip-bound-says-something",
        "Lemma E.1 / both ends excluded": "ulp-lemma-is-strict",
        "Lemma E.2, Cor. 3.6 / short of it, it does not": "half-ulp-is-needed",
        "App. E / of stored values": "fixed-tolerance-fails-at-both-ends",
        "App. E / of values before rounding": "fixed-tolerance-fails-at-both-ends-unrounded",
        "Tables 4 and 5, rows / above it at 320 steps": "safe-mask-beats-low-alone",
        "Tables 4 and 5, rows / above it at 500 steps": "safe-mask-beats-low-alone-at-500",
        "Tables 4 and 5, text / nearest test by test": "safe-mask-tracks-dense-best-test-by-test",
        "App. D, permuted heads / gathered by index": "inverse-permutation-keeps-the-function",
        "App. D, permuted heads / as a matrix": "inverse-matrix-keeps-the-function",
        "text on Table 1 / of their medians": "typical-sparsity-gap-of-an-order-of-magnitude",
    }
    for reading, claim in pairs.items():
        assert of_list[reading] == (verdicts[claim] in ("reproduced", "holds")), reading


def test_no_headline_of_the_page_counts_what_holds():
    cells = nbformat.read(planted.ROOT / "notebooks" / "errata.ipynb", as_version=4).cells
    titles = [line for cell in cells for line in cell.source.splitlines() if line.startswith("#")]
    lead = cells[0].source
    number = r"(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve)"
    counts = rf"\b{number} (errors?|errata|entries|statements)\b|\b{number} of {number}\b"
    assert not [text for text in (*titles, lead) if re.search(counts, text, re.IGNORECASE)]
    assert "those that hold as printed" in lead


def test_the_figure_shows_where_the_printed_bound_breaks(recwarn):
    fig = plots.wedin_figure(errata.counterexample_curve(), errata.rotation_by_size())
    fig.canvas.draw()
    assert [str(w.message) for w in recwarn] == [] and len(fig.axes) == 2


def test_the_chapter_runs_where_there_are_no_checkpoints(project):
    run = run_chapter(str(planted.ROOT / "notebooks" / "errata.ipynb"), {"degrees": "60"})
    assert run.executed and run.records == []
    assert set(run.verdicts["about"]) == {"computed"}
    assert (run.page.parent / "figures" / "errata" / "wedin.svg").is_file()
    assert "At 60 degrees" in run.page.read_text()
