"""A function of the weights on a fixed batch: what losses give and curvature takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

#: Of the batches alone; no run of the lab has this seed.
SEED = 41


Function = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Batch:
    """Functions of the weights on one batch.

    loss, reward : scalars to descend, in nats a token (a candidate) and in units of reward. log_probs :
    (positions, classes) log-probabilities.
    """

    loss: Function
    reward: Function
    log_probs: Function


@dataclass(frozen=True)
class Losses:
    """The base's weights in float32, and its batches by number."""

    point: dict[str, Tensor]
    batch: Callable[[int], Batch]
