"""Products with a stored weight matrix, tile by tile, so that no copy in a wider type ever exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError

TILE = 1 << 21
"""Entries widened at a time: 16 MiB in float64, enough for a product to run at full speed."""

SAFE_EXPONENT = 20
"""Within 2^±20 the squares of weights neither overflow nor vanish in float32, and nothing is rescaled."""


@dataclass(frozen=True)
class WeightOperator:
    """A stored matrix as W of shape (m, n), m ≥ n: itself or its transpose, over a power of two `unit`.

    W = stored / unit or its transpose, exactly. Products take the type of their argument: float32 or float64.
    `exact_gram` is made once and kept until `release`, for certificate and spectrum need the same.
    """

    stored: Tensor
    transposed: bool
    unit: float

    @property
    def m(self) -> int:
        """Larger side."""
        return max(self.stored.shape)

    @property
    def n(self) -> int:
        """Smaller side."""
        return min(self.stored.shape)

    def times(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, "m columns"]:
        """W x, in the type of x."""
        return self._adjoint_of_stored(x) if self.transposed else self._stored(x)

    def adjoint_times(self, y: Float[Tensor, "m columns"]) -> Float[Tensor, "n columns"]:
        """Wᵀ y, in the type of y."""
        return self._stored(y) if self.transposed else self._adjoint_of_stored(y)

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """Lower triangle of WᵀW in `dtype`; above the diagonal blocks stand zeros."""
        g = torch.zeros(self.n, self.n, dtype=dtype, device=self.stored.device)
        panel = max(256, -(-self.n // 8))
        for tile in self._tiles_of_long_side(dtype):
            for left in range(0, self.n, panel):
                g[left:, left : left + panel].addmm_(tile[:, left:].T, tile[:, left : left + panel])
        return g

    @cached_property
    def exact_gram(self) -> Float64[Tensor, "n n"]:
        """`gram` in float64; to be read, never written to."""
        return self.gram(torch.float64)

    def release(self) -> None:
        """Keep `exact_gram` no longer: it is as large as the square of the smaller side."""
        self.__dict__.pop("exact_gram", None)

    def norm(self) -> float:
        """‖W‖_F, in float64; summed once."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return math.sqrt(sum(float(tile.square().sum()) for _, tile in self._tiles(torch.float64)))

    def dense(self) -> Float64[Tensor, "m n"]:
        """W in float64, whole."""
        wide = self.stored.to(torch.float64) / self.unit
        return wide.T if self.transposed else wide

    def distance(self, other: Shaped[Tensor, "rows columns"]) -> float:
        """‖W − other/unit‖_F for another stored matrix of this shape, in float64."""
        total = 0.0
        for rows, tile in self._tiles(torch.float64):
            wide = other[rows].to(torch.float64)
            wide = wide if self.unit == 1.0 else wide / self.unit
            total += float((wide - tile).square().sum())
        return math.sqrt(total)

    def _stored(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.stored.shape[0], x.shape[1])
        for rows, tile in self._tiles(x.dtype):
            torch.mm(tile, x, out=out[rows])
        return out

    def _adjoint_of_stored(self, y: Tensor) -> Tensor:
        # The thin factor on the left: a third less time in float64 than with the tile transposed.
        turned, thin = y.new_zeros(y.shape[1], self.stored.shape[1]), y.T.contiguous()
        for rows, tile in self._tiles(y.dtype):
            turned.addmm_(thin[:, rows], tile)
        return turned.T

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows of the stored matrix, widened into one buffer that is used again and again."""
        height = max(1, min(self.stored.shape[0], TILE // self.stored.shape[1]))
        buffer = torch.empty(height, self.stored.shape[1], dtype=dtype, device=self.stored.device)
        for top in range(0, self.stored.shape[0], height):
            rows = slice(top, top + height)
            yield rows, self._widen(self.stored[rows], buffer)

    def _tiles_of_long_side(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Blocks of rows of W, each of shape (height, n)."""
        if not self.transposed:
            yield from (tile for _, tile in self._tiles(dtype))
            return
        width = max(1, min(self.m, TILE // self.n))
        flat = torch.empty(self.n * width, dtype=dtype, device=self.stored.device)
        for left in range(0, self.m, width):
            block = self.stored[:, left : left + width]
            yield self._widen(block, flat[: block.numel()].view(block.shape)).T

    def _widen(self, block: Tensor, buffer: Tensor) -> Tensor:
        if self.unit == 1.0 and block.dtype == buffer.dtype:
            return block
        tile = buffer[: block.shape[0]]
        if self.unit == 1.0:
            return tile.copy_(block)
        return tile.copy_(block.to(torch.float64) / self.unit)


def weight_operator(weight: Float[Tensor, "rows columns"] | WeightOperator) -> WeightOperator:
    """Orient a stored weight so that its smaller side comes second.

    Parameters
    ----------
    weight : finite floating matrix with entries, of any type and on any device; referred to, not copied. An
        operator is given back as it is.

    Returns
    -------
    WeightOperator; `unit` is 1 unless max|w| lies outside [2⁻²⁰, 2²⁰], then the power of two below it.

    Raises
    ------
    GeometryError : no entries, or a NaN or an infinity.

    **Source** scaling by powers of two is exact: Higham (2002), §2.1.
    """
    if isinstance(weight, WeightOperator):
        return weight
    if not weight.numel():
        raise GeometryError(
            "an empty matrix has no singular values", expected="entries", found=tuple(weight.shape)
        )
    # One pass: NaN and infinities pass through both extremes.
    low, high = (float(x) for x in torch.aminmax(weight.detach()))
    largest = max(-low, high)
    if not math.isfinite(low) or not math.isfinite(high):
        bad = weight.numel() - int(weight.isfinite().count_nonzero())
        raise GeometryError(
            "the matrix holds NaN or infinity", expected="none", found=f"{bad} of {weight.numel()} entries"
        )
    exponent = math.frexp(largest)[1] - 1
    unit = 2.0**exponent if largest and abs(exponent) > SAFE_EXPONENT else 1.0
    return WeightOperator(weight.detach(), weight.shape[0] < weight.shape[1], unit)
