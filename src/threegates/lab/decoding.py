"""Reading a model token by token: with a cache that grows, or over static shapes, which can be compiled.

Both give the same logits up to rounding. On the CPU the cache grows, because what is not there costs nothing;
on a CUDA device small kernels wait for their launch, and a compiled step has few of them.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from threegates.lab.model import Cache, FixedCache, ModelShape, Weights, forward, forward_at
from threegates.lab.task import PAD_ID

Step = Callable[..., Tensor]


class Reader(Protocol):
    """A model that is read token by token."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """From the next tokens (batch, time) to the logits after the last of them, (batch, vocabulary)."""

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows alone, where that saves work; False goes on with all."""


def decoder_of(device: torch.device) -> Callable[..., Reader]:
    """How a model on that device is read."""
    return Static if device.type == "cuda" else Growing


class Growing:
    """A reader whose cache holds what was read; ``length`` tokens may follow the prompts."""

    def __init__(self, weights: Weights, shape: ModelShape, prompts: Tensor, length: int) -> None:
        self.weights, self.shape, self.valid = weights, shape, _valid(prompts, length)
        self.cache = Cache.empty(shape, len(prompts), self.valid.shape[1], prompts.device)

    def __call__(self, tokens: Tensor) -> Tensor:
        seen = self.valid[:, : self.cache.filled + tokens.shape[1]]
        return forward(self.weights, self.shape, tokens, seen, self.cache)[:, -1]

    def keep(self, rows: Tensor) -> bool:
        """Responses that have ended cost nothing more."""
        self.valid, self.cache = self.valid[rows], self.cache.select(rows)
        return True


class Static:
    """A reader whose shapes are the same at every token; ``step`` is `forward_at`, as a rule compiled."""

    def __init__(
        self, weights: Weights, shape: ModelShape, prompts: Tensor, length: int, step: Step | None = None
    ) -> None:
        # Trained weights and a base's would else be two kinds of arguments, and be compiled twice.
        self.weights = {name: tensor.detach() for name, tensor in weights.items()}
        self.shape, self.valid = shape, _valid(prompts, length)
        size = (len(prompts), shape.kv_heads, self.valid.shape[1], shape.head_dim)
        self.keys, self.values = (
            [torch.zeros(size, device=prompts.device) for _ in range(shape.layers)] for _ in range(2)
        )
        self.columns = torch.arange(prompts.shape[1], device=prompts.device)
        # The prompts are read as they are: theirs is one step of another shape.
        self.step, self.later = forward_at, step or compiled_step()

    def __call__(self, tokens: Tensor) -> Tensor:
        cache = FixedCache(self.keys, self.values, self.columns)
        logits = self.step(self.weights, self.shape, tokens, self.valid, cache)
        self.step, self.columns = self.later, self.columns[-1:] + 1
        return logits[:, -1]

    def keep(self, rows: Tensor) -> bool:
        """Fewer rows would be another shape."""
        return False


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
