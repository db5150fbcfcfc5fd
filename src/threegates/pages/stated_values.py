"""Numbers that prose states and no record holds: the paper's, the rules' tolerances, recipes, bf16's spacing.

They are computed from the code and the files that hold them, so that prose cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from threegates.estimates.paper import sparsity_ranges, table_2
from threegates.estimates.statistics import POWER, smallest_permutation_p, smallest_sign_flip_p
from threegates.judging.claims import Claims, Rule


def stated_values(claims: Claims) -> dict[str, str]:
    """Every such value by its key."""
    return {
        "confidence": _percent([claims.confidence]),
        **paper_values(),
        **tolerance_values(claims),
        **recipe_values(),
        **spacing_values(),
        **limit_values(),
    }


def paper_values() -> dict[str, str]:
    """``paper.sparsity.rl`` and ``.sft``, ranges of Table 1; ``paper.jaccard``, ``.bernoulli`` of Table 2.

    **Source** Zhu et al. (2025), Tables 1 and 2.
    """
    ranges = {f"paper.sparsity.{kind.lower()}": _percent(ends) for kind, ends in sparsity_ranges().items()}
    table = table_2()
    indices = {name: _range(table[f"paper_{name}"]) for name in ("jaccard", "bernoulli")}
    return ranges | {f"paper.{name}": text for name, text in indices.items()}


def tolerance_values(claims: Claims) -> dict[str, str]:
    """``<claim>.tolerance``: the threshold of its rule, or its margin around the value of no effect."""
    return {f"{claim.id}.tolerance": _tolerance(claim.rule) for claim in claims.claims}


def recipe_values() -> dict[str, str]:
    """``recipe.<name>`` of the tuned runs: betas, weight_decay, clip_norm, warmup; GRPO's kl_weight."""
    from threegates.lab.algorithms.table import algorithm
    from threegates.lab.recipe import TrainingRecipe

    names = ("betas", "weight_decay", "clip_norm", "warmup")
    found = {name: TrainingRecipe.model_fields[name].default for name in names}
    betas = " and ".join(f"{beta:g}" for beta in found.pop("betas"))
    found["kl_weight"] = algorithm("grpo").kl_weight
    return {"recipe.betas": betas} | {f"recipe.{name}": f"{value:g}" for name, value in found.items()}


def limit_values() -> dict[str, str]:
    """``limit.…``: smallest p-values that exact tests of few seeds can give, and the power that is asked."""
    return {
        "limit.permutation": f"{smallest_permutation_p(3, 3):g}",
        "limit.sign_flip": f"{smallest_sign_flip_p(3):g}",
        "limit.sign_flip_of_six": f"{smallest_sign_flip_p(6):.2g}",
        "limit.power": f"{POWER:g}",
    }


def spacing_values() -> dict[str, str]:
    """``bf16.spacing``, of neighbouring values over their size, and ``bf16.half_gap``, half of it."""
    ends = [2.0**-8, 2.0**-7]
    return {
        "bf16.spacing": _percent(ends, digits=1),
        "bf16.half_gap": _percent([end / 2 for end in ends], digits=1),
    }


def _tolerance(rule: Rule) -> str:
    if rule.within is None:
        return f"{rule.at_least if rule.at_most is None else rule.at_most:g}"
    low, high = rule.within
    if rule.neutral is not None and abs((low + high) / 2 - rule.neutral) < 1e-9 * (high - low):
        return f"{(high - low) / 2:g}"
    return f"{low:g} to {high:g}"


def _range(values: Iterable[float], digits: int = 2) -> str:
    known = pd.Series(list(values))
    return " to ".join(f"{end:.{digits}f}" for end in (known.min(), known.max()))


def _percent(values: Iterable[float], digits: int | None = None) -> str:
    """Shares in per cent, smallest to largest; as many digits as the larger needs where none are given."""
    ends = sorted({min(known := list(values)), max(known)})
    form = ".3g" if digits is None else f".{digits}f"
    return " to ".join(f"{100 * end:{form}}" for end in ends) + " %"
