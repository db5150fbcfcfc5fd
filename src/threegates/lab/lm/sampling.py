"""Sampling at temperature 1 from prompts that share a few-shot prefix, until a newline or a limit.

Prefix and prompts are read once; then every sample goes on by a token at a time, and leaves the batch when it
has ended. A token is the inverse of the cumulative distribution at a uniform number. Each row has its numbers
from the start, so what a row draws does not depend on when others end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threegates.lab.lm.head import logits_of
from threegates.lab.lm.layout import Layout
from threegates.lab.lm.mixers import Cache, Packed
from threegates.lab.lm.model import Weights, hidden_states
from threegates.lab.lm.rollout import FILL, Rollout
from threegates.lab.lm.shape import LlamaShape

# Columns of the vocabulary whose probabilities are added up before the place of a number is looked for.
BLOCK = 256
# Ended rows are carried along until they are this share of the batch: to leave costs a copy of the cache.
ENDED = 1 / 8


@dataclass(frozen=True)
class Policy:
    """A model that samples: its weights, their shape, and the type in which matrices are multiplied."""

    weights: Weights
    shape: LlamaShape
    computing: torch.dtype

    def read(self, tokens: Tensor, positions: Tensor, mixer: Packed | Cache) -> Tensor:
        """Hidden states of tokens, (tokens, width)."""
        return hidden_states(self.weights, self.shape, tokens, positions, mixer, self.computing)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, float32."""
        head = self.weights[self.shape.head]
        return logits_of(hidden.to(self.computing), head.to(self.computing))


def uniform(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """A number of [0, 1) for every row and token, (rows, length) float64."""
    return torch.rand(rows, length, generator=generator, dtype=torch.float64, device=generator.device)


@torch.no_grad()
def sample(
    policy: Policy,
    prefix: Sequence[int],
    prompts: Sequence[Sequence[int]],
    numbers: Tensor | None,
    *,
    samples: int,
    length: int,
    end: int,
) -> Rollout:
    """Responses of at most ``length`` tokens that stop after the token ``end``.

    numbers : (prompts × samples, length) of [0, 1), from `uniform`; None takes the most probable token.
    """
    device = policy.weights[policy.shape.head].device
    rows = len(prompts) * samples
    responses = torch.full((rows, length), FILL, device=device)
    mask = torch.zeros(rows, length, dtype=torch.bool, device=device)
    log_probs, entropy = torch.zeros(rows, length, device=device), torch.zeros(rows, length, device=device)
    logits, cache, places = _start(policy, prefix, prompts, samples, length, device)
    # Rows that are still in the batch, and which of them go on.
    present, alive = torch.arange(rows, device=device), torch.ones(rows, dtype=torch.bool, device=device)
    for time in range(length):
        chosen, found, spread = choose(logits, None if numbers is None else numbers[present, time])
        into = present[alive]
        responses[into, time], mask[into, time] = chosen[alive], True
        log_probs[into, time], entropy[into, time] = found[alive], spread[alive]
        alive = alive & (chosen != end)
        if time + 1 == length or not alive.any():
            break
        if float(alive.float().mean()) <= 1 - ENDED:
            cache.keep(alive)
            present, chosen, alive = present[alive], chosen[alive], alive[alive]
        logits = policy.logits(policy.read(chosen, places[present] + time, cache))
        cache.filled += 1
    seen = slice(0, time + 1)
    asked = tuple(tuple(prompt) for prompt in prompts)
    return Rollout(
        tuple(prefix), asked, responses[:, seen], mask[:, seen], log_probs[:, seen], entropy[:, seen]
    )


def _start(
    policy: Policy,
    prefix: Sequence[int],
    prompts: Sequence[Sequence[int]],
    samples: int,
    length: int,
    device: torch.device,
) -> tuple[Tensor, Cache, Tensor]:
    """Logits of every row's first token, the cache behind it, and the position of its first token."""
    nothing = torch.zeros(len(prompts), 1, dtype=torch.long, device=device)
    layout = Layout.of(prefix, prompts, nothing, nothing.bool())
    packed = Packed(layout, keep=True)
    hidden = policy.read(layout.tokens, layout.positions, packed)
    logits = policy.logits(hidden[layout.reads[:, 0]]).repeat_interleave(samples, 0)
    places = layout.prefix + layout.prompts.lengths.repeat_interleave(samples)
    return logits, Cache.of(packed, samples, length - 1), places


def choose(logits: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probabilities, and the entropy of the distribution in nats, all (rows,).

    logits : (rows, vocabulary) float32. numbers : (rows,) of [0, 1), or None for the most probable token.
    """
    normaliser = logits.logsumexp(-1)
    probabilities = (logits - normaliser[:, None]).exp_()
    tokens = logits.argmax(-1) if numbers is None else inverse_cdf(probabilities, numbers)
    found = logits.gather(1, tokens[:, None])[:, 0] - normaliser
    mean = torch.linalg.vecdot(probabilities, logits)
    return tokens, found, normaliser - mean


def inverse_cdf(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """The least token t with F(t) > u F(last), F the cumulative sum in float64; (rows,).

    probabilities : (rows, vocabulary), their sum need not be one. numbers : (rows,) u of [0, 1), float64.
    Sums of blocks come first, then one block a row: so float64 takes one column in `BLOCK`.
    """
    rows, vocabulary = probabilities.shape
    padding = -vocabulary % BLOCK
    blocks = torch.nn.functional.pad(probabilities, (0, padding)).view(rows, -1, BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = numbers[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    chosen = blocks.gather(1, block[..., None].expand(rows, 1, BLOCK))[:, 0].double()
    inside = torch.searchsorted(before + chosen.cumsum(-1), wanted, right=True)
    # Sums of a block and of its tokens are rounded apart: a number in between takes its last possible token.
    last = BLOCK - 1 - (chosen > 0).flip(-1).int().argmax(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(inside, last))[:, 0]
