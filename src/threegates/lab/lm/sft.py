"""Supervised fine-tuning of a language model: on right answers, another style, or accepted samples (RFT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from threegates.errors import RecipeError
from threegates.lab.averages import average_tokens
from threegates.lab.lm.rollout import Rollout, written
from threegates.lab.lm.sampling import Policy
from threegates.lab.lm.tasks import Problem
from threegates.lab.lm.trainer import LmTrainer
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import LmSFTRecipe
from threegates.lab.trainer import Metrics, mean

# Rounds of sampling before a base that is never right is given up.
ATTEMPTS = 8

# A problem and the ids of a response to it.
_Example = tuple[Problem, Sequence[int]]


class LmSupervisedTrainer(LmTrainer):
    """Cross-entropy of response tokens, the newline that ends an answer among them."""

    recipe: LmSFTRecipe

    def step(self, index: int) -> Metrics:
        rollout = self.examples(index)
        groups = torch.arange(len(rollout), device=self.device)
        updates = []
        for part in groups.tensor_split(self.recipe.minibatches):
            loss = self.loss(rollout.select(part))
            updates.append({"loss": float(loss.detach()), "grad_norm": self.update(loss)})
        return mean(updates) | {"tokens": float(rollout.tokens)}

    def loss(self, rollout: Rollout) -> Tensor:
        """Mean over response tokens of −log π, a scalar."""
        return -average_tokens(self.log_probs(self.weights.named, rollout), rollout.mask, "token")

    def examples(self, index: int) -> Rollout:
        """A step's responses, one to each prompt."""
        found = self._accepted(index) if self.recipe.source == "rft" else self._written(index)
        problems = [problem for problem, _ in found]
        return written(self.prefix, self.asked(problems), [ids for _, ids in found], self.device)

    def _written(self, index: int) -> list[_Example]:
        recipe = self.recipe
        style = self.task.gold if recipe.source == "gold" else self.task.other_style
        problems = self.problems(recipe.prompts * recipe.samples, 0, index)
        return [(one, [*self.tokenizer.encode(style(one)), self.tokenizer.newline]) for one in problems]

    def _accepted(self, index: int) -> list[_Example]:
        """Samples of the frozen base that the verifier accepts; more are drawn if too few to split."""
        accepted: list[_Example] = []
        for attempt in range(ATTEMPTS):
            accepted += self._drawn(index, attempt)
            if len(accepted) >= self.recipe.minibatches:
                return accepted
        raise RecipeError(
            "The base is almost never right, so there is nothing to fine-tune it on.",
            where=f"{self.recipe.name}, step {index}",
            expected=f"at least {self.recipe.minibatches} accepted samples in {ATTEMPTS} rounds",
            found=len(accepted),
            remedy="Choose an easier task, or more prompts a step.",
        )

    def _drawn(self, index: int, attempt: int) -> list[_Example]:
        recipe = self.recipe
        problems = self.problems(recipe.prompts, attempt, index)
        generator = step_generator(recipe.seed, f"rollouts/{attempt}", index, self.device)
        rollout = self.sample(
            Policy(self.base, self.shape, self.computing), problems, recipe.samples, generator
        )
        rows = self.right(rollout, problems).nonzero()[:, 0].tolist()
        ids, lengths = rollout.responses.tolist(), rollout.lengths.tolist()
        return [(problems[row // recipe.samples], ids[row][: lengths[row]]) for row in rows]
