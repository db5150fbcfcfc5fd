"""Sampling against the exact distribution of all sequences, by numbers that each row has from the start."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.lab.lm.tiny_lm import tiny_model, weights_of
from threegates.lab.lm.model import response_log_probs
from threegates.lab.lm.rollout import Rollout, written
from threegates.lab.lm.sampling import Policy, choose, inverse_cdf, sample, uniform
from threegates.lab.lm.shape import LlamaShape

PREFIX, PROMPTS, END = [3, 4, 2, 3], [[1, 2], [0, 4, 3]], 0


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Five tokens, sharp enough that they differ in probability."""
    model = tiny_model(vocab_size=5, initializer_range=0.5, seed=4)
    weights = {name: tensor.detach() for name, tensor in weights_of(model).items()}
    return Policy(weights, LlamaShape.of(model.config.to_dict()), torch.float32)


def sampled(
    policy: Policy, numbers: Tensor | None, samples: int, prompts: list[list[int]] = PROMPTS
) -> Rollout:
    length = 3 if numbers is None else numbers.shape[1]
    return sample(policy, PREFIX, prompts, numbers, samples=samples, length=length, end=END)


def every_sequence(length: int) -> list[tuple[int, ...]]:
    """All that can be sampled: they stop after the end, or at the limit."""
    open_ends = [(*own, END) for n in range(length) for own in itertools.product(range(1, 5), repeat=n)]
    return [*open_ends, *itertools.product(range(1, 5), repeat=length)]


def test_sequences_come_as_often_as_their_exact_probabilities_say(policy):
    sequences = every_sequence(3)
    exact = {}
    for prompt in range(2):
        given = written(PREFIX, [PROMPTS[prompt]] * len(sequences), sequences)
        log_probs = response_log_probs(policy.weights, policy.shape, given.layout(), torch.float32)
        exact |= {(prompt, own): float(p) for own, p in zip(sequences, log_probs.sum(1).exp(), strict=True)}
    assert sum(exact.values()) == pytest.approx(2, abs=1e-5)
    samples = 6000
    found = sampled(policy, uniform(2 * samples, 3, torch.Generator().manual_seed(5)), samples)
    counts = dict.fromkeys(exact, 0)
    for row, (ids, length) in enumerate(zip(found.responses.tolist(), found.lengths.tolist(), strict=True)):
        counts[row // samples, tuple(ids[:length])] += 1
    chi = sum((counts[key] - samples * p) ** 2 / (samples * p) for key, p in exact.items())
    degrees = len(exact) - 2
    # Five standard deviations of the chi-squared law.
    assert chi < degrees + 5 * (2 * degrees) ** 0.5


def test_log_probabilities_and_entropy_are_those_of_the_read_sequences(policy):
    found = sampled(policy, uniform(16, 6, torch.Generator().manual_seed(1)), 8)
    assert found.mask.sum(1).min() < found.mask.sum(1).max()
    again = response_log_probs(policy.weights, policy.shape, found.layout(), torch.float32)
    torch.testing.assert_close(found.log_probs, again, atol=1e-5, rtol=1e-5)
    # The entropy of the first token, from the probabilities of all first tokens.
    first = written(PREFIX, [PROMPTS[0]] * 5, [[token] for token in range(5)])
    log_p = response_log_probs(policy.weights, policy.shape, first.layout(), torch.float32)[:, 0]
    assert float(found.entropy[0, 0]) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-5)
    assert not found.entropy[~found.mask].any() and not found.log_probs[~found.mask].any()


def test_a_row_draws_the_same_whatever_the_others_do(policy):
    numbers = uniform(16, 6, torch.Generator().manual_seed(1))
    together = sampled(policy, numbers, 8)
    alone = sampled(policy, numbers[8:], 8, PROMPTS[1:])
    time = min(together.responses.shape[1], alone.responses.shape[1])
    assert torch.equal(together.responses[8:, :time], alone.responses[:, :time])
    assert torch.equal(together.mask[8:, :time], alone.mask[:, :time])
    assert not together.mask[8:, time:].any()


def test_responses_end_after_the_end_and_nowhere_else(policy):
    found = sampled(policy, uniform(64, 6, torch.Generator().manual_seed(2)), 32)
    for ids, length in zip(found.responses.tolist(), found.lengths.tolist(), strict=True):
        assert END not in ids[: length - 1]
        assert ids[length - 1] == END or length == 6


def test_without_numbers_the_most_probable_token_is_taken(policy):
    found = sampled(policy, None, 1)
    for row, prompt in enumerate(PROMPTS):
        before: list[int] = []
        for _ in range(int(found.lengths[row])):
            given = written(PREFIX, [prompt] * 5, [[*before, token] for token in range(5)])
            layout = given.layout()
            last = response_log_probs(policy.weights, policy.shape, layout, torch.float32)[:, len(before)]
            before.append(int(last.argmax()))
        assert found.responses[row, : len(before)].tolist() == before


def test_a_prompt_is_read_once_for_all_its_samples(policy, monkeypatch):
    read: list[int] = []
    real = Policy.read

    def noted(self: Policy, tokens: Tensor, *rest: object) -> Tensor:
        read.append(len(tokens))
        return real(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Policy, "read", noted)
    sampled(policy, uniform(64, 6, torch.Generator().manual_seed(2)), 32)
    assert read[0] == len(PREFIX) + 2 + 3
    assert read[1] <= 64 and read[1:] == sorted(read[1:], reverse=True) and read[-1] < 64


@pytest.mark.parametrize("vocabulary", [3, 256, 700])
def test_the_inverse_of_the_cumulative_distribution_is_the_plain_one(vocabulary):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, vocabulary, generator=generator)
    probabilities[:, ::3] = 0.0
    numbers = torch.rand(50, generator=generator, dtype=torch.float64)
    numbers[0], numbers[1] = 0.0, 1 - 2**-53
    sums = probabilities.double().cumsum(1)
    expected = (sums <= numbers[:, None] * sums[:, -1:]).sum(1)
    found = inverse_cdf(probabilities, numbers)
    assert torch.equal(found, expected.clamp(max=vocabulary - 1))
    assert (probabilities.gather(1, found[:, None]) > 0).all()


def test_every_token_has_the_share_of_numbers_that_is_its_probability():
    logits = torch.tensor([[0.3, -1.0, 2.0, -60.0, 0.0]])
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens, log_probs, entropy = choose(logits.expand(len(grid), -1), grid)
    p = logits[0].double().softmax(0)
    shares = tokens.bincount(minlength=5) / len(grid)
    torch.testing.assert_close(shares.double(), p, atol=2e-5, rtol=0)
    torch.testing.assert_close(log_probs.double(), p.log()[tokens], atol=1e-6, rtol=1e-6)
    assert float(entropy[0]) == pytest.approx(float(-torch.special.xlogy(p, p).sum()), abs=1e-6)
