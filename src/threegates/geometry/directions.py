"""Where an update points: its energy in the principal block, the rotation null, its stable rank."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import as_generator
from threegates.geometry.nulls.summaries import NullSummary, summarise

FEWEST_DRAWS = 20
"""Fewer random frames give no standard deviation worth the name."""

DENSE_SIDE = 256
"""Up to this smaller side all singular values are found at once; above it, iteration finds the largest."""

EIGENVALUE_TOLERANCE = 1e-12
"""Relative tolerance of σ₁² by iteration."""

PIECE = 1 << 20
"""Entries squared at a time: a float64 copy of a whole tensor is never made for its norm."""


def principal_energy(
    delta: Shaped[Tensor, "m n"],
    u: Float[Tensor, "m k"],
    v: Float[Tensor, "n k"],
    norm: float | None = None,
) -> float:
    """Share of an update's energy in the principal k × k block: ρ² = ‖UᵀΔW V‖²_F/‖ΔW‖²_F.

    Parameters
    ----------
    delta : ΔW, floating; u, v : orthonormal frames as columns; norm : ‖ΔW‖_F, where it is known.

    Returns
    -------
    float in [0, 1]; NaN for a zero update. Products run in the wider of ΔW's dtype and float32, so the floor
    is about 1e-7 (float32) or 1e-16 (float64) relative to ρ² · √k.

    **Source** this study's reading of Gate II; the frames are Zhu et al.'s (2025), Thm 3.3.
    """
    values = _working(delta)
    total = _energy(values) if norm is None else norm**2
    return _block_energy(values, u, v) / total if total else math.nan


def expected_energy(shape: tuple[int, ...], k: int) -> float:
    """ρ² expected of an update that does not know the frames: k²/(mn), exactly.

    For a k-frame U uniform on the Stiefel manifold E[UUᵀ] = (k/m) I, and U and V are independent.

    Raises
    ------
    GeometryError : k lies outside 1 … min(m, n), or not the shape of a matrix.

    **Source** Chikuse (2003), §2.2, moments of the uniform distribution on Stiefel manifolds.
    """
    if len(shape) != 2 or not 1 <= k <= min(shape):
        raise GeometryError("no k × k block", expected="1 ≤ k ≤ min(m, n)", found=f"k = {k} of {shape}")
    return k * k / (shape[0] * shape[1])


def random_frame(side: int, k: int, generator: torch.Generator | int) -> Float64[Tensor, "side k"]:
    """Random orthonormal k-frame, uniform on the Stiefel manifold: Q of the QR of a Gaussian side × k matrix.

    The span is uniform whatever the signs of R's diagonal, and ρ² knows spans only. A full Haar matrix, of
    which these would be k columns, is never made.

    Raises
    ------
    GeometryError : k > side.

    **Source** Stewart (1980); Mezzadri (2007).
    """
    if not 1 <= k <= side:
        raise GeometryError("no such frame", expected=f"1 … {side} columns", found=k)
    source = as_generator(generator)
    noise = torch.randn(side, k, generator=source, device=source.device, dtype=torch.float64)
    return torch.linalg.qr(noise).Q


def rotation_draws(
    delta: Shaped[Tensor, "m n"], k: int, generator: torch.Generator | int, *, draws: int = 99
) -> np.ndarray:
    """ρ² of one update against pairs of random k-frames in place of U_k, V_k.

    Parameters
    ----------
    delta : ΔW; draws : at least 20.

    Returns
    -------
    float64 array; NaN for a zero update.

    Raises
    ------
    GeometryError : fewer than 20 draws, or k lies outside 1 … min(m, n).

    **Source** this study's rotation null.
    """
    if draws < FEWEST_DRAWS:
        raise GeometryError("too few random frames", expected=f"at least {FEWEST_DRAWS}", found=draws)
    expected_energy(tuple(delta.shape), k)
    values, source = _working(delta), as_generator(generator)
    total = _energy(values)
    if not total:
        return np.full(draws, math.nan)
    m, n = values.shape
    blocks = (
        _block_energy(values, random_frame(m, k, source), random_frame(n, k, source)) for _ in range(draws)
    )
    return np.array(list(blocks)) / total


def rotation_null(
    delta: Shaped[Tensor, "m n"],
    u: Float[Tensor, "m k"],
    v: Float[Tensor, "n k"],
    generator: torch.Generator | int,
    *,
    draws: int = 99,
    tail: str = "two-sided",
) -> tuple[float, NullSummary]:
    """ρ² of an update and its place among random frames: (ρ², summary with z-score and p).

    For an update whose law no rotation changes, p is exactly uniform over its values. z < 0 is avoidance of
    the principal block, z > 0 concentration in it. With 20 draws the two-sided p cannot fall below .095.

    Raises
    ------
    GeometryError : as `rotation_draws`; an unknown tail.

    **Source** this study's rotation null; p as in Phipson and Smyth (2010).
    """
    observed = principal_energy(delta, u, v)
    return observed, summarise(observed, rotation_draws(delta, u.shape[1], generator, draws=draws), tail)


def stable_rank(delta: Shaped[Tensor, "m n"]) -> float:
    """Stable rank ‖ΔW‖²_F/‖ΔW‖²₂, in [1, rank]; NaN for a zero update.

    **Source** Rudelson and Vershynin (2007).
    """
    total = frobenius_norm(delta)
    return (total / spectral_norm(delta)) ** 2 if total else math.nan


def frobenius_norm(x: Shaped[Tensor, "*shape"]) -> float:
    """‖x‖_F in float64, piece by piece; 0 for an empty tensor.

    Raises
    ------
    GeometryError : x holds NaN or infinity.

    **Source** Golub and Van Loan (2013), §2.3.
    """
    scale = _scale(x)
    pieces = x.detach().reshape(-1).split(PIECE) if scale else ()
    wide = (piece.to(torch.float64) for piece in pieces)
    return scale * math.sqrt(sum(float((x if scale == 1 else x / scale).square().sum()) for x in wide))


def _scale(x: Tensor) -> float:
    """What to divide by so that squares neither vanish nor overflow: mostly 1; 0 where all is 0."""
    largest = float(torch.stack(x.detach().aminmax()).abs().max()) if x.numel() else 0.0
    if not math.isfinite(largest):
        raise GeometryError("a tensor with NaN or infinity has no norm", found=f"in {tuple(x.shape)}")
    return 1.0 if 1e-100 < largest < 1e100 else largest


def spectral_norm(matrix: Shaped[Tensor, "m n"]) -> float:
    """Largest singular value ‖A‖₂, in float64, without the others.

    Lanczos on AᵀA, A the tall one of the matrix and its transpose; relative error about 1e-12, from below,
    once converged. 0 for a zero or empty matrix.

    Raises
    ------
    GeometryError : the matrix holds NaN or infinity.

    **Source** Golub and Van Loan (2013), §10.4; ARPACK, Lehoucq et al. (1998).
    """
    scale = _scale(matrix)
    if not scale:
        return 0.0
    values = matrix.detach().to(torch.float64)
    values = values if scale == 1 else values / scale
    if min(values.shape) <= DENSE_SIDE:
        return scale * float(torch.linalg.svdvals(values)[0])
    return scale * math.sqrt(_largest_eigenvalue(values.T if len(values) < values.shape[1] else values))


def _largest_eigenvalue(tall: Tensor) -> float:
    """Largest eigenvalue of AᵀA by products with A and Aᵀ: some 60 of them cost less than AᵀA itself."""
    side = tall.shape[1]

    def product(x: np.ndarray) -> np.ndarray:
        return (tall.T @ (tall @ torch.from_numpy(x.reshape(-1)).to(tall.device))).cpu().numpy()

    gram = LinearOperator((side, side), matvec=product, dtype=np.float64)
    # ARPACK would start from a random vector of its own; a fixed one repeats, and Gaussian misses nothing.
    start = np.random.default_rng(0).standard_normal(side)
    largest = eigsh(
        gram,
        k=1,
        which="LA",
        v0=start,
        ncv=min(side, 40),
        tol=EIGENVALUE_TOLERANCE,
        return_eigenvectors=False,
    )
    return float(largest[0])


def _working(delta: Tensor) -> Tensor:
    return delta.detach().to(torch.promote_types(delta.dtype, torch.float32))


def _energy(values: Tensor) -> float:
    return frobenius_norm(values) ** 2


def _block_energy(values: Tensor, u: Tensor, v: Tensor) -> float:
    u, v = (frame.to(values.device, values.dtype) for frame in (u, v))
    left_first = u.shape[0] > v.shape[0]
    block = (u.T @ values) @ v if left_first else u.T @ (values @ v)
    return float(block.to(torch.float64).square().sum())
