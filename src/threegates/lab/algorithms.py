"""The algorithms that a recipe can name, as values of the one objective of `threegates.lab.objectives`.

A recipe takes the values of its algorithm when it is made. So no trainer reads this table, and a further
algorithm leaves the digests of the others' runs alone.
"""

from __future__ import annotations

from threegates.errors import RecipeError
from threegates.lab.objectives import Algorithm

ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("grpo", "group", 0.2, 0.2, "sequence", "loss", 1e-3, False, 0),
        Algorithm("dapo", "group", 0.2, 0.28, "token", "none", 0.0, True, 4),
        Algorithm("reinforce++", "batch", 0.2, 0.2, "token", "reward", 1e-3, False, 0),
    )
}


def algorithm(name: str) -> Algorithm:
    """The named algorithm; raises RecipeError that lists the known ones."""
    if name not in ALGORITHMS:
        raise RecipeError(
            f"There is no algorithm {name!r}.",
            expected=" | ".join(ALGORITHMS),
            found=name,
            remedy="Correct the recipe, or add the algorithm in threegates/lab/algorithms.py.",
        )
    return ALGORITHMS[name]
