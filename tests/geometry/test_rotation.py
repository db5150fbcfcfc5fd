"""Rotated values and permuted heads: transformers' own models must not notice, and updates must find back."""

from __future__ import annotations

import functools
import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.rotation import (
    Heads,
    haar,
    hadamard,
    permute_heads,
    permute_heads_back,
    random_order,
    rotate_values,
    rotate_values_back,
)

LAYERS = 2
PREFIXES = [f"model.layers.{i}.self_attn." for i in range(LAYERS)]
KV_HEADS = [2, 4, 1]
# Llama with biases everywhere (o's must stay); Qwen3 with a head_dim that is not hidden_size/heads.
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "attention_bias": True}),
}
# Kept under every grouping, by its own inverse under none.
CYCLES = {2: [2, 3, 1, 0], 4: [1, 2, 3, 0], 1: [1, 2, 3, 0]}

each_family = pytest.mark.parametrize("family", FAMILIES)
each_grouping = pytest.mark.parametrize("kv_heads", KV_HEADS, ids=["grouped", "ungrouped", "multi-query"])


@functools.cache
def tiny(family: str, kv_heads: int, dtype: torch.dtype = torch.float64):
    """A model whose weights, norms and biases are random and far from zero, with its state and its heads."""
    make_config, make_model, extra = FAMILIES[family]
    config = make_config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        attn_implementation="eager",
        **extra,
    )
    model = make_model(config).eval()
    source = noise_generator(kv_heads, family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if parameter.ndim == 2:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
    state = {name: tensor.clone() for name, tensor in model.to(dtype).state_dict().items()}
    return model, state, Heads.of(config.to_dict())


def logits(model, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a state; loading rounds float64 to the model's dtype, once.

    Norms and softmax name torch.float32, even in a float64 model, and their rounding would hide gaps below it
    and now and then make one. So the name stands for the model's own dtype meanwhile.
    """
    model.load_state_dict(state)
    tokens = torch.randint(0, 40, (3, 12), generator=noise_generator(0, "tokens"))
    with torch.no_grad(), mock.patch.object(torch, "float32", model.dtype):
        return model(tokens, use_cache=False).logits.double()


def gap(model, state: dict[str, torch.Tensor], changed: dict[str, torch.Tensor]) -> float:
    before = logits(model, state)
    assert float(before.std()) > 0.3  # or there would be nothing to keep
    return float((logits(model, {**state, **changed}) - before).abs().max())


def change(state, heads: Heads, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every layer changed, each in its own way."""
    changed = {name: tensor.double() for name, tensor in state.items()}
    for i, prefix in enumerate(PREFIXES):
        source = noise_generator(seed, "change", str(i))
        if "rotation" in kind:
            changed |= rotate_values(changed, prefix, haar(heads.head_dim, source), heads)
        if "hadamard" in kind:
            changed |= rotate_values(changed, prefix, hadamard(heads.head_dim, source), heads)
        if "permutation" in kind:
            changed |= permute_heads(changed, prefix, random_order(heads, source), heads)
    return {name: tensor for name, tensor in changed.items() if not torch.equal(tensor, state[name].double())}


def orders(heads: Heads):
    """Every order of heads that keeps groups whole."""
    inside = st.lists(
        st.permutations(range(heads.per_group)), min_size=heads.kv_heads, max_size=heads.kv_heads
    )
    return st.tuples(st.permutations(range(heads.kv_heads)), inside).map(
        lambda drawn: [
            group * heads.per_group + head for group, order in zip(*drawn, strict=True) for head in order
        ]
    )


def by_loops(state, prefix: str, order: list[int], heads: Heads) -> dict[str, torch.Tensor]:
    """`permute_heads` head by head, written as slices."""
    d, moved = heads.head_dim, {}
    for part in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
        per = 1 if part.startswith("q") else heads.per_group
        old = state[prefix + part]
        rows = [order[i] // per for i in range(0, heads.heads, per)]
        moved[prefix + part] = torch.cat([old[h * d : (h + 1) * d] for h in rows])
    old = state[prefix + "o_proj.weight"]
    moved[prefix + "o_proj.weight"] = torch.cat([old[:, h * d : (h + 1) * d] for h in order], dim=1)
    return moved


# --- the function stays


@each_family
@each_grouping
@pytest.mark.parametrize("kind", ["rotation", "hadamard", "permutation", "rotation, permutation"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_logits_stay(family, kv_heads, kind, dtype, close):
    model, state, heads = tiny(family, kv_heads, dtype)
    changed = change(state, heads, kind)
    assert any("v_proj.weight" in name for name in changed) or kv_heads == 1
    assert gap(model, state, changed) < close


@each_grouping
@settings(max_examples=15)
@given(data=st.data())
def test_logits_stay_under_any_order(kv_heads, data):
    model, state, heads = tiny("qwen3", kv_heads)
    order = data.draw(orders(heads))
    assert gap(model, state, permute_heads(state, PREFIXES[0], order, heads)) < 1e-10


@each_family
@each_grouping
def test_every_attention_tensor_that_should_move_moves_and_no_other(family, kv_heads):
    _, state, heads = tiny(family, kv_heads)
    prefix = PREFIXES[1]
    rotated = rotate_values(state, prefix, haar(heads.head_dim, 1), heads)
    assert set(rotated) == {
        f"{prefix}{part}" for part in ("v_proj.weight", "v_proj.bias", "o_proj.weight")
    } & set(state)
    permuted = permute_heads(state, prefix, CYCLES[kv_heads], heads)
    parts = [f"{prefix}{m}_proj.{kind}" for m in "qkvo" for kind in ("weight", "bias")]
    assert set(permuted) == set(parts) & set(state) - {f"{prefix}o_proj.bias"}
    for name, tensor in {**rotated, **permuted}.items():
        assert tensor.shape == state[name].shape
        assert tensor.is_contiguous()


@each_grouping
def test_heads_are_those_of_slices(kv_heads):
    _, state, heads = tiny("llama", kv_heads)
    order = random_order(heads, 3)
    found = permute_heads(state, PREFIXES[0], order, heads)
    expected = by_loops(state, PREFIXES[0], order, heads)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("part", ["v_proj.weight", "v_proj.bias", "o_proj.weight"])
@each_grouping
def test_a_rotation_of_one_side_alone_is_noticed(kv_heads, part):
    model, state, heads = tiny("qwen2", kv_heads)
    rotated = rotate_values(state, PREFIXES[0], haar(heads.head_dim, 1), heads)
    assert gap(model, state, {PREFIXES[0] + part: rotated[PREFIXES[0] + part]}) > 1e-2


@each_family
@each_grouping
def test_the_printed_permutation_breaks_the_function(family, kv_heads):
    """o's columns gathered by the inverse order: right only for an order that is its own inverse."""
    model, state, heads = tiny(family, kv_heads)
    prefix, order = PREFIXES[0], CYCLES[kv_heads]
    name = f"{prefix}o_proj.weight"
    ours = permute_heads(state, prefix, order, heads)
    printed = {**ours, name: permute_heads_back({name: state[name]}, prefix, order, heads)[name]}
    assert gap(model, state, ours) < 1e-10
    assert gap(model, state, printed) > 1e-2
    swap = [2, 3, 0, 1]
    inverse = permute_heads_back({name: state[name]}, prefix, swap, heads)[name]
    assert torch.equal(inverse, permute_heads(state, prefix, swap, heads)[name])


# --- the way back


@each_family
@each_grouping
def test_the_inverse_brings_the_tensors_back(family, kv_heads):
    _, state, heads = tiny(family, kv_heads)
    rotation, order = haar(heads.head_dim, 5), random_order(heads, 5)
    moved = {**state, **rotate_values(state, PREFIXES[1], rotation, heads)}
    moved |= permute_heads(moved, PREFIXES[1], order, heads)
    back = {**moved, **permute_heads_back(moved, PREFIXES[1], order, heads)}
    back |= rotate_values_back(back, PREFIXES[1], rotation, heads)
    assert max(float((back[name] - tensor).abs().max()) for name, tensor in state.items()) < 1e-12


@each_grouping
@given(data=st.data())
def test_an_order_is_undone_bit_for_bit(kv_heads, data):
    _, state, heads = tiny("qwen2", kv_heads)
    order = data.draw(orders(heads))
    stored = {name: tensor.bfloat16() for name, tensor in state.items()}
    moved = permute_heads(stored, PREFIXES[0], order, heads)
    back = permute_heads_back(moved, PREFIXES[0], order, heads)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in back.items())
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}


@each_grouping
def test_updates_of_some_tensors_are_taken_back(kv_heads):
    _, state, heads = tiny("qwen2", kv_heads)
    prefix, rotation, order = PREFIXES[0], haar(heads.head_dim, 7), random_order(heads, 7)
    for parts in (["v_proj.weight", "o_proj.weight"], ["o_proj.weight"], ["v_proj.bias"]):
        names = [prefix + part for part in parts]
        source = noise_generator(7, *parts)
        delta = {name: torch.randn(state[name].shape, generator=source).double() for name in names}
        trained = {**state, **{name: state[name] + delta[name] for name in names}}
        for there, back, how in (
            (rotate_values, rotate_values_back, rotation),
            (permute_heads, permute_heads_back, order),
        ):
            ends, starts = there(trained, prefix, how, heads), there(state, prefix, how, heads)
            found = back({name: ends[name] - starts[name] for name in names}, prefix, how, heads)
            assert set(found) == set(names)
            assert all(torch.allclose(found[name], delta[name], rtol=0, atol=1e-12) for name in names)


def test_a_mask_of_an_update_finds_back_too():
    _, _, heads = tiny("qwen2", 2)
    name = PREFIXES[0] + "q_proj.weight"
    mask = torch.rand(32, 32, generator=noise_generator(1, "mask")) < 0.3
    back = permute_heads_back({name: mask}, PREFIXES[0], CYCLES[2], heads)[name]
    assert torch.equal(torch.cat([back[h * 8 : h * 8 + 8] for h in CYCLES[2]]), mask)


def test_without_v_and_o_a_rotation_has_nothing_to_take_back():
    _, state, heads = tiny("qwen2", 2)
    name = PREFIXES[0] + "q_proj.weight"
    assert rotate_values_back({name: state[name]}, PREFIXES[0], haar(heads.head_dim, 1), heads) == {}


@each_family
@each_grouping
def test_singular_values_stay(family, kv_heads):
    _, state, heads = tiny(family, kv_heads)
    changed = change(state, heads, "rotation, permutation")
    for prefix, module in itertools.product(PREFIXES, "qkvo"):
        name = f"{prefix}{module}_proj.weight"
        before, after = (torch.linalg.svdvals(t[name]) for t in (state, {**state, **changed}))
        assert float((after - before).abs().max()) < 1e-12 * float(before[0])


def test_inputs_stay_as_they_were_and_low_precision_is_computed_in_float64():
    _, state, heads = tiny("llama", 2)
    stored = {name: tensor.bfloat16().requires_grad_() for name, tensor in state.items()}
    copies = {name: tensor.detach().clone() for name, tensor in stored.items()}
    found = rotate_values(stored, PREFIXES[0], haar(heads.head_dim, 1), heads)
    exact = {name: tensor.double() for name, tensor in copies.items()}
    expected = rotate_values(exact, PREFIXES[0], haar(heads.head_dim, 1), heads)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {(tensor.dtype, tensor.requires_grad) for tensor in found.values()} == {(torch.float64, False)}
    permute_heads(stored, PREFIXES[0], CYCLES[2], heads)
    assert all(torch.equal(stored[name], copies[name]) for name in copies)


# --- random rotations and orders


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_haar_is_orthogonal(size):
    q = haar(size, 0)
    assert q.dtype == torch.float64
    assert torch.allclose(q.T @ q, torch.eye(size).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_haar_prefers_no_side(size):
    """On O(n) E tr Q = 0, E (tr Q)² = 1, both determinants are equally likely. QR's own signs break that."""
    source, draws = noise_generator(0, "haar"), 600
    drawn = [haar(size, source) for _ in range(draws)]
    traces = torch.stack([q.trace() for q in drawn])
    assert abs(float(traces.mean())) < 4 / math.sqrt(draws)
    assert float(traces.square().mean()) == pytest.approx(1, abs=0.3)
    positive = sum(float(torch.linalg.det(q)) > 0 for q in drawn)
    assert abs(positive / draws - 0.5) < 4 * 0.5 / math.sqrt(draws)
    corner = torch.stack([q[0, 0] for q in drawn])
    assert float(corner.square().mean()) == pytest.approx(1 / size, rel=0.3)


@pytest.mark.parametrize("size", [1, 2, 4, 16, 128])
def test_hadamard_spreads_evenly(size):
    h = hadamard(size, 0)
    assert h.dtype == torch.float64
    assert torch.equal(h.abs(), torch.full((size, size), 1 / math.sqrt(size), dtype=torch.float64))
    assert torch.allclose(h.T @ h, torch.eye(size).double(), rtol=0, atol=1e-14)


def test_hadamard_s_signs_are_random():
    source = noise_generator(0, "hadamard")
    rows = torch.stack([hadamard(8, source)[0] for _ in range(400)])
    assert float(rows.sign().mean(0).abs().max()) < 4 / math.sqrt(400)


@each_grouping
def test_random_orders_are_all_that_keep_groups_whole(kv_heads):
    heads = Heads(4, kv_heads, 8)
    source = noise_generator(0, "orders")
    drawn = {tuple(random_order(heads, source)) for _ in range(400)}
    per = heads.per_group
    whole = {
        order
        for order in itertools.permutations(range(4))
        if all(len({h // per for h in order[i : i + per]}) == 1 for i in range(0, 4, per))
    }
    assert drawn == whole


@pytest.mark.parametrize("draw", [functools.partial(haar, 8), functools.partial(hadamard, 8)])
def test_a_seed_gives_the_same_rotation(draw):
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_a_seed_gives_the_same_order():
    heads = Heads(32, 8, 4)
    assert random_order(heads, 3) == random_order(heads, 3) != random_order(heads, 4)


# --- sizes and refusals


def test_heads_of_a_configuration():
    assert Heads.of({"num_attention_heads": 4, "hidden_size": 32}) == Heads(4, 4, 8)
    full = {"num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024, "head_dim": 128}
    assert Heads.of(full) == Heads(16, 8, 128)
    nulls = {"num_attention_heads": 4, "num_key_value_heads": None, "hidden_size": 32, "head_dim": None}
    assert Heads.of(nulls) == Heads(4, 4, 8)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_attention_heads": 0, "hidden_size": 32},
        {"num_attention_heads": 4},
        {"num_attention_heads": 5, "hidden_size": 32},
        {"num_attention_heads": 4, "num_key_value_heads": 3, "hidden_size": 32},
        {"num_attention_heads": 4, "num_key_value_heads": 8, "hidden_size": 32},
        {"num_attention_heads": 4, "num_key_value_heads": 0, "hidden_size": 32},
        {"num_attention_heads": 4, "hidden_size": 32, "head_dim": 0},
    ],
)
def test_sizes_that_do_not_divide_are_refused(config):
    with pytest.raises(GeometryError):
        Heads.of(config)


@pytest.mark.parametrize("size", [0, -4, 3, 12, 96])
def test_hadamard_refuses_what_is_no_power_of_two(size):
    with pytest.raises(GeometryError, match="Hadamard"):
        hadamard(size, 0)


def test_haar_refuses_nothing_to_rotate():
    with pytest.raises(GeometryError, match="at least one axis"):
        haar(0, 0)


@pytest.mark.parametrize("function", [permute_heads, permute_heads_back])
@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2], "is a permutation"),
        ([0, 1, 2, 2], "is a permutation"),
        ([1, 2, 3, 4], "is a permutation"),
        ([0, 1, 2, -1], "is a permutation"),
        ([0, 2, 1, 3], "move together"),
        ([1, 2, 3, 0], "move together"),
    ],
)
def test_bad_orders_are_refused(function, order, message):
    _, state, heads = tiny("llama", 2)
    with pytest.raises(GeometryError, match=message):
        function(state, PREFIXES[0], order, heads)


@pytest.mark.parametrize("function", [rotate_values, rotate_values_back])
def test_bad_rotations_are_refused(function):
    _, state, heads = tiny("llama", 2)
    with pytest.raises(GeometryError, match="does not fit the heads"):
        function(state, PREFIXES[0], haar(4, 0), heads)
    for matrix in (2 * haar(8, 0), haar(8, 0).float(), torch.full((8, 8), math.nan).double()):
        with pytest.raises(GeometryError, match="not orthogonal"):
            function(state, PREFIXES[0], matrix, heads)


@pytest.mark.parametrize("wrong", [Heads(4, 4, 8), Heads(8, 2, 8)])
def test_tensors_of_other_sizes_are_refused_by_name(wrong):
    _, state, _ = tiny("llama", 2)
    with pytest.raises(GeometryError, match="does not fit the heads") as caught:
        permute_heads(state, PREFIXES[0], list(range(wrong.heads)), wrong)
    assert caught.value.where.startswith(PREFIXES[0])
    with pytest.raises(GeometryError, match="does not fit the heads"):
        rotate_values(state, PREFIXES[0], haar(8, 0), wrong)


def test_half_an_attention_and_wrong_prefixes_are_refused():
    _, state, heads = tiny("llama", 2)
    part = {PREFIXES[0] + "v_proj.weight": state[PREFIXES[0] + "v_proj.weight"]}
    for function, how in ((rotate_values, haar(8, 0)), (permute_heads, CYCLES[2])):
        for tensors, prefix in ((part, PREFIXES[0]), (state, "model.layers.9.self_attn."), (state, "")):
            with pytest.raises(GeometryError, match="is missing"):
                function(tensors, prefix, how, heads)
    for function, how in ((rotate_values_back, haar(8, 0)), (permute_heads_back, CYCLES[2])):
        with pytest.raises(GeometryError, match="no tensor of this attention"):
            function(state, PREFIXES[0].rstrip("."), how, heads)


def test_norms_with_entries_of_their_own_for_each_head_are_refused():
    _, state, heads = tiny("qwen3", 2)
    state = {**state, PREFIXES[0] + "q_norm.weight": torch.ones(heads.heads * heads.head_dim).double()}
    with pytest.raises(GeometryError, match="not shared by the heads"):
        permute_heads(state, PREFIXES[0], CYCLES[2], heads)
