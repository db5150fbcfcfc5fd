"""bfloat16 codes, gaps and Definition 2.1, against exact arithmetic and every finite value there is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry import precision
from threegates.geometry.precision import (
    INFINITY_CODE,
    LARGEST_FINITE_CODE,
    bf16_codes,
    bf16_from_codes,
    gaps_beyond,
    half_gaps,
    sign_word,
    to_bf16,
    ulp,
    unchanged_by_definition,
)


def value_of(code: int) -> float:
    """Oracle: what a bfloat16 code stands for, from the definition of the format; exact in a double."""
    exponent, fraction = divmod(abs(code), 128)
    size = fraction * 2.0**-133 if exponent == 0 else (128 + fraction) * 2.0 ** (exponent - 134)
    return -size if code < 0 else size


CODES = torch.arange(-LARGEST_FINITE_CODE, LARGEST_FINITE_CODE + 1, dtype=torch.int32)
VALUES = np.array([value_of(int(c)) for c in CODES])
FINITE = torch.from_numpy(VALUES).to(torch.float32).view(torch.int32).bitwise_right_shift(16)
ALL = FINITE.to(torch.int16).view(torch.bfloat16)  # cut, not rounded: independent of what is tested

finite_codes = st.integers(-LARGEST_FINITE_CODE, LARGEST_FINITE_CODE)


def nearest_code(x: Fraction) -> int:
    """Oracle: round to nearest even over all finite values, with 2¹²⁸ in infinity's place."""
    magnitude = abs(x)
    low, high = 0, INFINITY_CODE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if Fraction(value_of(middle)) <= magnitude else (low, middle)
    if magnitude >= Fraction(2) ** 128:
        return INFINITY_CODE if x > 0 else -INFINITY_CODE
    below, above = magnitude - Fraction(value_of(low)), Fraction(value_of(high)) - magnitude
    code = low if below < above or (below == above and low % 2 == 0) else high
    return code if x >= 0 else -code


def code_of(x: float) -> int:
    return int(bf16_codes(to_bf16(torch.tensor([x], dtype=torch.float64))))


def test_the_oracle_lists_every_finite_value_once_and_in_order():
    assert len(VALUES) == 2 * 32640 - 1
    assert (np.diff(VALUES) > 0).all()
    assert torch.equal(ALL.to(torch.float64), torch.from_numpy(VALUES))


# --- codes


def test_codes_number_all_finite_values_in_order():
    assert torch.equal(bf16_codes(ALL), CODES)


def test_values_come_back_from_codes():
    assert torch.equal(bf16_from_codes(CODES), ALL)
    ends = torch.tensor([-INFINITY_CODE, INFINITY_CODE], dtype=torch.int32)
    assert bf16_from_codes(ends).tolist() == [-float("inf"), float("inf")]


def test_both_zeros_share_a_code():
    assert bf16_codes(torch.tensor([0.0, -0.0]).bfloat16()).tolist() == [0, 0]


def test_codes_take_any_layout():
    matrix = ALL[:32_000].reshape(160, 200)
    assert torch.equal(bf16_codes(matrix.T), CODES[:32_000].reshape(160, 200).T)


def test_nan_has_no_code():
    with pytest.raises(GeometryError, match=r"(?s)holds NaN.*1 of 3 entries, first at \[2\]"):
        bf16_codes(torch.tensor([0.0, 1.0, float("nan")]).bfloat16())


def test_codes_beyond_infinity_are_refused():
    with pytest.raises(GeometryError, match="beyond infinity"):
        bf16_from_codes(torch.tensor([INFINITY_CODE + 1], dtype=torch.int32))


def test_only_bf16_has_codes():
    with pytest.raises(GeometryError, match=r"(?s)not stored in bfloat16.*float32.*to_bf16"):
        bf16_codes(torch.zeros(2))


# --- rounding


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float64_is_rounded_once(x):
    assert code_of(x) == nearest_code(Fraction(x))


@given(finite_codes, st.integers(-3, 3), st.sampled_from([0.25, 0.5, 0.75]))
def test_float64_is_rounded_once_beside_every_midpoint(code, steps, share):
    low, high = Fraction(value_of(code)), Fraction(value_of(code + 1))
    x = float(low + (high - low) * Fraction(share))
    for _ in range(abs(steps)):
        x = float(np.nextafter(x, np.inf if steps > 0 else -np.inf))
    assert code_of(x) == nearest_code(Fraction(x))


def test_rounding_twice_would_be_wrong_and_is_not_what_we_do():
    x = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert float(x.float().bfloat16()) == 1.0
    assert float(to_bf16(x)) == 1 + 2**-7


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_is_rounded_to_nearest_even(x):
    assert int(bf16_codes(to_bf16(torch.tensor([x])))) == nearest_code(Fraction(x))


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_float16_is_rounded_to_nearest_even(x):
    assert int(bf16_codes(to_bf16(torch.tensor([x], dtype=torch.float16)))) == nearest_code(Fraction(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_survive_rounding(dtype):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0], dtype=dtype)
    y = to_bf16(x)
    assert y[:2].tolist() == [float("inf"), -float("inf")]
    assert y[2].isnan()
    assert y[3] == 0 and torch.signbit(y[3])


# --- Definition 2.1


def test_definition_is_code_equality_on_all_adjacent_pairs():
    values = ALL[ALL >= 0]
    assert len(values) - 1 == 32639
    for x in (values, -values):
        assert not unchanged_by_definition(x[:-1], x[1:]).any()
        assert not unchanged_by_definition(x[1:], x[:-1]).any()
        assert unchanged_by_definition(x, x.clone()).all()


def test_definition_holds_both_zeros_equal():
    zero = torch.tensor([0.0, -0.0]).bfloat16()
    assert unchanged_by_definition(zero, zero.flip(0)).all()


def test_definition_stops_being_code_equality_exactly_above_two_to_the_minus_eight():
    values = ALL[ALL > 0].to(torch.float64)
    relative = 1 - values[:-1] / values[1:]
    assert float(relative.min()) == 2**-8
    assert not unchanged_by_definition(values[:-1], values[1:], eta=2**-9).any()
    assert unchanged_by_definition(values[:-1], values[1:], eta=2**-8).any()


@given(st.lists(st.tuples(finite_codes, finite_codes), min_size=1, max_size=50))
def test_definition_is_code_equality_on_any_pairs(pairs):
    a, b = (bf16_from_codes(torch.tensor(side, dtype=torch.int32)) for side in zip(*pairs, strict=True))
    assert torch.equal(unchanged_by_definition(a, b), bf16_codes(a) == bf16_codes(b))


def test_definition_is_looser_than_equality_on_float32_masters():
    w = torch.tensor([1.0])
    assert unchanged_by_definition(w, w + 5e-4)
    assert not unchanged_by_definition(w, w + 2e-3)


def test_nan_is_changed_and_infinity_unless_it_stays():
    inf, nan = float("inf"), float("nan")
    before = torch.tensor([1.0, inf, nan, 1.0, nan, inf, inf, -inf])
    after = torch.tensor([inf, 1.0, 1.0, nan, nan, -inf, inf, -inf])
    assert unchanged_by_definition(before, after).tolist() == [False] * 6 + [True] * 2


# --- gaps


def test_ulp_is_the_distance_to_the_next_larger_magnitude():
    values = torch.from_numpy(VALUES)
    up = torch.cat([values.diff(), torch.tensor([2.0**120], dtype=torch.float64)])
    down = up.flip(0)
    assert torch.equal(ulp(ALL), torch.where(values < 0, down, up))


def test_relative_ulp_of_normal_values_lies_where_lemma_e1_says_with_its_equality_at_powers_of_two():
    normal = ALL[ALL >= 2.0**-126]
    relative = ulp(normal) / normal.to(torch.float64)
    assert float(relative.min()) > 2**-8
    assert float(relative.max()) == 2**-7
    powers = normal.to(torch.float64).log2() % 1 == 0
    assert torch.equal(relative == 2**-7, powers)


def test_half_gaps_are_half_the_distances_to_the_neighbours():
    padded = np.concatenate([[-(2.0**128)], VALUES, [2.0**128]])
    down, up = half_gaps(ALL)
    assert np.array_equal(down.numpy(), (padded[1:-1] - padded[:-2]) / 2)
    assert np.array_equal(up.numpy(), (padded[2:] - padded[1:-1]) / 2)


def test_rounding_keeps_a_value_inside_its_half_gaps_and_leaves_it_outside():
    down, up = half_gaps(ALL)
    values = torch.from_numpy(VALUES)
    for inside in (values + up * (1 - 2**-20), values - down * (1 - 2**-20)):
        assert torch.equal(bf16_codes(to_bf16(inside)), CODES)
    assert torch.equal(bf16_codes(to_bf16(values + up * (1 + 2**-20))), CODES + 1)
    assert torch.equal(bf16_codes(to_bf16(values - down * (1 + 2**-20))), CODES - 1)


def test_at_the_midpoint_the_even_code_wins():
    _, up = half_gaps(ALL)
    codes = bf16_codes(to_bf16(torch.from_numpy(VALUES) + up))
    assert torch.equal(codes, CODES + CODES % 2)


def test_gaps_of_zero_do_not_depend_on_its_sign():
    down, up = half_gaps(torch.tensor([0.0, -0.0]).bfloat16())
    assert down.tolist() == up.tolist() == [2.0**-134] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("quantity", [half_gaps, ulp])
def test_gaps_need_finite_values(quantity, bad):
    with pytest.raises(GeometryError, match=r"(?s)NaN or infinity.*1 of 2 entries, first at \[1\]"):
        quantity(torch.tensor([1.0, bad]).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_sign_words(dtype):
    assert sign_word(torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=dtype)).tolist() == [-1, -1, 0, 0]


def test_empty_tensors_pass():
    empty = torch.empty(0, 3, dtype=torch.bfloat16)
    assert bf16_codes(empty).shape == ulp(empty).shape == half_gaps(empty)[0].shape == (0, 3)


# --- tolerances larger than the paper's


def brute_gap(value: float, eta: float, side: int) -> float:
    """Walk over neighbouring values, one by one, in Python's floats."""
    x = torch.tensor([value], dtype=torch.bfloat16)
    code, before = int(bf16_codes(x)), float(x)
    for step in range(1, 1000):
        after = float(bf16_from_codes(torch.tensor([code + side * step], dtype=torch.int32)))
        if abs(after - float(x)) > eta * max(abs(after), abs(float(x))):
            return abs((before + after) / 2 - float(x))
        before = after
    raise AssertionError("no value is far enough")


@pytest.mark.parametrize("eta", [1e-3, 3.9e-3, 5e-3, 1e-2, 0.1])
def test_gaps_beyond_a_tolerance_are_those_of_a_walk_over_neighbours(eta):
    values = [1.0, -1.0, 0.5, 1.9921875, 1e-3, -3.3e-5, 0.0, 1e-39, -1e-39, 123.0]
    w = torch.tensor(values, dtype=torch.bfloat16)
    down, up = gaps_beyond(w, eta)
    for i, value in enumerate(w.tolist()):
        assert float(down[i]) == brute_gap(value, eta, -1)
        assert float(up[i]) == brute_gap(value, eta, 1)


def test_gaps_at_the_papers_tolerance_are_half_gaps():
    w = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for mine, half in zip(gaps_beyond(w), half_gaps(w), strict=True):
        assert torch.equal(mine, half)


@pytest.mark.parametrize("eta", [5e-3, 1e-2])
def test_noise_passes_its_gap_exactly_when_the_rounded_sum_is_changed_at_eta(eta):
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(20_000, generator=generator).to(torch.bfloat16)
    move = 0.01 * torch.randn(20_000, generator=generator, dtype=torch.float64) * w.double().abs()
    down, up = gaps_beyond(w, eta)
    beyond = move.abs() > torch.where(move < 0, down, up)
    stored = to_bf16(w.double() + move)
    assert torch.equal(beyond, ~unchanged_by_definition(w, stored, eta))
    assert 0.1 < float(beyond.double().mean()) < 0.9


def test_a_tolerance_that_no_weight_could_pass_is_refused():
    with pytest.raises(GeometryError, match=r"\[0, 1/2\]"):
        gaps_beyond(torch.ones(1, dtype=torch.bfloat16), 0.7)


@pytest.mark.parametrize("eta", [0.004, 5e-3, 1e-2, 0.3])
def test_looked_up_distances_are_bit_for_bit_those_of_every_entry(eta):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    w = bits.view(torch.bfloat16)
    w = w[w.isfinite()].reshape(2, -1)
    for side, found in zip((-1, 1), gaps_beyond(w, eta), strict=True):
        assert found.shape == w.shape and torch.equal(found, precision._gap_beyond(w, eta, side))
    # A view of every other entry is looked up by its own values.
    assert torch.equal(gaps_beyond(w[:, ::2], eta)[0], gaps_beyond(w, eta)[0][:, ::2])
