"""Sampled or written responses to prompts that share one few-shot prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from threegates.lab.lm.layout import Layout

# What stands beyond a response's end; it is never read.
FILL = 0


@dataclass(frozen=True)
class Rollout:
    """Responses (groups × samples, time), padded on the right; a group's samples lie in consecutive rows.

    prefix : ids that all prompts begin with. prompts : the further ids of each group. mask : True on tokens
    up to and including the end. log_probs, entropy : of the sampling policy, in nats, zero outside the mask.
    """

    prefix: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    responses: Tensor
    mask: Tensor
    log_probs: Tensor
    entropy: Tensor

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def samples(self) -> int:
        """Responses to each prompt."""
        return len(self.responses) // len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, its end included."""
        return self.mask.sum(1)

    @property
    def tokens(self) -> int:
        """Response tokens in all."""
        return int(self.mask.sum())

    def layout(self) -> Layout:
        """How the policy reads it."""
        return Layout.of(self.prefix, self.prompts, self.responses, self.mask)

    def rows(self, groups: Tensor) -> Tensor:
        """Rows of the given groups, in their order."""
        samples = torch.arange(self.samples, device=groups.device)
        return (groups[:, None] * self.samples + samples).flatten()

    def select(self, groups: Tensor) -> Rollout:
        """The given groups, cut to their longest response; at least one."""
        rows = self.rows(groups)
        longest = max(1, int(self.mask[rows].sum(1).max()))
        tensors = (self.responses, self.mask, self.log_probs, self.entropy)
        prompts = tuple(self.prompts[group] for group in groups.tolist())
        return Rollout(self.prefix, prompts, *(tensor[rows, :longest] for tensor in tensors))

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """Groups of several rollouts of one prefix and one number of samples, padded to the longest."""
        longest = max(part.responses.shape[1] for part in parts)

        def stack(name: str, fill: float = 0) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            return torch.cat([F.pad(t, (0, longest - t.shape[1]), value=fill) for t in tensors])

        prompts = tuple(prompt for part in parts for prompt in part.prompts)
        tensors = stack("responses", FILL), stack("mask"), stack("log_probs"), stack("entropy")
        return Rollout(parts[0].prefix, prompts, *tensors)


def written(
    prefix: Sequence[int],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> Rollout:
    """Given responses, as many to each prompt: samples of nobody, so without log-probabilities."""
    longest = max(map(len, responses))
    ids = [[*row, *[FILL] * (longest - len(row))] for row in responses]
    lengths = torch.tensor([len(row) for row in responses], device=device)
    mask = torch.arange(longest, device=device) < lengths[:, None]
    nothing = torch.zeros(mask.shape, device=device)
    asked = tuple(tuple(prompt) for prompt in prompts)
    return Rollout(tuple(prefix), asked, torch.tensor(ids, device=device), mask, nothing, nothing)
