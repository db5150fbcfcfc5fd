"""Displacements against what rounding really does, and paths against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry.accumulation import crosses, displacement_ratio, first_visible_step, reaches_half_ulp
from threegates.geometry.precision import INFINITY_CODE, bf16_codes, bf16_from_codes, half_gaps, to_bf16

EVERY = bf16_from_codes(torch.arange(1 - INFINITY_CODE, INFINITY_CODE, dtype=torch.int32))


def leaves(base, displacement):
    """Oracle: add and round."""
    return bf16_codes(to_bf16(base.double() + displacement)) != bf16_codes(base)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0 - 2**-20, 1.0, 1.0 + 2**-20, 1.75])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_ratio_says_for_every_code_whether_storage_changes(share, sign):
    down, up = half_gaps(EVERY)
    displacement = sign * share * (up if sign > 0 else down)
    ratio = displacement_ratio(EVERY, displacement)
    # Nothing moves by zero, which has no side; elsewhere the ratio is what was put in.
    assert torch.equal(ratio, torch.full_like(ratio, share))
    assert torch.equal(crosses(EVERY, ratio), leaves(EVERY, displacement))


@given(
    st.integers(1 - INFINITY_CODE, INFINITY_CODE - 1),
    st.floats(-4, 4, allow_nan=False).map(lambda x: round(x * 4096) / 4096),
)
def test_any_displacement_crosses_exactly_when_rounding_leaves_the_code(code, gaps):
    base = bf16_from_codes(torch.tensor([code], dtype=torch.int32))
    displacement = gaps * half_gaps(base)[1]
    assert torch.equal(crosses(base, displacement_ratio(base, displacement)), leaves(base, displacement))


def test_half_an_ulp_errs_at_powers_of_two_and_at_even_ties_alone():
    down, up = half_gaps(EVERY)
    power = (EVERY.view(torch.int16) & 0x7F) == 0
    even = (bf16_codes(EVERY) & 1) == 0
    for displacement, gap in ((up * 0.75, up), (-down * 0.75, down), (up, up), (-down, down), (up * 1.5, up)):
        wrong = reaches_half_ulp(EVERY, displacement) != leaves(EVERY, displacement)
        tie = displacement.abs() == gap
        assert not bool((wrong & ~power & ~(tie & even)).any())
    # Towards zero a power of two leaves at a quarter of an ULP, before the rule says so.
    start = torch.tensor([1.0], dtype=torch.bfloat16)
    step = torch.tensor([-0.6 * 2.0**-8], dtype=torch.float64)
    assert bool(leaves(start, step)) and not bool(reaches_half_ulp(start, step))


def stairs():
    weights = torch.tensor([0.005, 0.02, 0.1, 0.5, 1.0, 1.5, -0.02, -1.0], dtype=torch.bfloat16)
    return weights.repeat(2), torch.tensor([1] * 8 + [-1] * 8)


def test_an_exact_master_takes_the_half_gap_over_the_rate():
    weights, towards = stairs()
    down, up = half_gaps(weights)
    rate = 1e-6
    expected = [
        math.ceil(Fraction(float(u if sign > 0 else d)) / Fraction(rate))
        for d, u, sign in zip(down, up, towards.tolist(), strict=True)
    ]
    assert first_visible_step(weights, rate, towards, torch.float64, 5000).tolist() == expected


def test_a_float32_master_rounds_its_own_steps():
    one = torch.ones(2, dtype=torch.bfloat16)
    # Near 1 a float32 moves by 8 of its ULPs of 2⁻²³ upwards, below it by 17 half as large.
    found = first_visible_step(one, 1e-6, torch.tensor([1, -1]), torch.float32, 5000)
    assert found.tolist() == [math.ceil(2**-8 / (8 * 2**-23)) + 1, math.ceil(2**-9 / (17 * 2**-24))]


def test_from_32_upwards_even_a_float32_master_stands_still():
    weights = torch.tensor([16.0, 32.0], dtype=torch.bfloat16)
    moving = weights.float()
    moved = moving + 1e-6 != moving
    assert moved.tolist() == [True, False]
    assert first_visible_step(weights[1:], 1e-6, torch.tensor([1]), torch.float32, 50).tolist() == [0]


def test_a_bf16_master_moves_at_once_or_never():
    weights = torch.tensor([2.0**-13, 0.9 * 2**-11, 2.0**-11, 0.02, 1.0], dtype=torch.bfloat16)
    found = first_visible_step(weights, 1e-6, torch.ones(5, dtype=torch.int64), torch.bfloat16, 200)
    assert found.tolist() == [1, 1, 0, 0, 0]


def test_a_limit_stops_the_search_and_nonsense_is_refused():
    weights, towards = stairs()
    assert first_visible_step(weights, 1e-6, towards, torch.float64, 20).max() <= 20
    assert (first_visible_step(weights, 1e-6, towards, torch.float64, 20) == 0).any()
    for wrong in ({"rate": 0.0}, {"limit": 0}):
        options = {"rate": 1e-6, "limit": 5} | wrong
        with pytest.raises(GeometryError, match="no path to follow"):
            first_visible_step(weights, options["rate"], towards, torch.float64, options["limit"])
    with pytest.raises(GeometryError, match="not stored in bfloat16"):
        displacement_ratio(torch.ones(2), torch.ones(2, dtype=torch.float64))
