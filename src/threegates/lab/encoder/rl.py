"""Reinforcement learning of the encoder: GRPO on a bandit whose one action is a candidate.

The objective is the lab's own (`threegates.lab.objectives`) with responses of one token: the ratio of
probabilities is that of the drawn candidate, the reward +1 for the right one and −1 for any other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threegates.lab.encoder.evaluate import policy_metrics
from threegates.lab.encoder.policy import Encoder
from threegates.lab.encoder.trainer import EncoderTrainer
from threegates.lab.objectives import group_advantages, outcome_rewards, policy_loss
from threegates.lab.recipe import EncoderRLRecipe
from threegates.lab.trainer import Metrics, mean


class EncoderPolicyTrainer(EncoderTrainer):
    """GRPO: groups of candidates drawn for one query, advantages within the group, a clipped ratio."""

    recipe: EncoderRLRecipe

    def __init__(self, recipe: EncoderRLRecipe, encoder: Encoder) -> None:
        super().__init__(recipe, encoder)
        self.rules = recipe.objective

    def step(self, index: int) -> Metrics:
        places = self.draw(index)
        with torch.no_grad():
            old = self.log_policy(places)
        actions = self.sample(old, "actions", index)
        rewards = self.rewards(places, actions)
        advantages = group_advantages(rewards.flatten(), self.recipe.samples).view_as(rewards)
        updates = [
            self._minibatch(places[rows], actions[rows], old[rows], advantages[rows])
            for rows in torch.arange(len(places)).tensor_split(self.recipe.minibatches)
        ]
        return mean(updates) | self._logged(old, places, rewards, advantages)

    def rewards(self, places: Tensor, actions: Tensor) -> Tensor:
        """+1 where the drawn candidate is right, −1 else, (items, samples)."""
        correct = actions == self.right(places)[:, None]
        one = torch.ones_like(correct, dtype=torch.long)
        return outcome_rewards(correct, one, 1, self.rules.overlong_buffer)

    def loss(
        self, log_probs: Tensor, places: Tensor, actions: Tensor, old: Tensor, advantages: Tensor
    ) -> tuple[Tensor, float]:
        """GRPO's loss of one mini-batch and the share of clipped ratios.

        log_probs, old : (items, candidates) under the present and the sampling policy; actions and
        advantages : (items, samples).
        """
        taken, before, reference = (
            table.gather(1, actions).view(-1, 1) for table in (log_probs, old, self.base[places])
        )
        every = torch.ones_like(taken, dtype=torch.bool)
        return policy_loss(self.rules, taken, before, reference, advantages.view(-1, 1), every)

    def _minibatch(self, places: Tensor, actions: Tensor, old: Tensor, advantages: Tensor) -> Metrics:
        loss, clipped = self.loss(self.log_policy(places), places, actions, old, advantages)
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss), "clip_fraction": clipped}

    def _logged(self, old: Tensor, places: Tensor, rewards: Tensor, advantages: Tensor) -> Metrics:
        """Reward of the drawn candidates; KL and entropy of the sampling policy on the step's items."""
        drawn = {"reward": float(rewards.mean()), "resampled_groups": 0.0}
        scale = {"advantage_scale": float(advantages.square().mean().sqrt())}
        return drawn | scale | policy_metrics(old, self.base[places])
