"""What every training run shares: weights, optimiser, clipping, warm-up, evaluation, resumable state.

Pre-training, reinforcement learning and supervised fine-tuning differ in where their tokens come from
and in their loss. Steps draw their randomness from (seed, stream, step) alone, so a resumed run needs
only weights, optimiser moments and the step number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from threegates.lab.evaluate import evaluate
from threegates.lab.model import ModelShape, Weights
from threegates.lab.recipe import Recipe
from threegates.lab.rollout import average_tokens, response_log_probs, token_log_probs
from threegates.lab.weights import TrainedWeights

Metrics = dict[str, float]


class Trainer(ABC):
    """Weights, optimiser and schedule of a run; subclasses add the step."""

    def __init__(
        self, recipe: Recipe, shape: ModelShape, initial: Mapping[str, Tensor], base: Weights | None
    ) -> None:
        self.recipe, self.shape, self.base = recipe, shape, base
        self.weights = TrainedWeights(initial, master=recipe.master_dtype, storage=recipe.storage_dtype)
        self.updates = 0
        self.optimiser = torch.optim.AdamW(
            [self.weights.master],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )

    @abstractmethod
    def step(self, index: int) -> Metrics:
        """One step, numbered from 1; returns what the training log records of it."""

    def learning_rate(self) -> float:
        """Linear warm-up over the first updates, then constant."""
        return self.recipe.learning_rate * min(1.0, (self.updates + 1) / max(1, self.recipe.warmup))

    def update(self, losses: Sequence[Tensor]) -> float:
        """Back-propagate each loss, then one optimiser step; returns the gradient norm before clipping."""
        for loss in losses:
            loss.backward()
        norm = self.weights.hand_over_gradient(self.recipe.clip_norm)
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        self.optimiser.step()
        self.updates += 1
        self.weights.refresh()
        return norm

    def logged_step(self, index: int) -> Metrics:
        """The step and, where due, an evaluation on held-out prompts."""
        metrics = self.step(index)
        if index % self.recipe.evaluate_every == 0 or index == self.recipe.steps:
            measured = self.evaluate(index)
            metrics = measured | metrics
        return metrics | {"step": index, "updates": self.updates, "delta_norm": self.weights.delta_norm()}

    def evaluate(self, index: int) -> Metrics:
        """Held-out reward, pass@1, KL, entropy and length of the current weights."""
        recipe = self.recipe
        return evaluate(
            self.weights.named,
            self.shape,
            self.base,
            recipe.evaluation_data,
            recipe.evaluate_prompts,
            recipe.seed,
            index,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs besides the step number."""
        moments = self.optimiser.state[self.weights.master]
        return {"master": self.weights.master.detach(), **moments}

    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            self.weights.master.copy_(state["master"])
        moments = {name: tensor for name, tensor in state.items() if name != "master"}
        self.optimiser.state[self.weights.master] = moments
        self.updates = updates
        self.weights.refresh()

    def negative_log_likelihood(self, prompts: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
        """Mean over response tokens of −log π, a scalar."""
        log_probs = response_log_probs(self.weights.named, self.shape, prompts, responses)
        return -average_tokens(token_log_probs(log_probs, responses), mask, "token")
