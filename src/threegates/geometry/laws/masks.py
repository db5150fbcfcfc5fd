"""Laws of an observed mask's statistics under a null: what a null's module names beside its sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.geometry.laws.cells import (
    Cells,
    cells_at_strata,
    cells_of_noise,
    functions_of_cells,
)
from threegates.geometry.laws.codes import CodeCounts, count_codes
from threegates.geometry.laws.dispersion import (
    LineCounts,
    at_count,
    at_scale,
    at_strata,
    functions_of_noise,
    growth,
    line_dispersion,
)
from threegates.geometry.laws.hypergeometric import sum_of_hypergeometrics
from threegates.geometry.laws.law import FIRST_ORDER, Law, unknown
from threegates.geometry.laws.lines import (
    DistanceCounts,
    LineSums,
    distance_counts,
    line_sums,
    stratum_counts,
)
from threegates.geometry.laws.noise import Noise, noise_of, scale_of_norm
from threegates.geometry.laws.ratio import overlap_at_scale
from threegates.geometry.laws.stopped import SMALL, expected_sums, stopped_sum
from threegates.geometry.laws.strata import Strata, one_stratum, value_strata
from threegates.geometry.laws.two_masks import (
    jaccard_at_scales,
    jaccard_of_intersection,
    stopped_intersection,
)
from threegates.geometry.nulls.noise import Real


@dataclass(frozen=True)
class Seen:
    """An observed mask and targets on a base, as counts of codes: all that a law asks of them.

    codes : counted by labels that add up: 1 for the mask, 2, 4, … for the targets in their order.
    norm : ‖ΔW‖_F of the stored update, which null 1b's scale is found from, unless that is `known`.
    noise : at the mask's tolerance. seed : of what has to be drawn after all. along : what was counted along
    the base's lines.
    """

    codes: CodeCounts
    noise: Noise
    norm: Real
    seed: int = 0
    known: Real | None = None
    along: dict[str, DistanceCounts | None] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def observed(self) -> np.ndarray:
        """(K,) changed weights of each code."""
        return self.inside(0)

    @property
    def changed(self) -> int:
        """Changed weights in all."""
        return int(self.observed.sum())

    @cached_property
    def scale(self) -> float:
        """Scale of the noise of null 1b; 0 without weights."""
        if self.known is not None or not self.codes.size:
            return self.known or 0.0
        return scale_of_norm(self.codes, self.norm)

    @cached_property
    def scale_of_count(self) -> float:
        """Scale of null 1a, at which as many weights are expected to change; of half a one at the ends."""
        return self.noise.scale_of_count(min(max(self.changed, 0.5), self.codes.size - 0.5))

    def inside(self, bit: int) -> np.ndarray:
        """(K,) weights of each code that lie in the mask (0), or in a target (1, 2, …)."""
        labels = [label for label in range(self.codes.by_label.shape[1]) if label >> bit & 1]
        return self.codes.with_labels(*labels)

    def sums(self, base: Shaped[Tensor, "m n"], functions: np.ndarray) -> LineSums:
        """Sums along lines of functions (T, K) of the distances; the base is gone through once for all."""
        if "distances" not in self.along:
            self.along["distances"] = distance_counts(base, self.codes, self.noise.down, self.noise.up)
        counts = self.along["distances"]
        return counts.sums(functions) if counts else line_sums(base, self.codes, functions)

    def generator(self) -> np.random.Generator:
        """Source of what is drawn, anew for each law, so that no law hangs on another."""
        return np.random.default_rng(self.seed)


def see(
    base: Shaped[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    targets: Sequence[Bool[Tensor, "*shape"]] = (),
    *,
    norm: Real,
    eta: float | None = None,
    seed: int = 0,
    known: Real | None = None,
) -> Seen:
    """Count the codes of a base by mask and targets, in one pass.

    Parameters
    ----------
    base : finite bfloat16 tensor; mask, targets : of its shape; norm : ‖ΔW‖_F, as stored in bf16.
    eta : tolerance that the mask was taken at; the paper's own by default.
    known : scale of null 1b, where it is known already.

    Raises
    ------
    GeometryError : base is not finite bfloat16, or shapes differ.
    """
    labels = mask.to(torch.uint8)
    for bit, target in enumerate(targets, 1):
        labels += target.to(torch.uint8) << bit
    codes = count_codes(base, labels, 2 << len(targets))
    return Seen(codes, noise_of(codes) if eta is None else noise_of(codes, eta), norm, seed, known)


@dataclass(frozen=True)
class MaskLaw:
    """A null's laws.

    overlap : of |mask ∩ A|/|mask|, from what is seen and A's weights by code.
    means : (T,) its means alone, for T targets at once, from their weights by code (K, T).
    lines : what counts along rows and columns do, (rows, columns).
    cells : the same in two cells a line, which counts are drawn from, see `drawn_lines`.
    jaccard : of the Jaccard index of two independent masks, each matched to a mask that is seen on one base.
    fixed_count : whether every mask has the observed count.
    """

    overlap: Callable[[Seen, np.ndarray], Law]
    means: Callable[[Seen, np.ndarray], np.ndarray]
    lines: Callable[[Seen, Tensor], tuple[LineCounts, LineCounts]]
    cells: Callable[[Seen, Tensor], tuple[Cells, Cells]]
    jaccard: Callable[[Seen, Seen], Law]
    fixed_count: bool = True

    def is_rough(self, seen: Seen) -> bool:
        """Whether too few weights change, or stay, for a law of lines to be more than of first order."""
        changed = seen.changed if self.fixed_count else seen.noise.expected(seen.scale)
        return min(changed, seen.codes.size - changed) < SMALL

    def dispersions(self, seen: Seen, base: Shaped[Tensor, "m n"]) -> tuple[Law, Law]:
        """Laws of row and column dispersion."""
        if not seen.changed:
            return unknown(), unknown()
        rows, columns = (
            line_dispersion(lines, fixed_count=self.fixed_count) for lines in self.lines(seen, base)
        )
        if self.is_rough(seen):
            return replace(rows, how=FIRST_ORDER), replace(columns, how=FIRST_ORDER)
        return rows, columns


def _share(law: Law, changed: int) -> Law:
    """The law of X/n₁ from that of X."""
    if not changed:
        return unknown()
    return Law(
        law.mean / changed,
        law.sd / changed,
        law.low / changed,
        law.high / changed,
        lambda share: law.tail(share * changed),
        law.how,
    )


def of_strata(strata_of: Callable[[CodeCounts], Strata]) -> MaskLaw:
    """Laws of permutations within strata of the base's codes."""

    def overlap(seen: Seen, inside: np.ndarray) -> Law:
        strata = strata_of(seen.codes)
        counts = (strata.sums(one) for one in (seen.codes.counts, inside, seen.observed))
        return _share(sum_of_hypergeometrics(*counts), seen.changed)

    def means(seen: Seen, insides: np.ndarray) -> np.ndarray:
        strata = strata_of(seen.codes)
        sizes, taken = strata.sums(seen.codes.counts), strata.sums(seen.observed)
        share = np.divide(taken, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
        return _over(share[strata.of_code] @ insides, seen.changed)

    def lines(seen: Seen, base: Tensor) -> tuple[LineCounts, LineCounts]:
        strata = strata_of(seen.codes)
        sizes, taken = strata.sums(seen.codes.counts), strata.sums(seen.observed)
        rows, columns = stratum_counts(base, seen.codes, strata)
        m, n = base.shape
        return at_strata(rows, sizes, taken, n), at_strata(columns, sizes, taken, m)

    def cells(seen: Seen, base: Tensor) -> tuple[Cells, Cells]:
        strata = strata_of(seen.codes)
        sizes, taken = strata.sums(seen.codes.counts), strata.sums(seen.observed)
        rows, columns = stratum_counts(base, seen.codes, strata)
        return cells_at_strata(rows, sizes, taken), cells_at_strata(columns, sizes, taken)

    def jaccard(one: Seen, other: Seen) -> Law:
        strata = strata_of(one.codes)
        counts = (strata.sums(x) for x in (one.codes.counts, one.observed, other.observed))
        return jaccard_of_intersection(sum_of_hypergeometrics(*counts), one.changed, other.changed)

    return MaskLaw(overlap, means, lines, cells, jaccard)


def _over(sums: np.ndarray, count: Real) -> np.ndarray:
    return sums / count if count else np.full(len(sums), np.nan)


def _means_at_count(seen: Seen, insides: np.ndarray) -> np.ndarray:
    return _over(expected_sums(seen.noise, insides, seen.changed, seen.generator()), seen.changed)


def _means_at_norm(seen: Seen, insides: np.ndarray) -> np.ndarray:
    """Ratios of expectations: what the count's own spread adds to a mean is of the order of 1/E|mask|."""
    p = seen.noise.rates(seen.scale).p
    return _over(p @ insides, float(seen.codes.counts @ p))


def _stopped_lines(seen: Seen, base: Tensor) -> tuple[LineCounts, LineCounts]:
    scale = seen.scale_of_count
    sums = seen.sums(base, functions_of_noise(seen.noise, scale, stopped=True))
    rate = growth(seen.noise, scale)
    return at_count(sums.rows, base.shape[1], rate), at_count(sums.columns, base.shape[0], rate)


def _scaled_lines(seen: Seen, base: Tensor) -> tuple[LineCounts, LineCounts]:
    sums = seen.sums(base, functions_of_noise(seen.noise, seen.scale, stopped=False))
    return at_scale(sums.rows, base.shape[1]), at_scale(sums.columns, base.shape[0])


def _noise_cells(seen: Seen, base: Tensor, scale: Real, held: int | None) -> tuple[Cells, Cells]:
    sums, (m, n) = seen.sums(base, functions_of_cells(seen.noise, scale)), base.shape
    return cells_of_noise(sums.rows, n, held), cells_of_noise(sums.columns, m, held)


def _stopped_jaccard(one: Seen, other: Seen) -> Law:
    counts, scales = (one.changed, other.changed), (one.scale_of_count, other.scale_of_count)
    return jaccard_of_intersection(stopped_intersection(one.noise, counts, scales), *counts)


#: The paper's null: one stratum holds all weights.
BERNOULLI = of_strata(one_stratum)
#: Permutations within values of |w|, rare ones joined.
MAGNITUDE = of_strata(value_strata)
#: Null 1a: noise stopped at the count.
AT_COUNT = MaskLaw(
    lambda seen, inside: _share(
        stopped_sum(seen.noise, inside, seen.changed, seen.generator()), seen.changed
    ),
    _means_at_count,
    _stopped_lines,
    lambda seen, base: _noise_cells(seen, base, seen.scale_of_count, seen.changed),
    _stopped_jaccard,
)
#: Null 1b: noise of the update's norm.
AT_NORM = MaskLaw(
    lambda seen, inside: overlap_at_scale(seen.noise, inside, seen.scale, seen.generator()),
    _means_at_norm,
    _scaled_lines,
    lambda seen, base: _noise_cells(seen, base, seen.scale, None),
    lambda one, other: jaccard_at_scales(one.noise, (one.scale, other.scale)),
    fixed_count=False,
)
