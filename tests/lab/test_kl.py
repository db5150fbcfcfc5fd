"""Estimators of KL: what they expect, and where their gradients pull."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from threegates.lab.kl import ESTIMATORS, k1, k2, k3, kl_after

LOGITS = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


def _policies(one: list[float], other: list[float]) -> tuple[Tensor, Tensor]:
    first, second = (torch.tensor(x, dtype=torch.float64).log_softmax(0) for x in (one, other))
    return first, second


def _divergence(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum())


@given(LOGITS, LOGITS)
def test_k1_and_k3_expect_the_divergence_and_k2_and_k3_are_never_negative(one, other):
    policy, reference = _policies(one, other)
    for estimate in (k1, k3):
        expected = float((policy.exp() * estimate(policy, reference)).sum())
        assert expected == pytest.approx(_divergence(policy, reference), abs=1e-12)
    assert (k2(policy, reference) >= 0).all() and (k3(policy, reference) >= -1e-15).all()


@given(LOGITS, LOGITS)
def test_as_losses_k1_pulls_nowhere_k2_to_the_reference_and_k3_along_the_other_divergence(one, other):
    """Gradients on samples that are weighted by the policy but not differentiated through."""
    _, reference = _policies(one, other)

    def gradient(of) -> Tensor:
        logits = torch.tensor(one, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(of(logits.log_softmax(0)), logits)[0]

    found = {
        name: gradient(lambda p, e=estimate: (p.detach().exp() * e(p, reference)).sum())
        for name, estimate in ESTIMATORS.items()
    }
    assert torch.allclose(found["k1"], torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found["k2"], gradient(lambda p: (p.exp() * (p - reference)).sum()), atol=1e-12)
    backwards = gradient(lambda p: (reference.exp() * (reference - p)).sum())
    assert torch.allclose(found["k3"], backwards, atol=1e-12)


@given(LOGITS, LOGITS)
def test_the_divergence_of_a_step_is_estimated_from_the_samples_before_it(one, other):
    before, after = _policies(one, other)
    estimate = kl_after(before, after)
    assert (estimate >= -1e-15).all()
    assert float((before.exp() * estimate).sum()) == pytest.approx(_divergence(after, before), abs=1e-12)


def test_k2_is_half_the_squared_difference():
    assert k2(torch.tensor([-1.0]), torch.tensor([-3.0])).item() == 2.0
