"""How a mini-batch is read: the few-shot prefix once, every prompt once, samples side by side after it.

Tokens that are read lie in one row without padding, in the order prefix, prompts, responses. The last token
of a response predicts nothing that counts, and is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Places, in the row of all tokens, of batches that are padded on the right.

    slots : (batches, longest) where each batch's tokens stand; padding points at token 0.
    real : the same shape, False on padding. lengths : (batches,).
    """

    slots: Tensor
    real: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, lengths: Tensor, start: int) -> Block:
        """Batches of these lengths, one after the other from ``start`` on."""
        longest = int(lengths.max()) if len(lengths) else 0
        column = torch.arange(longest, device=lengths.device)
        real = column < lengths[:, None]
        first = start + lengths.cumsum(0) - lengths
        return cls(torch.where(real, first[:, None] + column, 0), real, lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest batch."""
        return self.slots.shape[1]

    def padded(self, x: Tensor) -> Tensor:
        """(tokens, ...) of the whole row → (batches, longest, ...); padding repeats the row's first token."""
        return x.index_select(0, self.slots.flatten()).view(*self.slots.shape, *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """(batches, longest, ...) → (tokens of this block, ...)."""
        return x.flatten(0, 1).index_select(0, self.real.flatten().nonzero()[:, 0])


@dataclass(frozen=True)
class Layout:
    """Tokens that are read, (tokens,), their positions, and which of them belong together.

    prefix : how many tokens come first. prompts : a batch a group. responses : a batch a sample, as many to
    every group; a sample without tokens takes no place. reads : (samples, time) in that row, where the token
    stands that predicts each token of each response; targets : those tokens; mask : False on padding.
    """

    tokens: Tensor
    positions: Tensor
    prefix: int
    prompts: Block
    responses: Block
    reads: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def samples(self) -> int:
        """Responses to each prompt."""
        return len(self.responses.lengths) // len(self.prompts.lengths)

    @classmethod
    def of(
        cls, prefix: Sequence[int], prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor
    ) -> Layout:
        """Lay out prompts (groups) with their responses.

        prompts : token ids, at least one each. responses, mask : (groups × samples, time), the samples of a
        group in consecutive rows, padded on the right.
        """
        device = responses.device
        lengths = mask.sum(1)
        asked = Block.of(torch.tensor([len(prompt) for prompt in prompts], device=device), len(prefix))
        start = len(prefix) + int(asked.lengths.sum())
        answered = Block.of((lengths - 1).clamp(min=0), start)
        own = answered.real.nonzero(as_tuple=True)
        ids = torch.tensor([*prefix, *(token for prompt in prompts for token in prompt)], device=device)
        return cls(
            tokens=torch.cat([ids, responses[own]]),
            positions=_positions(len(prefix), asked, answered),
            prefix=len(prefix),
            prompts=asked,
            responses=answered,
            reads=_reads(asked, answered, responses.shape[1]),
            targets=responses,
            mask=mask,
        )


def _positions(prefix: int, prompts: Block, responses: Block) -> Tensor:
    """Positions go on from the prefix in every prompt, and from its prompt in every response."""
    device = prompts.lengths.device
    asked = prefix + torch.arange(prompts.longest, device=device).expand_as(prompts.slots)
    samples = len(responses.lengths) // len(prompts.lengths)
    after = prefix + prompts.lengths.repeat_interleave(samples)
    answered = after[:, None] + torch.arange(responses.longest, device=device)
    return torch.cat([torch.arange(prefix, device=device), asked[prompts.real], answered[responses.real]])


def _reads(prompts: Block, responses: Block, time: int) -> Tensor:
    """Where the token before each token of a response is read: before its first it is the prompt's last."""
    samples = len(responses.lengths) // len(prompts.lengths)
    last = prompts.slots.gather(1, (prompts.lengths - 1)[:, None])
    found = torch.zeros(len(responses.lengths), time, dtype=torch.long, device=last.device)
    found[:, :1] = last.repeat_interleave(samples, 0)
    found[:, 1 : 1 + responses.longest] = responses.slots[:, : time - 1]
    return found
