"""Errata of the paper (arXiv 2511.08567 v1): what the functions compute, and oracles of another kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.planted import planted
from threegates.chapters.errata import errata, plots
from threegates.chapters.errata.errata import stored
from threegates.estimates import paper
from threegates.estimates.paper import table_1, tables_4_and_5
from threegates.geometry.precision import INFINITY_CODE, bf16_from_codes, ulp, unchanged_by_definition
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


# --- storage: Lemma E.1, Appendix E, Corollary 3.6


def test_lemma_e_1_is_an_equality_at_binade_borders():
    normal = bf16_from_codes(torch.arange(0x80, INFINITY_CODE, dtype=torch.int32))
    relative = ulp(normal) / normal.double()
    assert float(relative.min()) > 2**-8
    assert float(relative.max()) == 2**-7  # printed: strictly below
    borders = normal[relative == 2**-7].double()
    assert torch.equal(borders, 2.0 ** torch.arange(-126, 128, dtype=torch.float64))
    assert errata.equalities_of_lemma_e_1() == len(borders) == 254


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
    assert str(paper.average("1.00 1.01")) == "1.01" and str(paper.average("0.1 0.2 0.3")) == "0.20"
    floats = tables_4_and_5()["scores"].map(lambda text: np.mean([float(x) for x in text.split()]))
    assert paper.averages()["computed"].astype(float).to_numpy() == pytest.approx(floats, abs=0.0051)


def test_the_safe_mask_is_not_the_best_mask_at_320_steps():
    at = paper.averages().query("steps == 320").set_index("mask")["computed"].astype(float)
    assert at["M_low"] > at["M_low or not M_princ"]


def test_the_shares_of_the_masks_imply_their_overlap():
    found = errata.mask_densities()
    assert (round(found["principal_not_low"], 3), round(found["both"], 3)) == (0.260, 0.240)
    # Independent masks of these densities would share .293: low weights are seldom principal.
    assert found["both"] < 0.85 * errata.PRINCIPAL_SHARE * found["low"]


def test_sparsity_of_sft_and_rl_is_not_an_order_of_magnitude_apart():
    across, within = errata.sparsity_factors()
    assert across == pytest.approx(36.3 / 18.8) and across < 2  # across bases
    assert round(within, 1) == 3.6  # on one base
    both = table_1().groupby("base")["method"].agg(set)
    assert "GRPO" in both["Qwen3-14B-Base"] and "SFT" in both["Qwen3-14B-Base"]


def test_heads_are_gathered_by_one_permutation_on_both_sides():
    errors = errata.head_permutation_errors()
    assert errors["same"] < 1e-12 and errors["inverse"] > 0.1


# --- the page


def test_the_table_has_a_place_two_readings_and_a_reason_for_each():
    table = errata.erratum_table(errata.errata())
    assert list(table) == ["place", "printed", "comes out", "why it matters"]
    assert len(table) == 12 and (table.map(len) > 4).all().all()
    text = " ".join(table["comes out"])
    for number in ("0.985", "0.501", "2022", "254", "128", "3907", "1954", "55.53", "56.69", "0.260", "1.9"):
        assert number in text


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
