"""The forward pass of a Llama-shaped model over a row of tokens without padding.

Parameters carry the names of transformers' `LlamaForCausalLM` and `Qwen2ForCausalLM`. Matrices are multiplied
in the computing type, bfloat16 or float32, activations rounded to it on the way in. The residual stream,
norms, rotary positions, attention and logits are float32 in both.

Which keys a query sees is the mixer's business (`threegates.lab.lm.mixers`).

Source: Touvron et al. (2023), arXiv 2302.13971.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from threegates.lab.lm.attention import rotary_tables, rotate
from threegates.lab.lm.head import log_probs_of
from threegates.lab.lm.layout import Layout
from threegates.lab.lm.mixers import Packed
from threegates.lab.lm.shape import EMBEDDING, LAST_NORM, LlamaShape

Weights = Mapping[str, Tensor]


class Mixer(Protocol):
    """Attention of one layer over the keys that its holder knows."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (tokens, heads, head_dim), key and value (tokens, kv_heads, head_dim) → as the query."""


def hidden_states(
    weights: Weights, shape: LlamaShape, tokens: Tensor, positions: Tensor, mix: Mixer, computing: torch.dtype
) -> Tensor:
    """The last layer's output after the final norm, (tokens, width) float32.

    tokens, positions : (tokens,). computing : the type in which matrices are multiplied.
    """
    tables = rotary_tables(positions, shape.head_dim, shape.rope_theta)
    hidden = embed(weights[EMBEDDING], tokens)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        normed = _norm(weights, name + "input_layernorm.weight", hidden, shape).to(computing)
        mixed = _attention(weights, name + "self_attn.", shape, normed, tables, mix, layer)
        hidden = hidden + _linear(weights, name + "self_attn.o_proj", mixed.to(computing))
        normed = _norm(weights, name + "post_attention_layernorm.weight", hidden, shape).to(computing)
        hidden = hidden + _feed_forward(weights, name + "mlp.", normed)
    return _norm(weights, LAST_NORM, hidden, shape)


def embed(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of the embedding in float32, (tokens, width).

    Each row that occurs is taken once, so that gradients of a token that occurs often are added in float32.
    """
    occurring, places = tokens.unique(return_inverse=True)
    return weight[occurring].float()[places]


def _norm(weights: Weights, name: str, hidden: Tensor, shape: LlamaShape) -> Tensor:
    return F.rms_norm(hidden, (shape.width,), weights[name].float(), shape.norm_epsilon)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """x Wᵀ + b in the type of x."""
    bias = weights.get(f"{name}.bias")
    return F.linear(x, weights[f"{name}.weight"].to(x.dtype), None if bias is None else bias.to(x.dtype))


def _attention(
    weights: Weights,
    prefix: str,
    shape: LlamaShape,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    mix: Mixer,
    layer: int,
) -> Tensor:
    def heads(name: str) -> Tensor:
        return _linear(weights, prefix + name, x).float().view(len(x), -1, shape.head_dim)

    query, key = rotate(heads("q_proj"), tables), rotate(heads("k_proj"), tables)
    return mix(layer, query, key, heads("v_proj")).flatten(1)


def _feed_forward(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    gate = F.silu(_linear(weights, prefix + "gate_proj", x))
    return _linear(weights, prefix + "down_proj", gate * _linear(weights, prefix + "up_proj", x))


def response_log_probs(weights: Weights, shape: LlamaShape, layout: Layout, computing: torch.dtype) -> Tensor:
    """Log-probabilities of a layout's response tokens, (samples, time) float32, zero outside the mask."""
    found = torch.zeros(layout.mask.shape, device=layout.mask.device)
    if not layout.mask.any():
        return found
    hidden = hidden_states(weights, shape, layout.tokens, layout.positions, Packed(layout), computing)
    # The prompt's last token predicts for all samples of its group: its logits are computed once.
    reads, rows = layout.reads[layout.mask].unique(return_inverse=True)
    head = weights[shape.head].to(computing)
    log_probs = log_probs_of(hidden[reads].to(computing), head, rows, layout.targets[layout.mask])
    return found.masked_scatter(layout.mask, log_probs)
