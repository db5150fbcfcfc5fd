"""What runs of the encoder share: the base's policy, batches of items, evaluation, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.lab.encoder.evaluate import accuracies, evaluation_frame, held_out_metrics
from threegates.lab.encoder.policy import Encoder, log_policy, right_places
from threegates.lab.encoder.task import Item, split
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.recipe import EncoderRLRecipe, EncoderSFTRecipe
from threegates.lab.trainer import Contents, Metrics, Trainer
from threegates.lab.weights import dtype

EXTRA_COLUMNS = ("greedy", "pass_at_1_train", "greedy_train")
# The word embeddings fill a file of their own, the blocks several.
SHARD_BYTES = 16_000_000


class EncoderTrainer(Trainer):
    """An encoder whose blocks train beside its frozen base; subclasses add the step.

    train, held_out : the items of the recipe's data. base, base_held_out : the base's log π of them.
    """

    recipe: EncoderRLRecipe | EncoderSFTRecipe
    extra_columns = EXTRA_COLUMNS

    def __init__(self, recipe: EncoderRLRecipe | EncoderSFTRecipe, encoder: Encoder) -> None:
        super().__init__(recipe, encoder.trained())
        self.encoder = encoder
        self.train, self.held_out = split(recipe.data)
        with torch.no_grad():
            self.base = log_policy(encoder, {}, self.train)
            self.base_held_out = log_policy(encoder, {}, self.held_out)

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        assert base is not None
        return cls(recipe, Encoder.open(base))

    def draw(self, index: int) -> Tensor:
        """Places of a step's items among those for training, without repetition."""
        rng = step_rng(self.recipe.seed, f"items/{self.recipe.data}", index)
        return torch.from_numpy(rng.choice(len(self.train), self.recipe.prompts, replace=False))

    def chosen(self, places: Tensor) -> list[Item]:
        """Training items at the given places."""
        return [self.train[place] for place in places.tolist()]

    def log_policy(self, places: Tensor) -> Tensor:
        """log π under the present weights, (places, candidates)."""
        return log_policy(self.encoder, self.weights.named, self.chosen(places))

    def sample(self, log_probs: Tensor, stream: str, index: int) -> Tensor:
        """Candidates drawn from π, with repetition: (items, samples) places."""
        generator = step_generator(self.recipe.seed, stream, index)
        return torch.multinomial(log_probs.exp(), self.recipe.samples, True, generator=generator)

    def right(self, places: Tensor) -> Tensor:
        """Place of the right candidate of each training item, (places,)."""
        return right_places(self.chosen(places))

    @torch.no_grad()
    def evaluate(self, index: int) -> Metrics:
        here = log_policy(self.encoder, self.weights.named, self.held_out)
        there = log_policy(self.encoder, self.weights.named, self.train)
        expected, greedy = accuracies(self.train, there)
        trained = {"pass_at_1_train": expected, "greedy_train": greedy}
        return held_out_metrics(self.held_out, here, self.base_held_out) | trained

    @torch.no_grad()
    def final_evaluation(self) -> pd.DataFrame:
        weights = {name: tensor.float() for name, tensor in self.weights.saved("bfloat16").items()}
        log_probs = log_policy(self.encoder, weights, self.held_out)
        return evaluation_frame(self.recipe.data, self.held_out, log_probs)

    def contents(self) -> Contents:
        stored = self.recipe.save_dtype
        return contents(self.encoder, self.weights.saved(stored), stored)


def contents(encoder: Encoder, trained: Mapping[str, Tensor], stored: str) -> Contents:
    """The checkpoint of an encoder some of whose parameters have other values; tokenizer files are copied."""
    frozen = {name: t.to(dtype(stored)) for name, t in encoder.module.named_parameters()}
    config = {**encoder.config, "dtype": stored}
    return Contents(frozen | dict(trained), config, encoder.files, SHARD_BYTES)
