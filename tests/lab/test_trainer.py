"""Schedule, evaluation and resumable state, which every kind of run shares."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.lab.tiny import BIGRAM, TINY, guessing_weights, random_weights
from threegates.lab.pretrain import Pretrainer
from threegates.lab.recipe import PretrainRecipe, RLRecipe, SFTRecipe
from threegates.lab.rl import PolicyTrainer
from threegates.lab.rollout import pad_prompts, pad_responses
from threegates.lab.sft import SupervisedTrainer
from threegates.lab.trainer import Trainer

COMMON: dict[str, Any] = {"seed": 5, "steps": 6, "evaluate_prompts": 8, "evaluate_every": 4, "warmup": 3}
TUNED: dict[str, Any] = COMMON | {"base": "b", "data": "arith-4", "learning_rate": 1e-3, "minibatches": 2}


def trainers() -> dict[str, Trainer]:
    """One small trainer of every kind."""
    guessing = (BIGRAM, guessing_weights())
    random = (TINY, random_weights(TINY, seed=2))
    rl = {
        name: PolicyTrainer(RLRecipe(name=name, algorithm=name, prompts=4, samples=2, **TUNED), *guessing)
        for name in ("grpo", "dapo", "reinforce++")
    }
    sft = {
        source: SupervisedTrainer(
            SFTRecipe(name=source, source=source, batch=batch, samples=2, **TUNED), *initial
        )
        # Random weights are never right; of the guesses, one in ten is.
        for source, batch, initial in (
            ("teacher", 8, random),
            ("same-style", 8, random),
            ("rft", 32, guessing),
        )
    }
    return {"pretrain": Pretrainer(PretrainRecipe(name="p", batch=8, shape=TINY, **COMMON)), **rl, **sft}


KINDS = ("pretrain", "grpo", "dapo", "reinforce++", "teacher", "same-style", "rft")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_trainer_continues_bit_for_bit(kind):
    whole, before, after = (trainers()[kind] for _ in range(3))
    for index in range(1, 5):
        expected = whole.logged_step(index)
    for index in range(1, 3):
        before.logged_step(index)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()}, before.updates)
    for index in range(3, 5):
        resumed = after.logged_step(index)
    assert torch.equal(whole.weights.master, after.weights.master)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, after.state()[name]), name
    assert str(resumed) == str(expected)
    assert whole.updates == after.updates


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_logged_with_evaluations_where_due(kind):
    trainer = trainers()[kind]
    rows = [trainer.logged_step(index) for index in range(1, 7)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert ["pass_at_1" in row for row in rows] == [False, False, False, True, False, True]
    for row in rows:
        assert row["grad_norm"] >= 0
        assert row["delta_norm"] > 0
    updates = 1 if kind == "pretrain" else 2
    assert [row["updates"] for row in rows][:2] == [updates, 2 * updates]
    if kind in ("grpo", "dapo", "reinforce++"):
        assert all({"reward", "kl", "entropy", "length", "clip_fraction"} <= set(row) for row in rows)


@pytest.mark.parametrize("kind", ["grpo", "teacher"])
def test_an_evaluations_row_holds_what_held_out_prompts_say(kind):
    """RL measures reward and KL on its own samples, before the step: they are not the evaluation's."""
    trainer, again = trainers()[kind], trainers()[kind]
    for index in range(1, 5):
        row = trainer.logged_step(index)
        sampled = again.step(index)
    measured = trainer.evaluate(4)
    assert {"reward", "pass_at_1", "kl", "kl_k1", "kl_k2", "entropy", "length"} <= set(measured)
    assert {name: row[name] for name in measured} == measured
    assert kind == "teacher" or sampled["kl"] != measured["kl"]
    assert row["loss"] == sampled["loss"]


def test_the_learning_rate_warms_up_and_then_stays():
    trainer = trainers()["teacher"]
    rates = []
    for index in range(1, 4):
        trainer.step(index)
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    # Two updates a step: 1/3, 2/3 | 3/3, 1 | 1, 1.
    assert rates == pytest.approx([2e-3 / 3, 1e-3, 1e-3])


def test_pretraining_ends_its_cosine_at_a_tenth():
    trainer = Pretrainer(PretrainRecipe(name="p", shape=TINY, **(COMMON | {"warmup": 1, "steps": 100})))
    rates = {}
    for updates in (0, 50, 100):
        trainer.updates = updates
        rates[updates] = trainer.learning_rate() / 3e-3
    assert rates == pytest.approx({0: 1.0, 50: 0.55, 100: 0.1})


def test_an_update_reports_the_norm_before_clipping_and_moves_by_the_clipped_gradient():
    trainer = trainers()["teacher"]
    weight = trainer.weights.named["model.norm.weight"]
    norm = trainer.update(1000 * weight.sum())
    assert norm == pytest.approx(1000 * len(weight) ** 0.5, rel=1e-5)
    assert float(trainer.weights.master.grad.norm()) == pytest.approx(1.0, rel=1e-4)


def test_the_loss_of_tokens_is_their_mean_surprise():
    trainer = trainers()["grpo"]
    prompts = pad_prompts([["<bos>", "="]] * 2)
    responses, mask = pad_responses([["A", "2", "<eos>"], ["A", "<eos>"]])
    mask[1] = False
    loss = trainer.negative_log_likelihood(prompts, responses, mask)
    # The guessing policy is certain of A and of the end, and gives the digit one tenth.
    assert float(loss.detach()) == pytest.approx(math.log(10) / 3, rel=1e-4)
