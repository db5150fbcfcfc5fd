"""Evaluation with scripted samples whose verdicts are known, and with a policy that guesses one in ten."""

from __future__ import annotations

import math

import pytest
import torch

from tests.lab.tiny import (
    BIGRAM,
    DIGITS,
    TINY,
    bigram_weights,
    earns_reward,
    guessing_weights,
    random_weights,
)
from threegates.lab import evaluate as module
from threegates.lab.evaluate import (
    evaluate,
    final_evaluation,
    held_out_problems,
    reference_log_probs,
    rollout_metrics,
    sample_problems,
    verify,
)
from threegates.lab.randomness import step_generator
from threegates.lab.rollout import Rollout, pad_prompts, pad_responses
from threegates.lab.task import VOCABULARY, Problem, is_held_out


def _rollout(responses: list[str]) -> Rollout:
    tokens, mask = pad_responses([response.split() for response in responses])
    zeros = torch.zeros(tokens.shape)
    return Rollout(pad_prompts([["<bos>", "="]] * len(responses)), tokens, mask, zeros, zeros.clone())


def test_held_out_problems_are_held_out_fixed_and_nested():
    problems = held_out_problems("arith-4", 64)
    assert all(is_held_out(problem.prompt()) for problem in problems)
    assert held_out_problems("arith-4", 16) == problems[:16]
    assert held_out_problems("addsub-4", 16) != problems[:16]
    assert len({tuple(problem.prompt()) for problem in problems}) == 64


def test_each_response_is_judged_by_its_own_problem():
    problems = [Problem((1, 1), ("+",)), Problem((3, 3), ("*",))]
    rollout = _rollout(["A 2 <eos>", "A 9 <eos>", "A 2 <eos>", "A 9 <eos>"])
    assert verify(rollout, problems, 2).tolist() == [True, False, False, True]


def test_samples_of_one_problem_lie_in_consecutive_rows():
    problems = held_out_problems("arith-4", 3)
    rollout = sample_problems(guessing_weights(), BIGRAM, problems, 4, step_generator(1, "test", 0))
    prompts = pad_prompts([problem.prompt() for problem in problems])
    assert torch.equal(rollout.prompts, prompts[torch.arange(12) // 4])
    for row, correct in enumerate(verify(rollout, problems, 4).tolist()):
        response = [VOCABULARY[token] for token in rollout.responses[row]]
        assert correct == earns_reward(problems[row // 4].prompt(), response)


def test_metrics_by_hand():
    rollout = _rollout(["A 2 <eos>", "A <eos>"])
    rollout.log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -0.2, 0.0]])
    rollout.entropy = torch.tensor([[0.5, 1.5, 0.25], [1.0, 0.75, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -0.5], [-0.1, -0.3, 0.0]])
    metrics = rollout_metrics(rollout, torch.tensor([True, False]), reference)
    gaps = [-0.5, 1.0, 0.0, 0.0, -0.1]
    assert metrics["reward"] == 0
    assert metrics["length"] == 2.5
    assert metrics["entropy"] == pytest.approx(4.0 / 5)
    assert metrics["kl"] == pytest.approx(sum(math.exp(d) - d - 1 for d in gaps) / 5, rel=1e-5)
    assert math.isnan(rollout_metrics(rollout, torch.tensor([True, False]), None)["kl"])


def test_a_guessing_policy_is_right_one_time_in_ten():
    frame = final_evaluation(guessing_weights(), BIGRAM, "arith-4", 256, 8, seed=3)
    assert len(frame) == 256
    assert set(frame["samples"]) == {8}
    rate = frame["correct"].sum() / (256 * 8)
    assert abs(rate - 0.1) < 4 * math.sqrt(0.09 / (256 * 8))
    # Eight guesses at once: how often at least one is right follows from .9⁸.
    hit = (frame["correct"] > 0).mean()
    assert abs(hit - (1 - 0.9**8)) < 4 * math.sqrt(0.57 * 0.43 / 256)


def test_metrics_of_the_guessing_policy_are_those_of_a_fair_ten_sided_die():
    base = bigram_weights({"=": {"A": 0.5, "<eos>": 0.5}, "A": DIGITS, **{d: {"<eos>": 1.0} for d in DIGITS}})
    metrics = evaluate(guessing_weights(), BIGRAM, base, "arith-4", 256, seed=1, step=7)
    assert metrics["length"] == 3
    assert metrics["entropy"] == pytest.approx(math.log(10) / 3, rel=1e-4)
    assert metrics["reward"] == pytest.approx(2 * metrics["pass_at_1"] - 1)
    # Only the first of three tokens differs: d = log(1/2) there.
    assert metrics["kl"] == pytest.approx((0.5 - math.log(0.5) - 1) / 3, rel=1e-3)


def test_counts_are_filed_under_their_prompts(monkeypatch):
    """Prompt number n gets n mod 9 right answers out of eight, across the bounds of chunks."""
    monkeypatch.setattr(module, "CHUNK", 40)
    problems = held_out_problems("arith-4", 17)
    number = {" ".join(problem.prompt()): n for n, problem in enumerate(problems)}

    def scripted(weights, shape, prompts, generator, length):
        responses = []
        for row in range(len(prompts)):
            text = " ".join(VOCABULARY[t] for t in prompts[row].tolist() if t)
            problem = problems[number[text]]
            right = row % 8 < number[text] % 9
            responses.append(f"A {problem.answer if right else (problem.answer + 1) % 10} <eos>")
        return _rollout(responses)

    monkeypatch.setattr(module, "sample", scripted)
    frame = final_evaluation(random_weights(), TINY, "arith-4", 17, 8, seed=0)
    assert frame["correct"].tolist() == [n % 9 for n in range(17)]
    assert frame["prompt"].tolist() == list(number)
    assert list(frame) == ["data", "prompt", "samples", "correct"]


def test_evaluations_repeat_and_differ_by_step_and_seed():
    weights = random_weights()

    def run(seed: int, step: int) -> dict[str, float]:
        return evaluate(weights, TINY, weights, "arith-4", 8, seed, step)

    first = run(1, 1)
    torch.manual_seed(99)
    assert run(1, 1) == first
    assert run(1, 2)["entropy"] != first["entropy"] != run(2, 1)["entropy"]
    assert first["kl"] == pytest.approx(0, abs=1e-6)


def test_reference_log_probs_of_the_sampler_itself_are_its_own():
    weights = random_weights()
    rollout = sample_problems(weights, TINY, held_out_problems("arith-4", 4), 2, step_generator(1, "x", 1))
    again = reference_log_probs(weights, TINY, rollout)
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-5, rtol=1e-5)
    assert not again.requires_grad
