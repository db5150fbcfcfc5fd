"""Products with the Hessian and the Fisher matrix: against explicit matrices, differences and divergences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from threegates.errors import GeometryError
from threegates.geometry import curvature
from threegates.geometry.curvature import (
    HessianProducts,
    empirical_fisher_eigenvalues,
    fisher_quadratic,
    hessian_product,
    quadratic_many,
)
from threegates.lab.model import ModelShape, forward, initial_weights


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape))


def like(point: dict, seed: int) -> dict[str, torch.Tensor]:
    """A Gaussian direction of all of a point's parameters."""
    return {name: gaussian(*value.shape, seed=seed + i) for i, (name, value) in enumerate(point.items())}


def flat(vector: dict, point: dict) -> torch.Tensor:
    """A direction as one vector, in the point's order, zeros where it has no entry."""
    return torch.cat([vector.get(name, torch.zeros_like(value)).reshape(-1) for name, value in point.items()])


def moved(point: dict, direction: dict, step: float) -> dict[str, torch.Tensor]:
    return {name: value + step * direction[name] for name, value in point.items()}


INPUTS, LABELS = gaussian(7, 4, seed=90), torch.arange(7) % 3
NET = {"in": gaussian(5, 4, seed=1), "bias": gaussian(5, seed=2), "out": gaussian(3, 5, seed=3)}


def logits(point):
    return torch.tanh(INPUTS.to(point["in"]) @ point["in"].T + point["bias"]) @ point["out"].T


def net_log_probs(point):
    return logits(point).log_softmax(-1)


def net_loss(point):
    return F.nll_loss(net_log_probs(point), LABELS)


def unflatten(vector: torch.Tensor, point: dict) -> dict[str, torch.Tensor]:
    pieces = vector.split([value.numel() for value in point.values()])
    return {name: piece.view_as(point[name]) for name, piece in zip(point, pieces, strict=True)}


def explicit_hessian(loss, point: dict) -> torch.Tensor:
    return torch.autograd.functional.hessian(lambda x: loss(unflatten(x, point)), flat(point, point))


# --- Hessian


@pytest.mark.parametrize("names", [("in", "bias", "out"), ("out",), ("bias", "in"), ()])
def test_products_are_those_of_the_explicit_hessian(names):
    hessian = explicit_hessian(net_loss, NET)
    direction = {name: value for name, value in like(NET, 10).items() if name in names}
    v = flat(direction, NET)
    product = hessian_product(net_loss, NET, direction)
    assert {name: value.shape for name, value in product.items()} == {n: x.shape for n, x in NET.items()}
    assert float((flat(product, NET) - hessian @ v).abs().max()) < 1e-10
    assert HessianProducts(net_loss, NET).quadratic(direction) == pytest.approx(float(v @ hessian @ v), 1e-10)


def test_torch_func_agrees():
    blocks = torch.func.hessian(net_loss)(NET)
    direction = like(NET, 20)
    product = hessian_product(net_loss, NET, direction)
    for name, rows in blocks.items():
        dims = {other: list(range(-direction[other].ndim, 0)) for other in rows}
        expected = sum((rows[other] * direction[other]).sum(dims[other]) for other in rows)
        assert float((product[name] - expected).abs().max()) < 1e-10


def test_one_graph_serves_many_directions():
    calls = []
    products = HessianProducts(lambda point: calls.append(0) or net_loss(point), NET)
    directions = {str(seed): like(NET, seed) for seed in (30, 40, 50)}
    first = {label: products.rayleigh(direction) for label, direction in directions.items()}
    assert len(calls) == 1
    assert first == quadratic_many(net_loss, NET, directions)
    assert first == {label: products.rayleigh(direction) for label, direction in directions.items()}
    assert products.value == pytest.approx(float(net_loss(NET)))


@given(st.integers(0, 50), st.floats(0.01, 10))
def test_a_known_matrix(seed, scale):
    a = gaussian(6, 6, seed=seed)
    matrix, shift, v = a + a.T, gaussian(6, seed=seed + 1), scale * gaussian(6, seed=seed + 2)

    def loss(p):
        x = torch.cat([p["a"], p["b"]])
        return 0.5 * x @ matrix @ x + shift @ x

    x = gaussian(6, seed=seed + 3)
    point, direction = {"a": x[:2], "b": x[2:]}, {"a": v[:2], "b": v[2:]}
    gradient = matrix @ x + shift
    products = HessianProducts(loss, point)
    assert products.quadratic(direction) == pytest.approx(float(v @ matrix @ v), rel=1e-10, abs=1e-10)
    assert products.slope(direction) == pytest.approx(float(gradient @ v), rel=1e-10, abs=1e-10)
    assert products.gradient_norm == pytest.approx(float(gradient.norm()))
    assert torch.allclose(flat(products.gradient, point), gradient)
    rayleigh = quadratic_many(loss, point, {"v": direction})["v"]
    values = torch.linalg.eigvalsh(matrix)
    assert rayleigh == pytest.approx(float(v @ matrix @ v / (v @ v)), rel=1e-9, abs=1e-10)
    assert float(values[0]) - 1e-9 <= rayleigh <= float(values[-1]) + 1e-9


def test_eigenvectors_give_eigenvalues():
    values, vectors = torch.linalg.eigh(explicit_hessian(net_loss, NET))
    directions = {str(i): unflatten(3 * vectors[:, i], NET) for i in range(len(values))}
    found = quadratic_many(net_loss, NET, directions)
    assert list(found.values()) == pytest.approx(values.tolist(), abs=1e-10)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 1e25])
def test_curvature_knows_no_length_in_float32_either(size):
    point = {name: value.float() for name, value in NET.items()}
    direction = like(NET, 60)
    expected = quadratic_many(net_loss, NET, {"v": direction})["v"]
    scaled = {name: size * value for name, value in direction.items()}
    assert quadratic_many(net_loss, point, {"v": scaled})["v"] == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 100))
def test_differences_of_the_loss(seed):
    direction, step = like(NET, seed), 1e-3
    products = HessianProducts(net_loss, NET)
    up, down = (float(net_loss(moved(NET, direction, s))) for s in (step, -step))
    assert products.slope(direction) == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-4)
    second = (up + down - 2 * products.value) / step**2
    assert products.quadratic(direction) == pytest.approx(second, rel=1e-3, abs=1e-3)


def test_dtypes_grad_mode_and_the_point_are_left_alone():
    point = {name: value.float().requires_grad_() for name, value in NET.items()}
    with torch.no_grad():
        product = hessian_product(net_loss, point, like(NET, 70))
    assert {value.dtype for value in product.values()} == {torch.float32}
    assert [value.grad for value in point.values()] == [None] * 3


def test_what_a_loss_is_linear_in_or_ignores_has_no_curvature():
    point = {"a": gaussian(3), "b": gaussian(2), "c": gaussian(4)}
    products = HessianProducts(lambda p: p["a"].sum() + p["b"].square().sum(), point)
    direction = like(point, 5)
    assert products.quadratic({"a": direction["a"], "c": direction["c"]}) == 0
    assert products.quadratic(direction) == pytest.approx(2 * float(direction["b"].square().sum()))
    assert not products.product(direction)["c"].any()
    assert HessianProducts(lambda p: p["a"].sum(), point).product(direction)["a"].tolist() == [0, 0, 0]


# --- Fisher


def per_class_fisher(log_probs, point: dict) -> torch.Tensor:
    """F from its definition: the gradient of every class's log-probability at every position."""
    start = flat(point, point)
    jacobian = torch.autograd.functional.jacobian(lambda x: log_probs(unflatten(x, point)), start)
    p = log_probs(point).exp()
    return sum(p[i, c] * torch.outer(jacobian[i, c], jacobian[i, c]) for i, c in np.ndindex(*p.shape)) / len(
        p
    )


@given(st.integers(0, 100))
def test_the_fisher_form_is_the_sum_over_classes(seed):
    direction = like(NET, seed)
    v = flat(direction, NET)
    expected = float(v @ per_class_fisher(net_log_probs, NET) @ v)
    assert fisher_quadratic(net_log_probs, NET, direction) == pytest.approx(expected, rel=1e-10)
    part = {"out": direction["out"]}
    v = flat(part, NET)
    expected = float(v @ per_class_fisher(net_log_probs, NET) @ v)
    assert fisher_quadratic(net_log_probs, NET, part) == pytest.approx(expected, rel=1e-10)


def test_a_linear_softmax_has_one_curvature():
    # There the Hessian does not know the labels, and is the Fisher and the Gauss–Newton matrix at once.
    point, direction = {"w": gaussian(3, 4, seed=5)}, {"w": gaussian(3, 4, seed=6)}

    def log_probs(p):
        return (INPUTS @ p["w"].T).log_softmax(-1)

    products = HessianProducts(lambda p: F.nll_loss(log_probs(p), LABELS), point)
    assert fisher_quadratic(log_probs, point, direction) == pytest.approx(
        products.quadratic(direction), 1e-10
    )


def test_the_fisher_form_is_that_of_gauss_newton():
    direction = like(NET, 80)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: logits(unflatten(x, NET)).reshape(-1), flat(NET, NET)
    )
    t = (jacobian @ flat(direction, NET)).view(7, 3)
    p = net_log_probs(NET).exp()
    expected = torch.stack([t[i] @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ t[i] for i in range(7)])
    assert fisher_quadratic(net_log_probs, NET, direction) == pytest.approx(float(expected.mean()), rel=1e-10)


class Doubled(torch.autograd.Function):
    """An operator without forward mode: 2x + x²."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x + x * x

    @staticmethod
    def backward(ctx, gradient):
        return (2 + 2 * ctx.saved_tensors[0]) * gradient


def test_two_backward_passes_stand_in_for_forward_mode():
    def through(p, operator):
        return net_log_probs({**p, "in": operator(p["in"])})

    direction = like(NET, 85)
    plain = fisher_quadratic(lambda p: through(p, lambda x: 2 * x + x * x), NET, direction)
    assert fisher_quadratic(lambda p: through(p, Doubled.apply), NET, direction) == pytest.approx(
        plain, 1e-12
    )
    part = {"out": direction["out"]}
    plain = fisher_quadratic(lambda p: through(p, lambda x: 2 * x + x * x), NET, part)
    assert fisher_quadratic(lambda p: through(p, Doubled.apply), NET, part) == pytest.approx(plain, 1e-12)
    leaves = curvature._leaves(NET)
    pairs = zip(
        curvature._forward_product(net_log_probs, leaves, direction),
        curvature._double_backward_product(net_log_probs, leaves, direction),
        strict=True,
    )
    for forward_mode, backward_mode in pairs:
        assert float((forward_mode - backward_mode).abs().max()) < 1e-12


def test_impossible_classes_and_still_directions_add_nothing():
    def masked(p):
        return logits(p).index_fill(1, torch.tensor([1]), -math.inf).log_softmax(-1)

    def pair(p):
        return logits(p)[:, [0, 2]].log_softmax(-1)

    direction = like(NET, 95)
    assert fisher_quadratic(masked, NET, direction) == pytest.approx(fisher_quadratic(pair, NET, direction))
    assert fisher_quadratic(net_log_probs, NET, {}) == 0
    unused, step = {**NET, "unused": gaussian(3)}, {"unused": gaussian(3)}
    assert fisher_quadratic(net_log_probs, unused, step) == 0

    def without_forward_mode(p):
        return net_log_probs({**p, "in": Doubled.apply(p["in"])})

    assert fisher_quadratic(without_forward_mode, unused, step) == 0


# --- models


TINY = ModelShape(vocabulary=11, width=8, layers=2, feed_forward=12, heads=2, kv_heads=1, head_dim=4)


@pytest.fixture(scope="module")
def llama():
    weights = initial_weights(TINY, torch.Generator().manual_seed(3))
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(4))
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[0, :2] = False

    def log_probs(point):
        kept = valid[:, :-1] & valid[:, 1:]
        return forward(point, TINY, tokens[:, :-1], valid[:, :-1])[kept].log_softmax(-1)

    targets = tokens[:, 1:][valid[:, :-1] & valid[:, 1:]]
    return {name: value.double() for name, value in weights.items()}, log_probs, targets


def test_the_loss_of_a_llama_curves_as_its_differences(llama):
    point, log_probs, targets = llama

    def loss(p):
        return F.nll_loss(log_probs(p), targets)

    direction, step = {name: 0.1 * value for name, value in like(point, 7).items()}, 1e-3
    products = HessianProducts(loss, point)
    up, down = (float(loss(moved(point, direction, s))) for s in (step, -step))
    assert products.slope(direction) == pytest.approx((up - down) / (2 * step), rel=1e-4)
    second = (up + down - 2 * products.value) / step**2
    assert products.quadratic(direction) == pytest.approx(second, rel=1e-3)
    single = {name: value.float() for name, value in point.items()}
    assert HessianProducts(loss, single).quadratic(direction) == pytest.approx(second, rel=1e-3)


def test_the_fisher_form_of_a_llama_is_its_divergence(llama):
    point, log_probs, _ = llama
    direction, step = {name: 0.1 * value for name, value in like(point, 8).items()}, 1e-3
    here = log_probs(point)

    def divergence(s):
        return float((here.exp() * (here - log_probs(moved(point, direction, s)))).sum(-1).mean())

    # The mean of both sides has no term of third order.
    expected = (divergence(step) + divergence(-step)) / step**2
    assert fisher_quadratic(log_probs, point, direction) == pytest.approx(expected, rel=1e-3)


def test_fused_attention_is_taken_apart():
    point = {"q": gaussian(2, 5, 4, seed=1), "k": gaussian(2, 5, 4, seed=2), "v": gaussian(2, 5, 4, seed=3)}
    direction = like(point, 4)

    def fused(p):
        mixed = F.scaled_dot_product_attention(p["q"], p["k"], p["v"], is_causal=True)
        return mixed.reshape(10, 4).log_softmax(-1)

    def plain(p):
        future = torch.ones(5, 5, dtype=torch.bool).triu(1)
        scores = (p["q"] @ p["k"].transpose(1, 2) / 2).masked_fill(future, -math.inf)
        return (scores.softmax(-1) @ p["v"]).reshape(10, 4).log_softmax(-1)

    expected = fisher_quadratic(plain, point, direction)
    assert fisher_quadratic(fused, point, direction) == pytest.approx(expected, rel=1e-10)
    one, other = (HessianProducts(lambda p, f=f: f(p)[:, 0].mean(), point) for f in (fused, plain))
    assert one.quadratic(direction) == pytest.approx(other.quadratic(direction), rel=1e-10)


# --- empirical Fisher


@pytest.mark.parametrize("piece", [1 << 16, 3])
@pytest.mark.parametrize(("n", "parameters"), [(5, 12), (12, 5), (1, 4), (6, 1)])
def test_eigenvalues_are_those_of_the_explicit_matrix(monkeypatch, piece, n, parameters):
    monkeypatch.setattr(curvature, "PIECE", piece)
    g = gaussian(n, parameters)
    expected = np.linalg.eigvalsh(g.numpy().T @ g.numpy() / n)[-min(n, parameters) :]
    assert empirical_fisher_eigenvalues(g).tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    single = empirical_fisher_eigenvalues(g.float())
    assert single.dtype == torch.float64
    assert single.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@given(st.integers(1, 6), st.integers(0, 30), st.floats(1e-20, 1e20))
def test_the_rank_is_that_of_the_scores(rank, seed, scale):
    g = scale * gaussian(8, rank, seed=seed) @ gaussian(rank, 20, seed=seed + 1)
    values = empirical_fisher_eigenvalues(g)
    assert len(values) == rank
    assert bool((values > 0).all()) and bool((values.diff() >= 0).all())
    assert float(values.sum()) == pytest.approx(float(g.square().sum()) / 8)


def test_zero_scores_have_no_eigenvalues():
    assert empirical_fisher_eigenvalues(torch.zeros(4, 7)).shape == (0,)


# --- errors


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({"out": torch.zeros(3, 5)}, r"(?s)zero direction.*sideways.*norm > 0"),
        ({}, r"(?s)zero direction.*sideways"),
        (
            {"strange": torch.ones(2), "in": NET["in"]},
            r"(?s)does not have.*sideways.*3 names.*strange.*one model",
        ),
        ({"in": torch.ones(4, 5)}, r"(?s)another shape.*sideways: in.*\(5, 4\).*\(4, 5\)"),
        ({"bias": torch.full((5,), math.nan)}, r"(?s)NaN or infinity.*sideways: bias"),
    ],
)
def test_directions_that_do_not_fit_are_named(direction, message):
    def never(point):
        raise AssertionError("the loss is called after the directions are checked")

    with pytest.raises(GeometryError, match=message):
        quadratic_many(never, NET, {"fine": like(NET, 1), "sideways": direction})
    if direction and bool(next(iter(direction.values())).any()):
        for use in (HessianProducts(net_loss, NET).quadratic, HessianProducts(net_loss, NET).slope):
            with pytest.raises(GeometryError):
                use(direction)
        with pytest.raises(GeometryError):
            fisher_quadratic(net_log_probs, NET, direction)


def test_no_directions_are_no_work():
    assert quadratic_many(net_loss, NET, {}) == {}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p: p["in"], r"(?s)one finite number.*shape \(5, 4\)"),
        (lambda p: p["in"].sum() * math.nan, r"(?s)one finite number.*nan"),
        (lambda p: p["in"].detach().sum(), r"(?s)does not depend.*detach"),
    ],
)
def test_losses_that_have_no_curvature(loss, message):
    with pytest.raises(GeometryError, match=message):
        HessianProducts(loss, NET)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (logits, r"(?s)sum to 1.*log_softmax.*not logits"),
        (lambda p: net_log_probs(p)[0], r"(?s)not a table.*\(3,\)"),
        (lambda p: net_log_probs(p)[:0], r"(?s)not a table.*\(0, 3\)"),
        (lambda p: net_log_probs(p) * math.nan, "sum to 1"),
    ],
)
def test_tables_that_are_no_log_probabilities(log_probs, message):
    with pytest.raises(GeometryError, match=message):
        fisher_quadratic(log_probs, NET, like(NET, 1))


def test_points_and_scores_that_are_none():
    with pytest.raises(GeometryError, match="without parameters"):
        HessianProducts(net_loss, {})
    with pytest.raises(GeometryError, match=r"(?s)not differentiable.*steps.*int64"):
        fisher_quadratic(net_log_probs, {**NET, "steps": torch.arange(3)}, {})
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(GeometryError, match="no scores"):
            empirical_fisher_eigenvalues(torch.zeros(shape))
    with pytest.raises(GeometryError, match="NaN or infinite"):
        empirical_fisher_eigenvalues(torch.tensor([[1.0, math.inf]]))
