"""Norms to a stated accuracy and their proved bounds, against singular values by LAPACK in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry import spectral_norms
from threegates.geometry.certificate import prove_norm
from threegates.geometry.directions import random_frame
from threegates.geometry.operators import weight_operator
from threegates.geometry.spectral_norms import spectral_norm_bound, spectral_norm_within

ROUNDED = 1e-13


@pytest.fixture(autouse=True)
def _iterate_always(monkeypatch):
    monkeypatch.setattr(spectral_norms, "DENSE_SIDE", 0)


@pytest.fixture
def no_other_way(monkeypatch):
    def refuse(matrix):
        raise AssertionError("the slower way was taken")

    monkeypatch.setattr(spectral_norms, "spectral_norm", refuse)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=source, dtype=torch.float64)


def stored_update(rows: int, columns: int) -> torch.Tensor:
    before = (0.02 * gaussian(rows, columns, 1)).bfloat16()
    after = (before.double() + 2e-5 * gaussian(rows, columns, 2)).bfloat16()
    assert 0.05 < float((before != after).double().mean()) < 0.5
    return after.double() - before.double()


UPDATES = {
    "flat": lambda m, n: 1e-4 * gaussian(m, n),
    "of low rank": lambda m, n: gaussian(m, 8, 3) @ gaussian(8, n, 4),
    "of rank one": lambda m, n: gaussian(m, 1, 3) @ gaussian(1, n, 4),
    "sparse bf16": stored_update,
    "one entry": lambda m, n: torch.zeros(m, n, dtype=torch.float64).index_put_(
        (torch.tensor(3), torch.tensor(5)), torch.tensor(-2.0, dtype=torch.float64)
    ),
    "two close values": lambda m, n: (
        random_frame(m, 3, 5) * torch.tensor([1.0, 1 - 1e-5, 0.5]).double() @ random_frame(n, 3, 6).T
    ),
    "all values equal": lambda m, n: (
        random_frame(max(m, n), min(m, n), 7) if m >= n else random_frame(n, m, 7).T
    ),
    "of decaying spectrum": lambda m, n: gaussian(m, n) * torch.arange(1, n + 1).double() ** -0.5,
}


def exact(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.double())[0])


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (320, 320)])
@pytest.mark.parametrize("name", UPDATES)
def test_a_norm_is_within_its_accuracy_from_below_and_its_bound_from_above(name, shape, no_other_way):
    matrix = UPDATES[name](*shape)
    truth = exact(matrix)
    for relative in (1e-3, 1e-6):
        value = spectral_norm_within(matrix, relative, relative)
        assert truth * (1 - relative) <= value <= truth * (1 + ROUNDED)
        bound = spectral_norm_bound(matrix, relative)
        assert truth * (1 - ROUNDED) <= bound <= truth * (1 + 2 * relative)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_neither_type_nor_scale_matters(dtype, scale, no_other_way):
    matrix = (scale * gaussian(90, 70)).to(dtype)
    assert spectral_norm_within(matrix) == pytest.approx(exact(matrix), rel=1e-6)
    assert spectral_norm_bound(matrix) >= exact(matrix) * (1 - ROUNDED)


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    rank=st.integers(0, 6),
    decay=st.sampled_from([0.0, 0.5, 3.0]),
    relative=st.sampled_from([1e-2, 1e-5, 1e-7]),
    exponent=st.sampled_from([-300, -40, 0, 300]),
)
def test_any_small_matrix(rows, columns, rank, decay, relative, exponent):
    weights = torch.arange(1, rank + 1).double() ** -decay
    matrix = 2.0**exponent * ((gaussian(rows, rank, rows) * weights) @ gaussian(rank, columns, columns))
    truth = exact(matrix)
    assert truth * (1 - relative) <= spectral_norm_within(matrix, relative, relative) <= truth * (1 + ROUNDED)
    bound = spectral_norm_bound(matrix, relative)
    assert truth * (1 - ROUNDED) <= bound <= truth * (1 + 2 * relative)


def test_a_direction_that_the_start_misses_is_found_by_the_bound(monkeypatch):
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double()
    monkeypatch.setattr(
        spectral_norms, "_leading_direction", lambda a, *_: torch.eye(4, dtype=torch.float64)[2]
    )
    assert spectral_norm_within(matrix) == 3
    assert 4 <= spectral_norm_bound(matrix) <= 4 * (1 + 1e-6)


def test_where_iteration_does_not_end_the_slower_way_is_taken(monkeypatch):
    monkeypatch.setattr(spectral_norms, "MOST_STEPS", 3)
    matrix = gaussian(60, 40)
    assert spectral_norm_within(matrix) == spectral_norms.spectral_norm(matrix)


def test_an_unlucky_start_ends_later(monkeypatch):
    """Of 120 flat matrices, one ends at a smaller value where residuals alone decide."""
    matrices = [gaussian(60, 60, seed) for seed in range(120)]
    lost = [1 - spectral_norm_within(a, 1e-5) / exact(a) for a in matrices]
    assert max(lost) < spectral_norms.CERTAIN
    monkeypatch.setattr(spectral_norms, "_chance", lambda *_: 0.0)
    lost = [1 - spectral_norm_within(a, 1e-5) / exact(a) for a in matrices]
    assert max(lost) > 10 * spectral_norms.CERTAIN


def test_the_chance_is_that_of_starts():
    """Of a value with a component of 1e-3 in the start, after one step, against starts that are drawn."""
    n, start = 400, torch.zeros(400, dtype=torch.float64)
    start[0], start[1] = 1e-3, math.sqrt(1 - 1e-6)
    values = torch.ones(n, dtype=torch.float64)
    values[0] = 4.0
    theta = float(start @ (values * start))
    beside = float((values * start - theta * start).norm())
    certain = math.sqrt(4 / theta) - 1
    chance = spectral_norms._chance(np.array([theta]), np.array([beside]), certain, n)
    uniform = torch.nn.functional.normalize(gaussian(20_000, n, 9), dim=1)
    observed = float((uniform[:, 0].abs() <= 1e-3).double().mean())
    assert observed == pytest.approx(chance, rel=0.2)


def test_no_norm_below_the_largest_value_is_proved():
    operator = weight_operator(gaussian(40, 30))
    square = exact(operator.stored) ** 2
    assert prove_norm(operator, square * (1 - 1e-9)) is None
    assert prove_norm(operator, square * (1 + 1e-9)) == pytest.approx(square, rel=1e-8)
    assert prove_norm(operator, square * (1 + 1e-9)) > square * (1 + 1e-9)


def test_norms_repeat_and_those_of_nothing_are_zero():
    matrix = gaussian(80, 120)
    assert spectral_norm_within(matrix) == spectral_norm_within(matrix.clone())
    for nothing in (torch.zeros(9, 9), torch.zeros(0, 9)):
        assert spectral_norm_within(nothing) == spectral_norm_bound(nothing) == 0


def test_refusals():
    with pytest.raises(GeometryError, match="NaN or infinity"):
        spectral_norm_within(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(GeometryError, match="not so accurate"):
        spectral_norm_within(gaussian(5, 5), 1e-12)
