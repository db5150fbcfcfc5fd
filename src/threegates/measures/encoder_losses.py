"""The encoder's part of `threegates.measures.losses`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from threegates.checkpoints.tensors import Checkpoint
from threegates.lab.encoder.policy import Encoder, log_policy, right_places
from threegates.lab.encoder.task import split
from threegates.lab.randomness import step_rng
from threegates.measures.batch import SEED, Batch, Losses

ITEMS = 12
DATA = "words"


def encoder_losses(base: Checkpoint) -> Losses:
    """The weights of its blocks, and its losses on items that a batch's number alone decides."""
    encoder = Encoder.open(base.folder)
    return Losses(encoder.trained(), lambda number: _encoder_batch(encoder, number))


def _encoder_batch(encoder: Encoder, number: int) -> Batch:
    train, _ = split(DATA)
    places = step_rng(SEED, "curvature/items", number).choice(len(train), ITEMS, replace=False)
    items = [train[place] for place in places]
    right = right_places(items)[:, None]

    def log_probs(weights: Mapping[str, Tensor]) -> Tensor:
        return log_policy(encoder, weights, items)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return -log_probs(weights).gather(1, right).mean()

    def reward(weights: Mapping[str, Tensor]) -> Tensor:
        return 1 - 2 * log_probs(weights).gather(1, right).exp().mean()

    return Batch(loss, reward, log_probs)
