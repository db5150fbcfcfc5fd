"""Reinforcement learning with verifiable rewards: one step of GRPO, DAPO or REINFORCE++.

Departures from the papers, all for the sake of a small model on two cores: responses have at most 34
tokens on the lab's own data sets, the reward model is the verifier, one step is 16 prompts × 8 samples in few
mini-batches, and old log-probabilities are those of the cached sampling pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from threegates.lab.evaluate import (
    reference_log_probs,
    rollout_metrics,
    sample_problems,
    verify,
)
from threegates.lab.kl import kl_after
from threegates.lab.language import LanguageTrainer
from threegates.lab.model import ModelShape, Weights
from threegates.lab.objectives import (
    batch_advantages,
    group_advantages,
    keep_informative,
    outcome_rewards,
    policy_loss,
    tilted_kl,
    with_kl,
)
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.recipe import RLRecipe
from threegates.lab.rollout import Rollout, sampled_log_probs
from threegates.lab.task import data_set, draw_problems
from threegates.lab.trainer import Metrics

# The samples of one prompt, and which of them are right.
_Group = tuple[Rollout, Tensor]


class PolicyTrainer(LanguageTrainer):
    """GRPO, DAPO or REINFORCE++, as `threegates.lab.objectives` states their differences."""

    recipe: RLRecipe
    base: Weights

    def __init__(self, recipe: RLRecipe, shape: ModelShape, base: Weights) -> None:
        super().__init__(recipe, shape, base, base)
        self.rules = with_kl(recipe.objective, recipe.kl_weight, recipe.kl_estimator)

    def step(self, index: int) -> Metrics:
        before = self.weights.effective() if self.recipe.leash else None
        sampled = self._sample(index, 0)
        rollout, correct, resampled = self._informative_batch(index, sampled)
        reference = reference_log_probs(self.base, self.shape, rollout)
        advantages = self._advantages(rollout, correct, reference)
        metrics = self._logged(sampled, rollout, reference)
        updates = [
            self._minibatch(rows, rollout, reference, advantages)
            for rows in torch.arange(len(rollout), device=self.device).tensor_split(self.recipe.minibatches)
        ]
        means = {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
        scale = float(advantages[rollout.mask].square().mean().sqrt())
        leash = {} if before is None else self._leash(sampled, before)
        return metrics | means | leash | {"resampled_groups": float(resampled), "advantage_scale": scale}

    def _leash(self, sampled: _Group, before: Tensor) -> Metrics:
        """How far the step went, in KL on its first samples and in norm, beside its tilted target's KL."""
        rollout, correct = sampled
        after = reference_log_probs(self.weights.named, self.shape, rollout)
        moved = kl_after(rollout.log_probs, after) * rollout.mask
        weight = self.rules.kl_weight if self.rules.kl != "none" else 0.0
        return {
            "step_kl": float(moved.sum() / rollout.mask.sum()),
            "step_kl_response": float(moved.sum(1).mean()),
            "step_norm": float((self.weights.effective() - before).norm()),
            "tilt_kl": tilted_kl(correct, self.recipe.samples, weight),
        }

    def _logged(self, sampled: _Group, rollout: Rollout, reference: Tensor) -> Metrics:
        """Metrics of the first samples: those that dynamic sampling keeps are half right by selection."""
        first, correct = sampled
        if first is not rollout:
            reference = reference_log_probs(self.base, self.shape, first)
        return rollout_metrics(first, correct, reference)

    def _rewards(self, rollout: Rollout, correct: Tensor) -> Tensor:
        limit = data_set(self.recipe.data).response_length
        return outcome_rewards(correct, rollout.lengths, limit, self.rules.overlong_buffer)

    def _advantages(self, rollout: Rollout, correct: Tensor, reference: Tensor) -> Tensor:
        rewards = self._rewards(rollout, correct)
        if self.rules.advantage == "group":
            per_response = group_advantages(rewards, self.recipe.samples)
            return per_response[:, None] * rollout.mask
        penalty = self.rules.kl_weight if self.rules.kl == "reward" else 0.0
        return batch_advantages(rewards, rollout.log_probs - reference, rollout.mask, penalty)

    def _informative_batch(self, index: int, sampled: _Group) -> tuple[Rollout, Tensor, int]:
        """The samples to learn from, and how many uninformative groups made dynamic sampling draw again."""
        if not self.rules.dynamic_sampling:
            return *sampled, 0
        kept, spare = self._informative(*sampled)
        replaced = 0
        for attempt in range(1, 1 + self.recipe.resample_rounds):
            if len(kept) >= self.recipe.prompts:
                break
            replaced = len(spare)
            good, rest = self._informative(*self._sample(index, attempt))
            kept, spare = kept + good, spare + rest
        # A step keeps its size: places still empty are filled with groups that carry no gradient.
        chosen = (kept + spare)[: self.recipe.prompts]
        return Rollout.join([r for r, _ in chosen]), torch.cat([c for _, c in chosen]), replaced

    def _informative(self, rollout: Rollout, correct: Tensor) -> tuple[list[_Group], list[_Group]]:
        samples = self.recipe.samples
        wanted = set(keep_informative(correct, samples).tolist())
        good: list[_Group] = []
        rest: list[_Group] = []
        for group in range(len(rollout) // samples):
            rows = torch.arange(group * samples, (group + 1) * samples, device=correct.device)
            (good if group in wanted else rest).append((rollout.select(rows), correct[rows]))
        return good, rest

    def _sample(self, index: int, attempt: int) -> tuple[Rollout, Tensor]:
        recipe = self.recipe
        rng = step_rng(recipe.seed, f"prompts/{recipe.data}/{attempt}", index)
        data = data_set(recipe.data)
        problems = draw_problems(data, recipe.prompts, rng, held_out=False)
        generator = step_generator(recipe.seed, f"rollouts/{attempt}", index, self.device)
        rollout = sample_problems(
            self.weights.named, self.shape, problems, recipe.samples, generator, data.response_length
        )
        return rollout, verify(rollout, problems, recipe.samples)

    def loss(
        self, log_probs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, float]:
        """The objective of one mini-batch, as `policy_loss` has it; an algorithm with another replaces it."""
        return policy_loss(self.rules, log_probs, old, reference, advantages, mask)

    def _minibatch(self, rows: Tensor, rollout: Rollout, reference: Tensor, advantages: Tensor) -> Metrics:
        part = rollout.select(rows)
        time = part.responses.shape[1]
        log_probs = sampled_log_probs(self.weights.named, self.shape, part.prompts, part.responses, part.mask)
        loss, clipped = self.loss(
            log_probs, part.log_probs, reference[rows, :time], advantages[rows, :time], part.mask
        )
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss), "clip_fraction": clipped}
