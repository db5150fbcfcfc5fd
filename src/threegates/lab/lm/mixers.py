"""Which keys a query sees: within a mini-batch that is read at once, or among the tokens that came before.

Both call one attention. So what a policy samples with and what it is trained with differ by the order of
float32 sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threegates.lab.lm.attention import Stretch, attend, causal_bias, padding_bias
from threegates.lab.lm.layout import Block, Layout


class Packed:
    """Attention within a layout: a token sees the prefix, its prompt, and its own response up to itself.

    keep : whether keys and values of prefix and prompts are kept, a `Stretch` of each by layer.
    """

    def __init__(self, layout: Layout, *, keep: bool = False) -> None:
        self.layout, self.keep = layout, keep
        self.kept: list[tuple[Stretch, Stretch]] = []
        prompts, responses = layout.prompts, layout.responses
        device = layout.tokens.device
        self._on_prefix = causal_bias(layout.prefix, device)
        self._on_prompt = causal_bias(prompts.longest, device)
        self._on_response = causal_bias(responses.longest, device)
        padding = padding_bias(prompts.lengths, prompts.longest)
        self._from_response = padding.repeat_interleave(layout.samples, 0)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layout = self.layout
        first = slice(0, layout.prefix)
        prefix = Stretch(_heads_first(key[None, first]), _heads_first(value[None, first]))
        prompt = _stretch(layout.prompts, key, value)
        if self.keep:
            self.kept.append((prefix, prompt))
        shared = [prefix] if layout.prefix else []
        parts = [attend(query[None, first], [prefix.biased(self._on_prefix)])[0]] if shared else []
        parts.append(_attended(layout.prompts, query, [*shared, prompt.biased(self._on_prompt)]))
        if layout.responses.longest:
            own = _stretch(layout.responses, key, value).biased(self._on_response)
            before = [*shared, prompt.biased(self._from_response)]
            parts.append(_attended(layout.responses, query, [*before, own]))
        return torch.cat(parts)


def _heads_first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1, 3)


def _stretch(block: Block, key: Tensor, value: Tensor) -> Stretch:
    return Stretch(_heads_first(block.padded(key)), _heads_first(block.padded(value)))


def _attended(block: Block, query: Tensor, stretches: Sequence[Stretch]) -> Tensor:
    return block.flat(attend(block.padded(query), stretches))


@dataclass
class Cache:
    """Keys and values of the tokens before the present one, of rows that go on by one token at a time.

    prefix : by layer, shared by all rows; empty without a prefix. keys, values : by layer, (kv_heads, rows,
    columns, head_dim): a row's prompt, padded to ``width`` columns, then its response. bias : (rows, 1, 1,
    columns), −∞ on padding. filled : columns that hold something.
    """

    prefix: list[Stretch]
    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor
    filled: int

    @classmethod
    def of(cls, packed: Packed, samples: int, further: int) -> Cache:
        """After prompts were read: ``samples`` rows for each, with room for ``further`` tokens."""
        prompts = packed.layout.prompts
        width = prompts.longest

        def spread(x: Tensor) -> Tensor:
            room = x.new_zeros(len(x), x.shape[1] * samples, width + further, x.shape[3])
            room[:, :, :width] = x.repeat_interleave(samples, 1)
            return room

        bias = torch.zeros(len(prompts.lengths), 1, 1, width + further, device=prompts.lengths.device)
        bias[..., :width] = padding_bias(prompts.lengths, width)
        return cls(
            prefix=[prefix for prefix, _ in packed.kept] if packed.layout.prefix else [],
            keys=[spread(prompt.keys) for _, prompt in packed.kept],
            values=[spread(prompt.values) for _, prompt in packed.kept],
            bias=bias.repeat_interleave(samples, 0),
            filled=width,
        )

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.keys = [keys[:, rows] for keys in self.keys]
        self.values = [values[:, rows] for values in self.values]
        self.bias = self.bias[rows]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One token a row, written behind the last; `filled` is moved on once all layers have it."""
        self.keys[layer][:, :, self.filled] = key.transpose(0, 1)
        self.values[layer][:, :, self.filled] = value.transpose(0, 1)
        seen = slice(0, self.filled + 1)
        own = Stretch(self.keys[layer][:, :, seen], self.values[layer][:, :, seen], self.bias[..., seen])
        before = self.prefix[layer : layer + 1]
        return attend(query[:, None], [*before, own])[:, 0]
