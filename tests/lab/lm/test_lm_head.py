"""Logits in float32 from products in bfloat16, and log-probabilities with a gradient of their own."""

from __future__ import annotations

import pytest
import torch

from threegates.lab.lm.head import log_probs_of, logits_of


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 64, generator=generator) for rows in (9, 500))
    return hidden.to(dtype), head.to(dtype)


def test_two_products_keep_what_the_first_one_rounds_away():
    hidden, head = drawn(torch.bfloat16)
    exact = hidden.double() @ head.double().T
    once = (torch.nn.functional.linear(hidden, head).double() - exact).abs().max()
    both = (logits_of(hidden, head).double() - exact).abs().max()
    assert once > 0.03 and both < once / 100


def test_in_float32_one_product_is_enough():
    hidden, head = drawn(torch.float32)
    assert torch.equal(logits_of(hidden, head), torch.nn.functional.linear(hidden, head))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_the_plain_formula(dtype, close):
    """Rows that are asked twice about one token, about several, and never."""
    rows, tokens = torch.tensor([0, 0, 3, 8, 0, 3]), torch.tensor([7, 7, 1, 499, 2, 0])
    pull = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, -1.0])
    ours, plain = ([x.requires_grad_() for x in drawn(dtype)] for _ in range(2))
    found = log_probs_of(*ours, rows, tokens)
    expected = (plain[0].double() @ plain[1].double().T).log_softmax(-1)[rows, tokens]
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    for mine, other in zip(ours, plain, strict=True):
        largest = float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad, other.grad, atol=close * largest, rtol=close)
        assert largest > 0
