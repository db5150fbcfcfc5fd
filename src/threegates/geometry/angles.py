"""Principal angles between the leading subspaces of a base weight and of its tuned checkpoint.

They are computed from sines, which resolve small angles to float64 rounding; arccos of a cosine in float32
cannot tell angles below 3.5e-4 rad from 0. Beside each angle stands the certified bound of the two subspaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.certificate import orthonormality_defect, rounding
from threegates.geometry.decomposition import CERTIFIED_SINE, LeadingSpectrum
from threegates.geometry.iteration import orthonormal


@dataclass(frozen=True)
class Angles:
    """Principal angles of one side, ascending, in rad.

    values : (k,). bound : every exact angle lies within it of the one given. floor : the part of the bound
    that is rounding of the angles themselves, in float64.
    """

    values: Tensor
    bound: float
    floor: float

    @property
    def unresolved(self) -> Bool[Tensor, " k"]:
        """Where the bound exceeds the angle: it could be 0."""
        return self.values < self.bound

    @property
    def maximum(self) -> float:
        """Largest angle; NaN where there is none (k = 0)."""
        return float(self.values[-1]) if len(self.values) else math.nan

    @property
    def mean(self) -> float:
        """Mean over the k angles; NaN where there is none (k = 0)."""
        return float(self.values.mean()) if len(self.values) else math.nan


@dataclass(frozen=True)
class SubspaceAngles:
    """Angles between the top-k left and right subspaces of two matrices.

    k : how many directions were compared. gap : the smaller of both σ̂_k − σ̂_{k+1}. proved : whether the
    bounds are theorems on both matrices, or assume that no singular value was missed.
    """

    left: Angles
    right: Angles
    k: int
    gap: float
    proved: bool


def principal_angles(
    base: Float64[Tensor, "n k"], tuned: Float64[Tensor, "rows columns"]
) -> Float64[Tensor, " k"]:
    """Principal angles between the column spaces of two orthonormal bases, ascending.

    sin θ_i = σ_i(tuned − base (baseᵀ tuned)); angles beyond 45° from cos θ_i = σ_i(baseᵀ tuned), for near 90°
    the sine in turn resolves nothing.

    Returns
    -------
    float64 in [0, π/2], in rad; errors about (u √k) on orthonormal bases.

    Raises
    ------
    GeometryError : different shapes.

    **Source** Björck and Golub (1973); Knyazev and Argentati (2002).
    """
    if base.shape != tuned.shape:
        raise GeometryError(
            "bases of different shape span no comparable subspaces",
            expected=tuple(base.shape),
            found=tuple(tuned.shape),
        )
    inner = base.T @ tuned
    sines = torch.linalg.svdvals(tuned - base @ inner).flip(0).clamp(max=1.0)
    if not len(sines) or float(sines[-1]) ** 2 <= 0.5:
        return sines.asin()
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    return torch.where(sines.square() <= 0.5, sines.asin(), cosines.acos())


def subspace_angles(base: LeadingSpectrum, tuned: LeadingSpectrum, k: int | None = None) -> SubspaceAngles:
    """Angles between the leading subspaces of a base and of a tuned matrix, with their bound.

    |θ_i − θ̂_i| ≤ asin s₀ + asin s₊ + rounding, s the certified sines of both subspaces. A tuned spectrum that
    is the base's own (path 'unchanged') has angles 0 and bound 0, exactly.

    Parameters
    ----------
    base, tuned : decompositions of matrices of one shape.
    k : 0 … the smaller of both k; that smaller one if not given. k = 0 gives no angles.

    Raises
    ------
    GeometryError : different shapes, k out of range.

    **Source** triangle inequality of principal angles: Qiu, Zhang and Li (2005).
    """
    largest = min(base.k, tuned.k)
    k = largest if k is None else k
    if not 0 <= k <= largest:
        raise GeometryError("no subspace of that size was found", expected=f"0 … {largest}", found=k)
    same = tuned.path == "unchanged" and torch.equal(base.values[:k], tuned.values[:k])
    return SubspaceAngles(
        left=_side(base, tuned, "left", k, same),
        right=_side(base, tuned, "right", k, same),
        k=k,
        gap=min(_gap(base, k), _gap(tuned, k)),
        proved=base.certificate.proved and tuned.certificate.proved,
    )


def resolved_rank(base: LeadingSpectrum, tuned: LeadingSpectrum, tolerance: float = CERTIFIED_SINE) -> int:
    """Largest k' ≤ k whose gap is resolved: both subspaces of the first k' known to sin Θ ≤ tolerance.

    0 where there is none.

    **Source** this study; the angle at a border without gap says nothing about an update.
    """
    largest = min(base.k, tuned.k)
    sines = [x for s in (base, tuned) for x in (s.certificate.left[:largest], s.certificate.right[:largest])]
    resolved = (torch.stack(sines) <= tolerance).all(0).nonzero()
    return int(resolved[-1]) + 1 if len(resolved) else 0


def gap_aware_angles(
    base: LeadingSpectrum, tuned: LeadingSpectrum, tolerance: float = CERTIFIED_SINE
) -> SubspaceAngles:
    """`subspace_angles` at the `resolved_rank`: the largest k' ≤ k with a gap behind it.

    **Source** as `resolved_rank`.
    """
    return subspace_angles(base, tuned, resolved_rank(base, tuned, tolerance))


def _gap(spectrum: LeadingSpectrum, k: int) -> float:
    if k == 0:
        return math.nan
    return spectrum.gap if k == spectrum.k else float(spectrum.values[k - 1] - spectrum.values[k])


def _side(base: LeadingSpectrum, tuned: LeadingSpectrum, side: str, k: int, same: bool) -> Angles:
    first, second = (_wide(getattr(spectrum, side)[:, :k]) for spectrum in (base, tuned))
    if same or k == 0:
        return Angles(first.new_zeros(k), 0.0, 0.0)
    values = principal_angles(first, second)
    floor = _rounding(first) + _rounding(second)
    sines = (float(getattr(spectrum.certificate, side)[k - 1]) for spectrum in (base, tuned))
    return Angles(values, min(math.pi / 2, sum(math.asin(s) for s in sines) + floor), floor)


def _wide(basis: Tensor) -> Tensor:
    """In float64 and orthonormal to it, which float32 vectors are not, though they span the same subspace."""
    return basis if basis.dtype == torch.float64 else orthonormal(basis.to(torch.float64))


def _rounding(basis: Tensor) -> float:
    """Share of one basis in the rounding of the angles: products, singular values, orthonormality.

    The factor 2 turns an error of sine or cosine into one of the angle, on the branch that is chosen.
    """
    rows, k = basis.shape
    return 2 * (orthonormality_defect(basis) + rounding(rows + 2 * k) * math.sqrt(k))
