"""The encoder as it was installed, rounded to bf16: the checkpoint that every encoder run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.lab.encoder.evaluate import accuracies, evaluation_frame, held_out_metrics
from threegates.lab.encoder.package import verified_folder
from threegates.lab.encoder.policy import Encoder, log_policy
from threegates.lab.encoder.task import split
from threegates.lab.encoder.trainer import EXTRA_COLUMNS, contents
from threegates.lab.recipe import EncoderBaseRecipe
from threegates.lab.trainer import Contents, Metrics, Producer
from threegates.lab.weights import dtype


class EncoderBase(Producer):
    """No training: the package's weights in the recipe's format, and what their policy does."""

    extra_columns = EXTRA_COLUMNS

    @torch.no_grad()
    def __init__(self, recipe: EncoderBaseRecipe, encoder: Encoder) -> None:
        self.recipe, self.encoder = recipe, encoder
        stored = dtype(recipe.save_dtype)
        for parameter in encoder.module.parameters():
            parameter.copy_(parameter.to(stored))

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        return cls(recipe, Encoder.open(verified_folder()))

    @torch.no_grad()
    def logged_step(self, index: int) -> Metrics:
        train, held_out = split(self.recipe.data)
        here = log_policy(self.encoder, {}, held_out)
        expected, greedy = accuracies(train, log_policy(self.encoder, {}, train))
        trained = {"pass_at_1_train": expected, "greedy_train": greedy}
        row = {"step": index, "updates": 0, "delta_norm": 0.0}
        return held_out_metrics(held_out, here, here) | trained | row

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Nothing is loaded: this run has no state."""

    def contents(self) -> Contents:
        return contents(self.encoder, {}, self.recipe.save_dtype)

    @torch.no_grad()
    def final_evaluation(self) -> pd.DataFrame:
        _, held_out = split(self.recipe.data)
        log_probs = log_policy(self.encoder, {}, held_out)
        return evaluation_frame(self.recipe.data, held_out, log_probs)
