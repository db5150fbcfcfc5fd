"""Master, storage and save formats: which values compute, which accumulate, which are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from threegates.errors import RecipeError
from threegates.lab.recipe import RLRecipe
from threegates.lab.trainer import Contents, Trainer
from threegates.lab.weights import TrainedWeights, dtype

INITIAL = {"a": torch.linspace(-1, 1, 6).view(2, 3), "b": torch.tensor([1.0, -2.5, 1e-3, 1 / 3])}
TARGET = {"a": torch.full((2, 3), 0.3), "b": torch.tensor([0.0, 1.0, -1.0, 2.0])}


class Quadratic(Trainer):
    """A trainer whose loss is the squared distance of its weights to a target."""

    def step(self, index: int) -> dict[str, float]:
        loss = sum(((self.weights.named[name] - TARGET[name]) ** 2).sum() for name in TARGET)
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss)}

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        raise NotImplementedError

    def evaluate(self, index: int) -> dict[str, float]:
        return {}

    def contents(self) -> Contents:
        raise NotImplementedError

    def final_evaluation(self) -> None:
        return None


def quadratic(**changes: object) -> Quadratic:
    settings: dict[str, object] = {
        "name": "q", "base": "b", "algorithm": "grpo", "data": "arith-4", "seed": 1, "steps": 5,
        "learning_rate": 1e-3, "warmup": 1, "weight_decay": 0.1, "clip_norm": 1e9,
    }  # fmt: skip
    return Quadratic(RLRecipe.model_validate(settings | changes), INITIAL)


def _set_gradient(weights: TrainedWeights, gradients: dict[str, Tensor]) -> None:
    sum((weights.named[name] * gradient).sum() for name, gradient in gradients.items()).backward()


# --------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("master", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_formats_are_what_is_asked_for(master, storage):
    weights = TrainedWeights(INITIAL, master=master, storage=storage)
    assert weights.master.dtype == getattr(torch, master)
    narrow = "bfloat16" in (master, storage)
    for name, computing in weights.named.items():
        assert computing.dtype == torch.float32
        expected = INITIAL[name].bfloat16().float() if narrow else INITIAL[name]
        assert torch.equal(computing, expected)
        assert computing.shape == INITIAL[name].shape


def test_bf16_storage_computes_with_exactly_bf16_values_after_every_step():
    trainer = quadratic(storage_dtype="bfloat16")
    for index in range(1, 6):
        trainer.step(index)
        computing = torch.cat([t.detach().flatten() for t in trainer.weights.named.values()])
        assert torch.equal(computing, trainer.weights.master.detach().bfloat16().float())
        assert not torch.equal(trainer.weights.master.detach(), computing)


@pytest.mark.parametrize("save", ["float32", "bfloat16"])
def test_saving_rounds_the_master_once_and_copies(save):
    weights = TrainedWeights(INITIAL, master="float32", storage="bfloat16")
    saved = weights.saved(save)
    assert list(saved) == list(INITIAL)
    for name, tensor in saved.items():
        assert tensor.dtype == getattr(torch, save)
        assert torch.equal(tensor, INITIAL[name].to(tensor.dtype))
        tensor.zero_()
    assert float(weights.master.detach().abs().sum()) > 0


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="'float16'") as caught:
        dtype("float16")
    assert "float32 | bfloat16" in str(caught.value)


# --------------------------------------------------------------------------------------- straight-through


def test_gradients_of_the_rounded_weights_go_to_the_master_unchanged():
    weights = TrainedWeights(INITIAL, master="float32", storage="bfloat16")
    sum((weights.named[name] ** 2).sum() for name in INITIAL).backward()
    norm = weights.hand_over_gradient(1e9)
    expected = torch.cat([2 * tensor.bfloat16().float().flatten() for tensor in INITIAL.values()])
    assert torch.equal(weights.master.grad, expected)
    assert norm == pytest.approx(float(expected.norm()), rel=1e-6)


def test_gradients_of_several_losses_add_up_and_then_start_anew():
    weights = TrainedWeights(INITIAL, master="float32", storage="float32")
    ones = {name: torch.ones_like(tensor) for name, tensor in INITIAL.items()}
    _set_gradient(weights, ones)
    _set_gradient(weights, ones)
    weights.hand_over_gradient(1e9)
    assert (weights.master.grad == 2).all()
    _set_gradient(weights, ones)
    weights.hand_over_gradient(1e9)
    assert (weights.master.grad == 1).all()


@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_clipping_equals_torchs_over_separate_parameters(scale):
    generator = torch.Generator().manual_seed(1)
    gradients = {n: scale * torch.randn(t.shape, generator=generator) for n, t in INITIAL.items()}
    weights = TrainedWeights(INITIAL, master="float32", storage="float32")
    _set_gradient(weights, gradients)
    norm = weights.hand_over_gradient(1.0)
    separate = [torch.nn.Parameter(tensor.clone()) for tensor in INITIAL.values()]
    for parameter, gradient in zip(separate, gradients.values(), strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(separate, 1.0)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(weights.master.grad, torch.cat([p.grad.flatten() for p in separate]))
    assert float(weights.master.grad.norm()) <= 1.0 + 1e-6


# ------------------------------------------------------------------------------------- optimiser steps


def test_steps_equal_torchs_adamw_on_separate_parameters():
    trainer = quadratic(storage_dtype="float32")
    separate = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in INITIAL.items()}
    optimiser = torch.optim.AdamW(separate.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1)
    for index in range(1, 6):
        trainer.step(index)
        optimiser.zero_grad()
        sum(((separate[name] - TARGET[name]) ** 2).sum() for name in TARGET).backward()
        optimiser.step()
        for name, parameter in separate.items():
            torch.testing.assert_close(trainer.weights.named[name], parameter, rtol=1e-6, atol=1e-7)


def test_a_pure_bf16_master_loses_steps_that_a_float32_master_keeps():
    """A step of 1e-4 is less than half a bf16 gap beside one: only the float32 master accumulates it."""
    changed = {}
    for master in ("float32", "bfloat16"):
        trainer = quadratic(master_dtype=master, learning_rate=1e-4, weight_decay=0.0)
        start = trainer.weights.named["b"].detach().clone()
        for index in range(1, 31):
            trainer.step(index)
        assert trainer.weights.master.dtype == getattr(torch, master)
        changed[master] = (trainer.weights.named["b"].detach() != start).tolist()
    assert changed["float32"] == [True, False, True, True]  # −2.5 moved by .003, less than half of its gap
    assert changed["bfloat16"] == [False, False, True, False]


def test_delta_norm_is_the_frobenius_norm_of_the_masters_change():
    weights = TrainedWeights(INITIAL, master="float32", storage="bfloat16")
    assert weights.delta_norm() == 0
    with torch.no_grad():
        weights.master[0] += 3e-4
        weights.master[9] += 4e-4
    assert weights.delta_norm() == pytest.approx(5e-4, rel=1e-3)
