"""Leading triplets of a tuned weight, warm and cold, and full spectra, against SVDs of three accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, interleaved
from threegates.geometry.decomposition import CERTIFIED_SINE, LeadingSpectrum, decompose, update
from threegates.geometry.spectra import FullSpectrum, singular_values

SIZES = {"s": (1536, 1536), "m": (1536, 8960), "l": (4096, 4096), "x": (4096, 12288)}
ROUNDS = {"s": 3, "m": 2, "l": 1, "x": 1}
RANKS = (32, 128)

AIMS = {"s": 20.0, "m": 15.0, "l": 60.0, "x": 40.0}
GATES = {"s": 10.0, "m": 8.0, "l": 30.0, "x": 20.0}
"""Warm tuned tensor at k = 128 against a float32 SVD."""

DECAY = 0.5
"""σ_i = i^−½: as flat as trained weights are."""

STEP = 3e-4
"""Update before it is stored, relative; rounding to bfloat16 turns it into about 1e-3."""

FULL_RELATIVE = 1e-10
"""Relative error of σ_i ≥ 1e-4 σ₁ that a full spectrum may have."""


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file, at these sizes."""
    return [row for size in sizes for row in measured(size, SIZES[size], RANKS, ROUNDS[size])]


def pair(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Synthetic bf16 weights of power-law spectrum, in random bases, and a small update."""
    generator = torch.Generator().manual_seed(0)
    n = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, n, generator=generator)).Q for side in shape)
    weight = (left * torch.arange(1, n + 1).pow(-DECAY)) @ right.T
    step = STEP * float(weight.norm()) / math.sqrt(weight.numel())
    return weight.bfloat16(), (weight + step * torch.randn(shape, generator=generator)).bfloat16()


@dataclass(frozen=True)
class Svd:
    """A singular value decomposition, in the type it was asked for."""

    left: Tensor
    values: Tensor
    right: Tensor


def svd(weight: Tensor, dtype: torch.dtype) -> Svd:
    """What a user would take instead, turned so that LAPACK is fast: of a wide matrix it takes far longer."""
    if weight.shape[0] < weight.shape[1]:
        other = svd(weight.T, dtype)
        return Svd(other.right, other.values, other.left)
    left, values, turned = torch.linalg.svd(weight.to(dtype), full_matrices=False)
    return Svd(left, values, turned.T)


def values_alone(weight: Tensor) -> Tensor:
    """The same without vectors, in float64."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    return torch.linalg.svdvals(tall.double())


def cold(base: Tensor, tuned: Tensor, k: int) -> tuple[LeadingSpectrum, LeadingSpectrum]:
    """A pair from nothing."""
    start = decompose(base, k)
    return start.leading, update(start, tuned)


def subspace_error(exact: Svd, found: Svd | LeadingSpectrum, k: int) -> float:
    """Sine of the largest angle to the exact top-k subspaces, the worse of both sides."""
    sides = ((exact.left, found.left), (exact.right, found.right))
    return max(_sine(a[:, :k], b[:, :k].double()) for a, b in sides)


def _sine(exact: Tensor, found: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found - exact @ (exact.T @ found), 2))


def oracle_error(exact: Svd, shape: Sequence[int], k: int) -> float:
    """The float64 SVD's own error in the top-k subspaces: a small multiple of u σ₁ over the gap."""
    gap = float(exact.values[k - 1] - exact.values[k])
    return 4 * math.sqrt(max(shape)) * 2.0**-53 * float(exact.values[0]) / gap


def measured(size: str, shape: tuple[int, int], ranks: Sequence[int], rounds: int) -> list[Row]:
    """Every way on one pair in turn, and the rows that compare them."""
    base, tuned = pair(shape)
    ways: dict[str, Callable[[], Any]] = {
        "svd fp32 of the base": partial(svd, base, torch.float32),
        "svd fp32": partial(svd, tuned, torch.float32),
        "svd fp64": partial(svd, tuned, torch.float64),
        "svdvals fp64": partial(values_alone, tuned),
        "full": partial(singular_values, tuned),
        "cold": partial(cold, base, tuned, ranks[-1]),
    }
    for k in ranks:
        start = decompose(base, k)
        ways[f"fast {k}"] = partial(update, start, tuned, "fast")
        ways[f"certified {k}"] = partial(update, start, tuned, "certified")
    times, found = interleaved(ways, rounds)
    label = f"{size} {shape[0]} × {shape[1]}"
    drift = float((tuned.float() - base.float()).norm() / base.float().norm())
    last = ranks[-1]
    table = []
    for k in ranks:
        # Targets are stated for the largest k alone.
        stated = size if k == last else ""
        table.append(fast_row(f"{label}, k = {k}", k, times, found, stated, drift))
        table.append(certified_row(f"{label}, k = {k}", k, times, found, shape, stated))
    table.append(cold_row(f"{label}, k = {last}", last, times, found, svd(base, torch.float64)))
    table.append(full_row(label, times, found, size))
    return table


def fast_row(k_label: str, k: int, times: dict, found: dict, size: str, drift: float) -> Row:
    """A warm tuned tensor against a float32 SVD: the error no worse."""
    exact, ours = found["svd fp64"], found[f"fast {k}"]
    error, its = (subspace_error(exact, way, k) for way in (ours, found["svd fp32"]))
    return Row(
        f"warm fast ({ours.path})",
        k_label,
        times[f"fast {k}"],
        "svd fp32",
        times["svd fp32"],
        error <= its,
        f"error {error:.0e}, no worse than {its:.0e}",
        aim=AIMS.get(size),
        gate=GATES.get(size),
        notes={"error": error, "its error": its, "bound": ours.bound, "relative update": drift},
    )


def certified_row(k_label: str, k: int, times: dict, found: dict, shape: Sequence[int], size: str) -> Row:
    """A warm tuned tensor, proved, against a float64 SVD: the proof small enough, and true."""
    exact, ours = found["svd fp64"], found[f"certified {k}"]
    error, blur = subspace_error(exact, ours, k), oracle_error(exact, shape, k)
    proved = ours.certificate.proved and ours.bound <= CERTIFIED_SINE and error <= ours.bound + blur
    targets = {"aim": 10.0, "gate": 6.0} if size in ("l", "x") else {}
    return Row(
        f"warm certified ({ours.path}, {ours.certificate.proof})",
        k_label,
        times[f"certified {k}"],
        "svd fp64",
        times["svd fp64"],
        proved,
        f"proved {ours.bound:.0e}, error {error:.0e}",
        notes={"error": error, "bound": ours.bound},
        **targets,
    )


def cold_row(k_label: str, k: int, times: dict, found: dict, exact_base: Svd) -> Row:
    """Base and tuned tensor from nothing against two float32 SVDs."""
    exact = (exact_base, found["svd fp64"])
    peers = (found["svd fp32 of the base"], found["svd fp32"])
    errors = [subspace_error(e, way, k) for e, way in zip(exact, found["cold"], strict=True)]
    theirs = [subspace_error(e, way, k) for e, way in zip(exact, peers, strict=True)]
    return Row(
        "cold pair fast",
        k_label,
        times["cold"],
        "2 × svd fp32",
        times["svd fp32 of the base"] + times["svd fp32"],
        all(a <= b for a, b in zip(errors, theirs, strict=True)),
        f"errors {errors[0]:.0e}, {errors[1]:.0e}, no worse than {theirs[0]:.0e}, {theirs[1]:.0e}",
        aim=6.0,
        gate=3.5,
        notes={"error of the base": errors[0], "error": errors[1]},
    )


def full_row(label: str, times: dict, found: dict, size: str) -> Row:
    """All singular values: 1e-10 relative where σ_i ≥ 1e-4 σ₁, the stated error everywhere."""
    exact, ours = found["svd fp64"].values, found["full"]
    relative = relative_error(exact, ours)
    within = bool(((exact - ours.values).abs() <= ours.errors + 1e-14 * float(exact[0])).all())
    return Row(
        "full spectrum",
        label,
        times["full"],
        "svdvals fp64",
        times["svdvals fp64"],
        relative <= FULL_RELATIVE and within,
        f"relative {relative:.0e}" + ("" if within else ", beyond its bound"),
        aim=3.0 if size == "x" else None,
        notes={"relative error": relative},
    )


def relative_error(exact: Tensor, ours: FullSpectrum) -> float:
    """Largest relative error of the values that are at least 1e-4 of the first."""
    large = exact >= 1e-4 * exact[0]
    return float(((exact - ours.values).abs() / exact)[large].max())
