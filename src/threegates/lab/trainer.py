"""What every training run shares: weights, optimiser, clipping, warm-up, resumable state.

Kinds of runs differ in their model, in where their examples come from and in their loss. Steps draw
their randomness from (seed, stream, step) alone, so a resumed run needs only weights, optimiser moments
and the step number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.lab.recipe import TrainingRecipe
from threegates.lab.weights import TrainedWeights

Metrics = dict[str, float]


def mean(rows: Sequence[Metrics]) -> Metrics:
    """Mean of every metric over mini-batches."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint's folder is written from: tensors on the CPU, config.json, files, shard size."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    files: Mapping[str, str | bytes]
    shard_bytes: int


class Producer(ABC):
    """What a run drives: it yields rows of a log, checkpoints and a last evaluation, and can be resumed."""

    updates = 0
    extra_columns: tuple[str, ...] = ()
    """Columns of the log beside those that every run has."""

    @classmethod
    @abstractmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        """At the first step, from the folder of the base's checkpoint where the recipe has a base."""

    @abstractmethod
    def logged_step(self, index: int) -> Metrics:
        """One step; returns what the training log records of it."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs besides the step number, on the CPU."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from `state`."""

    @abstractmethod
    def contents(self) -> Contents:
        """The checkpoint of the present weights."""

    @abstractmethod
    def final_evaluation(self) -> pd.DataFrame | None:
        """One row a held-out prompt, where the recipe asks for it."""


def optimiser(recipe: TrainingRecipe, master: torch.nn.Parameter) -> torch.optim.Optimizer:
    """AdamW, or SGD without momentum and decay."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD([master], lr=recipe.learning_rate)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return torch.optim.AdamW([master], lr=rate, betas=recipe.betas, weight_decay=decay)


class Trainer(Producer):
    """Weights, optimiser and schedule of a run; subclasses add the model and the step."""

    def __init__(self, recipe: TrainingRecipe, initial: Mapping[str, Tensor]) -> None:
        self.recipe = recipe
        self.weights = self.trained_weights(initial)
        self.updates = 0
        self.optimiser = optimiser(recipe, self.weights.master)

    def trained_weights(self, initial: Mapping[str, Tensor]) -> TrainedWeights:
        """What the optimiser moves; subclasses that move something else override this."""
        return TrainedWeights(initial, master=self.recipe.master_dtype, storage=self.recipe.storage_dtype)

    @abstractmethod
    def step(self, index: int) -> Metrics:
        """One step, numbered from 1; returns what the training log records of it."""

    @abstractmethod
    def evaluate(self, index: int) -> Metrics:
        """Held-out metrics of the current weights."""

    def learning_rate(self) -> float:
        """Linear warm-up over the first updates, then constant."""
        return self.recipe.learning_rate * min(1.0, (self.updates + 1) / max(1, self.recipe.warmup))

    def update(self, loss: Tensor) -> float:
        """Back-propagate, then one optimiser step; returns the gradient norm before clipping."""
        loss.backward()
        norm = self.weights.hand_over_gradient(self.recipe.clip_norm)
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        self.optimiser.step()
        self.updates += 1
        self.weights.refresh()
        return norm

    def logged_step(self, index: int) -> Metrics:
        """The step and, where due, an evaluation on held-out prompts after it.

        What both of them measure, such as RL's reward and KL of the step's own samples, is then the
        evaluation's: rows with an evaluation say the same of every kind of run.
        """
        metrics = self.step(index)
        if index % self.recipe.evaluate_every == 0 or index == self.recipe.steps:
            metrics = metrics | self.evaluate(index)
        return metrics | {"step": index, "updates": self.updates, "delta_norm": self.weights.delta_norm()}

    def state(self) -> dict[str, Tensor]:
        moments = self.optimiser.state[self.weights.master]
        state = {"master": self.weights.master.detach(), **moments}
        return {name: tensor.cpu() for name, tensor in state.items()}

    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        with torch.no_grad():
            self.weights.master.copy_(state["master"])
        # AdamW counts its steps on the CPU, wherever its moments are.
        moments = {
            name: tensor.to(self.weights.master.device) if tensor.dim() else tensor
            for name, tensor in state.items()
            if name != "master"
        }
        self.optimiser.state[self.weights.master] = moments
        self.updates = updates
        self.weights.refresh()
