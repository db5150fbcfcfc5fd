"""Sampling against transformers' generate, the softmax it claims to follow, and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.lab.tiny import BIGRAM, TINY, guessing_weights, random_weights, transformers_model, words
from threegates.lab import rollout as rollout_module
from threegates.lab.model import ModelShape, forward
from threegates.lab.rollout import (
    Rollout,
    pad_prompts,
    pad_responses,
    response_log_probs,
    sample,
    sampled_log_probs,
    token_log_probs,
)
from threegates.lab.task import EOS_ID, PAD_ID, RESPONSE_LENGTH, Problem

FIVE = ModelShape(vocabulary=5, width=16, layers=2, feed_forward=24, heads=2, kv_heads=1, head_dim=8)


def _prompts() -> torch.Tensor:
    digits = (4, 7, 3, 5, 9, 2)
    chains = [Problem(digits[: n + 1], ("+", "*", "-", "+", "*")[:n]) for n in (1, 2, 3, 5)]
    return pad_prompts([chain.prompt() for chain in chains * 4])


def _ending_weights() -> dict[str, torch.Tensor]:
    """A random model in which the end is likely enough to come at many different places."""
    weights = random_weights(seed=8, sharpness=3.0)
    weights["lm_head.weight"][EOS_ID] *= 1.5
    return weights


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn() -> tuple[dict[str, torch.Tensor], Rollout]:
    weights = _ending_weights()
    return weights, sample(weights, TINY, _prompts(), _generator())


def test_prompts_are_padded_left_and_responses_right():
    prompts = pad_prompts([["<bos>", "4", "="], ["<bos>", "="]])
    assert [words(row) for row in prompts] == [["<bos>", "4", "="], ["<bos>", "="]]
    assert prompts[1, 0] == PAD_ID
    tokens, mask = pad_responses([["A", "<eos>"], ["A", "4", "<eos>"]])
    assert tokens[0, 2] == PAD_ID
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_greedy_sampling_equals_transformers_generate():
    weights, prompts = _ending_weights(), _prompts()
    ours = sample(weights, TINY, prompts, _generator(), temperature=0)
    theirs = transformers_model(TINY, weights).generate(
        input_ids=prompts,
        attention_mask=(prompts != PAD_ID).long(),
        do_sample=False,
        max_new_tokens=RESPONSE_LENGTH,
    )[:, prompts.shape[1] :]
    assert torch.equal(ours.responses, theirs)
    # Both ways of ending have to occur for this to say something.
    assert 1 < int(ours.lengths.min()) < int(ours.lengths.max()) == RESPONSE_LENGTH


def test_log_probs_of_sampling_equal_those_of_a_second_pass():
    weights, rollout = _drawn()
    everything = response_log_probs(weights, TINY, rollout.prompts, rollout.responses)
    again = token_log_probs(everything, rollout.responses) * rollout.mask
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-5, rtol=1e-5)
    assert (rollout.log_probs[rollout.mask] < 0).all()


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_groups_of_like_length_change_neither_log_probs_nor_gradients(rows):
    weights, drawn = _drawn()
    rollout = drawn.select(torch.arange(rows))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}

    def gradients(log_probs: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((log_probs * rollout.mask).square().sum(), list(leaves.values())))

    grouped = sampled_log_probs(leaves, TINY, rollout.prompts, rollout.responses, rollout.mask)
    everything = response_log_probs(leaves, TINY, rollout.prompts, rollout.responses)
    whole = token_log_probs(everything, rollout.responses) * rollout.mask
    torch.testing.assert_close(grouped, whole, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(grouped), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_short_answers_are_not_read_as_if_they_were_long(monkeypatch):
    read: list[tuple[int, int]] = []
    original = rollout_module.response_log_probs

    def counted(weights, shape, prompts, responses):
        read.append((prompts.shape[1], responses.shape[1]))
        return original(weights, shape, prompts, responses)

    monkeypatch.setattr(rollout_module, "response_log_probs", counted)
    weights = _ending_weights()
    responses, mask = pad_responses([["A"] * 3] * 8 + [["A"] * 4] * 4 + [["A"] * 30] * 4)
    prompts = _prompts()[[0, 3] * 8]
    sampled_log_probs(weights, TINY, prompts, responses, mask)
    assert [time for _, time in read] == [3, 4, 30]
    read.clear()
    sampled_log_probs(weights, TINY, prompts[::2], responses[::2], mask[::2])
    assert {width for width, _ in read} == {int((prompts[0] != PAD_ID).sum())} != {prompts.shape[1]}


def test_log_probs_and_entropy_equal_formulas_on_transformers_logits():
    weights, rollout = _drawn()
    tokens = torch.cat([rollout.prompts, rollout.responses], dim=1)
    start = rollout.prompts.shape[1]
    valid = torch.cat([rollout.prompts != PAD_ID, torch.ones_like(rollout.mask)], dim=1)
    positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = transformers_model(TINY, weights)(
            input_ids=tokens, attention_mask=valid.long(), position_ids=positions
        ).logits[:, start - 1 : -1]
    scores = logits.double().numpy()
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mask = rollout.mask.numpy()
    entropy = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(rollout.entropy.numpy()[mask], entropy[mask], atol=1e-5)
    chosen = np.take_along_axis(np.log(p), rollout.responses.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(rollout.log_probs.numpy()[mask], chosen[mask], atol=2e-5)


def test_the_mask_ends_at_the_first_end_and_nothing_follows():
    _, rollout = _drawn()
    ended = 0
    for tokens, mask in zip(rollout.responses.tolist(), rollout.mask.tolist(), strict=True):
        length = tokens.index(EOS_ID) + 1 if EOS_ID in tokens else len(tokens)
        assert mask == [t < length for t in range(len(tokens))]
        assert set(tokens[length:]) <= {PAD_ID}
        ended += length < len(tokens)
    assert 0 < ended < len(rollout)
    assert (rollout.log_probs[~rollout.mask] == 0).all()
    assert (rollout.entropy[~rollout.mask] == 0).all()
    assert torch.equal(rollout.lengths, rollout.mask.sum(1))


def test_sampling_stops_when_everyone_has_ended():
    rollout = sample(guessing_weights(), BIGRAM, _prompts(), _generator())
    assert rollout.responses.shape[1] == 3
    assert {" ".join(words(row)[::2]) for row in rollout.responses} == {"A <eos>"}


def test_length_bounds_the_response():
    assert sample(_ending_weights(), TINY, _prompts(), _generator(), length=2).responses.shape[1] == 2


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_pairs_follow_the_softmax(temperature):
    """Chi-square over all pairs of first and second token of 20,000 samples."""
    weights, count = random_weights(FIVE, seed=3, sharpness=0.5), 20_000
    prompt = torch.tensor([[PAD_ID, 1, 3, 4]])
    rollout = sample(
        weights, FIVE, prompt.expand(count, -1), _generator(9), length=2, temperature=temperature
    )
    expected = np.zeros(25)
    first = _next_token(weights, prompt, temperature)
    for a in range(5):
        if a == EOS_ID:
            expected[5 * a + PAD_ID] = first[a]
            continue
        second = _next_token(weights, torch.cat([prompt, torch.tensor([[a]])], 1), temperature)
        expected[5 * a : 5 * a + 5] = first[a] * second
    pairs = (rollout.responses[:, 0] * 5 + rollout.responses[:, 1]).numpy()
    observed = np.bincount(pairs, minlength=25)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    test = stats.chisquare(observed[possible], expected[possible] / expected.sum() * count)
    assert test.pvalue > 1e-3
    assert (expected[possible] * count).min() > 5


def _next_token(weights: dict[str, torch.Tensor], tokens: torch.Tensor, temperature: float) -> np.ndarray:
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[:, 0] = False
    logits = forward(weights, FIVE, tokens, valid)[0, -1].double().numpy() / temperature
    return np.exp(logits) / np.exp(logits).sum()


def test_the_generator_alone_decides():
    weights, prompts = _ending_weights(), _prompts()
    torch.manual_seed(1)
    one = sample(weights, TINY, prompts, _generator(4))
    torch.manual_seed(2)
    two = sample(weights, TINY, prompts, _generator(4))
    assert torch.equal(one.responses, two.responses)
    assert torch.equal(one.log_probs, two.log_probs)
    three = sample(weights, TINY, prompts, _generator(5))
    assert not torch.equal(one.responses[:, :2], three.responses[:, :2])


def test_select_and_join_come_back_to_the_same_rollout():
    _, rollout = _drawn()
    order = torch.argsort(rollout.lengths, stable=True)
    short, long = rollout.select(order[:3]), rollout.select(order[3:])
    assert short.responses.shape[1] == int(rollout.lengths[order[:3]].max()) < long.responses.shape[1]
    joined = Rollout.join([short, long])
    for name in ("prompts", "responses", "mask", "log_probs", "entropy"):
        assert torch.equal(getattr(joined, name), getattr(rollout, name)[order]), name
    assert joined.mask.dtype == torch.bool
    assert joined.responses.dtype == torch.long


def test_join_pads_prompts_of_different_lengths_on_the_left():
    weights = guessing_weights()
    parts = [
        sample(weights, BIGRAM, pad_prompts([p.prompt()]), _generator())
        for p in (Problem((1, 2), ("+",)), Problem((1, 2, 3), ("+", "*")))
    ]
    joined = Rollout.join(parts)
    assert [words(row) for row in joined.prompts] == [words(part.prompts[0]) for part in parts]
    assert joined.prompts[0, :2].tolist() == [PAD_ID, PAD_ID]
