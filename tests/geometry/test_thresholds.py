"""Exact thresholds against a sort: ties, unlucky samples, many tiles, integers and reconstructions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry import thresholds
from threegates.geometry.masks import popcount, unpack
from threegates.geometry.precision import to_bf16
from threegates.geometry.thresholds import (
    Magnitudes,
    Reconstruction,
    entry_count,
    find_cuts,
    packed_smallest,
    packed_undecided,
)


def brute_force(keys, count: int) -> list[bool]:
    """Oracle: sort by key, then by index, and take the first."""
    chosen = set(sorted(range(len(keys)), key=lambda i: (keys[i], i))[:count])
    return [i in chosen for i in range(len(keys))]


@pytest.fixture(params=["one tile", "many tiles and a poor sample"])
def small_tiles(request, monkeypatch):
    if request.param != "one tile":
        monkeypatch.setattr(thresholds, "TILE", 16)
        monkeypatch.setattr(thresholds, "PRODUCT_TILE", 24)
        monkeypatch.setattr(thresholds, "SAMPLE", 5)
        monkeypatch.setattr(thresholds, "_bracket", lambda ordered, share: (ordered[1], ordered[2]))


def factors(m: int, n: int, r: int, seed: int = 0):
    generator = np.random.default_rng([seed, m, n, r])
    u, v = (np.linalg.qr(generator.standard_normal((side, r)))[0] for side in (m, n))
    s = np.sort(generator.random(r))[::-1].copy()
    return torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(v)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_masks_of_magnitudes_are_those_of_a_sort(small_tiles, dtype, largest, levels):
    generator = np.random.default_rng(levels)
    x = torch.from_numpy(generator.integers(-levels, levels + 1, (9, 23)) / 16).to(dtype)
    oracle_keys = (x.double().abs() * (-1 if largest else 1)).flatten().tolist()
    for count in (0, 1, 2, 50, 103, 104, 206, 207):
        (packed,) = packed_smallest(Magnitudes(x, largest=largest), count)
        assert unpack(packed, (207,)).tolist() == brute_force(oracle_keys, count)


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 3.0]), max_size=40), st.data())
def test_ties_go_to_the_lowest_index_and_both_zeros_tie(values, data):
    count = data.draw(st.integers(0, len(values)))
    x = torch.tensor(values, dtype=torch.float32)
    for keys, y in ((Magnitudes(x), x), (Magnitudes(to_bf16(x), largest=True), -x)):
        oracle = [abs(value) * (1 if y is x else -1) for value in values]
        assert unpack(packed_smallest(keys, count)[0], (len(values),)).tolist() == brute_force(oracle, count)


@pytest.mark.parametrize("ranks", [[1], [3], [1, 2, 5], [2, 4, 6]])
@pytest.mark.parametrize("shape", [(12, 17), (17, 12), (31, 8), (6, 40)])
def test_masks_of_reconstructions_are_those_of_numpy(small_tiles, shape, ranks):
    u, s, v = factors(*shape, 6)
    for count in (1, 60, shape[0] * shape[1] - 3):
        packed = packed_smallest(Reconstruction(u, s, v, ranks), count)
        for mask, k in zip(packed, ranks, strict=True):
            keys = -np.abs((u[:, :k].numpy() * s[:k].numpy()) @ v[:, :k].numpy().T)
            assert unpack(mask, (keys.size,)).tolist() == brute_force(keys.ravel().tolist(), count)


def test_several_counts_share_one_stream():
    u, s, v = factors(20, 30, 4)
    keys = Reconstruction(u, s, v, [1, 4])
    streams = []
    original = keys.tiles
    keys.tiles = lambda: streams.append(1) or original()  # type: ignore[method-assign]
    cuts = find_cuts(keys, [30, 300, 300, 0, 600])
    assert len(streams) == 1
    assert cuts == [
        [find_cuts(Reconstruction(u, s, v, [k]), [c])[0][0] for c in (30, 300, 300, 0, 600)] for k in (1, 4)
    ]


def test_a_bracket_that_misses_is_widened_on_the_right_side(monkeypatch):
    x = torch.arange(1000, dtype=torch.float64)[torch.from_numpy(np.random.default_rng(0).permutation(1000))]
    missed = [(0.0, 3.0), (990.0, 995.0), (-5.0, -5.0), (2000.0, 2000.0)]
    touching = [(500.0, 503.0), (490.0, 498.0), (499.0, 499.0), (490.0, 499.0), (499.0, 503.0)]
    for bounds in missed + touching:
        monkeypatch.setattr(thresholds, "_bracket", lambda *_, bounds=bounds: bounds)
        assert find_cuts(Magnitudes(x), [500])[0][0].value == 499.0


def test_brackets_hold_the_threshold_and_little_else():
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(400_000))
    keys = Magnitudes(x)
    for count in (400, 40_000, 200_000, 399_000):
        (bounds,) = thresholds._sampled_brackets(keys, [count]).values()
        (tally,) = thresholds._tally(keys, {(0, count): bounds}).values()
        assert tally.holds(count)
        assert tally.inside < 0.02 * 400_000
        assert find_cuts(keys, [count])[0][0].value == float(np.sort(np.abs(x.numpy()))[count - 1])


def test_a_matrix_of_zeros_is_all_one_tie():
    cut = find_cuts(Magnitudes(torch.zeros(30, 30)), [17])[0][0]
    assert (cut.value, cut.taken, cut.tied) == (0.0, 17, 900)
    mask = unpack(packed_smallest(Magnitudes(torch.zeros(30, 30).bfloat16()), 17)[0], (900,))
    assert mask.tolist() == [True] * 17 + [False] * 883


def test_undecided_entries_hold_every_difference_that_small_errors_can_make():
    u, s, v = factors(40, 50, 8)
    generator = np.random.default_rng(3)
    noise = 1e-4 * generator.uniform(-1, 1, (40, 50))
    exact = (u * s) @ v.T
    nearby = Magnitudes(exact + torch.from_numpy(noise), largest=True)
    mine, other = (packed_smallest(keys, 900)[0] for keys in (Reconstruction(u, s, v), nearby))
    (undecided,) = packed_undecided(Reconstruction(u, s, v), 900, 2e-4)
    assert popcount(mine ^ other) > 0
    assert popcount((mine ^ other) & ~undecided) == 0
    assert popcount(undecided) < 100


@pytest.mark.parametrize(
    ("share", "size", "count"), [(0.5, 7, 4), (0.5, 8, 4), (0.3, 10, 3), (0, 5, 0), (1, 5, 5), (0.1, 4, 0)]
)
def test_shares_become_counts(share, size, count):
    assert entry_count(share, size) == count


@given(st.floats(0, 1), st.integers(0, 10**8))
def test_counts_are_within_half_an_entry_of_the_share(share, size):
    assert abs(entry_count(share, size) - share * size) <= 0.5 + 1e-6
    assert 0 <= entry_count(share, size) <= size


def test_nothing_has_no_masks_but_empty_ones():
    empty = torch.empty(0, 3, dtype=torch.float64)
    for keys in (Magnitudes(empty), Reconstruction(empty, torch.ones(3).double(), torch.ones(4, 3).double())):
        assert packed_smallest(keys, 0)[0].tolist() == []


def test_impossible_requests_are_refused():
    x = torch.ones(4)
    with pytest.raises(GeometryError, match=r"(?s)cannot hold that many.*0 … 4.*found: 5"):
        packed_smallest(Magnitudes(x), 5)
    with pytest.raises(GeometryError, match=r"(?s)between 0 and 1.*1.5"):
        entry_count(1.5, 4)
    with pytest.raises(GeometryError, match="tolerance is not negative"):
        packed_undecided(Magnitudes(x), 1, -1.0)
    with pytest.raises(GeometryError, match=r"(?s)floating tensors.*int64"):
        Magnitudes(torch.arange(3))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(GeometryError, match="NaN or infinity"):
            Magnitudes(torch.tensor([1.0, bad]))
        with pytest.raises(GeometryError, match="NaN or infinity"):
            Magnitudes(torch.tensor([1.0, bad]).bfloat16())
    u, s, v = factors(5, 6, 3)
    for ranks in ([], [0], [2, 1], [1, 1], [4]):
        with pytest.raises(GeometryError, match=r"(?s)no such ranks.*1 … 3"):
            Reconstruction(u, s, v, ranks)


@given(st.lists(st.integers(-3, 3), max_size=20), st.integers(-4, 4), st.integers(0, 3))
def test_both_ways_to_split_agree(numbers, low, width):
    # The one in torch serves other devices than the CPU, and runs there only.
    for dtype in (torch.int16, torch.float64):
        keys = torch.tensor(numbers, dtype=dtype)
        below, kept = thresholds._split(keys, low, low + width)
        assert (below, kept.tolist()) == (
            sum(x < low for x in numbers),
            [x for x in numbers if low <= x <= low + width],
        )
        assert thresholds._split_in_numpy(keys, low, low + width)[0] == below
        assert torch.equal(thresholds._split_in_numpy(keys, low, low + width)[1], kept)


def test_factors_that_do_not_fit_name_the_likely_mistake():
    u, s, v = factors(5, 6, 3)
    with pytest.raises(GeometryError, match=r"(?s)do not fit.*\(5, 3\), \(3,\), \(3, 6\).*gives Vᵀ"):
        Reconstruction(u, s, v.T)


def test_keys_that_change_between_the_streams_are_noticed():
    keys, calls = Magnitudes(torch.arange(40.0)), []
    steady = keys.tiles

    def drifting():
        calls.append(1)
        return ([layer + len(calls) for layer in tile] for tile in steady())

    keys.tiles = drifting  # type: ignore[method-assign]
    with pytest.raises(GeometryError, match=r"(?s)keys changed.*20 entries.*found: 19.*threads"):
        packed_smallest(keys, 20)
