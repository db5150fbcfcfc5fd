"""Supervised fine-tuning: on a teacher's traces, on the base's own styles, or on accepted samples (RFT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from threegates.errors import RecipeError
from threegates.lab.evaluate import sample_problems, verify
from threegates.lab.language import LanguageTrainer
from threegates.lab.model import ModelShape, Weights
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.recipe import SFTRecipe
from threegates.lab.rollout import Rollout, pad_prompts, pad_responses
from threegates.lab.task import Problem, base_style, data_set, draw_problems, teacher
from threegates.lab.trainer import Metrics

# Rounds of sampling before a base that is never right is given up.
ATTEMPTS = 8


class SupervisedTrainer(LanguageTrainer):
    """Cross-entropy on a teacher's traces, on the base's styles without errors, or on accepted samples."""

    recipe: SFTRecipe
    base: Weights

    def __init__(self, recipe: SFTRecipe, shape: ModelShape, base: Weights) -> None:
        super().__init__(recipe, shape, base, base)

    def step(self, index: int) -> Metrics:
        prompts, responses, mask = self._examples(index)
        losses, norms = [], []
        for rows in torch.arange(len(prompts), device=prompts.device).tensor_split(self.recipe.minibatches):
            time = int(mask[rows].sum(1).max())
            loss = self.negative_log_likelihood(prompts[rows], responses[rows, :time], mask[rows, :time])
            losses.append(float(loss.detach()))
            norms.append(self.update(loss))
        return {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))}

    def _examples(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        if recipe.source == "rft":
            return self._accepted(index)
        rng = step_rng(recipe.seed, f"prompts/{recipe.data}/0", index)
        problems = draw_problems(data_set(recipe.data), recipe.batch, rng, held_out=False)
        return _written(problems, recipe.source, rng)

    def _accepted(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of the frozen base that the verifier accepts; more are drawn if too few to split."""
        accepted: list[Rollout] = []
        for attempt in range(ATTEMPTS):
            rollout, correct = self._sample_base(index, attempt)
            if correct.any():
                accepted.append(rollout.select(correct.nonzero()[:, 0]))
            if sum(map(len, accepted)) >= self.recipe.minibatches:
                kept = Rollout.join(accepted)
                return kept.prompts, kept.responses, kept.mask
        raise RecipeError(
            "The base is almost never right, so there is nothing to fine-tune it on.",
            where=f"{self.recipe.name}, step {index}",
            expected=f"at least {self.recipe.minibatches} accepted samples in {ATTEMPTS} rounds",
            found=sum(map(len, accepted)),
            remedy="Pre-train the base for longer, or choose easier data.",
        )

    def _sample_base(self, index: int, attempt: int) -> tuple[Rollout, Tensor]:
        recipe = self.recipe
        rng = step_rng(recipe.seed, f"prompts/{recipe.data}/{attempt}", index)
        data, count = data_set(recipe.data), recipe.batch // recipe.samples
        problems = draw_problems(data, count, rng, held_out=False)
        generator = step_generator(recipe.seed, f"rollouts/{attempt}", index, self.device)
        rollout = sample_problems(
            self.base, self.shape, problems, recipe.samples, generator, data.response_length
        )
        return rollout, verify(rollout, problems, recipe.samples)


def _written(
    problems: Sequence[Problem], source: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Traces written by rule: the teacher's, or the base's own styles without errors."""
    if source == "teacher":
        responses = [teacher(problem, 0.0, rng) for problem in problems]
    else:
        responses = [base_style(problem, rng, errors=False) for problem in problems]
    prompts = pad_prompts([problem.prompt() for problem in problems])
    return prompts, *pad_responses(responses)
