"""Proofs about approximate singular triplets: bounds on values and subspaces that hold, rounding included.

Let V (n × q) and U (m × q) be orthonormal with W V = U Σ̂ and Wᵀ U = V Σ̂ + R. If ‖W x‖ ≤ μ‖x‖ is proved
for every x orthogonal to V, then σ_i ≤ the norm of a 2 × 2 matrix (`upper_values`), hence σ_{k+1} ≤ α, and
the two residual equations, times the exact complement of the top k, bound both subspaces (`subspace_sines`).
All scalars are float64; deviations of U and V from orthonormality, and of W V from U Σ̂, are added as slack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from threegates.geometry.operators import WeightOperator

UNIT_ROUNDOFF = 2.0**-53
FLOAT32_ROUNDOFF = 2.0**-24
INFLATION = 1 + 1e-12
"""Factor that covers the rounding of the few scalar operations after a bound is formed."""

OCTAVES = 12
"""Blocks into which columns are sorted by their distance to the complement, at most, less one."""

PROVED = ("weyl", "cholesky", "complete")
"""Proofs that the found values are *the* largest ones; "assumed" and "none" are not among them."""


@dataclass(frozen=True)
class RitzTriplets:
    """Approximate singular triplets, values descending: left (m, q), values (q,), right (n, q).

    right_residual : Wᵀ left − right · values, (n, q). left_residual : (q,), the column norms of
    W right − left · values. Vectors and right_residual are float64 or float32, the rest is float64.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    right_residual: Tensor
    left_residual: Tensor


@dataclass(frozen=True)
class Residuals:
    """Upper bounds of residual norms.

    right, left : of R and of W V − U Σ̂, the first k columns together. right_columns, left_columns : (k,), one
    by one. slack, slack_column : the parts of these that are rounding, which no iteration reduces. tail :
    (k + 1,), of the columns of R from i on. left_tail : of all of W V − U Σ̂. norm : ‖W‖_F.
    """

    right: float
    left: float
    right_columns: Tensor
    left_columns: Tensor
    slack: float
    slack_column: float
    tail: Tensor
    left_tail: float
    coupling: Tensor
    coupling_tail: float
    rows: int
    norm: float

    @property
    def top(self) -> float:
        """η, the larger residual of the top k."""
        return max(self.right, self.left)

    def joint_coupling(self, values: Tensor, start: int, stop: int) -> float:
        """Bound of ‖R Σ̂‖₂, these columns together, `values` being Σ̂."""
        rounded = self.slack_column * float(values[start:stop].norm()) * INFLATION
        return _spectral(self.coupling[start:stop, start:stop], self.rows) + rounded


@dataclass(frozen=True)
class Certificate:
    """What is known of the top k: each entry bounds the distance to the exact value or subspace.

    values : (k,), |σ_i − σ̂_i|. right, left : (k,), sin of the largest angle between the found and the exact
    subspace of the first 1 … k right or left vectors, 1 where nothing is known. upper : (k + 1,), of σ_1 …
    σ_{k+1}. residual : η of the top k. floor : the part of the sines at k that is rounding alone.
    proof : 'complete' (all n directions were examined), 'cholesky' or 'weyl'; 'assumed' where the complement
    was taken to lie below the last Ritz value, unproved; 'none' where the proof was tried and failed.
    """

    values: Tensor
    right: Tensor
    left: Tensor
    upper: Tensor
    residual: float
    floor: float
    proof: str

    @property
    def proved(self) -> bool:
        """Whether the bounds are theorems."""
        return self.proof in PROVED

    @property
    def sine(self) -> float:
        """The larger of both sines at k."""
        return max(float(self.right[-1]), float(self.left[-1]))


def rounding(n: int) -> float:
    """γ_n = n u/(1 − n u), u = 2⁻⁵³: relative error of a float64 sum of n products, in any order.

    **Source** Higham (2002), Lemma 3.1 and §3.5.
    """
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def orthonormality_defect(q: Float64[Tensor, "rows columns"]) -> float:
    """Upper bound of the distance from q to the nearest orthonormal matrix, ≤ ‖qᵀq − I‖_F.

    **Source** Higham (2008), Lemma 8.17: ‖Q − polar(Q)‖ ≤ ‖QᵀQ − I‖.
    """
    return orthonormality_defects(q, [q.shape[1]])[0]


def orthonormality_defects(q: Float64[Tensor, "rows columns"], counts: Sequence[int]) -> list[float]:
    """`orthonormality_defect` of the first columns, for several counts of them at the price of one.

    **Source** as `orthonormality_defect`.
    """
    error = -torch.eye(q.shape[1], dtype=q.dtype, device=q.device)
    # Short sums, then the sum of these: a worst case of 256 + rows/256 roundings instead of as many as rows.
    chunks = q.split(256)
    for chunk in chunks:
        error.addmm_(chunk.T, chunk)
    relative = rounding(min(256, q.shape[0]) + len(chunks) + 2) * 1.001
    return [float(error[:count, :count].norm()) + relative * count for count in counts]


def residual_bounds(operator: WeightOperator, ritz: RitzTriplets, k: int, norm: float) -> Residuals:
    """Bound the residual norms of Ritz triplets, with all rounding.

    A computed product W Q errs by at most γ ‖W‖_F √q, and so do the products with the q × q rotation that
    follow; replacing U and V by the nearest orthonormal matrices moves a residual by (ω_u + ω_v)‖W‖_F.

    **Source** Higham (2002), §3.5.
    """
    q = ritz.values.numel()
    sides = (orthonormality_defects(side, [k, q]) for side in (ritz.left, ritz.right))
    defect_k, defect_q = (sum(pair) * norm for pair in zip(*sides, strict=True))
    product = (2 * rounding(operator.m + 3) + rounding(q + 3) * (2 + math.sqrt(q))) * norm * INFLATION
    column, column_of_all = defect_k + product, defect_q + product
    slack = defect_k + product * math.sqrt(k)
    gram = ritz.right_residual.T @ ritz.right_residual
    scaled = gram * ritz.values * ritz.values[:, None]
    squares, left_squares = ritz.right_residual.square().sum(0), ritz.left_residual.square()
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0).sqrt(), squares.new_zeros(1)])[: k + 1]
    after = ritz.values[k:]
    return Residuals(
        right=_spectral(gram[:k, :k], operator.n) + slack,
        left=math.sqrt(float(left_squares[:k].sum())) * INFLATION + slack,
        right_columns=squares[:k].sqrt() * INFLATION + column,
        left_columns=left_squares[:k].sqrt() * INFLATION + column,
        slack=slack,
        slack_column=column,
        tail=tail * INFLATION + (defect_q + product * math.sqrt(q)),
        left_tail=math.sqrt(float(left_squares.sum())) * INFLATION + (defect_q + product * math.sqrt(q)),
        coupling=scaled[:k, :k],
        coupling_tail=_spectral(scaled[k:, k:], operator.n) + column_of_all * float(after.norm()) * INFLATION,
        rows=operator.n,
        norm=norm,
    )


def observed_residuals(operator: WeightOperator, ritz: RitzTriplets, k: int, norm: float) -> Residuals:
    """Residual norms of float32 triplets as they were found: no theorem, for float32 has no useful one.

    They tell how far the iteration has converged. What float32 rounding hides is left out (`with_rounding`).

    **Source** as `residual_bounds`.
    """
    gram = (ritz.right_residual.T @ ritz.right_residual).to(torch.float64)
    scaled = gram * ritz.values * ritz.values[:, None]
    squares = gram.diagonal()
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0).sqrt(), squares.new_zeros(1)])[: k + 1]
    return Residuals(
        right=_spectral(gram[:k, :k], operator.n),
        left=0.0,
        right_columns=squares[:k].sqrt(),
        left_columns=torch.zeros_like(squares[:k]),
        slack=0.0,
        slack_column=0.0,
        tail=tail,
        left_tail=0.0,
        coupling=scaled[:k, :k],
        coupling_tail=_spectral(scaled[k:, k:], operator.n),
        rows=operator.n,
        norm=norm,
    )


def with_rounding(found: Residuals, ritz: RitzTriplets) -> Residuals:
    """`observed_residuals`, and an estimate of what float32 rounding hides from them.

    W V − U Σ̂ is 0 by construction, but W V itself was rounded: it is taken to have erred as much as Wᵀ U,
    whose rounding shows in R. Deviations D of VᵀV and UᵀU from I turn the vectors within their span by at
    most ½(D_v Σ̂ + Σ̂ D_u), and storing them in float32 turns each by at most u.

    **Source** this study; tests hold the bounds that follow against float64 SVDs.
    """
    k = found.right_columns.numel()
    right, left = (_defect_columns(side, ritz.values) for side in (ritz.right, ritz.left))
    hidden = (right + left) / 2 + FLOAT32_ROUNDOFF * ritz.values
    columns, whole = found.right_columns + hidden[:k], float(hidden.norm())
    rounded = float(found.tail[0]) + whole
    return replace(
        found,
        right=found.right + whole,
        left=found.right + whole,
        right_columns=columns,
        left_columns=columns,
        slack=whole,
        slack_column=float(hidden.max()),
        left_tail=rounded,
    )


def _defect_columns(side: Tensor, values: Tensor) -> Tensor:
    """Column norms of D Σ̂ or Σ̂ D, whichever is larger, D = sideᵀ side − I."""
    defect = (side.T @ side).to(torch.float64)
    defect.diagonal().sub_(1.0)
    return torch.maximum(defect.norm(dim=0) * values, (defect * values[:, None]).norm(dim=0))


def _spectral(gram: Float64[Tensor, "columns columns"], rows: int) -> float:
    """Upper bound of ‖A‖₂ from a computed Gram matrix AᵀA, A of so many rows.

    The computed square errs by some γ of ‖A‖_F², which is the trace and bounds it too.
    """
    columns = len(gram)
    if not columns:
        return 0.0
    trace = float(gram.diagonal().sum())
    blur = 2 * rounding(rows + 10 * columns) * trace
    largest = max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0)
    return min(math.sqrt(largest + blur), math.sqrt(trace * (1 + 2 * rounding(rows + columns)))) * INFLATION


def upper_values(
    values: Float64[Tensor, " k1"], coupling: Float64[Tensor, " k1"] | float, mu_squared: float
) -> Float64[Tensor, " k1"]:
    """Upper bounds of σ_i from Ritz values σ̂_i, residual b_i of columns i … q, and μ of the rest.

    σ_i² ≤ λ_max[[σ̂_i², σ̂_i b_i], [σ̂_i b_i, μ²]] = (σ̂_i² + μ²)/2 + √(((σ̂_i² − μ²)/2)² + σ̂_i² b_i²): W
    without its first i − 1 Ritz vectors has a Gram matrix whose blocks have at most these norms.

    **Source** Courant and Fischer; norms of block matrices: Horn and Johnson (2013), §7.3 and 5.6.P.
    """
    squares = values.square()
    half = (squares - mu_squared) / 2
    root = (half.square() + squares * coupling**2).sqrt()
    return ((squares + mu_squared) / 2 + root).sqrt() * INFLATION


def subspace_sines(
    values: Float64[Tensor, " k"],
    beyond: Float64[Tensor, " k"],
    right: Float64[Tensor, " k"],
    left: Float64[Tensor, " k"],
) -> tuple[Float64[Tensor, " k"], Float64[Tensor, " k"]]:
    """Bounds (right, left) on sin Θ of the subspaces of the first 1 … k triplets, from residuals by column.

    Of column c, the parts outside the exact subspace of the first j are x_V ≤ (η σ̂_c + α η')/(σ̂_c² − α²) and
    x_U ≤ (η' σ̂_c + α η)/(σ̂_c² − α²), α = `beyond`_j ≥ the exact σ_{j+1}, η and η' the column's residuals in
    Wᵀ U − V Σ̂ and W V − U Σ̂; the sine is at most their Euclidean norm over c ≤ j. 1 where α ≥ σ̂_j.

    **Source** Wedin (1972), with his two inequalities solved together, and column by column.
    """
    alpha = beyond[:, None]
    gap = (values - alpha) * (values + alpha)
    within = torch.ones_like(gap).tril()
    safe = torch.where(gap > 0, gap, 1.0)
    sines = []
    for own, other in ((right, left), (left, right)):
        parts = (own * values + alpha * other) / safe * within
        sines.append(torch.where(gap.diagonal() > 0, parts.norm(dim=1) * INFLATION, 1.0).clamp(max=1.0))
    return sines[0], sines[1]


def _joint_sine(value: float, alpha: float, own: float, other: float) -> float:
    """The same for all k columns together, from the spectral norms of the residuals."""
    gap = (value - alpha) * (value + alpha)
    return min(1.0, (own * value + alpha * other) / gap * INFLATION) if gap > 0 else 1.0


def window_sines(
    values: Float64[Tensor, " k1"], beyond: Float64[Tensor, " k"], residuals: Residuals, mu_squared: float
) -> Float64[Tensor, " k"]:
    """Bounds on sin Θ of the right subspaces, knowing that the residual lies outside the window of q vectors.

    In the basis (V_j, V_{j+1…q}, V_⊥) the Gram matrix is [[Σ_j², 0, E₁], [0, Σ_r², E₂], [·, ·, D]], D ≤ μ².
    The block rows of G X = X Λ for the exact X give ‖X₂‖ ≤ ‖E₂‖‖X₃‖/gap and ‖X₃‖ ≤ ‖E₁‖/(Gap − ‖E₂‖²/gap),
    with gap = σ̂_j² − σ̂_{j+1}² and the far larger Gap = σ̂_j² − μ²; sin Θ = ‖(X₂, X₃)‖. That W V is not quite
    U Σ̂ adds ‖W V − U Σ̂‖/(σ̂_j − α) (Wedin). `_column_sines` then sharpens the bound.

    **Source** Nakatsukasa (2020), "Sharp error bounds for Ritz vectors", carried over to subspaces.
    """
    squares = values.square()
    first = (residuals.right_columns.square() * squares[:-1]).cumsum(0).sqrt()
    second = (residuals.tail * values)[1:]
    gap = (values[:-1] - values[1:]) * (values[:-1] + values[1:])
    wide = squares[:-1] - mu_squared - second.square() / torch.where(gap > 0, gap, 1.0)
    linear = values[:-1] - beyond
    valid = (gap > 0) & (wide > 0) & (linear > 0)
    sines = torch.where(valid, first / wide * (1 + (second / gap).square()).sqrt(), 1.0).clamp(max=1.0)
    sines = torch.minimum(sines, _column_sines(values, residuals, mu_squared, first, second, sines))
    return torch.where(valid, (sines + residuals.left_tail / linear) * INFLATION, 1.0).clamp(max=1.0)


def _block_sine(values: Tensor, alpha: float, residuals: Residuals, mu_squared: float, sine: float) -> float:
    """`_column_sines` at k, for blocks of columns of similar gap instead of single ones.

    Both equations of T hold for a block of columns as they do for one, σ̂_c² being its smallest; the norms are
    spectral, so many columns of residuals in all directions count little more than one of them.
    """
    squares, k = values.square(), len(values) - 1
    wide, gaps = squares[:-1] - mu_squared, squares[:-1] - squares[-1]
    linear = float(values[k - 1]) - alpha
    if not (float(wide[-1]) > 0 and float(gaps[-1]) > 0 and linear > 0 and sine < 1):
        return 1.0
    # A block ends where the distance to the complement has doubled.
    octaves = (wide / wide[-1]).log2().floor().clamp(min=0.0, max=OCTAVES)
    stops = [*(torch.nonzero(octaves.diff()).flatten() + 1).tolist(), k]
    second = residuals.coupling_tail
    feedback = sine / math.sqrt(1 - sine**2) * residuals.joint_coupling(values, 0, k)
    push, total = second + feedback, 0.0
    for start, stop in zip([0, *stops], stops, strict=False):
        gap = float(gaps[stop - 1])
        room = float(wide[stop - 1]) - second * push / gap - feedback
        if not room > 0:
            return 1.0
        total += (residuals.joint_coupling(values, start, stop) / room * math.hypot(1.0, push / gap)) ** 2
    return min(1.0, (math.sqrt(total) + residuals.left_tail / linear) * INFLATION)


def _column_sines(
    values: Tensor, residuals: Residuals, mu_squared: float, first: Tensor, second: Tensor, sines: Tensor
) -> Tensor:
    """From a first bound τ on tan Θ to a better one, each column with its own gaps.

    The columns of T = (X₂, X₃) X₁⁻¹ obey (σ̂_c² − D) t₃ = e_c + E₂ᵀ t₂ − T₃ E₁ t₃ and (σ̂_c² − Σ_r²) t₂ =
    E₂ t₃ − T₂ E₁ t₃; in both, the last term is at most τ ‖E₁‖ ‖t₃‖.
    """
    squares = values.square()
    feedback = (sines / (1 - sines.square()).clamp(min=1e-300).sqrt() * first)[:, None]
    push = second[:, None] + feedback
    within = torch.ones_like(squares[:-1]).diag_embed().cumsum(0) > 0
    gap = squares[:-1] - squares[1:, None]
    gap = torch.where(within & (gap > 0), gap, 1.0)
    wide = squares[:-1] - mu_squared - second[:, None] * push / gap - feedback
    parts = (residuals.right_columns * values[:-1]) / wide * (1 + (push / gap).square()).sqrt()
    valid = ((wide > 0) | ~within).all(1) & (sines < 1)
    return torch.where(valid, torch.where(within, parts, 0.0).norm(dim=1), 1.0)


def certify_window(
    operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals, mu_squared: float, proof: str
) -> Certificate:
    """Bounds from ‖W x‖² ≤ μ²‖x‖² for all x ⊥ V, V the right vectors of all q triplets.

    **Source** `upper_values`, `window_sines`.
    """
    k = residuals.right_columns.numel()
    values = torch.cat([ritz.values, ritz.values.new_zeros(1)])[: k + 1]
    upper = upper_values(values, residuals.tail, mu_squared) + residuals.left_tail
    if k == operator.n:
        upper[-1] = 0.0
    plain = certify(operator, ritz, residuals, upper, proof)
    beyond = plain.upper[1:]
    right = torch.minimum(plain.right, window_sines(values, beyond, residuals, mu_squared))
    right[-1].clamp_(max=_block_sine(values, float(beyond[-1]), residuals, mu_squared, float(right[-1])))
    # W V − U Σ̂ ≈ 0 turns a bound on the right side into one on the left.
    left = (residuals.left_columns.cumsum(0) + beyond * right) / values[:-1].clamp(min=1e-300) * INFLATION
    return replace(plain, right=right, left=torch.minimum(plain.left, left))


def certify(
    operator: WeightOperator,
    ritz: RitzTriplets,
    residuals: Residuals,
    upper: Float64[Tensor, " k1"],
    proof: str,
) -> Certificate:
    """Turn proved upper bounds of σ_1 … σ_{k+1} into bounds on every value and subspace.

    σ_i ≥ σ̂_i − ‖W V − U Σ̂‖ always holds (Cauchy), so the value lies between this and its upper bound.

    **Source** Cauchy's interlacing; `upper_values` and `subspace_sines`.
    """
    k = upper.numel() - 1
    values = ritz.values[:k]
    upper = _sharpen(values, upper, residuals)
    right, left = subspace_sines(values, upper[1:], residuals.right_columns, residuals.left_columns)
    border = float(values[-1]), float(upper[-1])
    right[-1].clamp_(max=_joint_sine(*border, residuals.right, residuals.left))
    left[-1].clamp_(max=_joint_sine(*border, residuals.left, residuals.right))
    if k == operator.n:
        right[-1] = 0.0  # all of the space
    if k == operator.m:
        left[-1] = 0.0
    return Certificate(
        values=(upper[:k] - values).clamp(min=residuals.left),
        right=right,
        left=left,
        upper=upper,
        residual=residuals.top,
        floor=_floor(values, upper, residuals),
        proof=proof,
    )


def _sharpen(values: Tensor, upper: Tensor, residuals: Residuals) -> Tensor:
    """Replace the first k upper bounds by quadratic ones, where the (k + 1)-th proves a gap.

    If σ̂_k − ε > α ≥ σ_{k+1}, Weyl leaves at most ε + α for the block beside the top k, ε the residual.
    """
    alpha = float(upper[-1])
    if not float(values[-1]) - residuals.top > alpha:
        return upper
    beside = ((alpha + residuals.top) ** 2 + residuals.top**2) * INFLATION
    quadratic = upper_values(values, residuals.top, beside) + residuals.left
    return torch.cat([torch.minimum(upper[:-1], quadratic), upper[-1:]])


def _floor(values: Tensor, upper: Tensor, residuals: Residuals) -> float:
    """The sine at k that residuals of rounding alone would give."""
    slack = torch.full_like(values, residuals.slack_column)
    by_column, _ = subspace_sines(values, upper[1:], slack, slack)
    jointly = _joint_sine(float(values[-1]), float(upper[-1]), residuals.slack, residuals.slack)
    return min(float(by_column[-1]), jointly)


def prove_by_cholesky(operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals) -> float | None:
    """A bound ‖W x‖² ≤ μ²‖x‖² for every x ⊥ V, proved by inertia, or None where the proof fails.

    Where s I − WᵀW + V Σ̂² Vᵀ has a Cholesky factor, μ² = s + e holds, with e the sum of all rounding. Tried
    at s between σ̂_{k+1}² and σ̂_q², then just above σ̂_{k+1}².

    **Source** Sylvester's law of inertia; Rump (2006), "Verification of positive definiteness".
    """
    if ritz.values.numel() == operator.n:
        return 0.0
    deflated = ritz.right * ritz.values.square()
    gram = operator.exact_gram.addmm(deflated, ritz.right.T, alpha=-1)
    for shift in _shifts(operator, ritz, residuals):
        if _is_positive_definite(gram, shift):
            return shift + _cholesky_error(operator, ritz, residuals, shift)
    return None


def prove_norm(operator: WeightOperator, square: float) -> float | None:
    """A bound ‖W‖₂² ≤ `square` + e, proved by inertia, or None where the proof fails; e is all rounding.

    **Source** as `prove_by_cholesky`.
    """
    if not _is_positive_definite(operator.exact_gram, square):
        return None
    return square + _inertia_error(operator, operator.norm() ** 2 * 1.001, square, 0, 0.0)


def _shifts(operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals) -> list[float]:
    """Values of s to try: well below σ̂_{k+1}² where the window reaches lower, else just above it."""
    k = residuals.right_columns.numel()
    after, last = float(ritz.values[k]) ** 2, float(ritz.values[-1]) ** 2
    error = _cholesky_error(operator, ritz, residuals, after)
    above = after + 4 * error + 2 * math.sqrt(after) * float(residuals.tail[-1])
    return [(after + last) / 2, above] if after - last > 4 * error else [above]


def _is_positive_definite(gram: Tensor, shift: float) -> bool:
    """Whether shift · I − gram, given by its lower triangle, has a Cholesky factor."""
    shifted = gram.neg()
    shifted.diagonal().add_(shift)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def _cholesky_error(
    operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals, shift: float
) -> float:
    """Norm of all rounding in the Gram matrix, the deflation, the shift and the factor."""
    deflation = float(ritz.values.square().sum()) * 1.001
    return _inertia_error(operator, residuals.norm**2, shift, ritz.values.numel(), deflation)


def _inertia_error(
    operator: WeightOperator, frobenius: float, shift: float, q: int, deflation: float
) -> float:
    """The same from ‖W‖_F² and, of the q deflated directions, the sum of squared values."""
    n = operator.n
    trace = n * shift + frobenius + deflation
    products = rounding(operator.m + 3) * frobenius + rounding(q + 4) * deflation
    sums = 4 * UNIT_ROUNDOFF * trace
    return (products + sums + rounding(n + 2) * trace * 1.001) * INFLATION


def weyl_upper(base: Float64[Tensor, " k1"], distance: float) -> Float64[Tensor, " k1"]:
    """σ_i(W₊) ≤ σ_i(W₀) + ‖ΔW‖: upper bounds of a tuned matrix from bounds of its base.

    **Source** Weyl (1912); Horn and Johnson (2013), Corollary 7.3.5.
    """
    return (base + distance * (1 + 1e-9)) * INFLATION
