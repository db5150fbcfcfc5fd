"""Errata of the paper (arXiv 2511.08567 v1), each with its own arithmetic.

What the paper prints is typed here as printed; what it should be is computed.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
import torch

from threegates.geometry.bounds import wedin_as_printed, wedin_corrected
from threegates.geometry.precision import (
    INFINITY_CODE,
    bf16_codes,
    bf16_from_codes,
    half_gaps,
    to_bf16,
    ulp,
    unchanged_by_definition,
)


def stored(x: float) -> torch.Tensor:
    return to_bf16(torch.tensor(x, dtype=torch.float64))


def code(x: float) -> int:
    return int(bf16_codes(stored(x)))


def rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


# --- Theorem 3.3


def test_theorem_3_3_as_printed_is_false():
    base = np.diag([1.0, 0.0])
    turn = rotation(math.radians(80))
    tuned = 0.5 * np.eye(2) + 1e-3 * turn @ base @ turn.T
    (u0, s0, v0), (u1, s1, v1) = np.linalg.svd(base), np.linalg.svd(tuned)
    sine = max(abs(float(u0[:, 1] @ u1[:, 0])), abs(float(v0[1] @ v1[0])))
    norm = float(np.linalg.norm(tuned - base, 2))
    before, after = torch.from_numpy(s0), torch.from_numpy(s1)
    printed = wedin_as_printed(before, norm, 1, sine)
    assert (round(printed.measured, 3), round(printed.bound, 3)) == (0.985, 0.501)
    assert not printed.holds() and not printed.vacuous
    corrected = wedin_corrected(before, after, norm, 1, sine)
    assert corrected.holds() and corrected.vacuous


def test_theorem_3_3_is_linear_in_the_update_not_quadratic():
    generator = np.random.default_rng(0)
    base, delta = np.diag([3.0, 2.0, 1.0, 0.5]), generator.standard_normal((4, 4))
    sines = []
    for size in (1e-3, 1e-4, 1e-5):
        u = np.linalg.svd(base + size * delta)[0][:, :2]
        sines.append(np.linalg.norm(u[2:], 2))  # the base's other left vectors are the last two axes
    assert np.diff(np.log10(sines)) == pytest.approx([-1, -1], abs=0.01)


# --- storage: Lemma E.1, Appendix E, Corollary 3.6


def test_lemma_e_1_is_an_equality_at_binade_borders():
    normal = bf16_from_codes(torch.arange(0x80, INFINITY_CODE, dtype=torch.int32))
    relative = ulp(normal) / normal.double()
    assert float(relative.min()) > 2**-8
    assert float(relative.max()) == 2**-7  # printed: strictly below
    borders = normal[relative == 2**-7].double()
    assert torch.equal(borders, 2.0 ** torch.arange(-126, 128, dtype=torch.float64))


def test_134_ulps_are_128_codes():
    # From 1e-6 to 2e-6: as many ULPs of the smaller weight, but the spacing doubles on the way.
    assert 1e-6 / float(ulp(stored(1e-6))) == pytest.approx(134, abs=0.5)
    assert code(2e-6) - code(1e-6) == 128
    for x in (3e-7, 1e-6, 0.02, 1.7):
        assert code(2 * x) - code(x) == 128


def test_the_tolerance_of_1e_5_errs_on_one_side_only_for_stored_weights():
    codes = torch.arange(0, INFINITY_CODE, dtype=torch.int32)
    lower, upper = (bf16_from_codes(c).double() for c in (codes[:-1], codes[1:]))
    called_unchanged = (upper - lower) <= 1e-5
    # Every two neighbours differ, and the rule misses exactly those below 2⁻⁹; larger weights it gets right.
    assert torch.equal(called_unchanged, lower < 2**-9)


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.001), (100.0, 100.1), (0.5, 0.50002)])
def test_a_false_positive_of_1e_5_needs_numbers_that_storage_does_not_hold(before, after):
    # Further apart than 1e-5, "unchanged" to Def. 2.1 on unrounded numbers, and one code when stored.
    assert after - before > 1e-5
    w, w_hat = (torch.tensor([x], dtype=torch.float64) for x in (before, after))
    assert code(before) == code(after)
    assert bool(unchanged_by_definition(w, w_hat))
    assert float((stored(after).double() - stored(before).double()).abs()) <= 1e-5


def first_step(weight: float, rate: float) -> int:
    """Oracle: step by step, when an exact master has left the stored weight."""
    start = stored(weight)
    origin, t = float(start), 1
    while float(stored(origin + t * rate)) == origin:
        t += 1
    return t


@pytest.mark.parametrize(("weight", "up"), [(0.005, 16), (0.02, 62), (0.1, 245), (1.0, 3907)])
def test_the_first_step_that_changes_a_weight(weight, up):
    rate = 1e-6
    assert first_step(weight, rate) == up
    assert math.ceil(float(half_gaps(stored(weight))[1]) / rate) == up


def test_at_a_binade_border_the_way_down_is_half_as_long():
    assert first_step(1.0, -1e-6) == 1954
    assert math.ceil(float(half_gaps(stored(1.0))[0]) / 1e-6) == 1954


def test_an_fp32_master_rounds_its_own_steps_too():
    # The counts above are for exact sums. Near 1 a float32 moves by 8 of its ULPs, or 17 half as large.
    for sign, expected in ((1, 4097), (-1, 1928)):
        master, t = np.float32(1), 0
        while float(stored(float(master))) == 1:
            master, t = np.float32(master + np.float32(sign * 1e-6)), t + 1
        assert t == expected


# --- Lemma F.9


def test_lemma_f_9_bounds_nothing_at_the_lengths_of_the_paper():
    low, high = 0.2, 0.28
    per_token = max(math.log(1 + high), -math.log(1 - low))
    nats = 8192 * per_token
    assert per_token == math.log(1.28)
    assert round(nats) == 2022
    # A KL of so many nats lets a policy give any answer e^-nats of its probability: nothing is excluded.
    assert math.exp(-nats) == 0.0


# --- tables

AT_320 = {
    "dense": ("84.20 81.56 36.98 27.03", "57.44"),
    "principal": ("83.60 77.19 30.16 24.32", "53.82"),
    "not principal": ("82.70 78.90 34.28 25.73", "55.40"),
    "low": ("84.50 80.08 35.62 26.56", "56.69"),
    "low or not principal": ("85.20 78.83 34.74 26.20", "56.24"),
    "random": ("84.50 77.35 34.48 25.01", "55.34"),
}
AT_500 = {
    "dense": ("84.5 83.52 38.28 28.075", "58.59"),
    "principal": ("83.60 78.83 34.06 25.63", "55.44"),
    "not principal": ("84.0 77.97 38.64 27.81", "56.90"),
    "low": ("83.8 82.42 37.03 27.82", "57.77"),
    "low or not principal": ("84.10 81.41 40.30 27.70", "58.37"),
    "random": ("84.10 81.72 34.69 27.34", "56.89"),
}


def average(scores: str) -> Decimal:
    numbers = [Decimal(x) for x in scores.split()]
    return (sum(numbers, Decimal(0)) / len(numbers)).quantize(Decimal("0.01"), ROUND_HALF_UP)


def test_the_averages_at_320_steps_are_right():
    assert {name: str(average(scores)) for name, (scores, _) in AT_320.items()} == {
        name: printed for name, (_, printed) in AT_320.items()
    }


def test_three_averages_at_500_steps_are_wrong_and_a_fourth_is_cut_off():
    wrong = {
        name: (printed, str(average(scores)))
        for name, (scores, printed) in AT_500.items()
        if str(average(scores)) != printed
    }
    assert wrong == {
        "principal": ("55.44", "55.53"),
        "not principal": ("56.90", "57.11"),
        "random": ("56.89", "56.96"),
        "low or not principal": ("58.37", "58.38"),
    }


def test_the_safe_mask_is_not_the_best_mask_at_320_steps():
    assert average(AT_320["low"][0]) > average(AT_320["low or not principal"][0])


def test_the_shares_of_the_masks_imply_their_overlap():
    principal, low, union = 0.5, 0.5859, 0.7402
    principal_not_low = 1 - union
    assert round(principal_not_low, 3) == 0.260
    assert round(principal - principal_not_low, 3) == 0.240
    # Independent masks of these densities would share .293: low weights are seldom principal.
    assert principal - principal_not_low < 0.85 * principal * low


SFT_SPARSITY = {"Qwen2.5-Math-1.5B": 2.8, "Qwen3-8B-Base": 0.6, "Qwen3-14B-Base": 18.8}
LEAST_RL_SPARSITY, RL_SPARSITY_14B = 36.3, 68.3


def test_sparsity_of_sft_and_rl_is_not_an_order_of_magnitude_apart():
    highest = max(SFT_SPARSITY.values())
    assert LEAST_RL_SPARSITY / highest < 2  # across bases
    assert round(RL_SPARSITY_14B / SFT_SPARSITY["Qwen3-14B-Base"], 1) == 3.6  # on one base
