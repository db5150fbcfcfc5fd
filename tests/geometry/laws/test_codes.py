"""Counts of codes against numpy's unique, with both zeros as one, in pieces and by label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import tensors
from threegates.errors import GeometryError
from threegates.geometry.laws import lines
from threegates.geometry.laws.codes import CodeCounter, count_codes
from threegates.geometry.laws.lines import distance_counts, line_sums, stratum_counts
from threegates.geometry.laws.strata import one_stratum, quantile_strata, value_strata
from threegates.geometry.precision import gaps_beyond


@pytest.mark.parametrize("name", sorted(tensors.FAMILIES))
def test_every_code_is_counted_by_label(name):
    base = tensors.family(name)
    base.reshape(-1)[:5] = -0.0
    labels = (tensors.target(name).to(torch.uint8) * 2).contiguous()
    codes = count_codes(base, labels, 3)
    values, counts = np.unique(base.float().numpy() + 0.0, return_counts=True)
    order = np.argsort(codes.values)
    assert (codes.values[order] == values).all() and (codes.counts[order] == counts).all()
    assert codes.with_labels(2).sum() == int((labels == 2).sum()) and codes.with_labels(1).sum() == 0
    counter = CodeCounter()
    for piece in base.reshape(-1).split(37):
        counter.add(piece)
    assert (counter.whole().counts == codes.counts).all() and codes.size == base.numel()


def test_gaps_are_those_of_the_weights():
    base = tensors.family("clustered")
    codes = count_codes(base)
    for eta in (1e-3, 1e-2):
        down, up = gaps_beyond(base, eta)
        for value, low, high in zip(codes.values, *codes.gaps(eta), strict=True):
            here = base.double() == value
            assert (down[here] == low).all() and (up[here] == high).all()


def sizes(strata, codes):
    return strata.sums(codes.counts).astype(int)


@pytest.mark.parametrize("name", tensors.FAMILIES)
@pytest.mark.parametrize("bins", [1, 7, 64, 5000])
def test_quantile_strata_hold_values_by_their_lowest_rank(name, bins):
    base = tensors.family(name)
    codes = count_codes(base)
    ranks = np.searchsorted(np.sort(base.abs().double().numpy().ravel()), np.abs(codes.values))
    assert (quantile_strata(codes, bins).of_code == ranks * bins // codes.size).all()


@pytest.mark.parametrize("name", tensors.FAMILIES)
@pytest.mark.parametrize("fewest", [1, 5, 64, 10**6])
def test_value_strata_are_as_fine_as_enough_weights_of_one_binade_allow(name, fewest):
    codes = count_codes(tensors.family(name))
    strata, size = value_strata(codes, fewest), np.abs(codes.values)
    binade = np.frexp(np.maximum(size, 2.0**-126))[1] + (size >= 2.0**-126)
    within = [np.unique(size[strata.of_code == b]) for b in range(strata.number)]
    counts = sizes(strata, codes)
    for b, values in enumerate(within):
        assert len(set(binade[strata.of_code == b])) == 1, "across a power of two"
        assert b == 0 or within[b - 1].max() < values.min(), "equal values share a stratum, and strata ascend"
        alone = (binade == binade[strata.of_code == b][0]).sum() == (strata.of_code == b).sum()
        last = b + 1 == strata.number or binade[strata.of_code == b + 1][0] != binade[strata.of_code == b][0]
        assert counts[b] >= fewest or alone
        # Without its last value it would be too small, and it could not have been closed before.
        rest = counts[b] - codes.counts[size == values.max()].sum()
        assert rest < fewest or last


def test_a_binade_with_few_weights_is_one_stratum_and_a_rest_joins_the_last():
    values = [1.0] * 3 + [1.5] * 2 + [2.0] * 4 + [2.5] * 4 + [3.0] * 3 + [0.0, -0.0]
    codes = count_codes(torch.tensor(values).bfloat16())
    assert value_strata(codes, 4).of_code[np.argsort(codes.values)].tolist() == [0, 1, 1, 2, 3, 3]


def test_strata_of_nothing_are_none():
    assert value_strata(count_codes(torch.empty(0, 4).bfloat16())).number == 0


@pytest.mark.parametrize("strata_of", [quantile_strata, value_strata])
def test_strata_are_counted_along_lines(strata_of):
    for name in ("row-scaled", "power-law", "subnormal"):
        base = tensors.family(name)
        codes = count_codes(base)
        strata = strata_of(codes)
        by_value = dict(zip(codes.values, strata.of_code, strict=True))
        labels = np.array([[by_value[float(w) + 0.0] for w in row] for row in base.double().numpy()])
        rows, columns = stratum_counts(base, codes, strata)
        for found, along in ((rows, labels), (columns, labels.T)):
            expected = [np.bincount(line, minlength=strata.number) for line in along]
            assert (found == np.array(expected)).all()
    assert one_stratum(codes).number == 1


def test_sums_along_lines_are_those_of_looked_up_values():
    base = tensors.family("row-scaled")
    base[0, :3] = -0.0
    codes = count_codes(base)
    functions = np.random.default_rng(0).random((3, len(codes.patterns)))
    sums = line_sums(base, codes, functions)
    by_value = dict(zip(codes.values, functions.T, strict=True))
    table = np.array([[by_value[float(w) + 0.0] for w in row] for row in base.double().numpy()])
    assert sums.rows == pytest.approx(table.sum(axis=1)) and sums.columns == pytest.approx(table.sum(axis=0))


@pytest.mark.parametrize("name", sorted(tensors.FAMILIES))
def test_sums_of_what_hangs_on_distances_alone_are_those_of_lookups(name):
    base = tensors.family(name)
    base.reshape(-1)[:3] = -0.0
    codes = count_codes(base)
    down, up = codes.gaps()
    functions = np.stack([down + up, np.log2(down) * np.log2(up)])
    counts, sums = distance_counts(base, codes, down, up), line_sums(base, codes, functions)
    assert counts is not None and counts.rows.sum() == counts.columns.sum() == base.numel()
    assert counts.sums(functions).rows == pytest.approx(sums.rows, rel=1e-12)
    assert counts.sums(functions).columns == pytest.approx(sums.columns, rel=1e-12)


def test_too_many_distances_are_not_counted_and_blocks_of_any_shape_are(monkeypatch):
    base = tensors.family("clustered")
    codes = count_codes(base)
    down, up = codes.gaps()
    whole = distance_counts(base, codes, down, up)
    monkeypatch.setattr(lines, "BLOCK", (3, 5))
    monkeypatch.setattr(lines, "MOST_PAIRS", len(whole.examples))
    small = distance_counts(base, codes, down, up)
    assert (small.rows == whole.rows).all() and (small.columns == whole.columns).all()
    monkeypatch.setattr(lines, "MOST_PAIRS", len(whole.examples) - 1)
    assert distance_counts(base, codes, down, up) is None


def test_what_cannot_be_counted_is_refused():
    base = tensors.family("row-scaled")
    with pytest.raises(GeometryError, match="labels do not fit"):
        count_codes(base, torch.zeros(3, dtype=torch.uint8), 2)
    with pytest.raises(GeometryError, match="a label has no kind"):
        count_codes(base, torch.full(base.shape, 2, dtype=torch.uint8), 2)
    with pytest.raises(GeometryError, match="not stored in bfloat16"):
        count_codes(base.float())
    base[3, 4] = float("nan")
    with pytest.raises(GeometryError, match="NaN or infinity"):
        count_codes(base)
    with pytest.raises(GeometryError, match="counted from one"):
        quantile_strata(count_codes(tensors.family("one-row")), 0)
    with pytest.raises(GeometryError, match="a stratum has a weight"):
        value_strata(count_codes(tensors.family("one-row")), 0)
