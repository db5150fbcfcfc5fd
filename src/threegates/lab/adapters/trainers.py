"""Training of adapters: the lab's RL and SFT, with low-rank factors in the place of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from threegates.lab.adapters.factors import starts
from threegates.lab.adapters.files import adapter_files
from threegates.lab.adapters.weights import AdapterWeights
from threegates.lab.language import LanguageTrainer
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import AdapterRLRecipe, AdapterSFTRecipe
from threegates.lab.rl import PolicyTrainer
from threegates.lab.sft import SupervisedTrainer
from threegates.lab.trainer import Contents

if TYPE_CHECKING:
    _Mixed = LanguageTrainer
else:
    _Mixed = object


class _Adapted(_Mixed):
    """A language trainer that moves adapters, and saves them for peft beside the merged weights."""

    recipe: AdapterRLRecipe | AdapterSFTRecipe
    weights: AdapterWeights

    def trained_weights(self, initial: Mapping[str, Tensor]) -> AdapterWeights:
        recipe = self.recipe
        generator = step_generator(recipe.seed, "adapters", 0)
        # Starts are found on the CPU, so that they are the same wherever training is.
        base = {name: tensor.cpu() for name, tensor in initial.items()}
        return AdapterWeights(initial, starts(base, recipe.init, recipe.rank, recipe.alpha, generator))

    def contents(self) -> Contents:
        files = adapter_files(self.weights.factors(), self.weights.starts)
        contents = super().contents()
        return replace(contents, files={**contents.files, **files})


class AdapterPolicyTrainer(_Adapted, PolicyTrainer):
    """Reinforcement learning of adapters."""

    recipe: AdapterRLRecipe


class AdapterSupervisedTrainer(_Adapted, SupervisedTrainer):
    """Supervised fine-tuning of adapters."""

    recipe: AdapterSFTRecipe
