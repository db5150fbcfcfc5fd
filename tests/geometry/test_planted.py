"""On planted storage noise the nulls' p-values are uniform; on planted stripes and agreement they are not.

Planted: small weight matrices with a power-law spectrum and row and column scales, stored in bfloat16, plus
Gaussian noise of a true scale that the nulls are not told.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from tests.planted.searched_noise import storage_scale_for_norm
from threegates.geometry.masks import jaccard, update_mask
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, rounded_sum
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.nulls.summaries import p_value
from threegates.geometry.precision import to_bf16
from threegates.geometry.stripes import dispersion

REPETITIONS, DRAWS = 200, 39
TRUE_SCALE = 6e-5
STATISTICS = ("jaccard", "rows", "columns")


def planted_weights(repetition: int, m: int = 48, n: int = 64) -> torch.Tensor:
    generator = np.random.default_rng([20251111, repetition])
    left, _ = np.linalg.qr(generator.standard_normal((m, m)))
    right, _ = np.linalg.qr(generator.standard_normal((n, m)))
    w = (left * np.arange(1, m + 1) ** -0.5) @ right.T
    scales = np.exp(0.5 * generator.standard_normal((m, 1)) + 0.5 * generator.standard_normal((1, n)))
    return to_bf16(torch.from_numpy(0.3 * scales * w))


@dataclass
class Planted:
    """Two runs from one base; `noises` are their updates in units of the true scale."""

    base: torch.Tensor
    noises: list[torch.Tensor]
    nulls: torch.Generator

    def __post_init__(self):
        self.tuned = [rounded_sum(self.base, z, TRUE_SCALE) for z in self.noises]
        self.masks = [update_mask(self.base, tuned) for tuned in self.tuned]

    def streams(self, kind: str):
        """For each run, endless draws of one null, matched to that run."""
        return [getattr(self, kind)(run) for run in (0, 1)]

    def storage_density(self, run):
        changed = int(self.masks[run].sum())
        while True:
            yield storage_mask_at_density(self.base, changed, self.nulls)

    def storage_norm(self, run):
        norm = float((self.tuned[run].double() - self.base.double()).norm())
        scale = storage_scale_for_norm(self.base, norm, self.nulls)
        while True:
            yield storage_mask_at_norm(self.base, scale, self.nulls)

    def magnitude(self, run):
        return stratified_permutations(self.masks[run], self.base, generator=self.nulls)

    def bernoulli(self, run):
        while True:
            yield bernoulli_mask(self.base.shape, int(self.masks[run].sum()), self.nulls)


def statistics(masks) -> tuple[float, float, float]:
    return (jaccard(*masks), *dispersion(masks[0]))


def p_values(planted: Planted, kind: str) -> np.ndarray:
    observed = statistics(planted.masks)
    draws = itertools.islice(zip(*planted.streams(kind), strict=False), DRAWS)
    found = np.array([statistics(pair) for pair in draws])
    return np.array([p_value(o, d) for o, d in zip(observed, found.T, strict=True)])


def plain(repetition: int) -> Planted:
    """Storage noise and nothing else."""
    truth = noise_generator(1, "truth", str(repetition))
    base = planted_weights(repetition)
    return Planted(
        base,
        [gaussian_noise(base.shape, truth) for _ in range(2)],
        noise_generator(1, "null", str(repetition)),
    )


def chi_square(p: np.ndarray) -> float:
    """p-value of the hypothesis that p is uniform over 1/40 … 40/40, in ten cells of four."""
    cells = np.histogram(np.rint(p * (DRAWS + 1)), bins=np.arange(0.5, DRAWS + 2, 4))[0]
    assert cells.sum() == len(p)
    return stats.chisquare(cells).pvalue


@pytest.mark.parametrize("kind", ["storage_density", "storage_norm", "magnitude"])
def test_p_values_are_uniform_on_planted_storage_noise(kind):
    p = np.array([p_values(plain(repetition), kind) for repetition in range(REPETITIONS)])
    for name, column in zip(STATISTICS, p.T, strict=True):
        assert chi_square(column) > 1e-3, f"{name}: cells are uneven"
        # Shifted by half a step, the discrete uniform law is within 1/80 of the continuous one.
        assert stats.kstest(column - 0.5 / (DRAWS + 1), "uniform").pvalue > 1e-3, f"{name}: not uniform"
        assert (column <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPETITIONS), name


def test_the_papers_baseline_takes_storage_noise_for_an_effect():
    p = np.array([p_values(plain(repetition), "bernoulli") for repetition in range(10)])
    assert (p == 1 / (DRAWS + 1)).all()


@pytest.mark.parametrize("kind", ["storage_density", "storage_norm", "magnitude"])
@pytest.mark.parametrize("axis", [0, 1])
def test_planted_stripes_are_rejected_at_the_floor(kind, axis):
    for repetition in range(5):
        effect = plain(repetition)
        lines = effect.base.shape[axis]
        loud = torch.randperm(lines, generator=effect.nulls) < lines // 4
        stripes = torch.where(loud, 4.0, 0.5).unsqueeze(1 - axis)
        planted = Planted(effect.base, [z * stripes for z in effect.noises], effect.nulls)
        assert p_values(planted, kind)[1 + axis] == 1 / (DRAWS + 1)


@pytest.mark.parametrize("kind", ["storage_density", "storage_norm", "magnitude"])
def test_runs_that_share_part_of_their_update_agree_above_the_null_but_need_no_stripes(kind):
    rejected = []
    for repetition in range(10):
        effect = plain(repetition)
        first, second = effect.noises
        planted = Planted(effect.base, [first, 0.8 * first + 0.6 * second], effect.nulls)
        rejected.append(p_values(planted, kind) == 1 / (DRAWS + 1))
    jaccards, rows, columns = np.array(rejected).T
    assert jaccards.all()
    assert rows.sum() <= 3 and columns.sum() <= 3
