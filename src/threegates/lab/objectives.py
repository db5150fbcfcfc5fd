"""GRPO, DAPO and REINFORCE++ as choices of one clipped policy-gradient objective.

With ratio r_t = π(o_t)/π_old(o_t) and advantage A_t, every algorithm maximises

    aggregate_t  min(r_t A_t, clip(r_t, 1 − ε_low, 1 + ε_high) A_t)  −  β KL

and differs only in the fields of `Algorithm`: how advantages are made, how wide the clip is, how
tokens are averaged, where KL enters, which groups are kept, and whether overlong answers lose reward. Their
values stand in `threegates.lab.algorithms`, and those of a run's algorithm in its recipe.

Source: GRPO, Shao et al. (2024), arXiv 2402.03300, eq. 3; DAPO, Yu et al. (2025), arXiv 2503.14476,
eqs 8–13; REINFORCE++, Hu (2025), arXiv 2501.03262; k3 estimator, Schulman (2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from threegates.lab.averages import average_tokens
from threegates.lab.kl import ESTIMATORS, Estimator


@dataclass(frozen=True)
class Algorithm:
    """What distinguishes one algorithm from the others.

    Attributes
    ----------
    advantage : "group" normalises rewards within the samples of one prompt; "batch" takes the
        reward-to-go of every token (KL penalties included) and whitens it over the batch.
    clip_low, clip_high : ε below and above one.
    average : "sequence" averages tokens within each response, then responses; "token" averages all tokens.
    kl : "none", "loss" (added to the loss) or "reward" (k1 subtracted from every token's reward).
    kl_weight : β of that term; kl_estimator : of one in the loss.
    dynamic_sampling : replace groups that are all right or all wrong.
    overlong_buffer : the last tokens before the limit cost up to one unit of reward (0 switches it off).
    """

    name: str
    advantage: Literal["group", "batch"]
    clip_low: float
    clip_high: float
    average: Literal["sequence", "token"]
    kl: Literal["none", "loss", "reward"]
    kl_weight: float
    dynamic_sampling: bool
    overlong_buffer: int
    kl_estimator: Estimator = "k3"


def with_kl(rules: Algorithm, weight: float | None, estimator: Estimator) -> Algorithm:
    """The algorithm with a KL term of this weight in its loss in place of its own; with None, as it is."""
    if weight is None:
        return rules
    return replace(rules, kl="loss" if weight else "none", kl_weight=weight, kl_estimator=estimator)


def outcome_rewards(correct: Tensor, lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """+1 for a right answer, −1 for a wrong one, minus DAPO's overlong penalty.

    The penalty rises linearly from 0 at ``limit − buffer`` tokens to 1 at ``limit``.
    ``correct`` bool and ``lengths`` int, both (batch,); returns (batch,) float32.
    """
    rewards = correct.float() * 2 - 1
    if buffer == 0:
        return rewards
    return rewards - ((lengths - (limit - buffer)) / buffer).clamp(0, 1)


def group_advantages(rewards: Tensor, samples: int, epsilon: float = 1e-6) -> Tensor:
    """(R − mean)/(std + ε) within each prompt's ``samples`` consecutive rows, (batch,) → (batch,).

    The standard deviation is the unbiased one, as in TRL; groups of equal rewards get zero.
    """
    groups = rewards.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).flatten()


def batch_advantages(rewards: Tensor, kl: Tensor, mask: Tensor, kl_weight: float) -> Tensor:
    """Whitened reward-to-go of every token, (batch,) and (batch, time) → (batch, time).

    The outcome reward arrives at the last token, every token pays β times its k1 estimate of KL, and
    A_t = (G_t − mean)/std over all tokens of the batch, with G_t = R − β Σ_{s ≥ t} KL_s.
    """
    penalty = (kl * mask).flip(1).cumsum(1).flip(1)
    returns = rewards[:, None] - kl_weight * penalty
    chosen = returns[mask]
    return torch.where(mask, (returns - chosen.mean()) / (chosen.std() + 1e-6), 0.0)


def tilted_kl(correct: Tensor, samples: int, weight: float) -> float:
    """Mean over prompts of KL(q̃_β‖π), q̃_β ∝ π exp(R/β), R = ±1, in nats a response.

    With p the share of right answers among a prompt's ``samples``: q̃_β puts on them the probability
    q = p/(p + (1 − p) e^{−2/β}), and KL = q log(q/p) + (1 − q) log((1 − q)/(1 − p)). β = 0 stands for the
    limit, −log p, and a prompt without right answers, or with nothing else, gives 0.

    correct : (prompts × samples,) bool; weight : β ≥ 0.

    Source: Prop. 3.1 of Zhu et al. (2025). p is plugged in from the samples, so that −log p is biased
    upwards, by about (1 − p)/(2 p samples).
    """
    share = correct.view(-1, samples).double().mean(1)
    other = (1 - share) * math.exp(-2 / weight) if weight else torch.zeros_like(share)
    right = torch.where(share > 0, share / (share + other), 0.0)
    return float(
        (
            torch.special.xlogy(right, right / share.clamp(min=1e-300))
            + torch.special.xlogy(1 - right, (1 - right) / (1 - share).clamp(min=1e-300))
        ).mean()
    )


def keep_informative(correct: Tensor, samples: int) -> Tensor:
    """Indices of the groups that are neither all right nor all wrong, (batch,) bool → (kept groups,).

    The overlong penalty does not count here: DAPO, eq. 11, asks for 0 < right answers < group size.
    """
    groups = correct.view(-1, samples)
    return (groups.any(1) & ~groups.all(1)).nonzero()[:, 0]


def policy_loss(
    rules: Algorithm, log_probs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, float]:
    """Loss to minimise, and the share of tokens whose ratio was clipped.

    All tensors (batch, time); ``old`` belongs to the sampling policy, ``reference`` to the base.
    """
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - rules.clip_low, 1 + rules.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    loss = -average_tokens(surrogate, mask, rules.average)
    if rules.kl == "loss":
        term = ESTIMATORS[rules.kl_estimator](log_probs, reference)
        loss = loss + rules.kl_weight * average_tokens(term, mask, rules.average)
    binding = (clipped * advantages < ratio * advantages) & mask
    return loss, float(binding.sum() / mask.sum().clamp(min=1))
