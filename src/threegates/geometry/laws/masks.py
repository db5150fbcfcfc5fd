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
from threegates.geometry.laws.stopped import SMALL, stopped_sum
from threegates.geometry.laws.strata import Strata, one_stratum, quantile_strata
from threegates.geometry.nulls.noise import Real


@dataclass(frozen=True)
class Seen:
    """An observed mask and targets on a base, as counts of codes: all that a law asks of them.

    codes : counted by labels that add up: 1 for the mask, 2, 4, … for the targets in their order.
    norm : ‖ΔW‖_F of the stored update, which null 1b's scale is found from. eta : of the mask, see `Noise`.
    seed : of what has to be drawn after all. along : what was counted along the base's lines.
    """

    codes: CodeCounts
    noise: Noise
    norm: Real
    seed: int = 0
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
        """Scale of the noise of null 1b."""
        return scale_of_norm(self.codes, self.norm)

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
) -> Seen:
    """Count the codes of a base by mask and targets, in one pass.

    Parameters
    ----------
    base : finite bfloat16 tensor; mask, targets : of its shape; norm : ‖ΔW‖_F, as stored in bf16.
    eta : tolerance that the mask was taken at; the paper's own by default.

    Raises
    ------
    GeometryError : base is not finite bfloat16, or shapes differ.
    """
    labels = mask.to(torch.uint8)
    for bit, target in enumerate(targets, 1):
        labels += target.to(torch.uint8) << bit
    codes = count_codes(base, labels, 2 << len(targets))
    return Seen(codes, noise_of(codes) if eta is None else noise_of(codes, eta), norm, seed)


@dataclass(frozen=True)
class MaskLaw:
    """A null's laws.

    overlap : of |mask ∩ A|/|mask|, from what is seen and A's weights by code.
    lines : what counts along rows and columns do, (rows, columns).
    cells : the same in two cells a line, which counts are drawn from, see `drawn_lines`.
    fixed_count : whether every mask has the observed count.
    """

    overlap: Callable[[Seen, np.ndarray], Law]
    lines: Callable[[Seen, Tensor], tuple[LineCounts, LineCounts]]
    cells: Callable[[Seen, Tensor], tuple[Cells, Cells]]
    fixed_count: bool = True

    def dispersions(self, seen: Seen, base: Shaped[Tensor, "m n"]) -> tuple[Law, Law]:
        """Laws of row and column dispersion."""
        if not seen.changed:
            return unknown(), unknown()
        rows, columns = (
            line_dispersion(lines, fixed_count=self.fixed_count) for lines in self.lines(seen, base)
        )
        few = min(seen.changed, seen.codes.size - seen.changed) < SMALL
        return (replace(rows, how=FIRST_ORDER), replace(columns, how=FIRST_ORDER)) if few else (rows, columns)


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


def _of_strata(strata_of: Callable[[CodeCounts], Strata]) -> MaskLaw:
    def overlap(seen: Seen, inside: np.ndarray) -> Law:
        strata = strata_of(seen.codes)
        counts = (strata.sums(one) for one in (seen.codes.counts, inside, seen.observed))
        return _share(sum_of_hypergeometrics(*counts), seen.changed)

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

    return MaskLaw(overlap, lines, cells)


def _scale_of_count(seen: Seen) -> float:
    return seen.noise.scale_of_count(min(max(seen.changed, 0.5), seen.codes.size - 0.5))


def _stopped_lines(seen: Seen, base: Tensor) -> tuple[LineCounts, LineCounts]:
    scale = _scale_of_count(seen)
    sums = seen.sums(base, functions_of_noise(seen.noise, scale, stopped=True))
    rate = growth(seen.noise, scale)
    return at_count(sums.rows, base.shape[1], rate), at_count(sums.columns, base.shape[0], rate)


def _scaled_lines(seen: Seen, base: Tensor) -> tuple[LineCounts, LineCounts]:
    sums = seen.sums(base, functions_of_noise(seen.noise, seen.scale, stopped=False))
    return at_scale(sums.rows, base.shape[1]), at_scale(sums.columns, base.shape[0])


def _noise_cells(seen: Seen, base: Tensor, scale: Real, held: int | None) -> tuple[Cells, Cells]:
    sums, (m, n) = seen.sums(base, functions_of_cells(seen.noise, scale)), base.shape
    return cells_of_noise(sums.rows, n, held), cells_of_noise(sums.columns, m, held)


#: The paper's null: one stratum holds all weights.
BERNOULLI = _of_strata(one_stratum)
#: Permutations within quantile bins of |w|.
MAGNITUDE = _of_strata(quantile_strata)
#: Null 1a: noise stopped at the count.
AT_COUNT = MaskLaw(
    lambda seen, inside: _share(
        stopped_sum(seen.noise, inside, seen.changed, seen.generator()), seen.changed
    ),
    _stopped_lines,
    lambda seen, base: _noise_cells(seen, base, _scale_of_count(seen), seen.changed),
)
#: Null 1b: noise of the update's norm.
AT_NORM = MaskLaw(
    lambda seen, inside: overlap_at_scale(seen.noise, inside, seen.scale, seen.generator()),
    _scaled_lines,
    lambda seen, base: _noise_cells(seen, base, seen.scale, None),
    fixed_count=False,
)
