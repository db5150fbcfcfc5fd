"""Adapters as weights: what computes, what ΔW is, and what is saved."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.lab.tiny import TINY, random_weights
from threegates.lab.adapters.factors import starts
from threegates.lab.adapters.weights import AdapterWeights
from threegates.lab.recipe import Init

INITS = get_args(Init)
ALPHA, RANK = 6.0, 3


def weights(init: Init, seed: int = 1) -> AdapterWeights:
    """Adapters on a base that is stored in bf16, as the lab's is."""
    base = {name: tensor.bfloat16().float() for name, tensor in random_weights(TINY, seed).items()}
    made = starts(base, init, RANK, ALPHA, torch.Generator().manual_seed(5))
    return AdapterWeights(base, made)


def moved(init: Init, size: float = 0.02) -> AdapterWeights:
    """The same after noise on every factor."""
    found = weights(init)
    noise = torch.randn(found.master.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found.master += size * noise
    found.refresh()
    return found


@pytest.mark.parametrize("save", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", INITS)
def test_before_training_nothing_has_changed_to_the_last_bit(init, save):
    found = weights(init)
    assert found.delta_norm() == 0.0
    assert all((change == 0).all() for change in found.deltas().values())
    saved = found.saved(save)
    assert list(saved) == list(found.base)
    for name, tensor in saved.items():
        expected = found.base[name].to(getattr(torch, save))
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype, name


@pytest.mark.parametrize("init", INITS)
def test_delta_is_the_scaled_difference_of_the_products_in_float64(init):
    found = moved(init)
    changes = found.deltas()
    total = 0.0
    for name, (down, up) in found.factors().items():
        start = found.starts[name]
        before = start.up.double() @ start.down.double()
        expected = (ALPHA / RANK) * (up.double() @ down.double() - before)
        assert changes[name].dtype == torch.float64
        torch.testing.assert_close(changes[name], expected, atol=1e-14, rtol=1e-14)
        assert float(changes[name].norm()) > 0
        total += float(expected.square().sum())
    assert found.delta_norm() == pytest.approx(total**0.5, rel=1e-5)
    assert len(found.effective()) == sum(change.numel() for change in changes.values())


@pytest.mark.parametrize("init", INITS)
def test_what_computes_is_what_is_saved_and_the_rest_is_the_bases(init):
    found = moved(init)
    saved = found.saved("float32")
    for name, tensor in found.named.items():
        if name in found.starts:
            torch.testing.assert_close(tensor.detach(), saved[name], atol=1e-6, rtol=0)
            assert not torch.equal(saved[name], found.base[name])
        else:
            assert torch.equal(tensor, found.base[name]) and torch.equal(saved[name], found.base[name])


def test_saving_rounds_once_from_float64():
    found = moved("pissa")
    for name, change in found.deltas().items():
        exact = found.base[name].double() + change
        assert torch.equal(found.saved("bfloat16")[name], exact.to(torch.bfloat16))


@pytest.mark.parametrize("init", INITS)
def test_gradients_reach_both_factors_as_the_chain_rule_has_it(init):
    found = moved(init)
    name = next(iter(found.starts))
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(found.base[name].shape, generator=generator)
    (found.named[name] * slope).sum().backward()
    found.hand_over_gradient(1e9)
    down, up = found.factors()[name]
    scaling = found.starts[name].scaling
    gradient = dict(found._views(found.master.grad))
    torch.testing.assert_close(gradient[f"{name}.A"], scaling * up.T @ slope, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient[f"{name}.B"], scaling * slope @ down.T, atol=1e-5, rtol=1e-4)


def test_factors_are_not_rounded_to_bf16_while_they_train():
    found = moved("lora")
    assert torch.equal(
        found.master.detach(), torch.cat([t.detach().flatten() for t in found._leaves.values()])
    )
