"""Null draws: exact counts, exact scales, the law they claim, and generators that meet no other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry.masks import jaccard, update_mask
from threegates.geometry.nulls import (
    NullSummary,
    as_generator,
    bernoulli_mask,
    change_probability,
    critical_scale,
    gaussian_noise,
    magnitude_bins,
    noise_generator,
    p_value,
    rounded_sum,
    scale_to_pass,
    smallest,
    storage_mask_at_density,
    storage_mask_at_norm,
    storage_path,
    storage_scale_for_norm,
    stratified_permutation,
    stratified_permutations,
    summarise,
)
from threegates.geometry.precision import (
    LARGEST_FINITE_CODE,
    bf16_codes,
    bf16_from_codes,
    half_gaps,
    to_bf16,
    unchanged_by_definition,
)

finite_codes = st.integers(-LARGEST_FINITE_CODE, LARGEST_FINITE_CODE)
BINADE_BORDERS = [code * sign for code in range(0x80, 0x7F80, 0x80) for sign in (1, -1)]
HARD_CODES = [0, 1, -1, 2, 0x7F, 0x80, 0x81, 0x7F7E, 0x7F7F, -0x7F7F, *BINADE_BORDERS]


def weights(m: int = 48, n: int = 64, seed: int = 0) -> torch.Tensor:
    """Weights over several binades, a few of them zero."""
    generator = np.random.default_rng([seed, m, n])
    scales = np.exp(generator.standard_normal((m, 1)))
    w = 0.05 * scales * generator.standard_normal((m, n))
    w[generator.random((m, n)) < 0.01] = 0
    return to_bf16(torch.from_numpy(w))


# --- generators


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
    stratified_permutation(bernoulli_mask(w.shape, 10, generator), w, generator=generator)
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


# --- critical scales


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
        lambda x: magnitude_bins(x, 2),
    ]
    for call in calls:
        with pytest.raises(GeometryError, match="NaN or infinity"):
            call(w)
        with pytest.raises(GeometryError, match="not stored in bfloat16"):
            call(torch.ones(2))


# --- null 1a


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


@given(st.integers(0, 12 * 16), st.integers(0, 3))
def test_storage_masks_have_exactly_the_count_and_are_those_of_rounding(changed, seed):
    w = weights(12, 16, seed)
    mask = storage_mask_at_density(w, changed, noise_generator(seed))
    assert int(mask.sum()) == changed
    noise = gaussian_noise(w.shape, noise_generator(seed))
    scales = critical_scale(w, noise).flatten().sort().values
    below = float(scales[changed - 1]) if changed else 0.0
    above = float(scales[changed]) if changed < len(scales) else 2 * below
    assert below < above  # so that a scale between them gives this count
    rounded = to_bf16(w.double() + (below + above) / 2 * noise.double())
    assert torch.equal(mask, update_mask(w, rounded))


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


def test_each_weight_changes_as_often_as_the_formula_says():
    w = weights(8, 8)
    w[0, :4] = torch.tensor([0.0, 1.0, -2.0, 2**-130]).bfloat16()
    scale = 2e-3
    probability = change_probability(w, scale)
    generator, draws = noise_generator(4), 4000
    hits = sum(storage_mask_at_norm(w, scale, generator).double() for _ in range(draws))
    error = (probability * (1 - probability) / draws).sqrt() + 1 / draws
    z = (hits / draws - probability) / error
    assert probability.min() < 0.2 and probability.max() > 0.99
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) < 2


def test_probability_at_a_binade_border_adds_two_unequal_tails():
    normal = torch.distributions.Normal(0.0, 1.0)
    tails = normal.cdf(torch.tensor([-(2.0**-8), -(2.0**-9)], dtype=torch.float64) / 3e-3)
    assert float(change_probability(torch.ones(()).bfloat16(), 3e-3)) == pytest.approx(float(tails.sum()))


def test_without_noise_nothing_changes():
    w = weights()
    assert not change_probability(w, 0).any()
    assert not storage_mask_at_norm(w, 0, 0).any()


@pytest.mark.parametrize("scale", [-1e-9, math.inf, math.nan])
def test_impossible_scales_are_refused(scale):
    for call in (
        lambda: change_probability(weights(), scale),
        lambda: storage_mask_at_norm(weights(), scale, 0),
    ):
        with pytest.raises(GeometryError, match="finite and not negative"):
            call()


# --- null 1b


def rounded_norm(w: torch.Tensor, scale: float, generator: torch.Generator) -> float:
    moved = to_bf16(w.double() + scale * gaussian_noise(w.shape, generator).double())
    return float((moved.double() - w.double()).norm())


@pytest.mark.parametrize("norm", [1e-3, 0.02, 0.3, 5.0, 400.0])
def test_noise_of_the_found_scale_has_the_norm_after_rounding(norm):
    w = weights()
    scale = storage_scale_for_norm(w, norm, noise_generator(0, "scale"))
    generator = noise_generator(1, "other draws")
    norms = np.array([rounded_norm(w, scale, generator) for _ in range(200)])
    # Four draws fix the scale, so their own scatter is what remains.
    assert np.sqrt((norms**2).mean()) == pytest.approx(norm, abs=4 * norms.std() / 2 + 1e-3 * norm)


def test_the_scale_meets_its_tolerance_on_its_own_draws():
    w, norm = weights(), 0.05
    for tolerance in (1e-2, 1e-4):
        scale = storage_scale_for_norm(w, norm, noise_generator(2), draws=3, tolerance=tolerance)
        generator = noise_generator(2)
        squares = [rounded_norm(w, scale, generator) ** 2 for _ in range(3)]
        assert math.sqrt(sum(squares) / 3) == pytest.approx(norm, rel=tolerance)


def test_rounding_swallows_most_of_small_noise_so_the_scale_makes_up_for_it():
    # What matching the norm before rounding would get wrong.
    w = weights()
    share = [storage_scale_for_norm(w, norm, 0) * math.sqrt(w.numel()) / norm for norm in (1e-4, 1e-3, 0.3)]
    assert share[0] > 2 and share[1] > 1.3
    assert share[2] == pytest.approx(1, abs=0.02)


def test_a_norm_that_lies_inside_a_step_gives_the_step():
    w = torch.ones(1).bfloat16()
    scale = storage_scale_for_norm(w, 2**-10, 0, draws=1)
    assert scale == pytest.approx(float(critical_scale(w, gaussian_noise((1,), 0))), rel=1e-8)


def test_norms_at_the_ends():
    w = weights()
    assert storage_scale_for_norm(w, 0, 0) == 0
    for norm in (-1, math.inf, math.nan):
        with pytest.raises(GeometryError, match="no noise has that norm"):
            storage_scale_for_norm(w, norm, 0)
    with pytest.raises(GeometryError, match="no noise has that norm"):
        storage_scale_for_norm(w[:0], 1, 0)


def test_rounded_sum_rounds_once():
    w, z = torch.ones(1).bfloat16(), torch.ones(1)
    assert float(rounded_sum(w, z, 2**-8 + 2**-40)) == 1 + 2**-7
    assert float(rounded_sum(w, z, 2**-8)) == 1


# --- null of emergence


def test_a_path_has_its_counts_and_each_mask_the_law_of_null_1a():
    w = weights()
    counts, times = [10, 500, 1500, 3000], [1, 2, 4, 8]
    path = storage_path(w, counts, times, 3)
    assert [int(mask.sum()) for mask in path] == counts
    alone = storage_mask_at_density(w, counts[0], 3)
    assert torch.equal(path[0], alone)


def test_the_walk_adds_increments_of_variance_equal_to_the_time_between():
    w, times = weights(), [0.5, 2.0, 6.0]
    source = noise_generator(8)
    increments = [gaussian_noise(w.shape, source).double() for _ in times]
    walk = torch.zeros(w.shape, dtype=torch.float64)
    for mask, z, time, before in zip(
        storage_path(w, [700] * 3, times, 8), increments, times, [0, *times], strict=False
    ):
        walk += (time - before) ** 0.5 * z
        assert torch.equal(mask, smallest(critical_scale(w, walk), 700))


def test_masks_of_a_path_agree_while_times_are_near_and_forget_each_other_later():
    w, count = weights(), 800
    near, far, apart = ([], [], [])
    for seed in range(20):
        first, second, third = storage_path(w, [count] * 3, [1.0, 1.1, 50.0], noise_generator(seed, "path"))
        near.append(jaccard(first, second))
        far.append(jaccard(first, third))
        apart.append(jaccard(first, storage_mask_at_density(w, count, noise_generator(seed, "apart"))))
    assert np.mean(near) > np.mean(far) + 0.2
    assert np.mean(far) == pytest.approx(np.mean(apart), abs=0.02)


@pytest.mark.parametrize(("counts", "times"), [([1], [1, 2]), ([1, 1], [2, 1]), ([1], [0]), ([1, 1], [1, 1])])
def test_times_ascend_and_have_a_count_each(counts, times):
    with pytest.raises(GeometryError, match=r"(?s)count and a later time.*counts at times"):
        storage_path(weights(), counts, times, 0)


# --- magnitude null


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_bins_are_quantiles_and_ties_share_one(levels, bins):
    w = torch.tensor(levels).bfloat16() * (1 - 2 * (torch.arange(len(levels)) % 2))
    oracle = [sum(other < level for other in levels) * bins // len(levels) for level in levels]
    assert magnitude_bins(w, bins).tolist() == oracle


def test_distinct_magnitudes_fill_bins_evenly():
    w = bf16_from_codes(torch.arange(6400, dtype=torch.int32).reshape(64, 100))
    assert torch.bincount(magnitude_bins(w, 64).flatten()).tolist() == [100] * 64


@pytest.mark.parametrize("bins", [1, 7, 64, 5000])
def test_permutation_keeps_the_count_of_every_bin(bins):
    w, generator = weights(), noise_generator(0)
    mask = storage_mask_at_density(w, 1000, generator)
    labels = magnitude_bins(w, bins)
    for out in itertools.islice(stratified_permutations(mask, w, bins, generator=generator), 3):
        assert out.shape == mask.shape
        assert torch.equal(
            torch.bincount(labels[out], minlength=bins), torch.bincount(labels[mask], minlength=bins)
        )


def test_permutation_is_uniform_within_a_bin_and_independent_between_bins():
    w = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0]).bfloat16()
    mask = torch.tensor([True, False, False, True, False])
    stream = stratified_permutations(mask, w, 2, generator=noise_generator(0))
    seen: dict[tuple, int] = {}
    for out in itertools.islice(stream, 3000):
        key = tuple(out.tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 6
    assert sum((n - 500) ** 2 / 500 for n in seen.values()) < 20.5  # chi-square(5) above 20.5: p = .001


def test_one_permutation_is_the_first_of_the_stream():
    w = weights()
    mask = bernoulli_mask(w.shape, 900, 1)
    stream = stratified_permutations(mask, w, generator=noise_generator(2))
    assert torch.equal(next(stream), stratified_permutation(mask, w, generator=noise_generator(2)))
    assert not torch.equal(next(stream), mask)


def test_bins_are_counted_from_one():
    with pytest.raises(GeometryError, match="counted from one"):
        magnitude_bins(weights(), 0)


def test_empty_tensors_pass():
    empty = torch.empty(0, 4).bfloat16()
    mask = torch.empty(0, 4, dtype=torch.bool)
    assert stratified_permutation(mask, empty, generator=0).shape == (0, 4)
    assert storage_mask_at_density(empty, 0, 0).shape == storage_mask_at_norm(empty, 1, 0).shape == (0, 4)
    assert bernoulli_mask((0, 4), 0, 0).shape == (0, 4)
    assert storage_path(empty, [0], [1], 0)[0].shape == (0, 4)


# --- Bernoulli


@given(st.integers(0, 60), st.integers(0, 5))
def test_bernoulli_masks_have_exactly_the_count(changed, seed):
    mask = bernoulli_mask((5, 12), changed, noise_generator(seed))
    assert mask.shape == (5, 12) and int(mask.sum()) == changed


def test_bernoulli_masks_are_uniform():
    generator = noise_generator(0)
    hits = sum(bernoulli_mask((4, 5), 7, generator).double() for _ in range(4000)) / 4000
    assert float((hits - 0.35).abs().max()) < 4.5 * math.sqrt(0.35 * 0.65 / 4000)


# --- p-values


@pytest.mark.parametrize(
    ("observed", "draws", "tail", "p"),
    [
        (5, [1, 2, 3], "upper", 1 / 4),
        (2, [1, 2, 3], "upper", 3 / 4),  # a draw equal to the observed counts against it
        (0, [1, 2, 3], "upper", 1),
        (5, [1, 2, 3], "two-sided", 2 / 4),
        (0, [1, 2, 3], "two-sided", 2 / 4),
        (2, [1, 2, 3], "two-sided", 1),
        (9, range(1, 40), "upper", 32 / 40),
    ],
)
def test_p_values_by_hand(observed, draws, tail, p):
    assert p_value(observed, list(draws), tail) == pytest.approx(p)


@given(st.integers(0, 39))
def test_the_rank_of_an_exchangeable_value_gives_each_p_once(rank):
    values = list(np.random.default_rng(0).permutation(40).astype(float))
    p = p_value(values[rank], values[:rank] + values[rank + 1 :])
    assert p == pytest.approx((40 - values[rank]) / 40)


def test_p_values_of_nan_are_nan():
    assert math.isnan(p_value(math.nan, [1.0]))
    assert math.isnan(p_value(1.0, [1.0, math.nan]))


@pytest.mark.parametrize(("draws", "tail"), [([], "upper"), ([1.0], "lower")])
def test_p_values_need_draws_and_a_known_tail(draws, tail):
    with pytest.raises(GeometryError, match=f"(?s)no p-value.*{len(draws)} draws, tail '{tail}'"):
        p_value(1.0, draws, tail)


def test_summary_by_hand():
    draws = np.arange(1, 42, dtype=float)
    sd = math.sqrt(41 * 42 / 12)
    summary = summarise(50.0, draws)
    assert isinstance(summary, NullSummary)
    assert (summary.mean, summary.low, summary.high, summary.p, summary.draws) == (21, 2, 40, 1 / 42, 41)
    assert (summary.sd, summary.z) == pytest.approx((sd, 29 / sd))


def test_z_needs_scatter():
    assert math.isnan(summarise(1.0, [2.0]).z)
    assert math.isnan(summarise(1.0, [2.0, 2.0]).z)


def test_the_probability_of_change_at_a_tolerance_is_the_share_of_rounded_noise_beyond_it():
    generator, scale = torch.Generator().manual_seed(3), 0.004
    base = torch.randn(300, generator=generator).to(torch.bfloat16)
    probability = change_probability(base, scale, eta=1e-2)
    noise = scale * torch.randn(4000, 300, generator=generator, dtype=torch.float64)
    stored = to_bf16(base.double() + noise)
    share = (~unchanged_by_definition(base.expand_as(stored), stored, 1e-2)).double().mean(0)
    assert torch.allclose(probability, share, atol=0.04)
    assert float(probability.mean()) < float(change_probability(base, scale).mean()) - 0.05


def test_scaled_noise_passes_given_gaps_where_its_critical_scale_is_exceeded():
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(64, 64, generator=generator).to(torch.bfloat16)
    noise = torch.randn(64, 64, generator=generator)
    assert torch.equal(scale_to_pass(half_gaps(base), noise), critical_scale(base, noise))


def test_a_walk_is_seen_through_the_tolerance_that_is_asked_for():
    base = torch.randn(64, 64, generator=torch.Generator().manual_seed(8)).to(torch.bfloat16)
    (fine,), (coarse,) = (storage_path(base, [900], [1.0], 5, eta=eta) for eta in (1e-3, 1e-2))
    assert int(fine.sum()) == int(coarse.sum()) == 900 and not torch.equal(fine, coarse)
