"""Supervised fine-tuning: on a teacher's traces, on the base's own styles, or on accepted samples (RFT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from threegates.lab.evaluate import sample_problems, step_generator, verify
from threegates.lab.model import ModelShape, Weights
from threegates.lab.recipe import SFTRecipe
from threegates.lab.rollout import pad_prompts, pad_responses
from threegates.lab.task import Problem, base_style, data_set, draw_problems, step_rng, teacher
from threegates.lab.trainer import Metrics, Trainer


class SupervisedTrainer(Trainer):
    """Cross-entropy on a teacher's traces, on the base's styles without errors, or on accepted samples."""

    recipe: SFTRecipe
    base: Weights

    def __init__(self, recipe: SFTRecipe, shape: ModelShape, base: Weights) -> None:
        super().__init__(recipe, shape, base, base)

    def step(self, index: int) -> Metrics:
        prompts, responses, mask = self._examples(index)
        losses, norms = [], []
        for rows in torch.arange(len(prompts)).chunk(self.recipe.minibatches):
            time = int(mask[rows].sum(1).max())
            loss = self.negative_log_likelihood(prompts[rows], responses[rows, :time], mask[rows, :time])
            losses.append(float(loss.detach()))
            norms.append(self.update([loss]))
        return {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))}

    def _examples(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        rng = step_rng(recipe.seed, f"prompts/{recipe.data}/0", index)
        count = recipe.batch // recipe.samples if recipe.source == "rft" else recipe.batch
        problems = draw_problems(data_set(recipe.data), count, rng, held_out=False)
        if recipe.source == "rft":
            return self._accepted(problems, index)
        return _written(problems, recipe.source, rng)

    def _accepted(self, problems: Sequence[Problem], index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of the frozen base that the verifier accepts; all samples in the rare step without any."""
        generator = step_generator(self.recipe.seed, "rollouts/0", index)
        rollout = sample_problems(self.base, self.shape, problems, self.recipe.samples, generator)
        correct = verify(rollout, problems, self.recipe.samples)
        if int(correct.sum()) < self.recipe.minibatches:
            correct = torch.ones_like(correct)
        kept = rollout.select(correct.nonzero()[:, 0])
        return kept.prompts, kept.responses, kept.mask


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
