"""A base whose heads stand in other coordinates, computing the same function: nothing is trained.

**Source** Zhu et al. (2025), §4.3 and App. D, with the corrections of `threegates.geometry.rotation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.frame import NAME, Frame
from threegates.errors import RecipeError
from threegates.geometry.rotation import Heads, haar, hadamard, random_order, reframed
from threegates.lab.evaluate import held_out_problems
from threegates.lab.language import SHARD_BYTES, load_weights
from threegates.lab.model import ModelShape, forward
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import RotatedBaseRecipe
from threegates.lab.rollout import pad_prompts
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID, data_set
from threegates.lab.tokenizer import tokenizer_files
from threegates.lab.trainer import Contents, Metrics, Producer
from threegates.lab.weights import dtype

GAP_PROMPTS = 128


class RotatedBase(Producer):
    """The base in other coordinates, and how far rounding moves its logits."""

    extra_columns = ("logit_gap", "logit_gap_stored")

    def __init__(self, recipe: RotatedBaseRecipe, shape: ModelShape, base: Mapping[str, Tensor]) -> None:
        self.recipe, self.shape, self.base = recipe, shape, dict(base)
        heads = Heads(shape.heads, shape.kv_heads, shape.head_dim)
        self.frame = base_frame(recipe, heads)
        self.exact = self.base | transformed(self.frame, heads, self.base, shape.layers, recipe.name)

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        assert base is not None
        shape, weights = load_weights(base)
        return cls(recipe, shape, weights)

    def stored(self) -> dict[str, Tensor]:
        """The new weights as they are stored: the transformed ones rounded once, the others as they were."""
        return {name: tensor.to(dtype(self.recipe.save_dtype)) for name, tensor in self.exact.items()}

    @torch.no_grad()
    def logged_step(self, index: int) -> Metrics:
        """Largest differences of logits on held-out prompts, before rounding (float64) and as stored."""
        exact = {name: tensor.double() for name, tensor in self.exact.items()}
        stored = {name: tensor.double() for name, tensor in self.stored().items()}
        gaps = {"logit_gap": self._gap(exact), "logit_gap_stored": self._gap(stored)}
        return gaps | {"step": index, "updates": 0, "delta_norm": math.nan}

    def _gap(self, weights: Mapping[str, Tensor]) -> float:
        prompts = pad_prompts([problem.prompt() for problem in held_out_problems("arith-4", GAP_PROMPTS)])
        valid = prompts != PAD_ID
        base = {name: tensor.double() for name, tensor in self.base.items()}
        there, here = (forward(one, self.shape, prompts, valid) for one in (base, weights))
        return float((here - there)[valid].abs().max())

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Nothing is loaded: this run has no state."""

    def contents(self) -> Contents:
        stored = self.recipe.save_dtype
        config = self.shape.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype=stored)
        files = {**tokenizer_files(data_set(self.recipe.data)), NAME: self.frame.json()}
        return Contents(self.stored(), config, files, SHARD_BYTES)

    def final_evaluation(self) -> pd.DataFrame | None:
        return None


def base_frame(recipe: RotatedBaseRecipe, heads: Heads) -> Frame:
    """The rotations and orders of a recipe, from its seed alone."""
    draw = {"haar": haar, "hadamard": hadamard}[recipe.rotation]
    return Frame(
        {
            layer: draw(heads.head_dim, step_generator(recipe.seed, "rotation", layer))
            for layer in recipe.rotated
        },
        {
            layer: random_order(heads, step_generator(recipe.seed, "permutation", layer))
            for layer in recipe.permuted
        },
    )


def transformed(
    frame: Frame, heads: Heads, base: Mapping[str, Tensor], layers: int, where: str
) -> dict[str, Tensor]:
    """The tensors that a frame changes, in float64: rotated first, then permuted.

    Raises
    ------
    RecipeError : the base lacks a layer.
    """
    unknown = sorted({*frame.rotations, *frame.orders} - {*range(layers)})
    if unknown:
        raise RecipeError(
            "the base has no such layer",
            where=where,
            expected=f"0 … {layers - 1}",
            found=unknown,
            remedy="name layers that it has",
        )
    changed: dict[str, Tensor] = {}
    for layer in range(layers):
        rotation, order = frame.rotations.get(layer), frame.orders.get(layer)
        changed |= reframed(base, attention_prefix(layer), rotation, order, heads)
    return changed


def attention_prefix(layer: int) -> str:
    """What the names of a layer's attention tensors begin with."""
    return f"model.layers.{layer}.self_attn."
