"""Curvature's part of `planted_tables`: tables on which its claims are reproduced, and their planters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

SEEDS = (1, 2, 3)
RL = {"grpo": 0.9, "dapo": 1 / 0.9, "reinforce++": 1.0}
#: Curvature along RL's directions, and along SFT's update, as multiples of RL's own.
LEVELS = {
    "update": 1.0,
    "principal": 2.0,
    "off_principal": 1.0,
    "principal_weights": 2.0,
    "other_weights": 1.0,
    "noise": 2.0,
    "masked_noise": 2.0,
    "block_noise": 6.0,
    "weights_noise": 3.0,
}
SFT = 2.0
DRAWS = range(5)
#: Curvature that noise meets at the base, as multiples of that along noise anywhere.
NEUTRAL = {"noise": 1.0, "block": 2.0, "principal_weights": 2.0, "other_weights": 1.0}


def table() -> pd.DataFrame:
    """Three batches of two functions; the Fisher matrix says the contrary of the loss."""
    rows = []
    for seed, algorithm in product(SEEDS, (*RL, "sft-teacher")):
        rl = algorithm in RL
        facts = {"method": "rl" if rl else "sft", "algorithm": algorithm, "rate": "mask" if rl else "own"}
        facts |= {"seed": seed, "pair": f"{algorithm}-{seed}", "learning_rate": 1e-5}
        for function, batch, (direction, level) in product(("loss", "fisher"), range(3), LEVELS.items()):
            own = RL.get(algorithm, 1.0) * (level if rl else SFT)
            value = own * (1 + 0.1 * (batch - 1))
            known = {"function": function, "batch": batch, "direction": direction, "draw": 0}
            rows.append(
                {
                    **facts,
                    **known,
                    "curvature": value if function == "loss" else 1 / value,
                    "norm": 1.0,
                    "share": 0.5,
                }
            )
    return pd.DataFrame(rows)


def steepness() -> pd.DataFrame:
    """The same of noise at the base, in draws of unequal curvature."""
    rows = []
    for function, batch, draw, (direction, level) in product(
        ("loss", "fisher"), range(3), DRAWS, NEUTRAL.items()
    ):
        value = level * (1 + 0.1 * (batch - 1)) * (1 + 0.2 * draw)
        known = {"function": function, "batch": batch, "direction": direction, "draw": draw}
        numbers = {"curvature": value if function == "loss" else 1 / value, "norm": 1.0}
        rows.append({"base": "lab-base", **known, **numbers})
    return pd.DataFrame(rows)


def _of_noise(top: str, bottom: str, frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """One direction of noise is, draw by draw, a value times another, in every batch of the loss."""
    keys = ["draw", "batch"]
    judged = frame["function"] == "loss"
    below = frame[judged & (frame["direction"] == bottom)].set_index(keys)["curvature"]
    where = judged & (frame["direction"] == top)
    of_draw = frame.loc[where, "draw"].map(dict(zip(DRAWS, values, strict=True)))
    found = below[[*zip(*(frame.loc[where, key] for key in keys), strict=True)]].to_numpy()
    frame.loc[where, "curvature"] = found * of_draw
    return frame


def _of(top: str, bottom: str, frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """One direction of RL is, seed by seed, a value times another, in every batch of the loss."""
    keys = ["pair", "batch"]
    judged = (frame["function"] == "loss") & (frame["method"] == "rl")
    below = frame[judged & (frame["direction"] == bottom)].set_index(keys)["curvature"]
    where = judged & (frame["direction"] == top)
    of_seed = frame.loc[where, "seed"].map(dict(zip(SEEDS, values, strict=True)))
    frame.loc[where, "curvature"] = (
        below[[*zip(*(frame.loc[where, key] for key in keys), strict=True)]].to_numpy() * of_seed
    )
    return frame


PLANTERS: dict[str, Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]] = {
    "curvature_noise_over_rl": partial(_of, "noise", "update"),
    "curvature_masked_noise_over_rl": partial(_of, "masked_noise", "update"),
}
NEUTRAL_PLANTERS: dict[str, Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]] = {
    "steepness_principal_over_noise": partial(_of_noise, "block", "noise"),
    "steepness_principal_weights_over_others": partial(_of_noise, "principal_weights", "other_weights"),
}
