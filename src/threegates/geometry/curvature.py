"""Curvature along directions: products with the Hessian and the Fisher matrix, neither ever made.

A point maps the names of parameters to tensors; a direction maps the same names, or some of them, to tensors
of the same shapes, and is zero in the others. A loss's Hessian H and Fisher matrix F are taken with respect
to all of the point's entries, in the point's dtype. The loss's unit is the user's (nats, as a rule); vᵀHv has
that unit, vᵀHv/‖v‖² that unit per squared unit of the parameters.

Attention runs as plain products here: torch's fused kernels have no second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from threegates.errors import GeometryError
from threegates.geometry.directions import frobenius_norm

Point = Mapping[str, Tensor]
"""Floating parameters by name."""

Direction = Mapping[str, Tensor]
"""A displacement of some parameters, by name; a name that is missing stays where it is."""

PIECE = 1 << 16
"""Parameters taken at a time into a Gram matrix: scores are never copied whole to float64."""


class HessianProducts:
    """A scalar loss's gradient g at a point, its graph kept, so that each product Hv costs one backward pass.

    The graph of g stays in memory as long as the object lives: several times a plain backward pass's.
    Products are made in the point's dtype; sums over parameters in float64.

    Parameters
    ----------
    loss : from a point to a scalar that depends on it through differentiable operators; called once.
    point : where to differentiate; its own tensors get no gradient.

    Raises
    ------
    GeometryError : the point is empty or not floating; the loss is no scalar, not finite, or knows nothing of
        the point.

    **Source** Pearlmutter (1994), by double backward.
    """

    def __init__(self, loss: Callable[[dict[str, Tensor]], Tensor], point: Point) -> None:
        self._leaves = _leaves(point)
        with torch.enable_grad(), _differentiable_attention():
            value = loss(dict(self._leaves))
            _require_scalar(value)
            gradients = torch.autograd.grad(
                value, list(self._leaves.values()), create_graph=True, materialize_grads=True
            )
        self.value = float(value.detach())
        self._gradients = dict(zip(self._leaves, gradients, strict=True))

    @property
    def gradient(self) -> dict[str, Tensor]:
        """g by name, in the point's shapes and dtype."""
        return {name: gradient.detach() for name, gradient in self._gradients.items()}

    @property
    def gradient_norm(self) -> float:
        """‖g‖ over all parameters, in float64."""
        return _norm(self.gradient)

    def product(self, direction: Direction) -> dict[str, Tensor]:
        """Hv for every name of the point, in its shapes and dtype.

        Raises
        ------
        GeometryError : the direction has unknown names, wrong shapes, NaN or infinity.
        """
        return self._product(_aligned(direction, self._leaves), list(self._leaves))

    def quadratic(self, direction: Direction) -> float:
        """vᵀHv: twice the loss's second-order change along v. Errors as `product`."""
        aligned = _aligned(direction, self._leaves)
        return _inner(aligned, self._product(aligned, list(aligned)))

    def rayleigh(self, direction: Direction) -> float:
        """vᵀHv/‖v‖²: the curvature along v, whatever its length; between H's extreme eigenvalues.

        Raises
        ------
        GeometryError : as `product`; the direction is zero.

        **Source** Golub and Van Loan (2013), §8.1.
        """
        unit = _unit(direction, self._leaves)
        return self.quadratic(unit) / _inner(unit, unit)

    def slope(self, direction: Direction) -> float:
        """g · v: the loss's first-order change along v. Errors as `product`."""
        return _inner(_aligned(direction, self._leaves), self.gradient)

    def _product(self, direction: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        # A gradient without a graph is constant: its rows of the Hessian are zero.
        moved = [name for name in direction if self._gradients[name].requires_grad]
        if not moved:
            return {name: torch.zeros_like(self._leaves[name]) for name in names}
        products = torch.autograd.grad(
            [self._gradients[name] for name in moved],
            [self._leaves[name] for name in names],
            [direction[name] for name in moved],
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(names, products, strict=True))


def hessian_product(
    loss: Callable[[dict[str, Tensor]], Tensor], point: Point, direction: Direction
) -> dict[str, Tensor]:
    """Hv of a scalar loss at a point: {name: tensor} in the point's names, shapes and dtype.

    For several directions at one point, `HessianProducts` builds the gradient's graph once.

    Raises
    ------
    GeometryError : as `HessianProducts` and its `product`.

    **Source** Pearlmutter (1994).
    """
    return HessianProducts(loss, point).product(direction)


def quadratic_many(
    loss: Callable[[dict[str, Tensor]], Tensor], point: Point, directions: Mapping[str, Direction]
) -> dict[str, float]:
    """Curvature along each named direction, per unit of squared norm: vᵀHv/‖v‖².

    Raises
    ------
    GeometryError : as `HessianProducts`; a direction, named in the message, is zero, not finite, or has names
        or shapes that the point has not. Directions are checked before the loss is called.

    **Source** Pearlmutter (1994); the Rayleigh quotient, Golub and Van Loan (2013), §8.1.
    """
    leaves = _leaves(point)
    for label, direction in directions.items():
        _unit(direction, leaves, label)
    if not directions:
        return {}
    products = HessianProducts(loss, point)
    return {label: products.rayleigh(direction) for label, direction in directions.items()}


def fisher_quadratic(
    log_probs: Callable[[dict[str, Tensor]], Tensor], point: Point, direction: Direction
) -> float:
    """vᵀFv of the true Fisher matrix, per position: mean over positions of Var_{c∼p}[∇log p(c) · v].

    Classes are drawn from the model, not from data, and all of them are summed: no sampling, no labels. One
    forward-mode product gives Jv; where an operator has no forward mode, two backward passes do. For
    cross-entropy F is also the generalised Gauss–Newton matrix, and KL(p_θ ‖ p_{θ+εv}) = ε²/2 · vᵀFv + O(ε³)
    per position, in nats.

    Parameters
    ----------
    log_probs : from a point to (positions, classes) normalised log-probabilities, as log_softmax gives them;
        −∞ for an impossible class is allowed.

    Returns
    -------
    float ≥ 0, means and sums in float64. Other than `quadratic_many` it is not divided by ‖v‖².

    Raises
    ------
    GeometryError : the point is empty or not floating; the direction has unknown names, wrong shapes, NaN or
        infinity; log_probs gives another shape, no position, or rows whose probabilities do not sum to 1.

    **Source** Martens (2014); Schraudolph (2002); forward over two backward passes after Townsend (2017).
    """
    leaves = _leaves(point)
    values, tangent = _directional(log_probs, leaves, _aligned(direction, leaves))
    p, t = values.to(torch.float64).exp(), tangent.to(torch.float64)
    t = torch.where(p > 0, t, 0)
    centred = t - (p * t).sum(-1, keepdim=True)
    return float((p * centred.square()).sum(-1).mean())


def empirical_fisher_eigenvalues(scores: Float[Tensor, "n parameters"]) -> Float64[Tensor, " rank"]:
    """Nonzero eigenvalues, ascending, of the empirical Fisher matrix (1/n) Σᵢ gᵢgᵢᵀ of n samples' scores gᵢ.

    The n × n Gram matrix (1/n) GGᵀ, made in float64, has the same ones. Eigenvalues up to n · ε · largest,
    with float64's ε, are rounding and dropped: at most n remain, none for zero scores.

    Parameters
    ----------
    scores : gradients of the samples' log-likelihoods, a row each; their squares must not overflow float64.

    Raises
    ------
    GeometryError : there is no sample or no parameter; a score is NaN or infinite.

    **Source** Kunstner et al. (2019) for the matrix; Golub and Van Loan (2013), §8.6, for GGᵀ and GᵀG.
    """
    if not scores.numel():
        raise GeometryError("no scores", expected="(samples, parameters)", found=tuple(scores.shape))
    if not bool(scores.isfinite().all()):
        raise GeometryError("a score is NaN or infinite", remedy="look at the losses it was taken from")
    n = len(scores)
    gram = torch.zeros(n, n, dtype=torch.float64, device=scores.device)
    for piece in scores.detach().split(PIECE, dim=1):
        wide = piece.to(torch.float64)
        gram.addmm_(wide, wide.T, alpha=1 / n)
    values = torch.linalg.eigvalsh(gram)
    return values[values > n * torch.finfo(torch.float64).eps * values[-1].clamp(min=0)]


# --- points and directions


def _leaves(point: Point) -> dict[str, Tensor]:
    """The point as leaves of a new graph, sharing memory with it."""
    if not point:
        raise GeometryError("a point without parameters", expected="floating tensors by name")
    for name, value in point.items():
        if not value.is_floating_point():
            raise GeometryError(
                "a parameter is not differentiable", where=name, expected="floating", found=value.dtype
            )
    return {name: value.detach().requires_grad_() for name, value in point.items()}


def _aligned(
    direction: Direction, leaves: Mapping[str, Tensor], label: str | None = None
) -> dict[str, Tensor]:
    """The direction in the point's dtypes and devices; an error where it does not fit."""
    if unknown := sorted(direction.keys() - leaves.keys()):
        raise GeometryError(
            "a direction moves what the point does not have",
            where=label,
            expected=f"some of its {len(leaves)} names",
            found=", ".join(unknown[:5]),
            remedy="take points and directions from one model",
        )
    for name, value in direction.items():
        where = name if label is None else f"{label}: {name}"
        if value.shape != leaves[name].shape:
            expected, found = tuple(leaves[name].shape), tuple(value.shape)
            raise GeometryError(
                "a direction has another shape than the point", where=where, expected=expected, found=found
            )
        if not bool(value.isfinite().all()):
            raise GeometryError("a direction holds NaN or infinity", where=where, expected="finite entries")
    return {name: value.detach().to(leaves[name]) for name, value in direction.items()}


def _unit(direction: Direction, leaves: Mapping[str, Tensor], label: str | None = None) -> dict[str, Tensor]:
    """The direction at norm 1 before its dtype becomes the point's: no square vanishes or overflows there."""
    _aligned(direction, leaves, label)
    norm = _norm(direction)
    if not norm:
        raise GeometryError(
            "a zero direction has no curvature", where=label, expected="a norm > 0", found=norm
        )
    scaled = {name: value.detach().to(torch.float64) / norm for name, value in direction.items()}
    return _aligned(scaled, leaves, label)


def _norm(vector: Direction) -> float:
    return math.hypot(*(frobenius_norm(value) for value in vector.values()))


def _inner(left: Direction, right: Direction) -> float:
    """Inner product in float64 over the left one's names."""
    pairs = ((value, right[name]) for name, value in left.items())
    return math.fsum(float((a.to(torch.float64) * b.to(torch.float64)).sum()) for a, b in pairs)


# --- derivatives


def _differentiable_attention() -> AbstractContextManager[None]:
    """Attention by plain products: the fused kernels have neither forward mode nor double backward."""
    return sdpa_kernel(SDPBackend.MATH)


def _require_scalar(value: Tensor) -> None:
    if value.numel() != 1 or not bool(value.isfinite().all()):
        found = float(value.detach()) if value.numel() == 1 else f"shape {tuple(value.shape)}"
        raise GeometryError("a loss is one finite number", expected="a scalar", found=found)
    if not value.requires_grad:
        raise GeometryError(
            "the loss does not depend on the point",
            expected="a differentiable function of the tensors it is given",
            remedy="use the given tensors, and neither detach nor no_grad inside",
        )


def _directional(
    function: Callable[[dict[str, Tensor]], Tensor], leaves: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """log-probabilities and their derivative along the direction, (positions, classes) each."""
    with _differentiable_attention():
        try:
            return _forward_product(function, leaves, direction)
        except NotImplementedError:
            return _double_backward_product(function, leaves, direction)


def _forward_product(
    function: Callable[[dict[str, Tensor]], Tensor], leaves: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f and Jv in one forward pass of dual numbers; NotImplementedError where an operator knows none."""
    plain = {name: leaf.detach() for name, leaf in leaves.items()}
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(plain[name], value) for name, value in direction.items()}
        values, tangent = forward_ad.unpack_dual(function({**plain, **duals}))
        _require_log_probabilities(values)
        return values, torch.zeros_like(values) if tangent is None else tangent


def _double_backward_product(
    function: Callable[[dict[str, Tensor]], Tensor], leaves: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f and Jv as the derivative of u ↦ uᵀJv, which is linear in u: two backward passes."""
    moved = [leaves[name] for name in direction]
    with torch.enable_grad():
        values = function(dict(leaves))
        _require_log_probabilities(values)
        probe = torch.zeros_like(values, requires_grad=True)
        pulled = torch.autograd.grad(values, moved, probe, create_graph=True, materialize_grads=True)
        pairs = [(g, v) for g, v in zip(pulled, direction.values(), strict=True) if g.requires_grad]
        if not pairs:
            return values.detach(), torch.zeros_like(values)
        (tangent,) = torch.autograd.grad(
            [g for g, _ in pairs], probe, [v for _, v in pairs], materialize_grads=True
        )
    return values.detach(), tangent


def _require_log_probabilities(values: Tensor) -> None:
    if values.ndim != 2 or not values.numel():
        raise GeometryError(
            "not a table of log-probabilities",
            expected="(positions, classes), neither of them 0",
            found=tuple(values.shape),
        )
    error = float(values.detach().to(torch.float64).logsumexp(-1).abs().max())
    # The square root of ε is far above what log_softmax leaves and far below what logits are off by.
    if not error <= math.sqrt(torch.finfo(values.dtype).eps):
        raise GeometryError(
            "probabilities of a position do not sum to 1",
            expected="log_softmax over classes",
            found=f"a sum whose logarithm is {error:.3g}",
            remedy="pass log-probabilities, not logits",
        )
