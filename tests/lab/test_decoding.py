"""Decoding over static shapes against the cache that grows: the same law, and one compilation."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from tests.lab.tiny import BIGRAM, guessing_weights, random_weights
from threegates.lab.decoding import Growing, Static, Step, compiled_step, decoder_of
from threegates.lab.model import ModelShape, forward_at
from threegates.lab.rollout import Rollout, pad_prompts, response_log_probs, sample, token_log_probs
from threegates.lab.task import EOS_ID, Problem

SHAPE = ModelShape(width=32, layers=2, feed_forward=48, heads=2, kv_heads=1, head_dim=16)


def _weights() -> dict[str, torch.Tensor]:
    """A random model whose responses end at many different places."""
    weights = random_weights(SHAPE, seed=8, sharpness=3.0)
    weights["lm_head.weight"][EOS_ID] *= 1.5
    return weights


def _prompts() -> torch.Tensor:
    digits = (4, 7, 3, 5, 9, 2)
    chains = [Problem(digits[: n + 1], ("+", "*", "-", "+", "*")[:n]) for n in (1, 2, 3, 5)]
    return pad_prompts([chain.prompt() for chain in chains * 8])


class _Whole(Growing):
    """Reads every row to the end, as static shapes do: random numbers then fall to the same rows."""

    def keep(self, rows: torch.Tensor) -> bool:
        return False


def _sampled(step: Step | None, temperature: float = 1.0, length: int = 34) -> Rollout:
    decoder = _Whole if step is None else functools.partial(Static, step=step)
    generator = torch.Generator().manual_seed(3)
    return sample(
        _weights(), SHAPE, _prompts(), generator, length=length, temperature=temperature, decoder=decoder
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_static_shapes_give_the_same_tokens_and_log_probs(backend, temperature):
    step = forward_at if backend is None else compiled_step(backend=backend)
    grown, fixed = _sampled(None, temperature), _sampled(step, temperature)
    assert int(grown.lengths.min()) < int(grown.lengths.max()) == 34
    assert torch.equal(fixed.responses, grown.responses) and torch.equal(fixed.mask, grown.mask)
    torch.testing.assert_close(fixed.log_probs, grown.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fixed.entropy, grown.entropy, atol=1e-5, rtol=1e-5)


def test_rows_that_have_ended_are_read_no_more_and_the_others_go_on_as_before():
    reads: list[int] = []

    class Counting(Growing):
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            reads.append(len(tokens))
            return super().__call__(tokens)

    prompts, generator = _prompts(), torch.Generator().manual_seed(3)
    short = sample(_weights(), SHAPE, prompts, generator, length=34, temperature=0, decoder=Counting)
    whole = _sampled(None, temperature=0)
    assert torch.equal(short.responses, whole.responses) and torch.equal(short.mask, whole.mask)
    torch.testing.assert_close(short.log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)
    alive = [int((short.lengths > t).sum()) for t in range(len(reads))]
    assert len(prompts) == reads[0] > reads[-1] > 0
    assert all(rows >= left > rows / 2 for rows, left in zip(reads, alive, strict=True))


def test_log_probs_over_static_shapes_are_those_of_a_whole_pass():
    rollout = _sampled(forward_at)
    everything = response_log_probs(_weights(), SHAPE, rollout.prompts, rollout.responses)
    again = token_log_probs(everything, rollout.responses) * rollout.mask
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-5, rtol=1e-5)


def test_one_compilation_serves_every_token_of_every_run():
    compiled = []

    def counting(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    step = compiled_step(backend=counting)
    prompts, generator = _prompts(), torch.Generator().manual_seed(0)
    trained = {name: tensor.clone().requires_grad_() for name, tensor in _weights().items()}
    decoder = functools.partial(Static, step=step)
    # Every run loads a shape of its own.
    for weights, shape in ((_weights(), SHAPE), (trained, dataclasses.replace(SHAPE))):
        sample(weights, shape, prompts, generator, length=6, decoder=decoder)
    assert len(compiled) == 1


def test_the_cpu_reads_with_a_cache_that_grows_and_cuda_over_static_shapes():
    assert decoder_of(torch.device("cpu")) is Growing
    assert decoder_of(torch.device("cuda")) is Static


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_greedy_responses_on_cuda_are_those_of_the_cpu():
    weights, prompts = guessing_weights(), _prompts()
    here = sample(weights, BIGRAM, prompts, torch.Generator(), temperature=0)
    there = sample(
        {name: tensor.cuda() for name, tensor in weights.items()},
        BIGRAM, prompts.cuda(), torch.Generator("cuda"), temperature=0,
    )  # fmt: skip
    assert there.responses.is_cuda and torch.equal(there.mask.cpu(), here.mask)
    torch.testing.assert_close(there.log_probs.cpu(), here.log_probs, atol=1e-4, rtol=1e-4)
