"""The forward pass against transformers' LlamaForCausalLM with the same weights and configuration."""

from __future__ import annotations

import math

import pytest
import torch

from tests.lab.tiny import TINY, random_weights, transformers_model
from threegates.lab.model import Cache, ModelShape, forward, initial_weights
from threegates.lab.task import PAD_ID

SHAPES = {
    "grouped": ModelShape(width=32, layers=2, feed_forward=48, heads=4, kv_heads=2, head_dim=8),
    "ungrouped": ModelShape(width=32, layers=2, feed_forward=48, heads=4, kv_heads=4, head_dim=8),
    "one key head, wide heads": ModelShape(
        width=24, layers=2, feed_forward=40, heads=3, kv_heads=1, head_dim=16
    ),
    "other constants": ModelShape(
        vocabulary=11, width=16, layers=3, feed_forward=20, heads=2, kv_heads=2, head_dim=8,
        rope_theta=50.0, norm_epsilon=1e-2,
    ),
}  # fmt: skip
PADDED = torch.tensor([0, 1, 3, 7])


def _tokens(shape: ModelShape, padding: torch.Tensor, time: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, shape.vocabulary, (len(padding), time), generator=generator)
    return tokens.masked_fill(torch.arange(time) < padding[:, None], PAD_ID)


def _valid(tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1]) >= padding[:, None]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("padding", [torch.zeros(4, dtype=torch.long), PADDED], ids=["full", "left-padded"])
def test_logits_equal_transformers(name, padding):
    shape = SHAPES[name]
    weights = random_weights(shape, seed=1)
    tokens = _tokens(shape, padding)
    valid = _valid(tokens, padding)
    positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = transformers_model(shape, weights)(
            input_ids=tokens, attention_mask=valid.long(), position_ids=positions
        ).logits
    logits = forward(weights, shape, tokens, valid)
    assert logits.shape == (4, 12, shape.vocabulary)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[valid], expected[valid], atol=1e-5, rtol=1e-5)
    # The comparison means something only where logits are of order one and differ between positions.
    assert expected[valid].std(0).min() > 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_the_cache_changes_nothing(name):
    shape = SHAPES[name]
    weights = random_weights(shape, seed=2)
    tokens = _tokens(shape, PADDED)
    valid = _valid(tokens, PADDED)
    whole = forward(weights, shape, tokens, valid)
    cache = Cache.empty(shape, 4, 12)
    parts = [forward(weights, shape, tokens[:, :8], valid[:, :8], cache)]
    assert cache.filled == 8
    for t in range(8, 12):
        parts.append(forward(weights, shape, tokens[:, t : t + 1], valid[:, : t + 1], cache))
    cached = torch.cat(parts, dim=1)
    torch.testing.assert_close(cached[valid], whole[valid], atol=1e-5, rtol=1e-5)
    assert cache.filled == 12


def test_later_tokens_do_not_reach_earlier_logits():
    weights = random_weights(seed=3)
    tokens = _tokens(TINY, PADDED)
    valid = _valid(tokens, PADDED)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 48
    before, after = forward(weights, TINY, tokens, valid), forward(weights, TINY, changed, valid)
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-6, rtol=0)
    assert (before[:, 9:] - after[:, 9:]).abs().amax() > 0.01


def test_more_left_padding_and_what_is_written_there_change_nothing():
    weights = random_weights(seed=4)
    none = torch.zeros(2, dtype=torch.long)
    tokens = _tokens(TINY, none, time=6)
    plain = forward(weights, TINY, tokens, _valid(tokens, none))
    for filler in (PAD_ID, 17):
        padded = torch.cat([torch.full((2, 5), filler), tokens], dim=1)
        logits = forward(weights, TINY, padded, _valid(padded, none + 5))[:, 5:]
        torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)


def test_gradients_equal_transformers():
    weights = random_weights(seed=6)
    for tensor in weights.values():
        tensor.requires_grad_()
    tokens = _tokens(TINY, PADDED)
    valid = _valid(tokens, PADDED)
    model = transformers_model(TINY, weights)
    positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
    theirs = model(input_ids=tokens, attention_mask=valid.long(), position_ids=positions).logits
    theirs[valid].log_softmax(-1)[:, 3].sum().backward()
    forward(weights, TINY, tokens, valid)[valid].log_softmax(-1)[:, 3].sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, atol=1e-4, rtol=1e-4)


def test_initial_weights_have_the_stated_spread_and_repeat():
    shape = ModelShape()
    weights = initial_weights(shape, torch.Generator().manual_seed(0))
    assert sum(tensor.numel() for tensor in weights.values()) == pytest.approx(0.53e6, rel=0.01)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            assert (tensor == 1).all(), name
        else:
            spread = float(tensor.std()) * math.sqrt(tensor.shape[1])
            assert spread == pytest.approx(1, abs=4 / math.sqrt(2 * tensor.numel())), name
    again = initial_weights(shape, torch.Generator().manual_seed(0))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    other = initial_weights(shape, torch.Generator().manual_seed(1))
    assert not torch.equal(weights["lm_head.weight"], other["lm_head.weight"])


def test_parameters_are_those_of_transformers():
    shape = ModelShape()
    model = transformers_model(shape, initial_weights(shape, torch.Generator().manual_seed(0)))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shape.parameter_shapes()
