"""Two runs under a null, by laws and by counts along lines: masks of the samplers, enumeration, scipy."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.planted import tensors
from threegates.geometry.laws import drawn_lines
from threegates.geometry.laws.cells import cells_at_strata, cells_of_noise, functions_of_cells
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.drawn_lines import counts_drawn, line_counts_drawn
from threegates.geometry.laws.law import FIRST_ORDER, LAW, Law
from threegates.geometry.laws.lines import line_sums
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.laws.noise import noise_of
from threegates.geometry.laws.rank_correlation import rank_correlation_law, ranks_of
from threegates.geometry.nulls.noise import critical_scale, noise_generator, smallest
from threegates.geometry.nulls.null import Observed
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.precision import ETA
from threegates.measures.agreement import rank_correlations

OF_LAW = {name: null for name, null in NULLS.items() if null.law}
EVERY = pytest.mark.parametrize("null", OF_LAW.values(), ids=OF_LAW)
#: Masks of each of two runs.
DRAWS = 1000
#: Family, shares of changed weights of two runs, tolerance.
CASES = [
    ("power-law", (0.4, 0.02), ETA),
    ("row-scaled", (0.01, 0.3), ETA),
    ("row-scaled", (0.99, 0.7), 5e-3),
    ("clustered", (0.6, 0.6), ETA),
    ("subnormal", (0.97, 0.3), ETA),
    ("one-row", (0.2, 0.05), ETA),
]


def run_of(name: str, density: float, eta: float = ETA, stream: int = 0) -> tuple[Seen, Observed]:
    """A run of noise in stripes that changes so many weights, and what its nulls are matched to."""
    base = tensors.family(name)
    noise = torch.randn(base.shape, generator=noise_generator(stream, "stripes", name))
    noise *= (1 + torch.arange(base.shape[0]) % 3)[:, None]
    needed = critical_scale(base, noise)
    mask = smallest(needed, round(density * base.numel()))
    tuned = (base.double() + float(needed[mask].max() if mask.any() else 0) * noise).bfloat16()
    seen = see(base, mask, norm=float((tuned.double() - base.double()).norm()), eta=eta)
    # With the tolerance named, the sampler looks up gaps once for all masks.
    return seen, Observed("r", "t", base, mask, seen.changed, seen.scale, eta)


def masks_of(null, observed: Observed, stream: int) -> torch.Tensor:
    """Masks that the null's sampler draws."""
    return torch.stack(list(islice(null.sampler(observed, noise_generator(stream, null.name)), DRAWS)))


def errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of the mean and of the variance of each column."""
    centred = values - values.mean(axis=0)
    second, fourth = (centred**2).mean(axis=0), (centred**4).mean(axis=0)
    return np.sqrt(second / len(values)), np.sqrt(np.maximum(fourth - second**2, 0) / len(values))


def assert_same_lines(found: np.ndarray, true: np.ndarray) -> None:
    """Means, variances and shares of zeros of every line agree, and none is off in one direction."""
    zero = [(one == 0).astype(float) for one in (found, true)]
    for mine, theirs in ((found, true), zero):
        (mean, spread), (other, other_spread) = errors(mine), errors(theirs)
        error, of_variance = np.hypot(mean, other), np.hypot(spread, other_spread)
        away = np.abs(mine.mean(axis=0) - theirs.mean(axis=0))
        # Rare events count a few times among all draws; one of them is not an error of none.
        assert (away <= 5 * error + 5 / DRAWS).all(), (away / error).max()
        apart = mine.var(axis=0) - theirs.var(axis=0)
        assert (np.abs(apart) <= 6 * of_variance + 5 / DRAWS).all()
    whole = true.var(axis=0).sum()
    assert abs(found.var(axis=0).sum() - whole) <= whole * (0.02 + 5 / np.sqrt(DRAWS * true.shape[1]))


def assert_jaccard_agrees(law: Law, one: torch.Tensor, other: torch.Tensor) -> None:
    """A law of the Jaccard index has mean, spread and upper tail of that of masks."""
    both, either = ((op(one, other)).sum(dim=(1, 2)) for op in (torch.logical_and, torch.logical_or))
    drawn = (both.double() / either).numpy()
    tensors.assert_agrees(law, drawn)
    for q in (0.1, 0.5, 0.9):
        point = float(np.quantile(drawn, q, method="inverted_cdf"))
        true = float(np.mean(drawn >= point))
        assert np.exp(law.tail(point)[0]) == pytest.approx(true, abs=4.5 * 0.5 / np.sqrt(len(drawn)))


@EVERY
@pytest.mark.parametrize(("name", "densities", "eta"), CASES)
def test_jaccard_and_counts_and_their_rank_correlation_are_those_of_masks(null, name, densities, eta):
    drawn, masked, masks, sides = [], [], [], []
    for stream, density in enumerate(densities):
        seen, observed = run_of(name, density, eta, stream)
        generator = np.random.default_rng(stream)
        drawn.append(line_counts_drawn(null.law, seen, observed.base, DRAWS, generator))
        masks.append(masks_of(null, observed, stream))
        masked.append((masks[-1].sum(dim=2).numpy(), masks[-1].sum(dim=1).numpy()))
        sides.append(seen)
    assert_jaccard_agrees(null.law.jaccard(*sides), *masks)
    for axis in (0, 1):
        for found, true in zip(drawn, masked, strict=True):
            assert found[axis].dtype == np.int64 and found[axis].shape == true[axis].shape
            assert_same_lines(found[axis], true[axis])
        if name != "one-row":
            law = rank_correlation_law(*(one[axis] for one in drawn))
            pairs = zip(*(one[axis] for one in masked), strict=True)
            tensors.assert_agrees(law, np.array([rank_correlations(np.stack(pair))[0, 1] for pair in pairs]))


@EVERY
@pytest.mark.parametrize("density", [2e-4, 0.005, 0.9995])
def test_where_few_weights_change_a_jaccard_s_law_holds_or_is_called_first_order(null, density):
    (seen, one), (far, other) = (run_of("row-scaled", of, stream=i) for i, of in enumerate((density, 0.3)))
    law = null.law.jaccard(seen, far)
    assert law.how == (FIRST_ORDER if null.of_storage else LAW)
    masks = masks_of(null, one, 2), masks_of(null, other, 3)
    if not null.of_storage:
        assert_jaccard_agrees(law, *masks)
    both, either = ((op(*masks)).sum(dim=(1, 2)) for op in (torch.logical_and, torch.logical_or))
    assert law.mean == pytest.approx(float((both / either).mean()), rel=0.2)


def small_tensor() -> torch.Tensor:
    values = torch.tensor([1.0, 1.0, 1.5, 0.25, 0.3, 0.25, 1.0, 0.4, 1.5, 0.3, 0.25, 1.0, 1.75, 0.3, 1.0])
    return values.reshape(3, 5).bfloat16()


@pytest.mark.parametrize("taken", [[4], [2, 3]])
def test_strata_of_a_small_tensor_have_the_law_of_all_its_masks(taken):
    stratum = (small_tensor() >= 0.5).long() if len(taken) > 1 else torch.zeros(3, 5, dtype=torch.long)
    places = [np.flatnonzero(stratum.reshape(-1) == b) for b in range(len(taken))]
    masks = [
        np.isin(np.arange(15), np.concatenate([first, *second])).reshape(3, 5).sum(axis=1)
        for first in combinations(places[0], taken[0])
        for second in (combinations(places[1], taken[1]) if len(taken) > 1 else [()])
        for second in [(np.array(second, dtype=int),)]
    ]
    of_lines = np.stack([(stratum == b).sum(dim=1).numpy() for b in range(len(taken))], axis=1).astype(float)
    cells = cells_at_strata(of_lines, of_lines.sum(axis=0), np.array(taken, dtype=float))
    drawn = Counter(map(tuple, counts_drawn(cells, 20_000, np.random.default_rng(0))))
    true = Counter(map(tuple, masks))
    assert set(drawn) <= set(true)
    expected = {key: 20_000 * count / len(masks) for key, count in true.items()}
    often = [key for key, number in expected.items() if number > 8]
    rare = 20_000 - sum(drawn[key] for key in often)
    tail = sum(expected.values()) - sum(expected[key] for key in often)
    found, wanted = [drawn[key] for key in often], [expected[key] for key in often]
    assert chisquare([*found, rare + 1], [*wanted, tail + 1]).pvalue > 1e-3


def poisson_binomial(p: np.ndarray) -> np.ndarray:
    masses = np.ones(1)
    for one in p:
        masses = np.convolve(masses, [1 - one, one])
    return masses


@pytest.mark.parametrize("scale", [3e-4, 1e-3, 3e-3, 1e-2])
def test_a_line_s_count_has_nearly_its_exact_law(scale):
    base = torch.cat([small_tensor(), torch.zeros(3, 1).bfloat16()], dim=1)
    codes = count_codes(base)
    noise = noise_of(codes)
    rows = line_sums(base, codes, functions_of_cells(noise, scale)).rows
    drawn = counts_drawn(cells_of_noise(rows, 6), 20_000, np.random.default_rng(1))
    by_value = dict(zip(codes.values, noise.rates(scale).p, strict=True))
    for line, found in zip(base.double().tolist(), drawn.T, strict=True):
        true = poisson_binomial(np.array([by_value[w] for w in line]))
        shares = np.bincount(found, minlength=7) / len(found)
        # A zero changes at every scale: no binomial of six weights has that mean and variance.
        assert shares[0] == 0 and true[0] < 1e-6
        assert np.abs(shares - true).sum() / 2 < 0.02


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(OF_LAW)),
    st.sampled_from(sorted(tensors.FAMILIES)),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_counts_stay_in_range_add_up_and_repeat(name, family, density, seed):
    law, (seen, observed) = OF_LAW[name].law, run_of(family, density)
    drawn, again, other = (
        line_counts_drawn(law, seen, observed.base, 20, np.random.default_rng(one))
        for one in (seed, seed, seed + 1)
    )
    for found, same, length in zip(drawn, again, reversed(observed.base.shape), strict=True):
        assert found.min() >= 0 and found.max() <= length and (found == same).all()
        if law.fixed_count:
            assert (found.sum(axis=1) == seen.changed).all()
    if 100 < seen.changed < seen.codes.size - 100:
        assert any((a != b).any() for a, b in zip(drawn, other, strict=True))


def test_strata_too_many_to_draw_exactly_come_out_alike(monkeypatch):
    source = np.random.default_rng(4)
    of_lines = source.multinomial(40, source.dirichlet(np.ones(6)), 12).astype(float)
    sizes = of_lines.sum(axis=0)
    cells = cells_at_strata(of_lines, sizes, np.floor(sizes * np.array([0.0, 0.02, 0.2, 0.5, 0.9, 1.0])))
    exact = counts_drawn(cells, DRAWS, source)
    monkeypatch.setattr(drawn_lines, "EXACT", 0)
    assert_same_lines(counts_drawn(cells, DRAWS, source), exact)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 4), min_size=5, max_size=5), min_size=2, max_size=6))
def test_products_of_ranks_are_spearman_s_correlations(vectors):
    counts = np.array(vectors)
    ranks = ranks_of(counts)
    assert ranks @ ranks.T == pytest.approx(rank_correlations(counts), abs=1e-12, nan_ok=True)


def test_ranks_are_the_same_however_many_rows_share_a_table(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 500, (30, 40))
    whole = ranks_of(counts)
    monkeypatch.setattr("threegates.geometry.laws.rank_correlation._TABLE", 1)
    assert (ranks_of(counts) == whole).all()


def test_draws_without_order_are_left_out():
    counts = np.array([[1, 2, 3], [2, 2, 2], [3, 1, 2]])
    law = rank_correlation_law(counts, counts)
    assert law.mean == pytest.approx(1) and law.how == "drawn"
    assert np.isnan(rank_correlation_law(counts[1:2], counts[:1]).mean)
