"""Profile `gpu`: some of the lab's runs on a larger model and a harder task, trained on a CUDA device.

Each is a run of profile `mini` with the first seed, in the same chapters and, after pre-training, at the
same rate and number of steps; model, data and batches are larger. One seed has no error bars: these runs ask
whether the lab's effects are there at forty times its size, not how large they are. Sizes are chosen for runs
that end within ten minutes of one H200.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from threegates.lab.model import ModelShape
from threegates.lab.plans.interventions import DATA, rotated_name
from threegates.lab.plans.profiles import BASE, FIRST_SEED, GPU, PROFILES, RATES, Draft, run_name
from threegates.lab.recipe import AnyRecipe
from threegates.lab.subjects import LARGER
from threegates.lab.task import data_set

LARGER_DATA, LARGER_PRETRAINING = "arith-8", "pretraining-8"
# 23.7 M parameters; a head dimension and widths of real models' kind, so that the headline's rank is 64.
SHAPE = ModelShape(
    width=512,
    layers=8,
    feed_forward=1408,
    heads=8,
    kv_heads=4,
    head_dim=64,
    positions=data_set(LARGER_PRETRAINING).positions,
)
PROFILE = replace(PROFILES["mini"], name=GPU, pretrain_steps=2000, seeds=(FIRST_SEED,))


def _named(label: str, rate: str = "mask") -> str:
    return run_name(label, DATA, rate, FIRST_SEED)


#: The lab's runs that are enlarged, by their names there.
CHOSEN = (
    BASE,
    _named("grpo"),
    _named("grpo", "reward"),
    _named("dapo"),
    _named("sft-teacher", "own"),
    _named("sft-teacher"),
    _named("sft-same-style"),
    _named("rft"),
    rotated_name("haar"),
    _named("grpo-haar"),
    _named("grpo", f"{10 * RATES['mask']:g}"),
    _named("mask-off-principal", "0.0002"),
)
# As many rows for an evaluation as for a step of RL: both sample batches of one shape, compiled once.
_TRAINED: dict[str, Any] = {
    "device": "cuda",
    "data": LARGER_DATA,
    "evaluation_data": LARGER_DATA,
    "evaluate_prompts": 1024,
}
_POLICY: dict[str, Any] = _TRAINED | {"prompts": 64, "samples": 16}
_CHANGES: dict[str, dict[str, Any]] = {
    # The lab's rate is for a quarter of the width.
    "pretrain": _TRAINED | {"data": LARGER_PRETRAINING, "batch": 512, "learning_rate": 1e-3, "shape": SHAPE},
    "rl": _POLICY,
    "masked-rl": _POLICY,
    "sft": _TRAINED | {"batch": 1024},
    "rotated-base": {"data": LARGER_PRETRAINING},
}


def larger_drafts(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """The chosen ones of the lab's drafts, enlarged, in their order: bases before what starts from them."""
    for draft in drafts:
        if draft.recipe.name in CHOSEN:
            yield replace(draft, recipe=_enlarged(draft.recipe), subject=LARGER)


def larger_name(name: str) -> str:
    """Name of a run of the lab here: ``larger-grpo-arith-8-s101``, ``larger-base``."""
    return f"{LARGER}-{name.removeprefix('lab-').replace(DATA, LARGER_DATA)}"


def _enlarged(recipe: AnyRecipe) -> AnyRecipe:
    names = {"name": larger_name(recipe.name), "base": recipe.base and larger_name(recipe.base)}
    return type(recipe).model_validate(recipe.model_dump() | names | _CHANGES[recipe.kind])
