"""Which algorithms a recipe can name. Each is a module with `ALGORITHM`, its values, and perhaps a `TRAINER`.

A recipe takes the values of its algorithm when it is made, and modules are named here, not imported. So no
trainer reads this table, and a further algorithm leaves the digests of the others' runs alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType

from threegates.errors import RecipeError
from threegates.lab.objectives import Algorithm

#: The module of each algorithm.
ALGORITHMS: Mapping[str, str] = {
    "grpo": "threegates.lab.algorithms.grpo",
    "dapo": "threegates.lab.algorithms.dapo",
    "reinforce++": "threegates.lab.algorithms.reinforce",
}


def algorithm(name: str) -> Algorithm:
    """The values of the named algorithm.

    Raises
    ------
    RecipeError : there is none of that name; lists those there are.
    """
    return _module(name).ALGORITHM


def own_trainer(name: str) -> tuple[str, str] | None:
    """Module and class of the trainer that an algorithm brings along; None for those that need none.

    Raises
    ------
    RecipeError : there is no algorithm of that name.
    """
    module = _module(name)
    trainer = getattr(module, "TRAINER", None)
    return None if trainer is None else (trainer.__module__, trainer.__qualname__)


def _module(name: str) -> ModuleType:
    if name not in ALGORITHMS:
        raise RecipeError(
            f"There is no algorithm {name!r}.",
            expected=" | ".join(ALGORITHMS),
            found=name,
            remedy="Correct the recipe, or add the algorithm in threegates/lab/algorithms/table.py.",
        )
    return importlib.import_module(ALGORITHMS[name])
