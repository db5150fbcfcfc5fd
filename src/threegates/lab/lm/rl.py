"""Reinforcement learning of a language model: GRPO, DAPO or REINFORCE++ on short verified answers.

Departures from the papers: one step is a few prompts in two mini-batches, and there is no KL term unless the
recipe asks for one. Old log-probabilities are the sampler's, so a ratio also corrects for what rounding makes
of the same policy in another pass.

A group whose samples all have advantage zero adds nothing to the gradient of a loss without KL. It is then
not read, and the loss is divided by all responses, or by all tokens, as before. A mini-batch of such groups
alone is an update with gradient zero, as it would be if it were read: AdamW's moments fade, and its last
direction goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threegates.lab.lm.rollout import Rollout
from threegates.lab.lm.trainer import LmTrainer, kl_metrics, rollout_metrics
from threegates.lab.objectives import (
    batch_advantages,
    group_advantages,
    keep_informative,
    outcome_rewards,
    policy_loss,
    with_kl,
)
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import LmRLRecipe
from threegates.lab.trainer import Metrics, mean


@dataclass(frozen=True)
class Sampled:
    """Groups of samples. right : what the verifier says of each; rewarded : what counts; (rows,) bool."""

    rollout: Rollout
    right: Tensor
    rewarded: Tensor

    def select(self, groups: Tensor) -> Sampled:
        """The given groups."""
        rows = self.rollout.rows(groups)
        return Sampled(self.rollout.select(groups), self.right[rows], self.rewarded[rows])

    def split(self) -> tuple[Sequence[Sampled], Sequence[Sampled]]:
        """Groups one by one: the informative, with rewarded samples and others, and the rest."""
        count = len(self.rollout.prompts)
        informative = set(keep_informative(self.rewarded, self.rollout.samples).tolist())
        alone = [self.select(torch.tensor([group], device=self.right.device)) for group in range(count)]
        good = [one for group, one in enumerate(alone) if group in informative]
        return good, [one for group, one in enumerate(alone) if group not in informative]

    @staticmethod
    def join(parts: Sequence[Sampled]) -> Sampled:
        """Groups of several."""
        rollout = Rollout.join([part.rollout for part in parts])
        right, rewarded = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("right", "rewarded")
        )
        return Sampled(rollout, right, rewarded)


class LmPolicyTrainer(LmTrainer):
    """GRPO, DAPO or REINFORCE++, as `threegates.lab.objectives` states their differences."""

    recipe: LmRLRecipe

    def __init__(self, recipe: LmRLRecipe, *given: Any) -> None:
        super().__init__(recipe, *given)
        self.rules = with_kl(recipe.objective, recipe.kl_weight, recipe.kl_estimator)

    def step(self, index: int) -> Metrics:
        first = self.draw(index, 0)
        batch, replaced, tokens = self.batch(index, first)
        rollout = batch.rollout
        reference = self.reference(rollout) if self.rules.kl != "none" else None
        advantages = self.advantages(batch, reference)
        groups = torch.arange(len(rollout.prompts), device=self.device)
        updates = [
            self._update(part, rollout, reference, advantages)
            for part in groups.tensor_split(self.recipe.minibatches)
        ]
        counts = {"resampled_groups": float(replaced), "tokens": float(tokens)}
        scale = {"advantage_scale": float(advantages[rollout.mask].square().mean().sqrt())}
        return self._logged(first, rollout, reference) | mean(updates) | counts | scale

    def draw(self, index: int, attempt: int) -> Sampled:
        """Samples of fresh problems under the present policy, with their rewards."""
        recipe = self.recipe
        problems = self.problems(recipe.prompts, attempt, index)
        generator = step_generator(recipe.seed, f"rollouts/{attempt}", index, self.device)
        rollout = self.sample(self.policy(), problems, recipe.samples, generator)
        right = self.right(rollout, problems)
        rewarded = right
        if recipe.reward == "random":
            coins = step_generator(recipe.seed, f"rewards/{attempt}", index)
            rewarded = torch.rand(len(right), generator=coins) < 0.5
        return Sampled(rollout, right.to(self.device), rewarded.to(self.device))

    def batch(self, index: int, first: Sampled) -> tuple[Sampled, int, int]:
        """The samples to learn from, how many groups dynamic sampling replaced, and all tokens sampled."""
        tokens = first.rollout.tokens
        if not self.rules.dynamic_sampling:
            return first, 0, tokens
        kept, spare = first.split()
        replaced = 0
        for attempt in range(1, 1 + self.recipe.resample_rounds):
            if len(kept) >= self.recipe.prompts:
                break
            replaced = len(spare)
            more = self.draw(index, attempt)
            tokens += more.rollout.tokens
            good, rest = more.split()
            kept, spare = [*kept, *good], [*spare, *rest]
        # A step keeps its size: places still empty are filled with groups that carry no gradient.
        return Sampled.join([*kept, *spare][: self.recipe.prompts]), replaced, tokens

    def advantages(self, batch: Sampled, reference: Tensor | None) -> Tensor:
        """Of every response token, (rows, time), zero outside the mask."""
        rollout, rules = batch.rollout, self.rules
        limit = self.task.answer_tokens
        rewards = outcome_rewards(batch.rewarded, rollout.lengths, limit, rules.overlong_buffer)
        if rules.advantage == "group":
            return group_advantages(rewards, rollout.samples)[:, None] * rollout.mask
        kl, weight = torch.zeros_like(rollout.log_probs), 0.0
        if rules.kl == "reward" and reference is not None:
            kl, weight = rollout.log_probs - reference, rules.kl_weight
        return batch_advantages(rewards, kl, rollout.mask, weight)

    def loss(
        self, groups: Tensor, rollout: Rollout, reference: Tensor | None, advantages: Tensor
    ) -> tuple[Tensor, float]:
        """Loss of a mini-batch of groups, and the share of its tokens whose ratio was clipped."""
        read = self.read(groups, rollout, advantages)
        if not len(read):
            # What the weights have no part in has gradient zero.
            return next(iter(self.weights.named.values())).flatten()[0].float() * 0.0, 0.0
        rows, part = rollout.rows(read), rollout.select(read)
        seen = slice(0, part.responses.shape[1])
        log_probs = self.log_probs(self.weights.named, part)
        base = log_probs.detach() if reference is None else reference[rows, seen]
        loss, clipped = policy_loss(
            self.rules, log_probs, part.log_probs, base, advantages[rows, seen], part.mask
        )
        of_tokens = part.tokens / int(rollout.mask[rollout.rows(groups)].sum())
        of_loss = of_tokens if self.rules.average == "token" else len(read) / len(groups)
        return loss * of_loss, clipped * of_tokens

    def read(self, groups: Tensor, rollout: Rollout, advantages: Tensor) -> Tensor:
        """Of some groups those that the loss depends on."""
        if self.rules.kl == "loss":
            return groups
        speaks = advantages.view(len(rollout.prompts), -1).ne(0).any(1)
        return groups[speaks[groups]]

    def _update(
        self, groups: Tensor, rollout: Rollout, reference: Tensor | None, advantages: Tensor
    ) -> Metrics:
        loss, clipped = self.loss(groups, rollout, reference, advantages)
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss), "clip_fraction": clipped}

    def _logged(self, first: Sampled, rollout: Rollout, reference: Tensor | None) -> Metrics:
        """Metrics of the first samples: those that dynamic sampling keeps are half right by selection.

        KL to the base costs a pass of the base: it is measured where the objective has it anyway.
        """
        groups = len(first.rollout.prompts)
        share = len(keep_informative(first.rewarded, first.rollout.samples)) / groups
        metrics = rollout_metrics(first.rollout, first.right) | {"informative": share}
        if reference is None:
            return metrics
        if first.rollout is not rollout:
            reference = self.reference(first.rollout)
        return metrics | kl_metrics(first.rollout, reference)
