"""Reading a model token by token: with a cache that grows, or over static shapes, which can be compiled.

Both give the same logits up to rounding. On the CPU the cache grows, because what is not there costs nothing;
on a CUDA device small kernels wait for their launch, and a compiled step has few of them.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from threegates.lab.model import Cache, FixedCache, ModelShape, Weights, forward, forward_at
from threegates.lab.task import PAD_ID

Logits = Callable[[Tensor], Tensor]
"""From the next tokens (batch, time) to the logits after the last of them, (batch, vocabulary)."""
Step = Callable[..., Tensor]


def decoder_of(device: torch.device) -> Callable[..., Logits]:
    """How a model on that device is read."""
    return static if device.type == "cuda" else growing


def growing(weights: Weights, shape: ModelShape, prompts: Tensor, length: int) -> Logits:
    """A reader whose cache holds what was read; ``length`` tokens may follow the prompts."""
    valid = _valid(prompts, length)
    cache = Cache.empty(shape, len(prompts), valid.shape[1], prompts.device)

    def read(tokens: Tensor) -> Tensor:
        seen = valid[:, : cache.filled + tokens.shape[1]]
        return forward(weights, shape, tokens, seen, cache)[:, -1]

    return read


def static(
    weights: Weights, shape: ModelShape, prompts: Tensor, length: int, step: Step | None = None
) -> Logits:
    """A reader whose shapes are the same at every token; ``step`` is `forward_at`, as a rule compiled."""
    # Trained weights and a base's would else be two kinds of arguments, and be compiled twice.
    frozen = {name: tensor.detach() for name, tensor in weights.items()}
    valid = _valid(prompts, length)
    size = (len(prompts), shape.kv_heads, valid.shape[1], shape.head_dim)
    keys, values = ([torch.zeros(size, device=prompts.device) for _ in range(shape.layers)] for _ in range(2))
    columns = torch.arange(prompts.shape[1], device=prompts.device)
    once, step = forward_at, step or compiled_step()

    def read(tokens: Tensor) -> Tensor:
        nonlocal once, columns
        logits = once(frozen, shape, tokens, valid, FixedCache(keys, values, columns))
        # The prompts are read as they are: theirs is one step of another shape.
        once, columns = step, columns[-1:] + 1
        return logits[:, -1]

    return read


def _valid(prompts: Tensor, length: int) -> Tensor:
    """(batch, prompt + length) bool: False on the prompts' padding."""
    rest = torch.ones(len(prompts), length, dtype=torch.bool, device=prompts.device)
    return torch.cat([prompts != PAD_ID, rest], dim=1)


@functools.cache
def compiled_step(**options: Any) -> Step:
    """`forward_at`, compiled where that is possible: it needs Triton and a compiler of C.

    Modes with CUDA graphs are left alone: they skip steps that write to what they are given, as to the cache.
    """
    if not options and not (importlib.util.find_spec("triton") and _has_compiler()):
        return forward_at
    return torch.compile(forward_at, dynamic=False, **options)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))
