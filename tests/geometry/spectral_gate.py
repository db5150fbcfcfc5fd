"""The gate that every leading spectrum has to pass, against a float64 SVD; and matrices to try it on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threegates.geometry.decomposition import CERTIFIED_SINE, LeadingSpectrum

FLOAT32_LUCK = 4 * 2.0**-24
"""Backward error over σ₁ below which a float32 SVD is merely lucky: LAPACK's own estimate is p(n) u."""


def sine(exact: Tensor, found: Tensor) -> float:
    """Sine of the largest angle between two subspaces, by orthonormal bases."""
    return min(1.0, float(torch.linalg.matrix_norm(found - exact @ (exact.T @ found), 2)))


def failures(weight: Tensor, found: LeadingSpectrum) -> list[str]:
    """What is wrong with a leading spectrum: nothing, or sentences."""
    k, wrong = found.k, []
    left, values, turned = torch.linalg.svd(weight.double(), full_matrices=False)
    right, norm = turned.T, float(values[0])
    # The oracle's own error: a small multiple of u σ₁, and that over the gap for subspaces.
    blur = 4 * max(weight.shape) ** 0.5 * 2.0**-53 * norm + 1e-300
    beyond = float(values[k]) if k < len(values) else 0.0
    gap = float(values[k - 1]) - beyond
    oracle = min(1.0, blur / gap) if gap > 0 else 1.0
    wide = {"left": found.left.double(), "right": found.right.double()}
    sines = {"left": sine(left[:, :k], wide["left"]), "right": sine(right[:, :k], wide["right"])}
    roundoff = 1e-5 if found.left.dtype == torch.float32 else 1e-12
    for name, side in wide.items():
        defect = float((side.T @ side - torch.eye(k, dtype=torch.float64)).norm())
        if not defect < roundoff * math.sqrt(k):
            wrong.append(f"{name} vectors are not orthonormal: {defect:.1e}")
    certificate = found.certificate
    # Bounds that only assume that no value was missed have to hold too: on these matrices none is.
    excess = (found.values - values[:k]).abs() - certificate.values - blur
    if not float(excess.max()) <= 0:
        wrong.append(f"a value lies {float(excess.max()):.1e} beyond its bound")
    for name, bounds in (("left", certificate.left), ("right", certificate.right)):
        if not sines[name] <= float(bounds[-1]) + oracle:
            wrong.append(f"{name} sine {sines[name]:.1e} beyond its bound {float(bounds[-1]):.1e}")
    worst, allowed = max(sines.values()), _allowed(weight, found, left[:, :k], right[:, :k], gap)
    if not worst <= allowed + oracle:
        wrong.append(f"sine {worst:.1e} is too large for {found.accuracy}, which allows {allowed:.1e}")
    if found.accuracy != "fast" and not certificate.proved and found.resolved:
        wrong.append("a bound without a proof")
    return wrong


def _allowed(weight: Tensor, found: LeadingSpectrum, left: Tensor, right: Tensor, gap: float) -> float:
    """Sine that the accuracy allows; certified may say that it does not know.

    Fast may err as a float32 SVD of the matrix does, or as a backward error of `FLOAT32_LUCK` σ₁ makes it.
    """
    if found.accuracy == "reference":
        return 1e-8
    if found.accuracy == "certified":
        return CERTIFIED_SINE if found.bound <= CERTIFIED_SINE else 1.0
    u, _, v = torch.linalg.svd(weight.float(), full_matrices=False)
    k = found.k
    theirs = max(sine(left, u[:, :k].double()), sine(right, v[:k].T.double()))
    lucky = FLOAT32_LUCK * float(found.values[0]) / gap if gap > 0 else 1.0
    return max(theirs, lucky)


def with_spectrum(values: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """A float64 matrix with the given singular values and random vectors."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(side, n, generator=generator, dtype=torch.float64)).Q
        for side in (rows, columns)
    )
    return (left * values) @ right.T


def power_law(n: int, exponent: float) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64) ** -exponent


def perturbed(weight: Tensor, relative: float, seed: int) -> Tensor:
    """The weight plus Gaussian noise of a relative Frobenius norm, in the weight's type."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    scale = relative * float(weight.double().norm()) / float(noise.norm())
    return (weight.double() + scale * noise).to(weight.dtype)


def clustered(n: int, k: int, width: float) -> Tensor:
    """Power law whose values k − 3 … k + 3 lie within `width` (relative) of each other."""
    values = power_law(n, 0.5)
    values[k - 4 : k + 3] = values[k] * (1 + width * torch.linspace(1, 0, 7, dtype=torch.float64))
    return values


def fixed_set() -> dict[str, tuple[Tensor, int]]:
    """Named matrices, each with the k to ask for."""
    bf16, f64 = torch.bfloat16, torch.float64
    seeds = iter(range(100))

    def made(values: Tensor, rows: int, columns: int, dtype: torch.dtype = bf16) -> Tensor:
        return with_spectrum(values, rows, columns, next(seeds)).to(dtype)

    deficient = torch.cat([power_law(12, 0.5), torch.zeros(118, dtype=f64)])
    return {
        "power law": (made(power_law(160, 0.5), 160, 160), 24),
        "steep": (made(power_law(150, 1.5), 200, 150), 20),
        "flat": (made(torch.ones(150, dtype=f64), 170, 150), 20),
        "gaussian": (torch.randn(220, 140, generator=torch.Generator().manual_seed(1)).to(bf16), 32),
        "tall": (made(power_law(120, 0.5), 400, 120), 16),
        "wide": (made(power_law(120, 0.5), 120, 400), 16),
        "float32": (made(power_law(130, 0.4), 150, 130, torch.float32), 16),
        "float64": (made(power_law(130, 0.4), 130, 150, f64), 16),
        "clustered at k": (made(clustered(140, 20, 1e-3), 160, 140), 20),
        "tightly clustered at k": (made(clustered(140, 20, 1e-9), 140, 160, f64), 20),
        "exactly clustered at k": (made(clustered(140, 20, 0.0), 140, 150, f64), 20),
        "clustered in the window": (made(clustered(140, 28, 1e-6), 150, 140, f64), 20),
        "rank below k": (made(deficient, 150, 130, f64), 20),
        "rank k": (made(deficient, 150, 130, f64), 12),
        "rank above k": (made(deficient, 150, 130, f64), 8),
        "exactly rank one": (torch.ones(120, 110, dtype=bf16), 3),
        "zero": (torch.zeros(110, 120, dtype=bf16), 4),
        "row": (torch.randn(1, 50, generator=torch.Generator().manual_seed(2)).to(bf16), 1),
        "column": (torch.randn(50, 1, generator=torch.Generator().manual_seed(3)).to(bf16), 3),
        "scalar": (torch.full((1, 1), -2.0, dtype=bf16), 1),
        "identity": (torch.eye(110, dtype=bf16), 5),
        "k above n/3": (made(power_law(90, 0.5), 100, 90), 40),
        "k is n": (made(power_law(60, 0.5), 80, 60), 60),
        "k above n": (made(power_law(40, 0.5), 40, 40), 70),
        "huge entries": (made(1e30 * power_law(120, 0.5), 130, 120), 16),
        "tiny entries": (made(1e-33 * power_law(120, 0.5), 130, 120), 16),
    }
