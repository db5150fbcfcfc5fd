"""Weights that are computed with in bfloat16 against the lab's own, which are computed with in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threegates.lab.lm.weights import MixedWeights
from threegates.lab.weights import TrainedWeights


def initial(stored: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": (700, 400), "b": (33,), "c": (5, 7)}
    return {name: (0.1 * torch.randn(size, generator=generator)).to(stored) for name, size in sizes.items()}


def mixed(computing: str, stored: torch.dtype = torch.bfloat16) -> MixedWeights:
    return MixedWeights(initial(stored), master="float32", storage="bfloat16", computing=computing)


def pull(weights: TrainedWeights, seed: int, size: float = 1.0) -> None:
    """A gradient on every weight but b."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in weights.named.items():
        if name != "b":
            factor = size * torch.randn(tensor.shape, generator=generator)
            (tensor.float() * factor.bfloat16().float()).sum().backward()


@pytest.mark.parametrize("computing", ["float32", "bfloat16"])
@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e9])
def test_steps_are_those_of_the_labs_own_weights(computing, clip):
    """Gradients that bf16 can hold: then both see the same numbers."""
    ours = mixed(computing)
    plain = TrainedWeights(initial(), master="float32", storage="bfloat16")
    for seed in range(3):
        norms = []
        for weights in (ours, plain):
            pull(weights, seed)
            norms.append(weights.hand_over_gradient(clip))
            with torch.no_grad():
                weights.master.sub_(1e-2 * weights.master.grad)
            weights.refresh()
        assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 1
        torch.testing.assert_close(ours.master, plain.master, atol=1e-7, rtol=1e-6)
        for name, leaf in ours.named.items():
            assert torch.equal(leaf.float(), ours.saved("bfloat16")[name].float())
    assert ours.delta_norm() == pytest.approx(plain.delta_norm(), rel=1e-5) and plain.delta_norm() > 0


def test_the_forward_pass_is_handed_the_computing_type_and_the_master_keeps_more():
    weights = mixed("bfloat16")
    assert {leaf.dtype for leaf in weights.named.values()} == {torch.bfloat16}
    assert {leaf.dtype for leaf in mixed("float32").named.values()} == {torch.float32}
    before = {name: leaf.detach().clone() for name, leaf in weights.named.items()}
    with torch.no_grad():
        weights.master.mul_(1 + 2**-12)
    weights.refresh()
    assert all(torch.equal(leaf, before[name]) for name, leaf in weights.named.items())
    assert weights.delta_norm() == pytest.approx(float(weights.initial.float().norm()) * 2**-12, rel=1e-3)


def test_a_weight_that_no_loss_reached_has_gradient_zero_and_none_is_carried_on():
    weights = mixed("bfloat16")
    pull(weights, 0)
    weights.hand_over_gradient(1e9)
    b = slice(280_000, 280_033)
    assert weights.master.grad is not None and not weights.master.grad[b].any()
    assert weights.hand_over_gradient(1e9) == 0.0 and not weights.master.grad.any()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_the_start_is_kept_in_the_format_it_came_in(stored):
    weights = mixed("bfloat16", stored)
    assert weights.initial.dtype == stored and weights.delta_norm() == 0
    saved = weights.saved("float32")
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in initial(stored).items())
