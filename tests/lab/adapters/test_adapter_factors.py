"""Starts of adapters: the same function at step 0, peft's own factors, and the directions that they span."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.lab.tiny import TINY, random_weights
from threegates.checkpoints.formats.roles import LINEAR, linear_layers, role
from threegates.errors import RecipeError
from threegates.lab.adapters import factors
from threegates.lab.adapters.factors import Start, starts
from threegates.lab.recipe import Init

INITS = get_args(Init)
NAME = "model.layers.0.mlp.down_proj.weight"


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(init: Init, rank: int = 4, alpha: float = 4.0, seed: int = 7) -> Start:
    """The start of the one matrix whose sides differ."""
    return starts({NAME: matrix()}, init, rank, alpha, generator(seed))[NAME]


def matrix() -> Tensor:
    return random_weights(TINY)[NAME]


@pytest.mark.parametrize("alpha", [4.0, 8.0])
@pytest.mark.parametrize("init", INITS)
def test_every_start_computes_the_base_at_step_0(init, alpha):
    base = random_weights(TINY, seed=1)
    made = starts(base, init, 4, alpha, generator())
    assert set(made) == {name for name, tensor in base.items() if role(name, tensor.shape) in LINEAR}
    for name, start in made.items():
        weight = base[name]
        assert start.scaling == alpha / 4
        assert start.down.shape == (4, weight.shape[1]) and start.up.shape == (weight.shape[0], 4)
        assert {start.down.dtype, start.up.dtype, start.residual.dtype} == {torch.float32}
        torch.testing.assert_close(start.effective().float(), weight, atol=1e-6, rtol=0)
        # As it is computed in float32, too.
        found = start.residual + start.scaling * start.up @ start.down
        torch.testing.assert_close(found, weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("init", ["lora", "orthonormal"])
def test_starts_at_zero_leave_the_base_as_it_is(init):
    start = one(init)
    assert not start.up.any() and torch.equal(start.residual, matrix())


@pytest.mark.parametrize("init", ["pissa", "milora"])
def test_starts_on_singular_directions_are_not_zero_and_take_their_part_from_the_base(init):
    start = one(init)
    assert start.up.abs().max() > 0.01 and not torch.equal(start.residual, matrix())


# --------------------------------------------------------------------------------- peft's own starts


@pytest.mark.parametrize(("init", "word"), [("lora", True), ("pissa", "pissa")])
def test_lora_and_pissa_are_pefts_under_the_same_seed(init, word):
    start = one(init, alpha=8.0)
    layer = nn.Sequential(nn.Linear(*reversed(matrix().shape), bias=False))
    layer[0].weight.data = matrix()
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator())))
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=["0"], init_lora_weights=word)
    theirs = get_peft_model(layer, config).base_model.model[0]
    assert torch.equal(start.down, theirs.lora_A["default"].weight)
    assert torch.equal(start.up, theirs.lora_B["default"].weight)
    assert torch.equal(start.residual, theirs.base_layer.weight)
    assert start.scaling == theirs.scaling["default"]


@pytest.mark.parametrize("init", INITS)
def test_a_start_follows_from_its_generator_whatever_the_global_one_is(init):
    torch.manual_seed(1)
    first = one(init)
    torch.manual_seed(2)
    again, other = one(init), one(init, seed=8)
    assert torch.equal(first.down, again.down) and torch.equal(first.up, again.up)
    drawn = init in ("lora", "orthonormal")
    assert torch.equal(first.down, other.down) != drawn


@pytest.mark.parametrize("init", INITS)
def test_a_start_leaves_the_global_generator_as_it_was(init):
    weight = matrix()
    before = torch.get_rng_state()
    starts({NAME: weight}, init, 4, 4.0, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_matrices_of_one_shape_start_with_factors_of_their_own():
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    made = starts(dict.fromkeys(names, matrix()), "lora", 4, 4.0, generator())
    assert not torch.equal(made[names[0]].down, made[names[1]].down)


# ----------------------------------------------------------------------------------- directions


@pytest.mark.parametrize(("init", "part"), [("pissa", slice(0, 4)), ("milora", slice(-4, None))])
def test_factors_span_the_leading_or_the_trailing_singular_directions(init, part):
    u, s, vt = torch.linalg.svd(matrix().double(), full_matrices=False)
    start = one(init, alpha=8.0)
    expected = (u[:, part] * s[part]) @ vt[part]
    found = start.scaling * start.up.double() @ start.down.double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    left, right = torch.linalg.qr(start.up.double())[0], torch.linalg.qr(start.down.T.double())[0]
    for basis, directions in ((left, u[:, part]), (right, vt[part].T)):
        cosines = torch.linalg.svdvals(basis.T @ directions)
        torch.testing.assert_close(cosines, torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    # What is left has the other singular values.
    left_over = torch.linalg.svdvals(start.residual.double())[: len(s) - 4]
    others = torch.cat([s[4:]]) if init == "pissa" else s[:-4]
    torch.testing.assert_close(left_over, others, atol=1e-5, rtol=0)


def test_orthonormal_rows_are_orthonormal():
    down = one("orthonormal", rank=8).down.double()
    torch.testing.assert_close(down @ down.T, torch.eye(8, dtype=torch.float64), atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("init", INITS)
def test_a_rank_above_the_smaller_side_is_refused_and_the_side_itself_is_not(init):
    weight = torch.randn(6, 10, generator=generator())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert starts({name: weight}, init, 6, 6.0, generator())[name].down.shape == (6, 10)
    with pytest.raises(RecipeError, match="rank exceeds its matrix") as caught:
        starts({name: weight}, init, 7, 7.0, generator())
    told = str(caught.value)
    assert name in told and "at most 6" in told and "choose a smaller rank" in told


def test_a_start_that_is_not_its_base_is_refused(monkeypatch):
    def halved(weight: Tensor, rank: int, alpha: float, source: torch.Generator) -> Start:
        return Start(torch.zeros(rank, weight.shape[1]), torch.zeros(len(weight), rank), weight / 2, 1.0)

    monkeypatch.setitem(factors._STARTS, "lora", halved)
    with pytest.raises(RecipeError, match="does not start at its base") as caught:
        one("lora")
    assert NAME in str(caught.value)


def test_embedding_head_and_norms_get_no_adapter():
    base = random_weights(TINY)
    left = {role(name, tensor.shape) for name, tensor in base.items() if name not in linear_layers(base)}
    assert left == {"embedding", "head", "norm"}
