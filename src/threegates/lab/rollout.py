"""Batched sampling with a key-value cache, and log-probabilities of given responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from threegates.lab.decoding import Reader, decoder_of
from threegates.lab.model import ModelShape, Weights, forward
from threegates.lab.task import EOS_ID, PAD_ID, RESPONSE_LENGTH, encode

# Groups of like length in which responses are read, and the ratio of lengths that is not worth a group.
GROUPS, NEARLY = 4, 1.25


@dataclass
class Rollout:
    """Prompts (batch, prompt) left-padded, responses (batch, time) right-padded.

    ``mask`` is True on response tokens up to and including the end; ``log_probs`` are the sampling
    policy's and ``entropy`` its next-token distribution's (nats), zero outside the mask.
    """

    prompts: Tensor
    responses: Tensor
    mask: Tensor
    log_probs: Tensor
    entropy: Tensor

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    def select(self, rows: Tensor) -> Rollout:
        """The given rows, cut to their longest response."""
        longest = max(1, int(self.mask[rows].sum(1).max())) if len(rows) else 1
        return Rollout(
            self.prompts[rows],
            self.responses[rows, :longest],
            self.mask[rows, :longest],
            self.log_probs[rows, :longest],
            self.entropy[rows, :longest],
        )

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """Rows of several rollouts of one maximal length, padded to the longest."""
        longest = max(part.responses.shape[1] for part in parts)

        def stack(name: str, fill: float = 0) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            return torch.cat([F.pad(t, (0, longest - t.shape[1]), value=fill) for t in tensors])

        width = max(part.prompts.shape[1] for part in parts)
        prompts = torch.cat([F.pad(p.prompts, (width - p.prompts.shape[1], 0), value=PAD_ID) for p in parts])
        return Rollout(
            prompts, stack("responses", PAD_ID), stack("mask"), stack("log_probs"), stack("entropy")
        )


def pad_prompts(prompts: Sequence[Sequence[str]]) -> Tensor:
    """Token ids (batch, longest), padded on the left."""
    ids = [encode(prompt) for prompt in prompts]
    length = max(map(len, ids))
    return torch.tensor([[PAD_ID] * (length - len(row)) + row for row in ids])


def pad_responses(responses: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (batch, longest), padded on the right."""
    ids = [encode(response) for response in responses]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
    return tokens, mask


@torch.no_grad()
def sample(
    weights: Weights,
    shape: ModelShape,
    prompts: Tensor,
    generator: torch.Generator,
    *,
    length: int = RESPONSE_LENGTH,
    temperature: float = 1.0,
    decoder: Callable[..., Reader] | None = None,
) -> Rollout:
    """One response a prompt at ``temperature``, until <eos> or ``length`` tokens; 0 means greedy.

    decoder : how the model is read token by token; without one, what suits the prompts' device.
    """
    batch, device = len(prompts), prompts.device
    size = (batch, length)
    read = (decoder or decoder_of(device))(weights, shape, prompts, length)
    tokens = torch.full(size, PAD_ID, device=device)
    log_probs, entropy = torch.zeros(size, device=device), torch.zeros(size, device=device)
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    # Rows that are still read, and which of them go on.
    rows, alive = torch.arange(batch, device=device), torch.ones(batch, dtype=torch.bool, device=device)
    step_input = prompts
    for t in range(length):
        logits = read(step_input)
        chosen = _choose(logits, temperature, generator)
        everything = logits.log_softmax(-1)
        tokens[rows, t] = torch.where(alive, chosen, PAD_ID)
        log_probs[rows, t] = torch.where(alive, everything.gather(1, chosen[:, None])[:, 0], 0.0)
        entropy[rows, t] = torch.where(alive, -(everything.exp() * everything).sum(-1), 0.0)
        mask[rows, t] = alive
        alive = alive & (chosen != EOS_ID)
        step_input = chosen[:, None]
        left = alive.nonzero()[:, 0]
        if not len(left):
            break
        if 2 * len(left) <= len(rows) and read.keep(left):
            rows, alive, step_input = rows[left], alive[left], step_input[left]
    end = t + 1
    return Rollout(prompts, tokens[:, :end], mask[:, :end], log_probs[:, :end], entropy[:, :end])


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def response_log_probs(weights: Weights, shape: ModelShape, prompts: Tensor, responses: Tensor) -> Tensor:
    """Log-probabilities over the vocabulary at every response position, (batch, time, vocabulary)."""
    tokens = torch.cat([prompts, responses], dim=1)
    # Right padding needs no mask: causal attention keeps it out of every earlier position.
    valid = torch.cat([prompts != PAD_ID, torch.ones_like(responses, dtype=torch.bool)], dim=1)
    logits = forward(weights, shape, tokens[:, :-1], valid[:, :-1])
    return logits[:, prompts.shape[1] - 1 :].log_softmax(-1)


def sampled_log_probs(
    weights: Weights, shape: ModelShape, prompts: Tensor, responses: Tensor, mask: Tensor
) -> Tensor:
    """Log-probabilities of the response tokens, (batch, time), zero outside the mask.

    Rows are read in groups of like length, each without padding that all of its rows share: of answers in
    three tokens and chains of thirty most would else be padding.
    """
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    parts = []
    for rows in _alike(lengths, order):
        asked, own = prompts[rows], responses[rows, : max(1, int(lengths[rows[-1]]))]
        asked = asked[:, int((asked != PAD_ID).any(0).int().argmax()) :]
        found = token_log_probs(response_log_probs(weights, shape, asked, own), own)
        parts.append(F.pad(found, (0, responses.shape[1] - own.shape[1])))
    return torch.where(mask, torch.cat(parts)[order.argsort()], 0.0)


def _alike(lengths: Tensor, order: Tensor) -> list[Tensor]:
    """Rows in `GROUPS` groups by length at most; neighbours of nearly one length are one group."""
    groups: list[Tensor] = []
    for rows in order.tensor_split(min(GROUPS, len(order))):
        longest = int(lengths[rows[-1]])
        if groups and longest <= NEARLY * int(lengths[groups[-1][-1]]):
            groups[-1] = torch.cat([groups[-1], rows])
        else:
            groups.append(rows)
    return groups


def token_log_probs(log_probs: Tensor, responses: Tensor) -> Tensor:
    """Log-probabilities of the response tokens themselves, (batch, time)."""
    return log_probs.gather(-1, responses[..., None])[..., 0]
