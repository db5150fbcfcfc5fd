"""What runs of the lab's language model share: weights of a base, evaluation, checkpoints, the likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.tensors import Checkpoint
from threegates.lab.averages import average_tokens
from threegates.lab.device import require_device
from threegates.lab.evaluate import evaluate, final_evaluation
from threegates.lab.model import ModelShape, Weights
from threegates.lab.recipe import LanguageRecipe
from threegates.lab.rollout import sampled_log_probs
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID, data_set
from threegates.lab.tokenizer import tokenizer_files
from threegates.lab.trainer import Contents, Metrics, Trainer

# Small shards, so that the lab's own checkpoints exercise the sharded reading that large models need.
SHARD_BYTES = 1_000_000


class LanguageTrainer(Trainer):
    """A Llama model of the lab, with the frozen base where there is one; subclasses add the step."""

    recipe: LanguageRecipe

    def __init__(
        self, recipe: LanguageRecipe, shape: ModelShape, initial: Mapping[str, Tensor], base: Weights | None
    ) -> None:
        require_device(recipe.device, recipe.name)
        super().__init__(recipe, _moved(initial, recipe.device))
        self.shape = shape
        self.base: Weights | None = None if base is None else _moved(base, recipe.device)

    @property
    def device(self) -> torch.device:
        """Where weights, samples and losses are."""
        return self.weights.master.device

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        assert base is not None
        shape, weights = load_weights(base)
        return cls(recipe, shape, weights)  # type: ignore[call-arg]

    def evaluate(self, index: int) -> Metrics:
        """Held-out reward, pass@1, KL, entropy and length of the current weights."""
        recipe = self.recipe
        return evaluate(
            self.weights.named,
            self.shape,
            self.base,
            recipe.evaluation_data,
            recipe.evaluate_prompts,
            recipe.seed,
            index,
        )

    def final_evaluation(self) -> pd.DataFrame | None:
        recipe = self.recipe
        if not recipe.final_prompts:
            return None
        saved = self.weights.saved("bfloat16")
        weights = {name: tensor.to(self.device).float() for name, tensor in saved.items()}
        return final_evaluation(
            weights,
            self.shape,
            recipe.evaluation_data,
            recipe.final_prompts,
            recipe.final_samples,
            recipe.seed,
        )

    def contents(self) -> Contents:
        stored = self.recipe.save_dtype
        config = self.shape.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype=stored)
        files = tokenizer_files(data_set(self.recipe.data))
        return Contents(self.weights.saved(stored), config, files, SHARD_BYTES)

    def negative_log_likelihood(self, prompts: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
        """Mean over response tokens of −log π, a scalar; the batch is moved to the weights."""
        prompts, responses, mask = (tensor.to(self.device) for tensor in (prompts, responses, mask))
        log_probs = sampled_log_probs(self.weights.named, self.shape, prompts, responses, mask)
        return -average_tokens(log_probs, mask, "token")


def _moved(weights: Weights, device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def load_weights(folder: Path) -> tuple[ModelShape, dict[str, Tensor]]:
    """Shape and float32 weights of a checkpoint of the lab's architecture, in the model's order."""
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    shape = ModelShape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        feed_forward=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_theta"],
        norm_epsilon=config["rms_norm_eps"],
        positions=config["max_position_embeddings"],
    )
    return shape, {name: checkpoint.stored(name).float() for name in shape.parameter_shapes()}
