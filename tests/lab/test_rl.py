"""One step of reinforcement learning: what is sampled, what is kept, and that reward rises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lab.tiny import BIGRAM, DIGITS, bigram_weights, earns_reward, guessing_weights, words
from threegates.lab import rl as module
from threegates.lab.algorithms.table import ALGORITHMS, own_trainer
from threegates.lab.model import forward
from threegates.lab.recipe import RLRecipe
from threegates.lab.rl import PolicyTrainer
from threegates.lab.rollout import Rollout, pad_prompts
from threegates.lab.task import TOKEN_ID, DataSet, is_held_out

PROMPTS, SAMPLES = 6, 4


def _recipe(algorithm: str, **changes: object) -> RLRecipe:
    settings: dict[str, object] = {
        "name": algorithm, "base": "base", "algorithm": algorithm, "data": "arith-4", "seed": 3, "steps": 4,
        "learning_rate": 1e-3, "warmup": 1, "prompts": PROMPTS, "samples": SAMPLES, "minibatches": 2,
    }  # fmt: skip
    return RLRecipe.model_validate(settings | changes)


def _undecided_weights() -> dict[str, Tensor]:
    """Half of the responses answer with a random digit, half end at once."""
    ends = {digit: {"<eos>": 1.0} for digit in DIGITS}
    return bigram_weights({"=": {"A": 0.5, "<eos>": 0.5}, "A": DIGITS, **ends})


def _trainer(algorithm: str, weights: dict[str, Tensor] | None = None, **changes: object) -> PolicyTrainer:
    return PolicyTrainer(_recipe(algorithm, **changes), BIGRAM, weights or _undecided_weights())


class _Spy:
    """Records what is sampled, which prompts are trained on, and what reaches the objective."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rollouts: list[Rollout] = []
        self.losses: list[tuple] = []
        self.trained: list[Tensor] = []
        sample, loss, score = module.sample_problems, module.policy_loss, module.sampled_log_probs

        def sampled(*arguments):
            self.rollouts.append(sample(*arguments))
            return self.rollouts[-1]

        def judged(*arguments):
            self.losses.append(arguments)
            return loss(*arguments)

        def scored(*arguments):
            self.trained.append(arguments[2])
            return score(*arguments)

        monkeypatch.setattr(module, "sample_problems", sampled)
        monkeypatch.setattr(module, "sampled_log_probs", scored)
        monkeypatch.setattr(module, "policy_loss", judged)

    def prompts(self) -> list[list[str]]:
        return [words(row) for rollout in self.rollouts for row in rollout.prompts]

    def masks(self) -> list[Tensor]:
        return [arguments[-1] for arguments in self.losses]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> _Spy:
    return _Spy(monkeypatch)


def _script(monkeypatch: pytest.MonkeyPatch, rounds: list[list[str]]) -> None:
    """Verdicts by group and sampling round: all right, all wrong, or mixed."""
    patterns = {
        "right": [True] * SAMPLES,
        "wrong": [False] * SAMPLES,
        "mixed": [True, False] * (SAMPLES // 2),
    }
    verdicts = iter([torch.tensor([v for group in groups for v in patterns[group]]) for groups in rounds])
    monkeypatch.setattr(module, "verify", lambda *_: next(verdicts))


# ---------------------------------------------------------------------------------- dynamic sampling


def test_uninformative_groups_are_replaced_and_counted(monkeypatch, spy):
    first = ["mixed", "right", "wrong", "mixed", "right", "wrong"]
    second = ["right", "mixed", "mixed", "mixed", "wrong", "mixed"]
    _script(monkeypatch, [first, second])
    metrics = _trainer("dapo").step(1)
    # Four of the first round gave way; what the second round leaves over replaces nothing.
    assert metrics["resampled_groups"] == 4
    assert [len(mask) for mask in spy.masks()] == [PROMPTS * SAMPLES // 2] * 2
    # Two of the first round, then the first four mixed ones of the second.
    rows = [spy.rollouts[0].prompts[g * SAMPLES] for g in (0, 3)]
    rows += [spy.rollouts[1].prompts[g * SAMPLES] for g in (1, 2, 3, 5)]
    assert torch.equal(torch.cat(spy.trained)[::SAMPLES], torch.stack(rows))
    for arguments in spy.losses:
        advantages = arguments[4]
        assert (advantages.abs().amax(1) > 0).all()


def test_groups_are_replaced_round_after_round_until_the_step_is_full(monkeypatch, spy):
    half = ["mixed", "wrong"] * (PROMPTS // 2)
    _script(monkeypatch, [["wrong"] * PROMPTS, half, half])
    metrics = _trainer("dapo").step(1)
    assert len(spy.rollouts) == 3
    assert metrics["resampled_groups"] == PROMPTS + PROMPTS // 2
    assert torch.cat([arguments[4].abs().amax(1) > 0 for arguments in spy.losses]).all()


def test_a_first_round_that_is_informative_is_not_sampled_again(monkeypatch, spy):
    _script(monkeypatch, [["mixed"] * PROMPTS])
    metrics = _trainer("dapo").step(1)
    assert len(spy.rollouts) == 1
    assert metrics["resampled_groups"] == 0
    assert torch.equal(torch.cat(spy.trained), spy.rollouts[0].prompts)


def test_after_the_last_round_a_step_keeps_its_size_with_groups_that_teach_nothing(monkeypatch, spy):
    wrong = ["wrong"] * PROMPTS
    _script(monkeypatch, [["mixed", *wrong[1:]], wrong, wrong])
    _trainer("dapo", resample_rounds=2).step(1)
    assert len(spy.rollouts) == 3
    assert sum(len(mask) for mask in spy.masks()) == PROMPTS * SAMPLES
    taught = torch.cat([arguments[4].abs().amax(1) > 0 for arguments in spy.losses])
    assert taught.tolist() == [True] * SAMPLES + [False] * (PROMPTS - 1) * SAMPLES


def test_what_is_logged_is_the_first_samples_not_those_that_selection_kept(monkeypatch, spy):
    """Every group that dynamic sampling keeps is half right here; of what was sampled first, a quarter is."""
    first = ["wrong", "wrong", "mixed", "wrong", "right", "wrong"]
    _script(monkeypatch, [first, ["mixed"] * PROMPTS])
    # Away from the base, so that the divergence depends on the samples.
    trainer = _trainer("dapo", _leaning_weights())
    trainer.base = _undecided_weights()
    metrics = trainer.step(1)
    sampled, later = spy.rollouts
    assert metrics["reward"] == pytest.approx(2 * (0.5 + 1) / PROMPTS - 1)
    assert metrics["length"] == pytest.approx(float(sampled.lengths.float().mean()))
    assert metrics["entropy"] == pytest.approx(float(sampled.entropy.sum() / sampled.mask.sum()), rel=1e-5)
    # Weights are stored in bf16, a part in 256.
    assert metrics["kl"] == pytest.approx(_divergence(sampled), rel=0.01)
    trained = torch.cat([arguments[-1].sum(1) for arguments in spy.losses])
    for other in (later.lengths, trained):
        assert metrics["length"] != pytest.approx(float(other.float().mean()))
    assert metrics["kl"] != pytest.approx(_divergence(later), rel=0.02)


def _leaning_weights() -> dict[str, Tensor]:
    """Answers more often than the undecided policy does, and oftener with a three than with another digit."""
    weights = _undecided_weights()
    weights["lm_head.weight"][TOKEN_ID["A"], TOKEN_ID["="]] += 1 / 48**0.5
    weights["lm_head.weight"][TOKEN_ID["3"], TOKEN_ID["A"]] += 2 / 48**0.5
    return weights


def _divergence(rollout: Rollout) -> float:
    """Oracle: token mean of k3 = r − 1 − log r between the leaning policy and the undecided one, by hand."""
    leaning, undecided = _odds(math.e, math.e**2), _odds(1.0, 1.0)
    found = []
    for response in rollout.responses:
        for token in words(response):
            log_ratio = math.log(undecided.get(token, 1.0) / leaning.get(token, 1.0))
            # An <eos> after a digit is certain; the first token of a response is not.
            if token == "<eos>" and len(words(response)) > 1:
                log_ratio = 0.0
            found.append(math.exp(log_ratio) - 1 - log_ratio)
    return sum(found) / len(found)


def _odds(answer: float, three: float) -> dict[str, float]:
    """Probabilities of every uncertain token when answering and the digit 3 have these odds against one."""
    digits = {digit: (three if digit == "3" else 1.0) / (9 + three) for digit in DIGITS}
    return {"A": answer / (1 + answer), "<eos>": 1 / (1 + answer), **digits}


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce++"])
def test_other_algorithms_sample_once(monkeypatch, spy, algorithm):
    _script(monkeypatch, [[*["wrong"] * (PROMPTS - 1), "mixed"]])
    metrics = _trainer(algorithm).step(1)
    assert len(spy.rollouts) == 1
    assert metrics["resampled_groups"] == 0


def test_groups_of_equal_answers_and_unequal_lengths_are_not_informative(monkeypatch, spy):
    """The overlong penalty tells their rewards apart, but they say nothing about right and wrong."""
    monkeypatch.setattr(DataSet, "response_length", 3)
    _script(monkeypatch, [["wrong"] * PROMPTS, ["mixed"] * PROMPTS])
    metrics = _trainer("dapo").step(1)
    lengths = spy.rollouts[0].lengths.view(PROMPTS, SAMPLES)
    assert (lengths.amax(1) > lengths.amin(1)).any()
    assert metrics["resampled_groups"] == PROMPTS


# ------------------------------------------------------------------------------- what reaches the loss


@pytest.mark.parametrize("algorithm", sorted(name for name in ALGORITHMS if own_trainer(name) is None))
def test_the_loss_sees_ratios_of_one_then_moving_and_only_response_tokens(spy, algorithm):
    trainer = _trainer(algorithm, learning_rate=0.03)
    for index in range(1, 4):
        trainer.step(index)
    for number, (rules, new, old, reference, advantages, mask) in enumerate(spy.losses):
        assert rules.name == algorithm
        ratio = (new - old)[mask].exp()
        if number % 2 == 0:
            torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
        else:
            assert (ratio - 1).abs().max() > 1e-3
        assert new.shape == old.shape == reference.shape == advantages.shape == mask.shape
        assert (advantages[~mask] == 0).all()
    first, last = spy.losses[0], spy.losses[-1]
    torch.testing.assert_close(first[3][first[5]], first[2][first[5]], atol=1e-4, rtol=0)
    assert (last[3] - last[2])[last[5]].abs().max() > 1e-3


def test_rewards_of_a_group_belong_to_its_own_prompt(spy):
    _trainer("grpo", prompts=40, samples=8, minibatches=1).step(1)
    advantages, mask = spy.losses[0][4], spy.losses[0][5]
    rollout = spy.rollouts[0]
    assert torch.equal(mask, rollout.mask)
    right = [
        earns_reward(words(prompt), words(response))
        for prompt, response in zip(rollout.prompts, rollout.responses, strict=True)
    ]
    rewards = np.where(right, 1.0, -1.0).reshape(40, 8)
    assert 5 < sum(right) < 60
    spread = rewards.std(1, ddof=1, keepdims=True)
    expected = np.where(spread > 0, (rewards - rewards.mean(1, keepdims=True)) / np.maximum(spread, 1e-9), 0)
    np.testing.assert_allclose(advantages[:, 0].numpy(), expected.ravel(), atol=1e-5)


def test_reinforce_pays_for_leaving_the_base_token_by_token(spy):
    """A_t is R − β Σ_{s≥t} (log π_old − log π_base), whitened; here β is large and the policy is pushed."""
    pushed = _undecided_weights()
    pushed["lm_head.weight"][TOKEN_ID["3"], TOKEN_ID["A"]] += 2 / 48**0.5
    trainer = _trainer("reinforce++", pushed, prompts=16, minibatches=1)
    trainer.base, trainer.rules = _undecided_weights(), replace(trainer.rules, kl_weight=0.5)
    trainer.step(1)
    _, _, old, reference, advantages, mask = spy.losses[0]
    rollout, returns = spy.rollouts[0], []
    for row in range(len(mask)):
        right = earns_reward(words(rollout.prompts[row]), words(rollout.responses[row]))
        gaps = (old - reference)[row][mask[row]].tolist()
        returns += [2 * right - 1 - 0.5 * sum(gaps[t:]) for t in range(len(gaps))]
    white = (np.array(returns) - np.mean(returns)) / np.std(returns, ddof=1)
    np.testing.assert_allclose(advantages[mask].numpy(), white, atol=1e-4)
    assert np.ptp(returns) > 2


def test_the_log_shows_reward_scale_length_and_entropy_of_the_samples(spy):
    metrics = _trainer("grpo", prompts=16).step(1)
    rollout, advantages = spy.rollouts[0], torch.cat([a[4] for a in spy.losses])
    tokens = rollout.mask.sum()
    assert metrics["length"] == pytest.approx(float(tokens) / len(rollout))
    assert metrics["entropy"] == pytest.approx(float(rollout.entropy.sum() / tokens))
    assert metrics["advantage_scale"] == pytest.approx(math.sqrt(float((advantages**2).sum() / tokens)))
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss"] == pytest.approx(0, abs=0.3)


# ------------------------------------------------------------------------------------------ randomness


def test_prompts_are_never_held_out_and_new_each_step(spy):
    trainer = _trainer("dapo")
    for index in range(1, 4):
        trainer.step(index)
    prompts = spy.prompts()
    assert not any(is_held_out(prompt) for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts) // SAMPLES


def test_a_steps_randomness_does_not_depend_on_the_steps_before(spy):
    trainer = _trainer("grpo", learning_rate=1e-9)
    for index in (1, 2, 3):
        trainer.step(index)
    _trainer("grpo", learning_rate=1e-9).step(3)
    late, alone = spy.rollouts[2], spy.rollouts[3]
    assert torch.equal(late.prompts, alone.prompts)
    assert torch.equal(late.responses, alone.responses)
    assert not torch.equal(spy.rollouts[0].prompts, late.prompts)


def test_algorithms_start_from_the_same_prompts_and_seeds_differ(spy):
    for algorithm in ("grpo", "reinforce++", "dapo"):
        _trainer(algorithm, resample_rounds=0).step(1)
    _trainer("grpo", seed=4).step(1)
    first = spy.rollouts[0]
    for other in spy.rollouts[1:3]:
        assert torch.equal(first.prompts, other.prompts)
        assert torch.equal(first.responses, other.responses)
    assert not torch.equal(first.prompts, spy.rollouts[3].prompts)


# --------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("algorithm", sorted(name for name in ALGORITHMS if own_trainer(name) is None))
def test_reward_rises_on_a_bandit(monkeypatch, algorithm):
    """Reward for answering at all: half of the samples at first, nearly all after a few steps."""
    monkeypatch.setattr(module, "verify", lambda rollout, *_: rollout.lengths == 3)
    trainer = _trainer(algorithm, learning_rate=0.02, prompts=16)
    rewards = [trainer.step(index)["reward"] for index in range(1, 26)]
    assert abs(np.mean(rewards[:2])) < 0.5
    assert _answering(trainer) > 0.9


def _answering(trainer: PolicyTrainer) -> float:
    """Probability that the policy answers, from its logits on one prompt."""
    prompt = pad_prompts([["<bos>", "cot", ":", "1", "="]])
    logits = forward(trainer.weights.named, BIGRAM, prompt, torch.ones_like(prompt, dtype=torch.bool))
    return float(logits.detach()[0, -1].softmax(-1)[TOKEN_ID["A"]])


def test_kl_pulls_back_to_the_base(monkeypatch):
    """With no reward to gain, a policy that answers too often returns to its base under GRPO's k3 term."""
    monkeypatch.setattr(module, "verify", lambda rollout, *_: torch.zeros(len(rollout), dtype=torch.bool))
    pushed = _undecided_weights()
    pushed["lm_head.weight"][TOKEN_ID["A"], TOKEN_ID["="]] += 2 / 48**0.5
    trainer = _trainer("grpo", pushed, learning_rate=0.01, weight_decay=0.0, prompts=16)
    trainer.base = _undecided_weights()
    before = _answering(trainer)
    distances = [trainer.step(index)["kl"] for index in range(1, 13)]
    assert before == pytest.approx(1 / (1 + math.exp(-2)), abs=0.01)
    assert abs(_answering(trainer) - 0.5) < 0.5 * (before - 0.5)
    assert distances[-1] < 0.5 * distances[0]


def test_no_reward_difference_moves_nothing_without_kl(monkeypatch):
    monkeypatch.setattr(module, "verify", lambda rollout, *_: torch.ones(len(rollout), dtype=torch.bool))
    monkeypatch.setattr(module, "outcome_rewards", lambda correct, *_: correct.float())
    trainer = _trainer("dapo", guessing_weights(), weight_decay=0.0, resample_rounds=0)
    metrics = trainer.step(1)
    assert metrics["grad_norm"] == 0
    assert trainer.weights.delta_norm() == 0
    assert metrics["resampled_groups"] == 0


def test_the_leash_says_how_far_a_step_went(spy):
    trainer = _trainer("grpo", leash=True, learning_rate=1e-2)
    before = {name: tensor.detach().clone() for name, tensor in trainer.weights.named.items()}
    master = trainer.weights.master.detach().clone()
    row = trainer.step(1)
    rollout = spy.rollouts[0]
    old, new = (
        module.reference_log_probs(weights, BIGRAM, rollout) for weights in (before, trainer.weights.named)
    )
    ratio = (new - old).exp()
    moved = (ratio * (new - old) - ratio + 1) * rollout.mask
    assert row["step_kl"] == pytest.approx(float(moved.sum() / rollout.mask.sum()), rel=1e-3)
    assert row["step_kl_response"] == pytest.approx(float(moved.sum(1).mean()), rel=1e-3)
    assert row["step_norm"] == pytest.approx(float((trainer.weights.master - master).norm()), rel=1e-6)
    assert row["step_kl"] > 0 and row["tilt_kl"] > 0


def test_without_a_leash_nothing_of_it_is_logged_and_training_is_the_same():
    with_leash, without = (_trainer("dapo", leash=leash) for leash in (True, False))
    first, second = with_leash.step(1), without.step(1)
    extra = {"step_kl", "step_kl_response", "step_norm", "tilt_kl"}
    assert set(first) - set(second) == extra
    assert torch.equal(with_leash.weights.master, without.weights.master)


def test_sgd_moves_by_the_rate_times_the_clipped_gradient():
    trainer = _trainer("grpo", optimiser="sgd", weight_decay=0.0, learning_rate=0.1, warmup=1, clip_norm=1e-3)
    row = trainer.step(1)
    assert row["grad_norm"] > 1e-3
    moved = float((trainer.weights.master - trainer.weights.initial).norm())
    assert 0 < moved <= 2 * 0.1 * 1e-3 * 1.001
    assert set(trainer.state()) == {"master"}
