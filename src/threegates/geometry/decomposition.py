"""Leading singular triplets of a base weight and of its tuned checkpoints, each with a certificate.

The base is decomposed once (Gram matrix, eigenvectors, polish); a tuned weight then costs a few products with
thin matrices. Three accuracies, never mixed:

- fast: subspaces no worse than those of a float32 SVD; the bound assumes that no singular value was missed,
  unless the base's certificate proves it for free;
- certified: sin Θ ≤ 1e-5 *proved*, all rounding included, or the subspace is reported as unresolved;
- reference: a float64 SVD.

Values, vectors and residuals are float64 in every mode; what differs is how far they are converged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.certificate import (
    Certificate,
    Residuals,
    RitzTriplets,
    certify,
    certify_window,
    observed_residuals,
    orthonormality_defect,
    prove_by_cholesky,
    residual_bounds,
    rounding,
    weyl_upper,
    with_rounding,
)
from threegates.geometry.iteration import Polished, polish, rayleigh_ritz, warm_start
from threegates.geometry.operators import TILE, WeightOperator, weight_operator

ACCURACIES = ("fast", "certified", "reference")

CERTIFIED_SINE = 1e-5
"""Largest sin Θ that the certified accuracy accepts."""

FAST_SINE = 2.0**-25
"""sin Θ · gap/√(σ₁ σ_k) that the fast accuracy accepts, as measured on float32 SVDs of several spectra."""

FAST_SINE_AT_WIDE_GAP = 2e-7
"""sin Θ that the fast accuracy accepts, however wide the gap: a float32 SVD errs by 4e-7 or more there."""

FAST_RESIDUAL = 2.0**-20
"""Residual over σ₁ that the fast accuracy accepts, whatever the gap."""

WINDOW = 32
"""Vectors beyond k that are iterated along, so that k needs no gap right behind it to converge."""

SMALL = 512
"""Up to this smaller side the float64 eigenproblem costs so little that nothing else is tried first."""


@dataclass(frozen=True)
class LeadingSpectrum:
    """The k largest singular values of a matrix, their vectors, and what is known about them.

    values (k,) descending, left (rows, k), right (columns, k): float64, for the matrix as stored.
    next_value : σ̂_{k+1}, 0 where k is all. k : after clamping to the smaller side; requested : before it.
    path : 'unchanged' (the base's own), 'warm', 'refined', 'gram' or 'svd'. Values and bounds are in the
    weight's unit, sines in [0, 1].
    """

    values: Tensor
    left: Tensor
    right: Tensor
    next_value: float
    k: int
    requested: int
    accuracy: str
    path: str
    certificate: Certificate

    @property
    def gap(self) -> float:
        """σ̂_k − σ̂_{k+1}, which decides how well the subspace is defined."""
        return float(self.values[-1]) - self.next_value

    @property
    def bound(self) -> float:
        """Bound on sin Θ of both subspaces at k, in [0, 1]; a theorem where `certificate.proved`."""
        return self.certificate.sine

    @property
    def resolved(self) -> bool:
        """Whether gap and residual say anything about the subspace: bound < 1."""
        return self.bound < 1

    @property
    def floor(self) -> float:
        """The part of `bound` that is float64 rounding and worst-case: no iteration goes below it."""
        return self.certificate.floor


@dataclass(frozen=True)
class BaseDecomposition:
    """A base weight, decomposed once for all its tuned checkpoints.

    weight : as stored, referred to. basis : (n, n) approximate right singular vectors of the oriented weight,
    descending, float32 (float64 for float64 weights); None where k > n/3, for no update will be warm.
    eigenvalues : (n,) float64, their squared singular values, in `operator.unit`². leading : the top k.
    """

    operator: WeightOperator
    basis: Tensor | None
    eigenvalues: Tensor
    leading: LeadingSpectrum

    @property
    def weight(self) -> Tensor:
        """The base weight as stored."""
        return self.operator.stored

    @property
    def k(self) -> int:
        """Number of leading triplets, after clamping."""
        return self.leading.k


@dataclass(frozen=True)
class _Task:
    """What is asked of one matrix, and its Frobenius norm."""

    operator: WeightOperator
    k: int
    requested: int
    accuracy: str
    norm: float

    @property
    def iterates_in_float32(self) -> bool:
        """Whether float32 products are tried first: far shorter, and still no worse than a float32 SVD."""
        narrow = _working_type(self.operator.stored) == torch.float32
        return self.accuracy == "fast" and narrow and self.operator.n > SMALL

    def residuals(self, ritz: RitzTriplets) -> Residuals:
        return residual_bounds(self.operator, ritz, self.k, self.norm)

    def observed(self, ritz: RitzTriplets) -> Residuals:
        return observed_residuals(self.operator, ritz, self.k, self.norm)

    def is_converged(self, ritz: RitzTriplets, residuals: Residuals) -> bool:
        return _is_converged(self, ritz, residuals)


def check_accuracy(accuracy: str) -> None:
    """Raise GeometryError unless it is one of `ACCURACIES`."""
    if accuracy not in ACCURACIES:
        raise GeometryError("no such accuracy", expected=ACCURACIES, found=accuracy)


def _task(weight: Tensor | WeightOperator, requested: int, accuracy: str) -> _Task:
    if requested < 1:
        raise GeometryError(
            "a leading subspace has at least one direction", expected="k ≥ 1", found=requested
        )
    check_accuracy(accuracy)
    operator = weight_operator(weight)
    return _Task(operator, min(requested, operator.n), requested, accuracy, operator.norm())


@dataclass(frozen=True)
class _Basis:
    """All n approximate right singular vectors, descending, and their squared singular values."""

    vectors: Tensor
    eigenvalues: Tensor


def decompose(weight: Float[Tensor, "rows columns"], k: int, accuracy: str = "fast") -> BaseDecomposition:
    """Decompose a base weight: Gram matrix, all eigenvectors, float64 polish of the top k.

    The result's operator keeps its float64 Gram matrix, if the accuracy asked for one, until it is released.

    Parameters
    ----------
    weight : finite floating matrix with entries, on any device; its type is kept.
    k : ≥ 1; clamped to the smaller side n, which the result states.
    accuracy : 'fast', 'certified' (with index proof) or 'reference' (float64 SVD).

    Returns
    -------
    BaseDecomposition; `leading` has path 'gram' or 'svd'.

    Raises
    ------
    GeometryError : an empty or non-finite matrix, k < 1, an unknown accuracy.

    **Source** eigenvectors of WᵀW, Golub and Van Loan (2013), §8.6; polish: Davidson (1975).
    """
    task = _task(weight, k, accuracy)
    leading, basis = _decompose_alone(task)
    # One layout, so that a decomposition read back from a file gives the same products to the last bit.
    vectors = basis.vectors.to(_working_type(weight)).contiguous() if _can_be_warm(task) else None
    return BaseDecomposition(task.operator, vectors, basis.eigenvalues, leading)


def decompose_beside_spectrum(
    weight: Float[Tensor, "rows columns"], k: int, accuracy: str = "certified"
) -> BaseDecomposition:
    """`decompose`, for who wants all singular values too: of one Gram matrix, in float64, come both.

    Eigenvectors are those of the float64 Gram matrix rounded to float32, which spares the float32 one and
    errs less; the polish and the proof are the same. The result's operator keeps the Gram matrix, for
    `threegates.geometry.spectra.singular_values`, until it is released.

    Parameters, raises : as `decompose`.

    **Source** as `decompose`.
    """
    task = _task(weight, k, accuracy)
    leading, basis = _by_rounded_gram(task) or _decompose_alone(task)
    vectors = basis.vectors.to(_working_type(weight)).contiguous() if _can_be_warm(task) else None
    return BaseDecomposition(task.operator, vectors, basis.eigenvalues, leading)


def update(
    base: BaseDecomposition, tuned: Float[Tensor, "rows columns"] | WeightOperator, accuracy: str = "fast"
) -> LeadingSpectrum:
    """Top k of a tuned weight, from the base's decomposition where that pays, else from nothing.

    An equal tensor gets the base's result, whatever its accuracy. Else: first-order correction in the basis's
    type, Rayleigh–Ritz and residual in float64 ('warm'); float64 refinements where the residual is too large
    ('refined'); Gram matrix and eigenvectors where that fails or k > n/3 ('gram'); for 'reference' a float64
    SVD ('svd'). The index proof is Weyl's inequality where ‖ΔW‖_F is below the base's proved gap, else for
    'certified' a Cholesky factorisation, else none ('assumed').

    Parameters
    ----------
    base : of a weight of the same shape, on the same device.
    tuned : finite floating matrix, or its operator, for who asks for its spectrum too.
    accuracy : 'fast', 'certified' or 'reference'; may differ from the base's.

    Raises
    ------
    GeometryError : another shape, a NaN or an infinity, an unknown accuracy.

    **Source** Davidson (1975); Wedin (1972); Weyl (1912).
    """
    stored = tuned.stored if isinstance(tuned, WeightOperator) else tuned
    if stored.shape != base.weight.shape:
        raise GeometryError(
            "base and tuned weight differ in shape",
            expected=tuple(base.weight.shape),
            found=tuple(stored.shape),
        )
    check_accuracy(accuracy)
    if torch.equal(base.weight, stored):
        return replace(base.leading, path="unchanged")
    task = _task(tuned, base.leading.requested, accuracy)
    if accuracy != "reference" and base.basis is not None and task.operator.unit == base.operator.unit:
        warm = _warm(base, task, base.basis)
        if warm is not None:
            return warm
    return _decompose_alone(task)[0]


def _working_type(weight: Tensor) -> torch.dtype:
    """Type of products that need not be exact: float32, unless the weights themselves have more digits."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _working_gram(operator: WeightOperator) -> Tensor:
    """Lower triangle of WᵀW in the working type; the float64 one is kept, as the certificate needs it."""
    dtype = _working_type(operator.stored)
    return operator.exact_gram if dtype == torch.float64 else operator.gram(dtype)


def _can_be_warm(task: _Task) -> bool:
    return 3 * task.k <= task.operator.n and task.k + WINDOW < task.operator.n


def _window(task: _Task) -> int:
    return min(task.k + WINDOW, task.operator.n)


def _warm(base: BaseDecomposition, task: _Task, vectors: Tensor) -> LeadingSpectrum | None:
    """The tuned top k from the base's eigenvectors, or None where that does not reach the accuracy."""
    start = warm_start(task.operator, vectors, base.eigenvalues, _window(task))
    found = _polished(task, _Basis(vectors, base.eigenvalues), start)
    if not found.good:
        return None
    certificate = _by_weyl(base, task, found) or _certificate(task, found)
    path = "refined" if found.refinements else "warm"
    return None if certificate.proof == "none" else _finish(task, found.ritz, path, certificate)


def _decompose_alone(task: _Task) -> tuple[LeadingSpectrum, _Basis]:
    """Top k and eigenbasis without a base: the cheapest route that reaches the accuracy."""
    if task.accuracy == "reference":
        return _by_svd(task)
    if task.operator.n > SMALL and 2 * task.k <= task.operator.n:
        found = _by_eigenbasis(task, _eigenbasis(_working_gram(task.operator)))
        if found is not None:
            return found
    return _by_exact_gram(task)


def _by_eigenbasis(task: _Task, basis: _Basis) -> tuple[LeadingSpectrum, _Basis] | None:
    """Eigenvectors of a rounded Gram matrix, float64 polish; None where that misses the accuracy."""
    operator = task.operator
    # The Gram matrix's rounding is an update like any other, and the first guess corrects it as one.
    start = warm_start(operator, basis.vectors, basis.eigenvalues, _window(task))
    found = _polished(task, basis, start)
    certificate = _certificate(task, found) if found.good else None
    if certificate is None or certificate.proof == "none":
        return None
    return _finish(task, found.ritz, "gram", certificate), basis


def _by_rounded_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis] | None:
    """`_by_eigenbasis` in float32 from the float64 Gram matrix; None where that is not tried, or misses."""
    operator = task.operator
    wide = _working_type(operator.stored) == torch.float64
    if task.accuracy == "reference" or wide or operator.n <= SMALL or 2 * task.k > operator.n:
        return None
    return _by_eigenbasis(task, _eigenbasis(operator.exact_gram.to(torch.float32)))


def _by_exact_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis]:
    """The same in float64, where a residual proves *all* eigenvalues; takes what it gets."""
    gram = task.operator.exact_gram
    basis = _eigenbasis(gram)
    found = _polished(task, basis, basis.vectors[:, : _window(task)])
    ritz, residuals = found.ritz, found.residuals
    error = _eigenvalue_error(task, gram, basis)
    upper = torch.cat([(basis.eigenvalues.clamp(min=0.0) + error).sqrt(), gram.new_zeros(1)])[: task.k + 1]
    certificate = certify(task.operator, ritz, residuals, upper, "complete")
    if ritz.values.numel() == task.operator.n:
        certificate = certify_window(task.operator, ritz, residuals, 0.0, "complete")
    return _finish(task, ritz, "gram", certificate), basis


def _eigenbasis(gram: Tensor) -> _Basis:
    values, vectors = torch.linalg.eigh(gram)
    return _Basis(vectors.flip(1), values.flip(0).to(torch.float64))


def _polished(task: _Task, basis: _Basis, start: Tensor) -> Polished:
    """Rayleigh–Ritz from a start, refined with the basis until it is converged."""
    known = task.operator, basis.vectors, basis.eigenvalues
    if task.iterates_in_float32:
        ritz = rayleigh_ritz(task.operator, start.to(torch.float32))
        found = polish(*known, ritz, task.observed, task.is_converged)
        if found.good:
            return replace(found, residuals=with_rounding(found.residuals, found.ritz))
    ritz = rayleigh_ritz(task.operator, start.to(torch.float64))
    return polish(*known, ritz, task.residuals, task.is_converged)


def _eigenvalue_error(task: _Task, gram: Tensor, basis: _Basis) -> float:
    """Bound on |λ_i(WᵀW) − λ̂_i| for all i: ‖G V − V Λ‖_F, plus rounding of G, of the product, and of V.

    **Source** Weyl; residual bounds: Parlett (1998), §11.5.
    """
    n, m = task.operator.n, task.operator.m
    whole = gram.tril() + gram.tril(-1).T
    residual = float((whole @ basis.vectors - basis.vectors * basis.eigenvalues).norm())
    frobenius = task.norm**2
    defect = orthonormality_defect(basis.vectors)
    return (residual + (rounding(m + 3) + rounding(n + 3) * math.sqrt(n) + 2 * defect) * frobenius) * 1.001


def _by_svd(task: _Task) -> tuple[LeadingSpectrum, _Basis]:
    """Float64 SVD, with the same certificate as every other path."""
    dense = task.operator.dense()
    left, values, turned = torch.linalg.svd(dense, full_matrices=False)
    right = turned.T
    ritz = RitzTriplets(
        left, values, right, dense.T @ left - right * values, (dense @ right - left * values).norm(dim=0)
    )
    residuals = task.residuals(ritz)
    certificate = certify_window(task.operator, ritz, residuals, 0.0, "complete")
    return _finish(task, ritz, "svd", certificate), _Basis(right, values.square())


def _is_converged(task: _Task, ritz: RitzTriplets, residuals: Residuals) -> bool:
    """Whether the residual of the top k is small enough, or about as small as float64 makes it."""
    if residuals.top <= 2 * residuals.slack:
        return True
    sine = _assumed(task, ritz, residuals).sine
    if task.accuracy == "certified":
        return sine <= 0.9 * CERTIFIED_SINE
    largest = float(ritz.values[0])
    gap = float(ritz.values[task.k - 1] - ritz.values[task.k]) if task.k < ritz.values.numel() else largest
    typical = math.sqrt(largest * float(ritz.values[task.k - 1]))
    wanted = max(FAST_SINE * typical, FAST_SINE_AT_WIDE_GAP * gap)
    return sine * gap <= wanted and residuals.top <= FAST_RESIDUAL * largest


def _assumed(task: _Task, ritz: RitzTriplets, residuals: Residuals) -> Certificate:
    """What the residual says if all of W outside the window lies below the window's last value.

    For 'certified', where it only foretells the proof, below the threshold that the proof tries first.
    """
    whole = ritz.values.numel() == task.operator.n
    mu_squared = 0.0 if whole else float(ritz.values[-1]) ** 2
    if task.accuracy == "certified" and not whole:
        mu_squared = (mu_squared + float(ritz.values[task.k]) ** 2) / 2
    return certify_window(task.operator, ritz, residuals, mu_squared, "complete" if whole else "assumed")


def _by_weyl(base: BaseDecomposition, task: _Task, found: Polished) -> Certificate | None:
    """The free proof, where it places σ_{k+1} so far below σ̂_k that the accuracy is reached."""
    if not base.leading.certificate.proved:
        return None
    known = base.leading.certificate.upper / task.operator.unit
    distance = _distance_within(
        base.operator, task.operator.stored, float(found.ritz.values[task.k - 1] - known[-1])
    )
    if distance is None:
        return None
    upper = weyl_upper(known, distance)
    certificate = certify(task.operator, found.ritz, found.residuals, upper, "weyl")
    wanted = CERTIFIED_SINE if task.accuracy == "certified" else 1.0
    return certificate if certificate.sine < wanted else None


def _distance_within(operator: WeightOperator, other: Tensor, room: float) -> float | None:
    """‖W − other‖_F, or None as soon as some blocks of rows alone show that there is no room for it.

    Most updates are far larger than a gap, which the first block tells.
    """
    total, height = 0.0, max(1, TILE // operator.stored.shape[1])
    for top in range(0, operator.stored.shape[0], height):
        rows = slice(top, top + height)
        total += replace(operator, stored=operator.stored[rows]).distance(other[rows]) ** 2
        if not total < max(room, 0.0) ** 2:
            return None
    return math.sqrt(total)


def _certificate(task: _Task, found: Polished) -> Certificate:
    """Proved by Cholesky for 'certified', proof 'none' where that fails; on assumption for 'fast'."""
    ritz, residuals = found.ritz, found.residuals
    if task.accuracy == "fast":
        return _assumed(task, ritz, residuals)
    mu_squared = prove_by_cholesky(task.operator, ritz, residuals)
    if mu_squared is None:
        nothing = torch.full_like(residuals.tail, task.norm * (1 + 1e-9))
        return certify(task.operator, ritz, residuals, nothing, "none")
    return certify_window(task.operator, ritz, residuals, mu_squared, "cholesky")


def _finish(task: _Task, ritz: RitzTriplets, path: str, certificate: Certificate) -> LeadingSpectrum:
    """Cut to k, turn to the stored orientation, give back the weight's unit."""
    k, unit = task.k, task.operator.unit
    sides = tuple(
        side[:, :k].clone(memory_format=torch.contiguous_format) for side in (ritz.left, ritz.right)
    )
    sines = certificate.left, certificate.right
    if task.operator.transposed:
        sides, sines = sides[::-1], sines[::-1]
    return LeadingSpectrum(
        values=ritz.values[:k] * unit,
        left=sides[0],
        right=sides[1],
        next_value=float(ritz.values[k]) * unit if k < ritz.values.numel() else 0.0,
        k=k,
        requested=task.requested,
        accuracy=task.accuracy,
        path=path,
        certificate=replace(
            certificate,
            values=certificate.values * unit,
            upper=certificate.upper * unit,
            residual=certificate.residual * unit,
            left=sines[0],
            right=sines[1],
        ),
    )
