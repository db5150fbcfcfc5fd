"""Partners in norm: the run whose update norms another run's update is scaled to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from threegates.checkpoints.pairs import AlignedTensor, Status, align, load_finite
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.directions import frobenius_norm
from threegates.measures.changes import matrices


@dataclass(frozen=True)
class Partner:
    """A run on a base, or none."""

    base: Checkpoint
    tuned: Checkpoint | None

    @cached_property
    def names(self) -> set[str]:
        """Tensors that it has in the base's shape."""
        rows = align(self.base, self.tuned) if self.tuned else []
        return {row.name for row in rows if row.status is Status.compared}

    def norm(self, tensor: str) -> float | None:
        """‖ΔW‖_F of a tensor as stored; None where the partner does not have it."""
        if self.tuned is None or tensor not in self.names:
            return None
        after = load_finite(self.tuned, tensor, "partner")[1].double()
        return frobenius_norm(after - load_finite(self.base, tensor, "base")[1].double())


@dataclass(frozen=True)
class PairInNorm:
    """A pair whose matrices in blocks are measured as they are, and at the norm of a partner's updates.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    partner : another run on the same base, whose update norms are taken; without it, or where it lacks the
        matrix, nothing is measured at equal norm.
    partner_name : in the column `partner`.
    seed : of what is drawn beside the pair.
    """

    base: Checkpoint
    tuned: Checkpoint
    name: str
    partner: Checkpoint | None = None
    partner_name: str = ""
    seed: int = 0

    @cached_property
    def aligned(self) -> list[AlignedTensor]:
        """Every tensor of the pair."""
        return align(self.base, self.tuned)

    @cached_property
    def names(self) -> list[str]:
        """Matrices in blocks."""
        return list(matrices(self.aligned))

    @cached_property
    def in_norm(self) -> Partner:
        """The run whose norms are taken."""
        return Partner(self.base, self.partner)
