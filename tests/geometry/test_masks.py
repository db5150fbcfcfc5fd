"""Masks, counts, packed bits and agreement, against plain loops over Python integers."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from threegates.errors import GeometryError
from threegates.geometry.masks import (
    MaskCounts,
    _count_anywhere,
    column_ratio,
    consensus,
    count_changes,
    expected_jaccard,
    jaccard,
    jaccard_matrix,
    pack,
    popcount,
    row_ratio,
    sparsity,
    unpack,
    update_mask,
)
from threegates.geometry.precision import unchanged_by_definition

NAN_BITS = (0x7F81, 0x7FC0, 0x7FFF, 0xFF81, 0xFFFF)
# Few values, so that equal entries, both zeros and both infinities are all common.
BITS = [0x0000, 0x8000, 0x0001, 0x8001, 0x3F80, 0x3F81, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80]

shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def from_bits(bits) -> torch.Tensor:
    return torch.from_numpy(np.asarray(bits, dtype=np.uint16).view(np.int16).copy()).view(torch.bfloat16)


def pairs_of(shape):
    one = arrays(np.uint16, shape, elements=st.sampled_from(BITS))
    return st.tuples(one, one)


pairs = shapes.flatmap(pairs_of)
matrices = array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40).flatmap(pairs_of)
small = array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9).flatmap(pairs_of)
bools = shapes.flatmap(lambda shape: arrays(np.bool_, shape))


def mask_of_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Oracle: codes differ, unless both are zeros."""
    differ = [
        int(x) != int(y) and not (x & 0x7FFF == y & 0x7FFF == 0) for x, y in zip(a.flat, b.flat, strict=True)
    ]
    return np.array(differ, dtype=np.bool_).reshape(a.shape)


def random_pair(*shape: int, seed: int = 0, scale: float = 2e-4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.02
    tuned = base + scale * torch.randn(shape, generator=generator)
    return base.bfloat16(), tuned.bfloat16()


# --- masks


@given(pairs)
def test_update_mask_is_difference_of_codes(pair):
    mask = update_mask(*map(from_bits, pair))
    assert np.array_equal(mask.numpy(), mask_of_bits(*pair))


@given(pairs)
def test_update_mask_is_definition_2_1(pair):
    a, b = map(from_bits, pair)
    assert torch.equal(update_mask(a, b), ~unchanged_by_definition(a, b))


@given(pairs)
def test_update_mask_does_not_care_which_came_first(pair):
    a, b = map(from_bits, pair)
    assert torch.equal(update_mask(a, b), update_mask(b, a))
    assert not update_mask(a, a).any()


def test_planted_changes_are_found_and_no_others():
    base, _ = random_pair(48, 64)
    planted = torch.rand(48, 64, generator=torch.Generator().manual_seed(1)) < 0.3
    tuned = (base.view(torch.int16) + planted.to(torch.int16)).view(torch.bfloat16)
    assert torch.equal(update_mask(base, tuned), planted)
    counts = count_changes(base, tuned)
    assert counts.changed == int(planted.sum())
    assert torch.equal(counts.rows, planted.sum(1))
    assert torch.equal(counts.columns, planted.sum(0))


@pytest.mark.parametrize("measure", [update_mask, count_changes])
class TestRefusals:
    @pytest.mark.parametrize("bits", NAN_BITS)
    @pytest.mark.parametrize("side", [0, 1])
    def test_nan_is_refused_with_place_and_number(self, measure, bits, side):
        pair = [torch.zeros(2, 3, dtype=torch.bfloat16) for _ in range(2)]
        pair[side].view(torch.int16)[1, 2] = int(np.uint16(bits).view(np.int16))
        with pytest.raises(GeometryError) as caught:
            measure(*pair)
        text = str(caught.value)
        assert ("base", "tuned")[side] + " holds NaN" in text
        assert "1 of 6 entries, first at (1, 2)" in text

    def test_equal_nans_are_not_called_unchanged(self, measure):
        x = torch.tensor([1.0, float("nan")]).bfloat16()
        with pytest.raises(GeometryError, match="base holds NaN"):
            measure(x, x.clone())

    def test_shapes_must_agree(self, measure):
        with pytest.raises(GeometryError, match=r"(?s)different shape.*\(2, 3\).*\(3, 2\)"):
            measure(torch.zeros(2, 3).bfloat16(), torch.zeros(3, 2).bfloat16())

    @pytest.mark.parametrize("wrong", [torch.float32, torch.float16, torch.int16])
    def test_both_must_be_bf16(self, measure, wrong):
        x = torch.zeros(2, 2).bfloat16()
        with pytest.raises(GeometryError, match="tuned is not stored in bfloat16"):
            measure(x, x.to(wrong))


# --- counts


def check_counts(counts: MaskCounts, mask: np.ndarray) -> None:
    assert (counts.changed, counts.size, counts.shape) == (mask.sum(), mask.size, mask.shape)
    if mask.ndim != 2:
        assert counts.rows is None and counts.columns is None
        return
    assert counts.rows.dtype == counts.columns.dtype == torch.int64
    assert counts.rows.tolist() == mask.sum(1).tolist()
    assert counts.columns.tolist() == mask.sum(0).tolist()


@given(pairs, st.integers(1, 60))
def test_counts_are_those_of_the_mask_for_any_tile(pair, tile):
    check_counts(count_changes(*map(from_bits, pair), tile=tile), mask_of_bits(*pair))


@given(matrices, st.integers(1, 60), st.booleans(), st.integers(1, 3), st.integers(1, 3))
def test_counts_do_not_care_about_strides(pair, tile, transposed, down, along):
    a, b = (from_bits(x)[::down, ::along] for x in pair)
    oracle = mask_of_bits(*(x[::down, ::along] for x in pair))
    if transposed:
        a, b, oracle = a.T, b.T, oracle.T
    check_counts(count_changes(a, b, tile=tile), oracle)


@given(small, st.integers(1, 60))
def test_counts_by_torch_for_other_devices_are_the_same(pair, tile):
    rows, columns = _count_anywhere(*map(from_bits, pair), tile)
    oracle = mask_of_bits(*pair)
    assert rows.tolist() == oracle.sum(1).tolist()
    assert columns.tolist() == oracle.sum(0).tolist()


@pytest.mark.parametrize("shape", [(700, 3), (3, 70_000), (256, 256), (1, 70_000), (70_000, 1), (513, 129)])
def test_counts_pass_the_limits_of_bytes_and_of_16_bits(shape):
    # All changed: each row and column reaches its largest possible sum.
    base = torch.zeros(shape).bfloat16()
    counts = count_changes(base, base + 1)
    assert counts.changed == base.numel()
    assert (counts.rows == shape[1]).all()
    assert (counts.columns == shape[0]).all()


def test_counts_of_a_matrix_larger_than_a_tile():
    base, tuned = random_pair(1500, 900)
    mask = base != tuned
    counts = count_changes(base, tuned)
    assert 0.1 < counts.changed / counts.size < 0.9
    assert torch.equal(counts.rows, mask.sum(1))
    assert torch.equal(counts.columns, mask.sum(0))
    assert counts.sparsity == 1 - int(mask.sum()) / mask.numel()


def test_nan_behind_the_first_tile_is_found():
    base, tuned = random_pair(8, 8)
    tuned[7, 1] = float("nan")
    with pytest.raises(GeometryError, match=r"(?s)tuned holds NaN.*first at \(7, 1\)"):
        count_changes(base, tuned, tile=8)


def test_parameters_that_want_gradients_are_counted():
    base, tuned = random_pair(4, 4)
    assert count_changes(base.requires_grad_(), tuned).changed == int(update_mask(base, tuned).sum())


def test_counting_needs_little_memory():
    base, tuned = random_pair(3000, 3000)
    count_changes(base, tuned)
    tracemalloc.start()
    count_changes(base, tuned)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 2**20  # the whole mask would be 8.6 MiB


def test_a_tile_holds_something():
    x = torch.zeros(2, 2).bfloat16()
    with pytest.raises(GeometryError, match="at least one entry"):
        count_changes(x, x, tile=0)


# --- ratios


def test_sparsity():
    assert sparsity(1, 4) == 0.75
    assert math.isnan(sparsity(0, 0))
    with pytest.raises(GeometryError, match=r"(?s)more entries changed.*0 … 3.*4"):
        sparsity(4, 3)


@given(matrices)
def test_ratios_of_mask_and_of_counts_agree_with_means(pair):
    a, b = map(from_bits, pair)
    mask, counts, oracle = update_mask(a, b), count_changes(a, b), mask_of_bits(*pair)
    m, n = oracle.shape
    if n:
        assert row_ratio(mask).tolist() == row_ratio(counts).tolist() == oracle.mean(1).tolist()
    if m:
        assert column_ratio(mask).tolist() == column_ratio(counts).tolist() == oracle.mean(0).tolist()


def test_ratios_over_nothing_are_nan():
    assert row_ratio(torch.zeros(3, 0, dtype=torch.bool)).isnan().all()
    assert column_ratio(torch.zeros(0, 3, dtype=torch.bool)).isnan().all()


def test_a_vector_has_no_rows():
    x = torch.zeros(3).bfloat16()
    with pytest.raises(GeometryError, match=r"(?s)only matrices.*2 dimensions.*\(3,\)"):
        row_ratio(count_changes(x, x))


# --- packed bits


@given(bools)
def test_packing_is_undone(mask):
    packed = pack(torch.from_numpy(mask))
    assert packed.shape == (-(-mask.size // 8),)
    assert torch.equal(unpack(packed, mask.shape), torch.from_numpy(mask))
    assert popcount(packed) == mask.sum()


def test_the_first_entry_is_the_lowest_bit_and_rows_come_first():
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = mask[1, 0] = mask[1, 4] = True
    assert pack(mask).tolist() == [0b00100001, 0b10]


def test_packing_follows_the_entries_not_the_memory():
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(pack(mask.T), pack(mask.T.contiguous()))
    assert not torch.equal(pack(mask.T), pack(mask))


def test_unpacking_checks_length_and_padding():
    packed = torch.tensor([255, 1], dtype=torch.uint8)
    with pytest.raises(GeometryError, match=r"(?s)does not fit.*1 bytes for \(2, 3\).*2"):
        unpack(packed, (2, 3))
    with pytest.raises(GeometryError, match="behind its end"):
        unpack(torch.tensor([64], dtype=torch.uint8), (2, 3))


# --- agreement


@st.composite
def several_masks(draw, least: int = 2):
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=12))
    masks = draw(st.lists(arrays(np.bool_, shape), min_size=least, max_size=5))
    return [torch.from_numpy(m) for m in masks]


def jaccard_of_sets(a: torch.Tensor, b: torch.Tensor) -> float:
    """Oracle: by Python sets of flat indices."""
    x, y = ({i for i, hit in enumerate(m.reshape(-1).tolist()) if hit} for m in (a, b))
    return len(x & y) / len(x | y) if x | y else math.nan


@given(several_masks())
def test_jaccard_of_bools_and_of_packed_bits_is_that_of_sets(masks):
    a, b = masks[:2]
    for found in (jaccard(a, b), jaccard(pack(a), pack(b)), jaccard(b, a)):
        assert found == pytest.approx(jaccard_of_sets(a, b), abs=0, nan_ok=True)


@given(several_masks())
def test_jaccard_matrix_holds_every_pair(masks):
    oracle = [[jaccard_of_sets(a, b) for b in masks] for a in masks]
    for given_masks in (masks, [pack(m) for m in masks]):
        assert np.array_equal(jaccard_matrix(given_masks).numpy(), np.array(oracle), equal_nan=True)


@given(several_masks(least=1))
def test_consensus_is_the_mean(masks):
    oracle = torch.stack(masks).to(torch.float32).mean(0)
    assert torch.allclose(consensus(masks), oracle, atol=1e-7)


def test_identical_disjoint_and_empty_masks():
    a = torch.tensor([True, True, False, False])
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    assert math.isnan(jaccard(a & False, a & False))


@pytest.mark.parametrize("measure", [jaccard_matrix, consensus])
def test_no_masks_are_refused(measure):
    with pytest.raises(GeometryError, match="no mask given"):
        measure([])


def test_masks_of_other_shape_or_kind_are_refused():
    a = torch.ones(2, 3, dtype=torch.bool)
    for b in (a.T.contiguous(), pack(a)):
        with pytest.raises(GeometryError, match="masks must be alike"):
            jaccard(a, b)
    with pytest.raises(GeometryError, match="masks must be alike"):
        jaccard(a.float(), a.float())
    with pytest.raises(GeometryError, match="masks must be alike"):
        consensus([a, a[:1]])


def test_expected_jaccard_is_what_independent_masks_give():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(400_000, generator=generator) < p for p in (0.3, 0.6))
    assert expected_jaccard(0.3, 0.6) == pytest.approx(0.25)
    assert jaccard(a, b) == pytest.approx(0.25, abs=4e-3)


@given(st.floats(0, 1), st.floats(0, 1))
def test_expected_jaccard_is_symmetric_and_below_both_densities(p, q):
    expected = expected_jaccard(p, q)
    assert expected == pytest.approx(expected_jaccard(q, p), nan_ok=True)
    assert math.isnan(expected) or 0 <= expected <= min(p, q) + 1e-12


def test_expected_jaccard_at_the_ends():
    assert expected_jaccard(1, 1) == 1
    assert math.isnan(expected_jaccard(0, 0))
    with pytest.raises(GeometryError, match="between 0 and 1"):
        expected_jaccard(0.5, 1.5)


@pytest.mark.parametrize("eta", [1e-3, 5e-3, 1e-2])
def test_a_mask_at_a_tolerance_is_definition_2_1(eta):
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(40, 50, generator=generator).to(torch.bfloat16)
    tuned = (base.double() * (1 + 0.01 * torch.randn(40, 50, generator=generator))).to(torch.bfloat16)
    w, w_hat = base.double(), tuned.double()
    expected = (w_hat - w).abs() > eta * torch.maximum(w.abs(), w_hat.abs())
    assert torch.equal(update_mask(base, tuned, eta), expected)
    assert 0.1 < float(expected.double().mean()) < 0.95
