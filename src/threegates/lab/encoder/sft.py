"""Cross-entropy of the encoder: on the right candidate, or on the base's own right samples (RFT)."""

from __future__ import annotations

import torch
from torch import Tensor

from threegates.errors import RecipeError
from threegates.lab.encoder.trainer import EncoderTrainer
from threegates.lab.recipe import EncoderSFTRecipe
from threegates.lab.trainer import Metrics, mean


class EncoderSupervisedTrainer(EncoderTrainer):
    """−log π of the right candidate; for RFT weighted by how often the frozen base drew it."""

    recipe: EncoderSFTRecipe

    def step(self, index: int) -> Metrics:
        places, weights = self.examples(index)
        parts = torch.arange(len(places)).tensor_split(self.recipe.minibatches)
        updates = []
        for rows in parts:
            loss = self.loss(self.log_policy(places[rows]), places[rows], weights[rows])
            updates.append({"loss": float(loss.detach()), "grad_norm": self.update(loss)})
        return mean(updates)

    def examples(self, index: int) -> tuple[Tensor, Tensor]:
        """Places of a step's training items, and how often each counts."""
        places = self.draw(index)
        if self.recipe.source == "answers":
            return places, torch.ones(len(places))
        drawn = self.sample(self.base[places], "base-actions", index)
        accepted = (drawn == self.right(places)[:, None]).sum(1)
        kept = accepted.nonzero()[:, 0]
        if len(kept) < self.recipe.minibatches:
            raise RecipeError(
                "The base is almost never right, so there is nothing to fine-tune it on.",
                where=f"{self.recipe.name}, step {index}",
                expected=f"accepted samples for at least {self.recipe.minibatches} of {len(places)} items",
                found=len(kept),
                remedy="Choose easier data, or more prompts a step.",
            )
        return places[kept], accepted[kept].float()

    def loss(self, log_probs: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of −log π of the right candidates, a scalar."""
        taken = log_probs.gather(1, self.right(places)[:, None])[:, 0]
        return -(weights * taken).sum() / weights.sum()
