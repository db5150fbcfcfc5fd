"""Supervised fine-tuning: where its responses come from, and that it learns them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lab.tiny import BIGRAM, TINY, earns_reward, guessing_weights, random_weights, words
from threegates.errors import RecipeError
from threegates.lab import sft as module
from threegates.lab.recipe import SFTRecipe
from threegates.lab.rollout import Rollout
from threegates.lab.sft import ATTEMPTS, SupervisedTrainer
from threegates.lab.task import BASE_STYLES, is_held_out

SOURCES = ("teacher", "same-style", "rft")


def _recipe(source: str, **changes: object) -> SFTRecipe:
    settings: dict[str, object] = {
        "name": source, "base": "base", "source": source, "data": "arith-4", "seed": 7, "steps": 4,
        "learning_rate": 1e-3, "warmup": 1, "batch": 64, "samples": 8, "minibatches": 2,
    }  # fmt: skip
    return SFTRecipe.model_validate(settings | changes)


class _Spied(SupervisedTrainer):
    """Records every batch that the loss sees."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[list[str], list[str]]] = []
        self.sizes: list[int] = []

    def negative_log_likelihood(self, prompts: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
        self.sizes.append(len(prompts))
        for prompt, response, kept in zip(prompts, responses, mask, strict=True):
            self.seen.append((words(prompt), words(response[kept])))
        return super().negative_log_likelihood(prompts, responses, mask)


def _trainer(source: str, **changes: object) -> _Spied:
    return _Spied(_recipe(source, **changes), BIGRAM, guessing_weights())


@pytest.mark.parametrize("source", SOURCES)
def test_only_right_answers_to_prompts_outside_the_held_out_eighth_are_trained_on(source):
    """For RFT: the base guesses, so nine in ten of its samples have to be turned away."""
    trainer = _trainer(source)
    for index in range(1, 4):
        trainer.step(index)
    assert len(trainer.seen) > 5
    for prompt, response in trainer.seen:
        assert earns_reward(prompt, response)
        assert response[-1] == "<eos>"
        assert not is_held_out(prompt)
    if source != "rft":
        assert trainer.sizes == [32] * 6
        assert len({tuple(prompt) for prompt, _ in trainer.seen}) == 3 * 64


def test_rft_keeps_every_accepted_sample_of_the_base_and_of_nobody_else():
    """The samples come from the frozen base: a policy that has moved does not change them."""
    fresh, moved = _trainer("rft"), _trainer("rft")
    with torch.no_grad():
        moved.weights.master += 1
    moved.weights.refresh()
    fresh.step(2)
    moved.step(2)
    assert fresh.seen == moved.seen
    # 64 guesses at one in ten: 6.4 accepted, a standard deviation of 2.4.
    counts = []
    for index in range(1, 21):
        trainer = _trainer("rft")
        trainer.step(index)
        counts.append(len(trainer.seen))
    assert abs(np.mean(counts) - 6.4) < 4 * 2.4 / 20**0.5


def _script(monkeypatch: pytest.MonkeyPatch, rounds: Sequence[Sequence[int]]) -> list[Rollout]:
    """Accept these rows of each round of sampling; gives the list that the rounds' samples go to."""
    rollouts: list[Rollout] = []

    def verdicts(rollout: Rollout, *_: object) -> Tensor:
        correct = torch.zeros(len(rollout), dtype=torch.bool)
        correct[list(rounds[len(rollouts)])] = True
        rollouts.append(rollout)
        return correct

    monkeypatch.setattr(module, "verify", verdicts)
    return rollouts


@pytest.mark.parametrize(
    ("minibatches", "rounds", "sizes"),
    [
        (2, [[5], [], [0, 63]], [2, 1]),
        (4, [[1, 2, 3], [4]], [1, 1, 1, 1]),
        (2, [[7, 9]], [1, 1]),
        (3, [[0, 1, 2, 3, 4]], [2, 2, 1]),
    ],
)
def test_rft_samples_on_until_there_is_enough_to_split_and_trains_on_nothing_else(
    monkeypatch, minibatches, rounds, sizes
):
    rollouts = _script(monkeypatch, rounds)
    trainer = _trainer("rft", minibatches=minibatches)
    trainer.step(1)
    assert len(rollouts) == len(rounds)
    expected = [
        (words(rollout.prompts[row]), words(rollout.responses[row]))
        for rollout, rows in zip(rollouts, rounds, strict=True)
        for row in rows
    ]
    assert trainer.seen == expected
    assert trainer.sizes == sizes
    assert trainer.updates == minibatches
    # Every round asks new questions, and draws its answers from a stream of its own.
    asked = [{tuple(words(prompt)) for prompt in rollout.prompts} for rollout in rollouts]
    assert len(set.union(*asked)) == 8 * len(rounds)
    if len(rounds) > 1:
        assert not torch.equal(rollouts[0].responses, rollouts[1].responses)


@pytest.mark.parametrize("accepted", [0, 1])
def test_a_base_that_is_almost_never_right_is_given_up_without_training(monkeypatch, accepted):
    rollouts = _script(monkeypatch, [[3][:accepted], *[[]] * 20])
    trainer = _trainer("rft")
    with pytest.raises(RecipeError, match="almost never right") as caught:
        trainer.step(2)
    assert len(rollouts) == ATTEMPTS
    lines = str(caught.value).splitlines()
    assert "  where: rft, step 2" in lines
    assert f"  expected: at least 2 accepted samples in {ATTEMPTS} rounds" in lines
    assert f"  found: {accepted}" in lines
    assert trainer.seen == []
    assert trainer.updates == 0
    assert trainer.weights.delta_norm() == 0


def test_rft_of_a_base_that_is_never_right_trains_on_nothing():
    """Weights drawn at random: the true verifier turns every sample away."""
    trainer = _Spied(_recipe("rft", batch=16, samples=2), TINY, random_weights(TINY, seed=2))
    with pytest.raises(RecipeError, match="longer, or choose easier data"):
        trainer.step(1)
    assert trainer.seen == []


def test_the_teacher_speaks_its_own_words_and_the_same_style_those_of_the_base():
    teacher, same = _trainer("teacher"), _trainer("same-style", batch=128)
    teacher.step(1)
    same.step(1)
    assert all(response[:2] == ["let", "r"] for _, response in teacher.seen)
    lengths = [len(response) for _, response in same.seen]
    assert set(lengths) == {3, 7, 27}
    for length, (_, share, _) in zip((27, 7, 3), BASE_STYLES, strict=True):
        assert abs(lengths.count(length) / 128 - share) < 4 * (share * (1 - share) / 128) ** 0.5


@pytest.mark.parametrize("source", SOURCES)
def test_a_steps_data_do_not_depend_on_the_steps_before(source):
    walked, alone = _trainer(source), _trainer(source)
    for index in (1, 2, 3):
        walked.seen.clear()
        walked.step(index)
    alone.step(3)
    assert walked.seen == alone.seen
    other = _trainer(source, seed=8)
    other.step(3)
    assert other.seen != alone.seen


def test_sources_share_their_prompts_with_each_other_and_with_reinforcement_learning():
    """What differs between the runs is the responses, not the questions."""
    teacher, accepted = _trainer("teacher", batch=64), _trainer("rft", batch=512)
    teacher.step(1)
    accepted.step(1)
    questions = [tuple(prompt) for prompt, _ in teacher.seen]
    assert {tuple(prompt) for prompt, _ in accepted.seen} <= set(questions)
    assert len({tuple(prompt) for prompt, _ in accepted.seen}) > 20


def test_the_loss_is_the_mean_surprise_of_the_response_tokens():
    trainer = _trainer("rft", learning_rate=1e-12)
    metrics = trainer.step(1)
    assert metrics["loss"] == pytest.approx(np.log(10) / 3, rel=1e-3)


@pytest.mark.parametrize("source", ["teacher", "same-style"])
def test_training_lowers_the_loss(source):
    recipe = _recipe(source, learning_rate=1e-2)
    trainer = SupervisedTrainer(recipe, TINY, random_weights(TINY, seed=1))
    losses = [trainer.step(index)["loss"] for index in range(1, 41)]
    assert np.mean(losses[-5:]) < 0.45 * np.mean(losses[:2])
    assert trainer.updates == 80
