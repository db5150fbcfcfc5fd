"""A mask's statistics beside its nulls: by their laws, and by masks that are drawn where a null has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from threegates.geometry.laws.law import Law, of_draws, unknown
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.laws.stopped import SMALL
from threegates.geometry.masks import pack
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullOfLaw, Observed
from threegates.geometry.principal import overlap_draws
from threegates.geometry.stripes import dispersion

#: Masks of a null that is drawn, and up to which size of tensor they are where a law is of first order alone.
DRAWS, DRAWABLE = 200, 1 << 20
#: What a null is summed up by; z of the observed value, and the decimal logarithm of its p-value.
SUMMARY = ("mean", "sd", "low", "high", "z", "log10_p")


def law_columns(stem: str) -> dict[str, str]:
    """Columns of one null and statistic, and their types; `how` is 'law', 'drawn' or 'first order'."""
    return {**{f"{stem}_{name}": "float64" for name in SUMMARY}, f"{stem}_how": "str"}


def beside(stem: str, observed: float, law: Law, tail: str) -> dict[str, float | str]:
    """Columns of `law_columns` for an observed value."""
    found = law.against(observed, tail)
    return {f"{stem}_{name}": getattr(found, name) for name in (*SUMMARY, "how")}


@dataclass(frozen=True)
class MaskBeside:
    """An observed mask of one tensor of one run, with what its nulls' laws and draws hang on.

    targets : masks that it is laid on. norm : ‖ΔW‖_F of the stored update.
    """

    run: str
    tensor: str
    base: Tensor
    mask: Tensor
    targets: Sequence[Tensor]
    norm: float
    seed: int

    @cached_property
    def seen(self) -> Seen:
        """Codes of the base, counted by mask and targets in one pass."""
        return see(self.base, self.mask, self.targets, norm=self.norm, seed=self.seed)

    @cached_property
    def few(self) -> bool:
        """Whether too few weights change, or stay, for a law of lines, and masks can be drawn instead."""
        rarer = min(self.seen.changed, self.seen.codes.size - self.seen.changed)
        return rarer < SMALL and self.seen.codes.size <= DRAWABLE

    def overlaps(self, null: NullOfLaw) -> list[Law]:
        """Laws of |mask ∩ A|/|mask| for each target A."""
        if not self.seen.changed:
            return [unknown() for _ in self.targets]
        if null.law:
            return [null.law.overlap(self.seen, self.seen.inside(bit)) for bit in self._bits]
        packed = {str(bit): pack(target) for bit, target in zip(self._bits, self.targets, strict=True)}
        return [of_draws(shares) for shares in overlap_draws(self._drawn(null), packed, DRAWS).values()]

    def dispersions(self, null: NullOfLaw) -> tuple[Law, Law]:
        """Laws of row and column dispersion."""
        if null.law and not self.few:
            return null.law.dispersions(self.seen, self.base)
        if not self.seen.changed:
            return unknown(), unknown()
        found = np.array([dispersion(mask) for mask in self._drawn(null)])
        return of_draws(found[:, 0]), of_draws(found[:, 1])

    @property
    def _bits(self) -> range:
        return range(1, len(self.targets) + 1)

    def _drawn(self, null: NullOfLaw) -> Iterator[Tensor]:
        """Masks of a null, one at a time; the stream depends on seed, null, run and tensor alone."""
        scale = self.seen.scale if "scale" in null.matched_to else float("nan")
        observed = Observed(self.run, self.tensor, self.base, self.mask, self.seen.changed, scale)
        generator: torch.Generator = noise_generator(self.seed, null.name, self.run, self.tensor)
        return islice(null.sampler(observed, generator), DRAWS)
