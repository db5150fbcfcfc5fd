"""Statistics of masks beside their nulls: by laws, and by masks that are drawn where a null has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from threegates.geometry.laws.drawn_lines import line_counts_drawn
from threegates.geometry.laws.law import FIRST_ORDER, Law, of_draws, unknown
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.laws.rank_correlation import ranks_of
from threegates.geometry.masks import jaccard, pack, unpack
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullMasks, NullOfLaw, Observed
from threegates.geometry.principal import overlap_draws
from threegates.geometry.stripes import dispersion

#: Masks of a null that is drawn, and up to which size of tensor they are where a law is of first order alone.
DRAWS, DRAWABLE = 200, 1 << 20
#: Counts of rows and of columns that are drawn, without masks, for what hangs on their order.
LINE_DRAWS = 200
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

    targets : masks that it is laid on. norm : ‖ΔW‖_F of the stored update. eta : tolerance that the mask was
    taken at, if it is not the paper's. scale : of null 1b's noise, where it is known already.
    """

    run: str
    tensor: str
    base: Tensor
    mask: Tensor
    targets: Sequence[Tensor]
    norm: float
    seed: int
    eta: float | None = None
    scale: float | None = None

    @cached_property
    def seen(self) -> Seen:
        """Codes of the base, counted by mask and targets in one pass."""
        return see(
            *(self.base, self.mask, self.targets),
            norm=self.norm,
            eta=self.eta,
            seed=self.seed,
            known=self.scale,
        )

    def at(self, eta: float, mask: Tensor) -> MaskBeside:
        """The same run's mask at another tolerance; the noise of null 1b keeps its scale."""
        return replace(self, mask=mask, eta=eta, scale=self.seen.scale)

    @property
    def is_drawable(self) -> bool:
        """Whether masks can be drawn where a law is of first order alone."""
        return self.seen.codes.size <= DRAWABLE

    def overlaps(self, null: NullOfLaw) -> list[Law]:
        """Laws of |mask ∩ A|/|mask| for each target A."""
        if not self.seen.changed:
            return [unknown() for _ in self.targets]
        if null.law:
            return [null.law.overlap(self.seen, self.seen.inside(bit)) for bit in self._bits]
        packed = {str(bit): pack(target) for bit, target in zip(self._bits, self.targets, strict=True)}
        return [of_draws(shares) for shares in overlap_draws(self.masks(null), packed, DRAWS).values()]

    def dispersions(self, null: NullOfLaw) -> tuple[Law, Law]:
        """Laws of row and column dispersion."""
        if null.law and not self.drawn(null):
            return null.law.dispersions(self.seen, self.base)
        if not self.seen.changed:
            return unknown(), unknown()
        found = np.array([dispersion(mask) for mask in islice(self.masks(null), DRAWS)])
        return of_draws(found[:, 0]), of_draws(found[:, 1])

    def line_ranks(self, null: NullOfLaw) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of the counts of rows and of columns, (draws, m) and (draws, n), see `ranks_of`.

        Counts are drawn; masks only where the null has no law of lines.
        """
        if null.law and not self.drawn(null):
            source = self._stream("lines", null.name)
            rows, columns = line_counts_drawn(null.law, self.seen, self.base, LINE_DRAWS, source)
        else:
            masks = [unpack(one, tuple(self.base.shape)) for one in self.kept(null)]
            rows, columns = (torch.stack([one.sum(dim) for one in masks]).cpu().numpy() for dim in (1, 0))
        return ranks_of(rows), ranks_of(columns)

    def drawn(self, null: NullOfLaw) -> bool:
        """Whether masks stand in for a null's law of lines, which is of first order or not there."""
        return null.law is None or (self.is_drawable and null.law.is_rough(self.seen))

    def masks(self, null: NullMasks) -> Iterator[Tensor]:
        """Masks of a null without end; the stream depends on seed, null, run and tensor alone."""
        scale = self.seen.scale if "scale" in null.matched_to else float("nan")
        observed = Observed(self.run, self.tensor, self.base, self.mask, self.seen.changed, scale, self.eta)
        generator: torch.Generator = noise_generator(self.seed, null.name, self.run, self.tensor)
        return null.sampler(observed, generator)

    def kept(self, null: NullMasks) -> list[Tensor]:
        """The first masks of that stream, packed: the same ones beside every other run."""
        if null.name not in self._packed:
            self._packed[null.name] = [pack(one) for one in islice(self.masks(null), DRAWS)]
        return self._packed[null.name]

    @cached_property
    def _packed(self) -> dict[str, list[Tensor]]:
        return {}

    @property
    def _bits(self) -> range:
        return range(1, len(self.targets) + 1)

    def _stream(self, *names: str) -> np.random.Generator:
        """A generator of numpy's whose stream depends on seed, names, run and tensor alone."""
        source = noise_generator(self.seed, *names, self.run, self.tensor)
        return np.random.default_rng(torch.randint(1 << 62, (4,), generator=source).tolist())


def jaccard_law(one: MaskBeside, other: MaskBeside, null: NullOfLaw) -> Law:
    """Law of the Jaccard index of two independent masks of a null, each matched to a run, of one base.

    Unknown where the null's masks are empty.
    """
    found = null.law.jaccard(one.seen, other.seen) if null.law else None
    if found and not (found.how == FIRST_ORDER and one.is_drawable):
        return found
    return of_draws(np.array([jaccard(*pair) for pair in zip(one.kept(null), other.kept(null), strict=True)]))


def axis_rows(rows: Sequence[dict], own: MaskBeside, nulls: Sequence[NullOfLaw]) -> list[dict]:
    """The rows of a matrix's row and column ratios, each beside its dispersion under the nulls."""
    found = [dict(row) for row in rows]
    for null in nulls:
        for row, law in zip(found, own.dispersions(null), strict=True):
            row |= beside(null.name, row["dispersion"], law, "upper")
    return found
