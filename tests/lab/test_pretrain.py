"""Pre-training: the mixture it sees, its loss, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.lab.tiny import TINY, words
from threegates.lab import pretrain as module
from threegates.lab.pretrain import Pretrainer
from threegates.lab.randomness import step_rng
from threegates.lab.recipe import PretrainRecipe
from threegates.lab.rollout import pad_prompts, pad_responses
from threegates.lab.task import data_set, is_held_out, pretraining_example


def _trainer(**changes: object) -> Pretrainer:
    settings: dict[str, object] = {
        "name": "base",
        "seed": 11,
        "steps": 40,
        "batch": 32,
        "warmup": 5,
        "shape": TINY,
    }
    return Pretrainer(PretrainRecipe.model_validate(settings | changes))


def test_the_loss_is_the_mean_over_all_response_tokens_however_the_batch_is_split():
    trainer = _trainer()
    rng = step_rng(11, "pretraining", 1)
    examples = [pretraining_example(data_set("pretraining"), rng) for _ in range(32)]
    prompts = pad_prompts([prompt for prompt, _ in examples])
    responses, mask = pad_responses([response for _, response in examples])
    whole = trainer.negative_log_likelihood(prompts, responses, mask)
    (gradient,) = torch.autograd.grad(whole, trainer.weights.named["lm_head.weight"])
    metrics = trainer.step(1)
    assert metrics["loss"] == pytest.approx(float(whole.detach()), rel=1e-5)
    scale = min(1.0, 1 / metrics["grad_norm"])
    assert trainer.weights.master.grad is not None
    got = trainer.weights.master.grad[-gradient.numel() :]
    torch.testing.assert_close(got, gradient.flatten() * scale, atol=1e-6, rtol=1e-4)


def test_a_step_sees_the_stated_number_of_examples_and_no_held_out_prompt(monkeypatch):
    seen: list[list[str]] = []
    padded = module.pad_prompts

    def spied(prompts):
        seen.extend(prompts)
        return padded(prompts)

    monkeypatch.setattr(module, "pad_prompts", spied)
    trainer = _trainer(batch=64)
    for index in range(1, 5):
        trainer.step(index)
    assert len(seen) == 4 * 64
    assert not any(is_held_out(prompt) for prompt in seen if "cot" in prompt)
    assert {prompt[1] for prompt in seen} == {"cot", "reverse", "sort", "max"}


def test_training_lowers_the_loss():
    trainer = _trainer()
    losses = [trainer.step(index)["loss"] for index in range(1, 41)]
    assert losses[0] == pytest.approx(np.log(48), rel=0.2)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_seeds_start_from_other_weights_and_the_same_seed_from_the_same():
    one, two, three = _trainer(), _trainer(), _trainer(seed=12)
    assert torch.equal(one.weights.master, two.weights.master)
    assert not torch.equal(one.weights.master, three.weights.master)


def test_the_teachers_words_never_occur(monkeypatch):
    seen: set[str] = set()
    padded = module.pad_responses

    def spied(responses):
        tokens, mask = padded(responses)
        seen.update(words(tokens.flatten()))
        return tokens, mask

    monkeypatch.setattr(module, "pad_responses", spied)
    trainer = _trainer(batch=64)
    for index in range(1, 5):
        trainer.step(index)
    assert {"A", ";", "<eos>"} < seen
    assert not seen & {"let", "r", "then", "get", "so"}
