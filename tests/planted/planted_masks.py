"""Logs and evaluations of runs under masks by hand, and how to plant each of their estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

SEEDS = (1, 2, 3)
#: pass@1 at the best rate, and mean |log ratio| of KL to the dense run's.
ACCURACY = {
    "dense": 0.7, "principal": 0.6, "off-principal": 0.68, "low": 0.7, "safe": 0.7, "random": 0.65,
    "random-half": 0.65,
}  # fmt: skip
DISTANCE = {
    "dense": 0.0,
    "principal": 0.7,
    "off-principal": 0.6,
    "low": 0.5,
    "safe": 0.3,
    "random": 0.5,
    "random-half": 0.5,
}
#: Learning rates, and what runs at them fall behind the best.
RATES = {"0.0002": 0.0, "0.0001": 0.1, "0.0004": 0.1}
BASE = "lab-base"


def facts(mask: str, rate: str, seed: int, share: str = "0.5") -> dict:
    """What a row of a table says of its run."""
    run = f"mask-{mask}-{rate}-{share}-s{seed}"
    known = {"run": run, "base": BASE, "method": "rl", "algorithm": "grpo", "seed": seed, "mask": mask}
    return {**known, "share": share, "rate": rate, "learning_rate": float(rate)}


def evaluation(accuracy: dict[str, float] = ACCURACY, seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """Two prompts a run, one easier; runs of another share that no headline may count; the base at .3."""
    cells = [(facts(m, r, s), p - RATES[r]) for (m, p), r, s in product(accuracy.items(), RATES, seeds)]
    cells += [(facts("principal", "0.0002", seed, "0.25"), 0.99) for seed in seeds]
    cells.append(({"run": BASE}, 0.3))
    rows = [
        {**known, "prompt": prompt, "samples": 8, "correct": 8 * (passed + aside)}
        for known, passed in cells
        for prompt, aside in (("a", -0.01), ("b", 0.01))
    ]
    return pd.DataFrame(rows)


def log(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """Evaluations at two steps, KL on either side of the dense run's, and a step between without one."""
    rows = []
    for mask, rate, seed in product(ACCURACY, RATES, seeds):
        for step, sign in ((2, 1), (3, 9), (4, -1)):
            kl = 0.01 * step * np.exp(sign * DISTANCE[mask])
            passed = np.nan if step == 3 else ACCURACY[mask] - RATES[rate] - 0.1 * (step == 2)
            moved = {"pass_at_1": passed, "kl": kl, "delta_norm": 0.1 * step}
            rows.append({**facts(mask, rate, seed), "step": step, **moved})
    rows += [{"run": BASE, "step": step, "pass_at_1": 0.3, "kl": np.nan} for step in (2, 4)]
    return pd.DataFrame(rows)


def _values(frame: pd.DataFrame, values: np.ndarray) -> pd.Series:
    return frame["seed"].map(dict(zip(SEEDS, values, strict=True)))


def _accuracy(plus: str, minus: str, frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """The first arm's accuracy at every rate, so that it exceeds the second's by the values."""
    moved = 8 * (ACCURACY[minus] - ACCURACY[plus] + _values(frame, values))
    own = (frame["mask"] == plus) & (frame["share"] == "0.5")
    frame["correct"] = frame["correct"].astype(float).where(~own, frame["correct"] + moved)
    return frame


def _distance(mask: str, frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """KL under a mask, so that its distance exceeds the safe mask's by the values."""
    sign = frame["step"].map({2: 1, 4: -1})
    kl = 0.01 * frame["step"] * np.exp(sign * (DISTANCE["safe"] + _values(frame, values)))
    frame["kl"] = frame["kl"].where((frame["mask"] != mask) | sign.isna(), kl)
    return frame


Plant = Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]
#: By the name of the estimate: the table and what plants its values, one a seed.
PLANTERS: dict[str, tuple[str, int, Plant]] = {
    "kl_distance_principal_minus_safe": ("log", len(SEEDS), partial(_distance, "principal")),
    "kl_distance_random_minus_safe": ("log", len(SEEDS), partial(_distance, "random")),
    **{
        f"accuracy_{name}": ("evaluation", len(SEEDS), partial(_accuracy, plus, minus))
        for name, plus, minus in (
            ("dense_minus_principal", "dense", "principal"),
            ("random_minus_principal", "random-half", "principal"),
            ("safe_minus_dense", "safe", "dense"),
            ("low_minus_dense", "low", "dense"),
            ("off_minus_principal", "off-principal", "principal"),
            ("safe_minus_random", "safe", "random"),
        )
    },
}
