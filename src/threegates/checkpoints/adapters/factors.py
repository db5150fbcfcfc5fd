"""The factors of one adapted weight: ΔW = L R, and which part of it a tensor of the model is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Relative error of a product of factors kept in float32, with that of the float32 SVD that they came from.
SINGLE = 1e-4
#: The same of factors in bfloat16.
HALF = 2.0**-7


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right of one matrix, float64: left (rows, r) with the scaling in it, right (r, columns).

    rounding : relative error that the precision of the stored factors leaves in their product.
    """

    left: Tensor
    right: Tensor
    rounding: float = SINGLE

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of ΔW."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The rank that ΔW has at most."""
        return min(self.left.shape[1], *self.shape)

    def rows(self, start: int, stop: int) -> Factors:
        """Those of some rows."""
        return replace(self, left=self.left[start:stop])

    def columns(self, start: int, stop: int) -> Factors:
        """Those of some columns."""
        return replace(self, right=self.right[:, start:stop])

    def turned(self) -> Factors:
        """Those of ΔWᵀ."""
        return replace(self, left=self.right.T, right=self.left.T)

    def dense(self) -> Tensor:
        """ΔW itself, float64."""
        return self.left @ self.right

    def minus(self, other: Factors) -> Factors:
        """Those of the difference, of both ranks together."""
        return Factors(
            torch.cat([self.left, -other.left], dim=1), torch.cat([self.right, other.right], dim=0)
        )


def linear(down: Tensor, up: Tensor, scaling: float) -> Factors:
    """s·BA of a weight (out, in): A (r, in) and B (out, r).

    **Source** Hu et al. (2021), arXiv 2106.09685, eq. 3.
    """
    half = all(torch.equal(side.bfloat16().to(side.dtype), side) for side in (down, up))
    return Factors(scaling * up.double(), down.double(), HALF if half else SINGLE)


def of_expert(down: Tensor, up: Tensor, scaling: float, expert: int, experts: int) -> Factors:
    """s·BA of one matrix (out, in) of a stack, as peft lays such factors out.

    A (experts · r, in) holds expert after expert; B (out, r · experts) counts experts fastest.
    """
    own_down = down.reshape(experts, -1, down.shape[-1])[expert]
    own_up = up.reshape(up.shape[0], -1, experts)[..., expert]
    return linear(own_down, own_up, scaling)
