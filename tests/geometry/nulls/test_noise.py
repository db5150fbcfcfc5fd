"""Noise of nulls: generators that meet no other, exact critical scales, exact counts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.planted.planted_weights import weights
from tests.planted.searched_noise import change_probability, storage_scale_for_norm
from threegates.errors import GeometryError
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import (
    as_generator,
    critical_scale,
    gaussian_noise,
    noise_generator,
    rounded_sum,
    scale_to_pass,
    smallest,
)
from threegates.geometry.nulls.paths import storage_path
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.precision import LARGEST_FINITE_CODE, bf16_codes, bf16_from_codes, half_gaps, to_bf16

finite_codes = st.integers(-LARGEST_FINITE_CODE, LARGEST_FINITE_CODE)


BINADE_BORDERS = [code * sign for code in range(0x80, 0x7F80, 0x80) for sign in (1, -1)]


HARD_CODES = [0, 1, -1, 2, 0x7F, 0x80, 0x81, 0x7F7E, 0x7F7F, -0x7F7F, *BINADE_BORDERS]


def test_streams_repeat_and_differ_by_seed_and_by_every_name():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "b", "a"), (1, "a")]
    draws = [gaussian_noise((4,), noise_generator(*key)).tolist() for key in keys]
    assert draws == [gaussian_noise((4,), noise_generator(*key)).tolist() for key in keys]
    assert all(a != b for a, b in itertools.combinations(draws, 2))


def test_torch_reads_only_32_bits_of_a_cpu_seed_which_is_why_the_state_is_filled():
    a, b = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1 << 32))
    assert torch.equal(a, b)


def test_no_seed_of_torch_can_give_a_noise_stream():
    # A state that torch seeds follows from its first word; ours does not.
    words = noise_generator(0).get_state()[24 : 24 + 624 * 8].view(torch.int64)
    seeded = torch.Generator().manual_seed(int(words[0])).get_state()[24 : 24 + 624 * 8].view(torch.int64)
    assert words[0] == seeded[0]
    assert not torch.equal(words, seeded)
    assert (words >= 0).all() and (words < 1 << 32).all()


def test_noise_is_uncorrelated_with_weights_of_the_same_seed():
    for seed in range(5):
        w = torch.randn(100_000, generator=torch.Generator().manual_seed(seed))
        z = gaussian_noise((100_000,), noise_generator(seed))
        assert abs(float(torch.corrcoef(torch.stack([w, z]))[0, 1])) < 4 / math.sqrt(100_000)


def test_noise_is_standard_normal():
    z = gaussian_noise((200_000,), noise_generator(11)).double()
    moments = [float((z**k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.06)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    w = weights()
    generator = noise_generator(0)
    storage_mask_at_density(w, 10, generator)
    storage_mask_at_norm(w, 1e-3, generator)
    next(stratified_permutations(bernoulli_mask(w.shape, 10, generator), w, generator=generator))
    storage_scale_for_norm(w, 1.0, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_integer_serves_as_generator():
    w = weights()
    assert torch.equal(storage_mask_at_density(w, 99, 5), storage_mask_at_density(w, 99, noise_generator(5)))
    generator = noise_generator(5)
    assert as_generator(generator) is generator


def test_negative_seeds_are_refused():
    with pytest.raises(GeometryError, match=r"(?s)not negative.*-1"):
        noise_generator(-1)


def check_critical(codes: torch.Tensor, noise: torch.Tensor) -> None:
    w = bf16_from_codes(codes)
    scale = critical_scale(w, noise)
    assert (scale > 0).all() and scale.isfinite().all()
    for factor, changes in ((1 - 1e-9, False), (1 + 1e-9, True)):
        moved = to_bf16(w.double() + scale * factor * noise.double())
        assert torch.equal(bf16_codes(moved) != codes, torch.full(codes.shape, changes))


@given(st.lists(st.tuples(finite_codes, st.floats(2**-20, 8, width=32), st.booleans()), min_size=1))
def test_rounding_leaves_each_weight_exactly_at_its_critical_scale(entries):
    codes, size, negative = zip(*entries, strict=True)
    noise = torch.tensor(size, dtype=torch.float32) * (1 - 2 * torch.tensor(negative).float())
    check_critical(torch.tensor(codes, dtype=torch.int32), noise)


@pytest.mark.parametrize("direction", [1, -1])
def test_zero_subnormals_binade_borders_and_the_largest_value_have_their_critical_scale(direction):
    codes = torch.tensor(HARD_CODES, dtype=torch.int32)
    check_critical(codes, direction * torch.linspace(0.1, 3, len(codes)))


def test_a_power_of_two_is_left_downwards_at_half_the_scale():
    w = torch.tensor([1.0, 1.0, -1.0, -1.0]).bfloat16()
    z = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert critical_scale(w, z).tolist() == [2**-8, 2**-9, 2**-9, 2**-8]


def test_at_the_critical_scale_itself_the_even_code_wins():
    w = bf16_from_codes(torch.tensor([0x3F82, 0x3F83], dtype=torch.int32))  # an even and an odd code
    z = torch.ones(2)
    at = to_bf16(w.double() + critical_scale(w, z) * z)
    assert (bf16_codes(at) - bf16_codes(w)).tolist() == [0, 1]


def test_no_noise_never_changes_a_weight():
    assert (
        critical_scale(weights(2, 2), torch.tensor([[0.0, -0.0], [0.0, 0.0]])).tolist()
        == [[math.inf] * 2] * 2
    )


def test_other_noise_of_the_same_binade_keeps_its_order():
    # Neighbouring float32 noises: float64 must not merge their critical scales.
    z = torch.arange(2**23 - 1000, 2**23).to(torch.int32).add(0x3F800000).view(torch.float32)
    scale = critical_scale(torch.ones(len(z)).bfloat16(), z)
    assert (scale.diff() < 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nulls_need_finite_bf16_weights(bad):
    w = torch.tensor([1.0, bad]).bfloat16()
    calls = [
        lambda x: critical_scale(x, torch.ones(2)),
        lambda x: storage_mask_at_density(x, 1, 0),
        lambda x: storage_mask_at_norm(x, 1.0, 0),
        lambda x: storage_scale_for_norm(x, 1.0, 0),
        lambda x: change_probability(x, 1.0),
        lambda x: next(stratified_permutations(x != x, x, generator=0)),
    ]
    for call in calls:
        with pytest.raises(GeometryError, match="NaN or infinity"):
            call(w)
        with pytest.raises(GeometryError, match="not stored in bfloat16"):
            call(torch.ones(2))


@given(st.lists(st.integers(0, 5), max_size=40), st.data())
def test_smallest_breaks_ties_by_lowest_index(values, data):
    count = data.draw(st.integers(0, len(values)))
    oracle = set(sorted(range(len(values)), key=lambda i: (values[i], i))[:count])
    mask = smallest(torch.tensor(values, dtype=torch.float64), count)
    assert {i for i, hit in enumerate(mask.tolist()) if hit} == oracle


def test_smallest_counts_infinities_too():
    values = torch.tensor([[math.inf, 1.0], [math.inf, math.inf]])
    assert smallest(values, 3).tolist() == [[True, True], [True, False]]
    assert smallest(values.T, 2).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("changed", [-1, 7])
def test_impossible_counts_are_refused(changed):
    w = torch.ones(2, 3).bfloat16()
    for call in (
        lambda: storage_mask_at_density(w, changed, 0),
        lambda: bernoulli_mask((2, 3), changed, 0),
        lambda: storage_path(w, [changed], [1.0], 0),
    ):
        with pytest.raises(GeometryError, match=r"(?s)cannot change that many.*0 … 6"):
            call()


def test_rounded_sum_rounds_once():
    w, z = torch.ones(1).bfloat16(), torch.ones(1)
    assert float(rounded_sum(w, z, 2**-8 + 2**-40)) == 1 + 2**-7
    assert float(rounded_sum(w, z, 2**-8)) == 1


def test_empty_tensors_pass():
    empty = torch.empty(0, 4).bfloat16()
    mask = torch.empty(0, 4, dtype=torch.bool)
    assert next(stratified_permutations(mask, empty, generator=0)).shape == (0, 4)
    assert storage_mask_at_density(empty, 0, 0).shape == storage_mask_at_norm(empty, 1, 0).shape == (0, 4)
    assert bernoulli_mask((0, 4), 0, 0).shape == (0, 4)
    assert storage_path(empty, [0], [1], 0)[0].shape == (0, 4)


def test_scaled_noise_passes_given_gaps_where_its_critical_scale_is_exceeded():
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(64, 64, generator=generator).to(torch.bfloat16)
    noise = torch.randn(64, 64, generator=generator)
    assert torch.equal(scale_to_pass(half_gaps(base), noise), critical_scale(base, noise))
