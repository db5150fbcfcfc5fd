"""The packed forward pass against transformers, which reads a response with its prefix and prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lab.lm.tiny_lm import tiny_model, weights_of
from threegates.errors import CheckpointError
from threegates.lab.lm.layout import Layout
from threegates.lab.lm.model import embed, response_log_probs
from threegates.lab.lm.shape import LlamaShape

MODELS: dict[str, dict[str, Any]] = {
    "llama, tied": {},
    "llama, own head": {"tie_word_embeddings": False},
    "llama, a key head each": {"num_key_value_heads": 6},
    "llama, one key head": {"num_key_value_heads": 1},
    "llama, all biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2, tied": {"family": "qwen2"},
    "qwen2, own head": {"family": "qwen2", "tie_word_embeddings": False},
}
PREFIX = [3, 4, 5, 3, 9]
PROMPTS = [[1, 2], [7, 8, 9, 3]]
LENGTHS = [5, 1, 3, 4, 2, 5]


def batch(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Six responses, three a prompt, and their mask."""
    responses = torch.randint(vocabulary, (6, 5), generator=torch.Generator().manual_seed(1))
    return responses, torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def unshared(
    model: Any, prefix: list[int], prompts: list[list[int]], responses: Tensor, mask: Tensor
) -> Tensor:
    """The same log-probabilities by transformers, a row at a time, each with its prefix and prompt."""
    found = []
    for row, (own, kept) in enumerate(zip(responses, mask, strict=True)):
        before, after = [*prefix, *prompts[row * len(prompts) // len(responses)]], own[kept]
        logits = model(torch.tensor([[*before, *after.tolist()]])).logits[0, len(before) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, after[:, None])[:, 0]
        found.append(torch.nn.functional.pad(log_probs, (0, len(own) - len(after))))
    return torch.stack(found)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("prefix", [PREFIX, []], ids=["prefix", "no prefix"])
def test_log_probabilities_and_gradients_are_those_of_transformers(changes, prefix):
    model = tiny_model(**changes)
    shape, weights = LlamaShape.of(model.config.to_dict()), weights_of(model)
    responses, mask = batch(shape.vocabulary)
    layout = Layout.of(prefix, PROMPTS, responses, mask)
    found = response_log_probs(weights, shape, layout, torch.float32)
    expected = unshared(model, prefix, PROMPTS, responses, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    for name, parameter in model.named_parameters():
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(weights[name].grad, parameter.grad, atol=1e-5 * max(1, largest), rtol=1e-4)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_names_and_shapes_are_those_of_transformers(changes):
    model = tiny_model(**changes)
    shape = LlamaShape.of(model.config.to_dict())
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shape.parameter_shapes() == expected


def test_only_tokens_that_are_needed_are_read_each_once():
    responses, mask = batch(50)
    layout = Layout.of(PREFIX, PROMPTS, responses, mask)
    assert len(layout.tokens) == len(PREFIX) + 2 + 4 + sum(length - 1 for length in LENGTHS)
    assert layout.positions[: len(PREFIX) + 2].tolist() == list(range(len(PREFIX) + 2))
    # The second prompt starts where the first one did.
    assert layout.positions[7:11].tolist() == [5, 6, 7, 8]


def test_a_response_sees_no_other_response_and_no_other_prompt():
    model = tiny_model()
    shape, weights = LlamaShape.of(model.config.to_dict()), weights_of(model)
    responses, mask = batch(shape.vocabulary)

    def log_probs(prompts: list[list[int]], tokens: Tensor) -> Tensor:
        return response_log_probs(weights, shape, Layout.of(PREFIX, prompts, tokens, mask), torch.float32)

    before = log_probs(PROMPTS, responses)
    other = responses.clone()
    other[1:] = (other[1:] + 11) % shape.vocabulary
    after = log_probs([PROMPTS[0], [30, 31, 32, 33]], other)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1:] - before[1:]).abs().max() > 0.1


def test_a_sample_without_tokens_takes_no_place_and_changes_nothing():
    model = tiny_model()
    shape, weights = LlamaShape.of(model.config.to_dict()), weights_of(model)
    responses, mask = batch(shape.vocabulary)
    mask[4] = False
    layout = Layout.of(PREFIX, PROMPTS, responses, mask)
    found = response_log_probs(weights, shape, layout, torch.float32)
    assert not found[4].any()
    torch.testing.assert_close(found, unshared(model, PREFIX, PROMPTS, responses, mask), atol=1e-5, rtol=1e-5)
    nothing = Layout.of(PREFIX, PROMPTS, responses, torch.zeros_like(mask))
    assert not response_log_probs(weights, shape, nothing, torch.float32).any()


def test_bfloat16_is_near_float32_and_not_it():
    model = tiny_model()
    shape = LlamaShape.of(model.config.to_dict())
    weights = {name: tensor.bfloat16() for name, tensor in weights_of(model).items()}
    responses, mask = batch(shape.vocabulary)
    layout = Layout.of(PREFIX, PROMPTS, responses, mask)
    exact = response_log_probs(weights, shape, layout, torch.float32)
    found = response_log_probs(weights, shape, layout, torch.bfloat16)
    assert found.dtype == torch.float32
    assert 1e-5 < float((found - exact).detach().abs().max()) < 0.1


def test_the_residual_stream_keeps_what_bfloat16_would_lose():
    """An embedding of size 300 and layers that add about 1: in bf16 steps near 300 are 2."""
    model = tiny_model()
    model.model.embed_tokens.weight.data += 300.0
    shape = LlamaShape.of(model.config.to_dict())
    weights = {name: tensor.bfloat16() for name, tensor in weights_of(model).items()}
    layout = Layout.of(PREFIX, PROMPTS, *batch(shape.vocabulary))
    seen: list[Tensor] = []
    rms_norm = torch.nn.functional.rms_norm

    def noted(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x)
        return rms_norm(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "rms_norm", noted)
        response_log_probs(weights, shape, layout, torch.bfloat16)
    assert {x.dtype for x in seen} == {torch.float32}
    added = (seen[-1] - seen[0]).detach()
    assert not torch.equal(added, added.round())


def test_gradients_of_a_token_that_occurs_often_are_added_in_float32():
    weight = torch.zeros(4, 1, dtype=torch.bfloat16, requires_grad=True)
    # In bf16, 256 + 1 is 256.
    embed(weight, torch.full((400,), 2)).sum().backward()
    assert weight.grad is not None and weight.grad[:, 0].tolist() == [0, 0, 400, 0]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": None}, "rope_type"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes, key):
    config = tiny_model().config.to_dict() | changes
    with pytest.raises(CheckpointError, match=f"config.json, {key}"):
        LlamaShape.of(config)


def test_older_configs_say_their_rope_base_on_their_own_level():
    config = tiny_model().config.to_dict()
    del config["rope_parameters"]
    assert LlamaShape.of(config | {"rope_theta": 77.0, "rope_scaling": None}).rope_theta == 77
    assert LlamaShape.of(config | {"head_dim": None}).head_dim == 4
