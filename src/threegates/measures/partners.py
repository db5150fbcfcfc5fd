"""Partners in norm: the run whose update norms another run's update is scaled to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from threegates.checkpoints.pairs import Status, align, load_finite
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.directions import frobenius_norm


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
