"""Principal masks and overlaps against brute force, planted avoidance, and storage noise that feigns it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.planted.searched_noise import storage_scale_for_norm
from threegates.errors import GeometryError
from threegates.geometry import thresholds
from threegates.geometry.masks import pack, popcount, unpack, update_mask
from threegates.geometry.nulls import bernoulli
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, rounded_sum
from threegates.geometry.nulls.null import Observed
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.summaries import p_value, summarise
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.precision import to_bf16
from threegates.geometry.principal import (
    TARGETS,
    Overlap,
    headline_rank,
    largest_updates,
    low_magnitude_mask,
    overlap,
    overlap_draws,
    overlap_sweep,
    overlaps,
    packed_low_magnitude_mask,
    packed_principal_mask,
    principal_mask,
    principal_targets,
    sweep_targets,
    wilson,
)


def power_law(m: int = 40, n: int = 56, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng([seed, m, n])
    left = np.linalg.qr(generator.standard_normal((m, min(m, n))))[0]
    right = np.linalg.qr(generator.standard_normal((n, min(m, n))))[0]
    return to_bf16(torch.from_numpy((left * np.arange(1, min(m, n) + 1) ** -0.5) @ right.T))


def svd(base: torch.Tensor, k: int):
    u, s, vt = torch.linalg.svd(base.double(), full_matrices=False)
    return u[:, :k], s[:k], vt[:k].T


def brute_force_largest(x: np.ndarray, count: int) -> np.ndarray:
    order = np.lexsort((np.arange(x.size), -np.abs(x).ravel()))
    mask = np.zeros(x.size, dtype=bool)
    mask[order[:count]] = True
    return mask.reshape(x.shape)


# --- masks


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 0.937, 1.0])
@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (1, 30), (30, 1)])
def test_principal_masks_are_those_of_numpy(shape, alpha):
    base = power_law(*shape)
    k = headline_rank(shape)
    w = base.double().numpy()
    u, s, vt = np.linalg.svd(w)
    expected = brute_force_largest((u[:, :k] * s[:k]) @ vt[:k], math.floor(alpha * w.size + 0.5))
    assert np.array_equal(principal_mask(*svd(base, k), alpha).numpy(), expected)


def test_signs_and_rotations_inside_a_cluster_leave_the_mask_alone():
    base = power_law()
    u, s, v = svd(base, 6)
    s = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    turn = torch.block_diag(
        -torch.eye(1).double(),
        torch.linalg.qr(torch.randn(3, 3, generator=noise_generator(0)).double()).Q,
        torch.eye(2),
    )
    assert torch.equal(principal_mask(u, s, v), principal_mask(u @ turn, s, v @ turn))


def test_a_basis_with_one_vector_exchanged_gives_another_mask():
    base = power_law()
    u, s, v = svd(base, 6)
    swapped = [0, 1, 2, 3, 5]
    assert not torch.equal(
        principal_mask(u[:, :5], s[:5], v[:, :5]), principal_mask(u[:, swapped], s[swapped], v[:, swapped])
    )


@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_mask_sizes_are_exact(alpha, m, n, seed):
    base = power_law(m, n, seed)
    count = math.floor(alpha * m * n + 0.5)
    assert int(principal_mask(*svd(base, 1), alpha).sum()) == count
    assert int(low_magnitude_mask(base, alpha).sum()) == count


def test_low_magnitude_breaks_the_many_ties_of_storage_by_index():
    base = power_law(60, 70)
    flat = base.double().abs().flatten()
    assert len(flat.unique()) < 0.5 * len(flat)
    for alpha in (0.01, 0.3, 0.5, 0.9):
        count = math.floor(alpha * 4200 + 0.5)
        order = sorted(range(4200), key=lambda i: (float(flat[i]), i))
        oracle = torch.zeros(4200, dtype=torch.bool)
        oracle[order[:count]] = True
        assert torch.equal(low_magnitude_mask(base, alpha).flatten(), oracle)


def test_the_fp32_view_takes_the_largest_updates_of_the_same_count():
    delta = gaussian_noise((30, 41), 0) * 1e-6
    delta[3] = 0
    mask = largest_updates(delta, 500)
    assert np.array_equal(mask.numpy(), brute_force_largest(delta.numpy(), 500))
    assert int(largest_updates(delta, 30 * 41 - 40)[3].sum()) == 1  # zeros come last


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((512, 2048), 64), ((4096, 1024), 64), ((64, 128), 8), ((511, 9000), 63), ((5, 9), 1), ((1, 1), 1)],
)
def test_the_headline_rank_is_fixed_by_the_shape(shape, rank):
    assert headline_rank(shape) == rank


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 2)])
def test_only_matrices_have_a_headline_rank(shape):
    with pytest.raises(GeometryError, match="only matrices have a rank"):
        headline_rank(shape)


# --- overlaps


def test_overlaps_are_those_of_sets():
    base = power_law()
    u, s, v = svd(base, 5)
    mask = storage_mask_at_density(base, 700, 1)
    principal, low = principal_mask(u, s, v, 0.4), low_magnitude_mask(base, 0.4)
    sets = dict(zip(TARGETS, (principal, low, principal & ~low), strict=True))
    found = overlaps(pack(mask), principal_targets(base, u, s, v, 0.4), mask.numel())
    assert tuple(found) == TARGETS
    for name, target in sets.items():
        expected = float((mask & target).sum() / mask.sum())
        density = float(target.double().mean())
        assert found[name].overlap == pytest.approx(expected, rel=1e-6)
        assert found[name].density == pytest.approx(density)
        assert found[name].lift == pytest.approx(expected / density, rel=1e-6)
    assert found["principal_not_low"].density != pytest.approx(0.4, abs=0.05)  # its own, not α


@given(st.integers(0, 30), st.integers(0, 4))
def test_independent_masks_overlap_at_the_density(tenths, seed):
    generator = noise_generator(seed, "independent")
    target, mask = (bernoulli_mask((50, 60), n, generator) for n in (tenths * 100, 900))
    found = overlap(pack(mask), pack(target), 3000)
    spread = math.sqrt(found.density * (1 - found.density) / 900)
    assert abs(found.overlap - found.density) <= 4.5 * spread


def test_the_interval_covers_the_lift_of_independent_masks():
    generator, hits = noise_generator(5), 0
    for _ in range(400):
        target, mask = bernoulli_mask((2000,), 600, generator), torch.rand(2000, generator=generator) < 0.05
        low, high = overlap(pack(mask), pack(target), 2000).interval
        hits += low <= 1 <= high
    assert 0.92 <= hits / 400 <= 0.99


@given(st.integers(1, 200), st.data())
def test_wilson_is_that_of_scipy(trials, data):
    hits = data.draw(st.integers(0, trials))
    expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_changed_or_nothing_aimed_at_gives_nan():
    assert math.isnan(Overlap(0, 0, 5, 10).overlap)
    assert math.isnan(Overlap(0, 0, 5, 10).interval[0])
    assert math.isnan(Overlap(0, 3, 0, 10).lift)
    assert math.isnan(Overlap(0, 3, 0, 10).interval[1])
    assert math.isnan(Overlap(0, 0, 0, 0).density)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(GeometryError, match=r"(?s)does not fit.*2 bytes for 16 entries.*found: 1"):
        overlap(pack(torch.ones(16, dtype=torch.bool)), pack(torch.ones(8, dtype=torch.bool)), 16)
    with pytest.raises(GeometryError, match=r"(?s)more hits.*0 … 2.*3"):
        wilson(3, 2)


# --- sweep


def test_each_cell_of_the_sweep_is_the_overlap_computed_alone(monkeypatch):
    monkeypatch.setattr(thresholds, "PRODUCT_TILE", 200)
    base = power_law(37, 51)
    u, s, v = svd(base, 12)
    masks = [pack(storage_mask_at_density(base, count, seed)) for seed, count in enumerate((300, 1500))]
    ranks, alphas = [1, 4, 12], [0.1, 0.5, 0.9]
    found = sweep_targets(base, u, s, v, ranks=ranks, alphas=alphas)
    cells = overlap_sweep(found, masks)
    # What was found of the base serves the next masks as well.
    again = overlap_sweep(found, masks[1:])
    assert [cell.overlaps for cell in again] == [cell.overlaps for cell in cells if cell.mask == 1]
    keys = [(c.mask, c.rank, c.alpha) for c in cells]
    assert keys == [(i, k, a) for i in (0, 1) for k in ranks for a in alphas]
    for cell in cells:
        k = cell.rank
        targets = principal_targets(base, u[:, :k], s[:k], v[:, :k], cell.alpha)
        assert cell.overlaps == overlaps(masks[cell.mask], targets, base.numel())


def test_the_sweep_refuses_masks_of_another_matrix():
    base = power_law(16, 16)
    targets = sweep_targets(base, *svd(base, 2), ranks=[2], alphas=[0.5])
    with pytest.raises(GeometryError, match="does not fit its tensor"):
        overlap_sweep(targets, [pack(torch.ones(8, dtype=torch.bool))])


# --- nulls


def observed(base, mask, scale=math.nan):
    return Observed("run", "tensor", base, mask, int(mask.sum()), scale)


def test_shuffled_entries_overlap_as_their_density_says():
    base = power_law()
    targets = principal_targets(base, *svd(base, 5), 0.4)
    mask = storage_mask_at_density(base, 800, 3)
    draws = overlap_draws(bernoulli.masks(observed(base, mask), noise_generator(1)), targets, 300)
    for name, target in targets.items():
        hypergeometric = stats.hypergeom(base.numel(), popcount(target), 800)
        assert len(draws[name]) == 300
        assert draws[name].mean() * 800 == pytest.approx(
            hypergeometric.mean(), abs=4.5 * hypergeometric.std() / math.sqrt(300)
        )
        assert draws[name].std() * 800 == pytest.approx(hypergeometric.std(), rel=0.2)


REPETITIONS, DRAWS, TRUE_SCALE = 80, 39, 4e-4


def quartiles(ps) -> np.ndarray:
    return np.bincount(np.minimum((np.asarray(ps) * 4 - 1e-9).astype(int), 3), minlength=4)


@pytest.fixture(scope="module")
def storage_noise_p_values():
    """Upper p-values of the overlaps of plain storage noise, by null and target."""
    found = {kind: {name: [] for name in TARGETS} for kind in NULLS}
    for repetition in range(REPETITIONS):
        base = power_law(32, 48, repetition)
        noise = gaussian_noise(base.shape, noise_generator(repetition, "planted overlap"))
        tuned = rounded_sum(base, noise, TRUE_SCALE)
        mask, size = update_mask(base, tuned), base.numel()
        targets = principal_targets(base, *svd(base, 4))
        seen = overlaps(pack(mask), targets, size)
        nulls = noise_generator(repetition, "nulls of overlap")
        scale = storage_scale_for_norm(base, float((tuned.double() - base.double()).norm()), nulls)
        for kind, null in NULLS.items():
            draws = overlap_draws(null.sampler(observed(base, mask, scale), nulls), targets, DRAWS)
            for name in TARGETS:
                found[kind][name].append(p_value(seen[name].overlap, draws[name]))
    return found


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["storage_density", "storage_norm"])
def test_storage_noise_is_not_taken_for_avoidance(storage_noise_p_values, kind, name):
    counts = quartiles(storage_noise_p_values[kind][name])
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_magnitude_null_is_fair_to_principal_weights(storage_noise_p_values):
    counts = quartiles(storage_noise_p_values["magnitude"]["principal"])
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_papers_baseline_takes_storage_noise_for_avoidance(storage_noise_p_values):
    # Against shuffled entries the overlap with M_princ is always low, that with M_low always high.
    assert np.mean(np.array(storage_noise_p_values["bernoulli"]["principal"]) > 0.9) > 0.9
    assert np.mean(np.array(storage_noise_p_values["bernoulli"]["low"]) < 0.1) > 0.9


@pytest.mark.parametrize("kind", ["storage_density", "magnitude"])
def test_planted_avoidance_is_detected(kind):
    base = power_law(64, 96)
    u, s, v = svd(base, 8)
    targets = principal_targets(base, u, s, v)
    principal = unpack(targets["principal"], base.shape)
    noise = gaussian_noise(base.shape, 11) * torch.where(principal, 0.6, 1.0)
    mask = update_mask(base, rounded_sum(base, noise, TRUE_SCALE))
    seen = overlap(pack(mask), targets["principal"], base.numel())
    masks = NULLS[kind].sampler(observed(base, mask), noise_generator(12))
    draws = overlap_draws(masks, targets, 39)["principal"]
    summary = summarise(seen.overlap, draws, "two-sided")
    assert summary.z < -5
    assert summary.p == pytest.approx(2 / 40)


def test_storage_alone_pulls_the_overlap_below_the_baseline_the_more_the_sparser():
    base = power_law(128, 128)
    targets = principal_targets(base, *svd(base, 16))
    found = [
        overlap(
            pack(storage_mask_at_density(base, round(density * base.numel()), 0)),
            targets["principal"],
            base.numel(),
        )
        for density in (0.06, 0.3, 0.6, 0.96)
    ]
    assert [o.overlap for o in found] == sorted(o.overlap for o in found)
    assert found[0].interval[1] < 0.9 and found[-1].overlap == pytest.approx(0.5, abs=0.02)


def test_packed_and_plain_masks_are_one():
    base = power_law(13, 11)
    factors = svd(base, 3)
    assert torch.equal(pack(principal_mask(*factors)), packed_principal_mask(*factors))
    assert torch.equal(pack(low_magnitude_mask(base)), packed_low_magnitude_mask(base))
