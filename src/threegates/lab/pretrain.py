"""Pre-training of the lab's base model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

from threegates.lab.language import LanguageTrainer
from threegates.lab.model import initial_weights
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.recipe import PretrainRecipe
from threegates.lab.rollout import pad_prompts, pad_responses
from threegates.lab.task import data_set, pretraining_example
from threegates.lab.trainer import Metrics


class Pretrainer(LanguageTrainer):
    """Next-token prediction on responses of the pre-training mixture, cosine schedule to one tenth."""

    recipe: PretrainRecipe

    def __init__(self, recipe: PretrainRecipe) -> None:
        generator = step_generator(recipe.seed, "initial-weights", 0)
        super().__init__(recipe, recipe.shape, initial_weights(recipe.shape, generator), None)

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        return cls(recipe)

    def learning_rate(self) -> float:
        progress = self.updates / self.recipe.steps
        return super().learning_rate() * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    def step(self, index: int) -> Metrics:
        rng = step_rng(self.recipe.seed, "pretraining", index)
        data = data_set(self.recipe.data)
        examples = [pretraining_example(data, rng) for _ in range(self.recipe.batch)]
        prompts = pad_prompts([prompt for prompt, _ in examples])
        responses, mask = pad_responses([response for _, response in examples])
        loss = self.negative_log_likelihood(prompts, responses, mask)
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss)}
