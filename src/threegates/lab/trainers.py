"""Which trainer makes which run: that of its algorithm where this brings one along, else that of its kind.

Trainers are named, not imported: no run's digest covers those of the other kinds, and one alone is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from threegates.errors import RecipeError
from threegates.lab.algorithms.table import ALGORITHMS, own_trainer
from threegates.lab.recipe import AnyRecipe
from threegates.lab.trainer import Producer

#: Module and class of each kind of run.
TRAINERS: Mapping[str, tuple[str, str]] = {
    "pretrain": ("threegates.lab.pretrain", "Pretrainer"),
    "rl": ("threegates.lab.rl", "PolicyTrainer"),
    "masked-rl": ("threegates.lab.masked", "MaskedPolicyTrainer"),
    "adapter-rl": ("threegates.lab.adapters.trainers", "AdapterPolicyTrainer"),
    "sft": ("threegates.lab.sft", "SupervisedTrainer"),
    "adapter-sft": ("threegates.lab.adapters.trainers", "AdapterSupervisedTrainer"),
    "rotated-base": ("threegates.lab.rotated", "RotatedBase"),
    "encoder-base": ("threegates.lab.encoder.base", "EncoderBase"),
    "encoder-rl": ("threegates.lab.encoder.rl", "EncoderPolicyTrainer"),
    "encoder-sft": ("threegates.lab.encoder.sft", "EncoderSupervisedTrainer"),
    "lm-base": ("threegates.lab.lm.base", "LmBase"),
    "lm-tiny": ("threegates.lab.lm.tiny", "LmTiny"),
    "lm-rl": ("threegates.lab.lm.rl", "LmPolicyTrainer"),
    "lm-sft": ("threegates.lab.lm.sft", "LmSupervisedTrainer"),
}


# The kind of run whose algorithm may bring a trainer of its own along.
_RL = "rl"


def sort_of(recipe: AnyRecipe) -> str:
    """The name by which a run's trainer is found: its kind, with its algorithm where that has its own.

    Raises
    ------
    RecipeError : the algorithm has its own, and this kind of run cannot be trained by it.
    """
    name = getattr(recipe, "algorithm", None)
    if name is None or own_trainer(name) is None:
        return recipe.kind
    if recipe.kind != _RL:
        # The kind's own trainer would train another objective under the algorithm's name.
        raise RecipeError(
            f"The algorithm {name!r} brings a trainer of its own, which trains whole models alone.",
            where=recipe.name,
            expected=f"a recipe of kind {_RL!r}",
            found=recipe.kind,
            remedy="Take another algorithm, or give this kind of run a trainer for it.",
        )
    return f"{_RL}:{name}"


def sorts() -> list[str]:
    """Every name that `sort_of` can give."""
    return [*TRAINERS, *(f"{_RL}:{name}" for name in ALGORITHMS if own_trainer(name) is not None)]


def place_of_trainer(sort: str) -> tuple[str, str]:
    """Module and class of the trainer of that name."""
    kind, _, name = sort.partition(":")
    return (own_trainer(name) if name else None) or TRAINERS[kind]


def trainer_of(recipe: AnyRecipe) -> type[Producer]:
    """The trainer of a run."""
    module, name = place_of_trainer(sort_of(recipe))
    return getattr(importlib.import_module(module), name)
