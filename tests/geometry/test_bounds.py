"""The paper's bounds on random pairs: none that is true may be broken, and each says when it says nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry.bounds import (
    Bound,
    ky_fan,
    mirsky,
    nss_bound,
    wedin_as_printed,
    wedin_corrected,
    weyl,
)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def pair(m: int, n: int, size: float, seed: int):
    """Factors of a random matrix, of a perturbed one, and the norms of their difference, all by numpy."""
    generator = np.random.default_rng([m, n, seed])
    left, right = (np.linalg.qr(generator.standard_normal((side, min(m, n))))[0] for side in (m, n))
    spectrum = np.sort(generator.random(min(m, n)) ** generator.integers(0, 4))[::-1]
    w = (left * spectrum) @ right.T
    delta = size * generator.standard_normal((m, n))
    before, after = (np.linalg.svd(x, full_matrices=False) for x in (w, w + delta))
    return before, after, float(np.linalg.norm(delta, 2)), float(np.linalg.norm(delta))


def largest_sine(before, after, k: int) -> float:
    """Oracle: ‖(1 − P₀) P₊‖₂ of full projections, left and right."""
    sines = []
    for a, b in ((before[0], after[0]), (before[2].T, after[2].T)):
        projections = [x[:, :k] @ x[:, :k].T for x in (a, b)]
        sines.append(np.linalg.norm(projections[0] - projections[1], 2))
    return float(min(max(sines), 1.0))


sizes = st.integers(2, 9)


@settings(max_examples=150)
@given(sizes, sizes, st.sampled_from([0.0, 1e-8, 1e-4, 1e-2, 0.1, 1.0]), st.integers(0, 50), st.data())
def test_the_true_bounds_are_never_broken(m, n, size, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    before, after, two, frobenius = pair(m, n, size, seed)
    s0, s1 = (torch.from_numpy(x[1].copy()) for x in (before, after))
    floor = 1e-13 * (1 + float(s0[0]))
    for bound in (weyl(s0, s1, two), mirsky(s0, s1, frobenius), ky_fan(s0, s1, two, k)):
        assert bound.holds(floor), bound
    assert nss_bound(s0, s1, frobenius).holds(1e-13)
    wedin = wedin_corrected(s0, s1, two, k, largest_sine(before, after, k))
    # Projections in float64 know a sine to about eps over the gap.
    assert wedin.holds(1e-12 / max(float(s0[k - 1] - (s1[k] if k < len(s1) else 0)), 1e-12)), wedin


def test_bounds_by_hand():
    before, after = values(4, 2, 1), values(4.5, 1.5, 1)
    assert weyl(before, after, 0.6) == Bound("Cor. 3.4, each value", 0.6, 0.5, False)
    assert mirsky(before, after, 1.0) == Bound("Cor. 3.4, sum of squares", 1.0, 0.5, False)
    assert ky_fan(before, after, 0.6, 2) == Bound("Cor. 3.5", 1.2, 0.0, False)
    nss = nss_bound(before, after, 1.0)
    assert (nss.bound, nss.measured) == pytest.approx((1 / math.sqrt(21), math.sqrt(0.5 / 21)))
    printed = wedin_as_printed(before, 0.6, 2, 0.3)
    assert (printed.bound, printed.vacuous) == (pytest.approx(0.6), False)
    corrected = wedin_corrected(before, after, 0.6, 1, 0.3)
    assert corrected.bound == pytest.approx(0.6 / 2.5)
    assert not corrected.holds()


def test_wedin_is_attained():
    # A rotation by θ inside a plane: ‖ΔW‖ → θ, the gap is 1.
    for angle in (1e-3, 1e-6):
        w = np.diag([1.0, 0.0])
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        tuned = turn @ w @ turn.T
        bound = wedin_corrected(
            values(1, 0), values(1, 0), float(np.linalg.norm(tuned - w, 2)), 1, math.sin(angle)
        )
        assert bound.tightness == pytest.approx(1, rel=1e-6)


def test_vacuous_bounds_say_so():
    before, after = values(4, 2, 1), values(4, 2, 1)
    assert [weyl(before, after, x).vacuous for x in (3.99, 4)] == [False, True]
    assert [mirsky(before, after, x).vacuous for x in (4.58, 4.59)] == [False, True]
    assert [ky_fan(before, after, x, 2).vacuous for x in (2.99, 3)] == [False, True]
    assert [nss_bound(before, after, x).vacuous for x in (4.58, 4.59)] == [False, True]
    assert [wedin_as_printed(before, x, 1, 0.0).vacuous for x in (1.99, 2)] == [False, True]
    closed = wedin_corrected(values(2, 1), values(4, 3), 2.0, 1, 0.0)
    assert (closed.bound, closed.vacuous) == (math.inf, True)


def test_the_last_value_has_zero_below_it():
    assert wedin_as_printed(values(4, 2), 1.0, 2, 0.0).bound == 0.5
    assert wedin_corrected(values(4, 2), values(5, 3), 1.0, 2, 0.0).bound == 0.5


def test_zero_bases_and_zero_updates():
    zero, one = values(0, 0), values(1, 0)
    assert nss_bound(zero, one, 1.0) == Bound("NSS", math.inf, math.inf, True)
    assert nss_bound(zero, zero, 0.0) == Bound("NSS", 0.0, 0.0, False)
    assert math.isnan(weyl(one, one, 0.0).tightness)
    assert Bound("", 0.0, 1.0, False).tightness == math.inf


def test_impossible_spectra_are_refused():
    good = values(2, 1)
    for other, message in (
        (values(1, 2), "descend"),
        (values(1, -1), "not negative"),
        (values(1), "(?s)one length.*2.*1"),
        (values(), "one length"),
    ):
        with pytest.raises(GeometryError, match=message):
            weyl(good, other, 1.0)
    with pytest.raises(GeometryError, match="one length"):
        weyl(values(), values(), 1.0)
    for k in (0, 3):
        with pytest.raises(GeometryError, match=r"(?s)no such singular value.*1 … 2"):
            ky_fan(good, good, 1.0, k)
    for sine, norm in ((1.1, 1.0), (-0.1, 1.0), (0.5, -1.0), (math.nan, 1.0)):
        with pytest.raises(GeometryError, match="no sine or no norm"):
            wedin_as_printed(good, norm, 1, sine)
