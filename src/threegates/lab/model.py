"""A Llama decoder in a page: the forward pass that training and cached sampling share.

Parameters carry the names of transformers' ``LlamaForCausalLM`` and the configuration is its
``config.json``, so a checkpoint written here loads there; tests hold the logits equal.

Source: Touvron et al. (2023), arXiv 2302.13971; grouped queries after Ainslie et al. (2023),
arXiv 2305.13245; rotary positions after Su et al. (2021), arXiv 2104.09864.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def device_of(weights: Weights) -> torch.device:
    """Where the weights are: all of a model's are in one place."""
    return next(iter(weights.values())).device


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama model; the defaults are the lab's ``xs``, 0.53 M parameters."""

    vocabulary: int = 48
    width: int = 128
    layers: int = 3
    feed_forward: int = 320
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    positions: int = 64

    def config(self, *, pad: int, bos: int, eos: int, stored_dtype: str) -> dict:
        """The ``config.json`` that transformers reads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.norm_epsilon,
            "max_position_embeddings": self.positions,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "initializer_range": 1 / math.sqrt(self.width),
            "use_cache": True,
            "pad_token_id": pad,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "dtype": stored_dtype,
        }

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape under its name in transformers, in a fixed order."""
        d, q, kv = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, d)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (d,),
                layer + "self_attn.q_proj.weight": (q, d),
                layer + "self_attn.k_proj.weight": (kv, d),
                layer + "self_attn.v_proj.weight": (kv, d),
                layer + "self_attn.o_proj.weight": (d, q),
                layer + "post_attention_layernorm.weight": (d,),
                layer + "mlp.gate_proj.weight": (self.feed_forward, d),
                layer + "mlp.up_proj.weight": (self.feed_forward, d),
                layer + "mlp.down_proj.weight": (d, self.feed_forward),
            }
        return shapes | {"model.norm.weight": (d,), "lm_head.weight": (self.vocabulary, d)}


def initial_weights(shape: ModelShape, generator: torch.Generator) -> dict[str, Tensor]:
    """Gaussian weights with standard deviation 1/√fan_in; norms start at one."""
    weights = {}
    for name, size in shape.parameter_shapes().items():
        if len(size) == 1:
            weights[name] = torch.ones(size)
        else:
            weights[name] = torch.randn(size, generator=generator) / math.sqrt(size[1])
    return weights


class Memory(Protocol):
    """What holds the keys and values of earlier tokens."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a layer's new ones, and return all that the new tokens may look at."""


@dataclass
class Cache:
    """Keys and values, (layers, batch, kv_heads, length, head_dim), valid up to ``filled``."""

    keys: Tensor
    values: Tensor
    filled: int = 0

    @classmethod
    def empty(cls, shape: ModelShape, batch: int, length: int, device: torch.device | str = "cpu") -> Cache:
        size = (shape.layers, batch, shape.kv_heads, length, shape.head_dim)
        return cls(torch.zeros(size, device=device), torch.zeros(size, device=device))

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append at ``filled`` and return everything up to the new end."""
        end = self.filled + key.shape[2]
        self.keys[layer, :, :, self.filled : end] = key
        self.values[layer, :, :, self.filled : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> Cache:
        """What was read of these rows of the batch."""
        return Cache(self.keys[:, rows], self.values[:, rows], self.filled)


@dataclass
class FixedCache:
    """Keys and values of one length from the first token on, so that every decoding step has one shape.

    keys, values : a tensor (batch, kv_heads, length, head_dim) for each layer: a compiled step writes to
        whole arguments in place, and would copy one that holds all layers. columns : (time,) where the
        present tokens stand.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    columns: Tensor

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write at the columns and return all columns. The bias hides the ones not yet written."""
        self.keys[layer].index_copy_(2, self.columns, key)
        self.values[layer].index_copy_(2, self.columns, value)
        return self.keys[layer], self.values[layer]


def rotary_tables(shape: ModelShape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's rotary angles, (batch, 1, time, head_dim)."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=positions.device)
    exponents = steps / shape.head_dim
    angles = positions[:, None, :, None].float() * shape.rope_theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the split-halves convention of transformers."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def attention_bias(valid: Tensor, queries: int) -> Tensor:
    """Additive mask (batch, 1, queries, keys): causal, and −∞ on padding.

    The last ``queries`` of the ``valid`` (batch, keys) columns are the positions that ask. A padding
    position may see itself, so that no row of the softmax is empty.
    """
    keys = valid.shape[1]
    return bias_at(valid, torch.arange(keys - queries, keys, device=valid.device))


def bias_at(valid: Tensor, columns: Tensor) -> Tensor:
    """`attention_bias` where the positions that ask stand at the given (queries,) columns."""
    asks, column = columns[:, None], torch.arange(valid.shape[1], device=valid.device)[None, :]
    allowed = (column <= asks)[None] & (valid[:, None, :] | (column == asks)[None])
    return torch.zeros(allowed.shape, device=valid.device).masked_fill_(~allowed, -torch.inf)[:, None]


def counted(valid: Tensor) -> Tensor:
    """Positions of (batch, keys) columns: valid tokens alone are counted, from 0."""
    return (valid.long().cumsum(-1) - 1).clamp_(min=0)


def _split(x: Tensor, weight: Tensor, heads: int, head_dim: int) -> Tensor:
    batch, time, _ = x.shape
    return F.linear(x, weight).view(batch, time, heads, head_dim).transpose(1, 2)


def _attend(
    weights: Weights,
    prefix: str,
    shape: ModelShape,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    bias: Tensor,
    cache: Memory | None,
    layer: int,
) -> Tensor:
    query = rotate(_split(x, weights[prefix + "q_proj.weight"], shape.heads, shape.head_dim), *rotary)
    key = rotate(_split(x, weights[prefix + "k_proj.weight"], shape.kv_heads, shape.head_dim), *rotary)
    value = _split(x, weights[prefix + "v_proj.weight"], shape.kv_heads, shape.head_dim)
    if cache is not None:
        key, value = cache.extend(layer, key, value)
    batch, _, time, _ = query.shape
    # Queries of one group share a key head: fold the group into the time axis instead of copying keys.
    group = shape.heads // shape.kv_heads
    query = query.reshape(batch, shape.kv_heads, group * time, shape.head_dim)
    scores = query @ key.transpose(-1, -2) / math.sqrt(shape.head_dim)
    scores = scores.view(batch, shape.heads, time, -1) + bias
    mixed = scores.softmax(-1).view(batch, shape.kv_heads, group * time, -1) @ value
    mixed = mixed.view(batch, shape.heads, time, shape.head_dim).transpose(1, 2)
    return F.linear(mixed.reshape(batch, time, -1), weights[prefix + "o_proj.weight"])


def _feed_forward(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    gate = F.silu(F.linear(x, weights[prefix + "gate_proj.weight"]))
    return F.linear(
        gate * F.linear(x, weights[prefix + "up_proj.weight"]), weights[prefix + "down_proj.weight"]
    )


def forward(
    weights: Weights, shape: ModelShape, tokens: Tensor, valid: Tensor, cache: Cache | None = None
) -> Tensor:
    """Next-token logits.

    Parameters
    ----------
    weights : parameters under transformers' names.
    tokens : (batch, time) token ids, left-padded.
    valid : (batch, cached + time) bool, False on padding; positions count valid tokens only.
    cache : keys and values of the tokens before; extended in place.

    Returns
    -------
    (batch, time, vocabulary) float32 logits.
    """
    time = tokens.shape[1]
    logits = _logits(weights, shape, tokens, counted(valid)[:, -time:], attention_bias(valid, time), cache)
    if cache is not None:
        cache.filled += time
    return logits


def forward_at(
    weights: Weights, shape: ModelShape, tokens: Tensor, valid: Tensor, cache: FixedCache
) -> Tensor:
    """`forward` on tokens that stand at the cache's columns, with ``valid`` (batch, length) over all of it.

    No shape depends on how many tokens came before, so that a compiled step serves every one of them.
    """
    positions = counted(valid).index_select(1, cache.columns)
    return _logits(weights, shape, tokens, positions, bias_at(valid, cache.columns), cache)


def _logits(
    weights: Weights, shape: ModelShape, tokens: Tensor, positions: Tensor, bias: Tensor, cache: Memory | None
) -> Tensor:
    rotary = rotary_tables(shape, positions)
    width, epsilon = (shape.width,), shape.norm_epsilon
    hidden = F.embedding(tokens, weights["model.embed_tokens.weight"])
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        normed = F.rms_norm(hidden, width, weights[layer + "input_layernorm.weight"], epsilon)
        hidden = hidden + _attend(weights, layer + "self_attn.", shape, normed, rotary, bias, cache, i)
        normed = F.rms_norm(hidden, width, weights[layer + "post_attention_layernorm.weight"], epsilon)
        hidden = hidden + _feed_forward(weights, layer + "mlp.", normed)
    hidden = F.rms_norm(hidden, width, weights["model.norm.weight"], epsilon)
    return F.linear(hidden, weights["lm_head.weight"])
