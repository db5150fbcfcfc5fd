"""Rows by hand for the claims on the KL leash, and their planters.

RL's runs end at the norm at which SFT is first evaluated, so that SFT's KL at its end and that at RL's norm
are read from two rows. Every RL run has as many logged steps as `STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

Values = np.ndarray

STEPS = 10
#: KL of RL at its end; algorithms lie apart from it by the factors of `APART`.
KL = 0.01
APART = {"grpo": -0.01, "dapo": 0.01, "reinforce++": 0.0}
#: Label of the KL term and its estimator, with the algorithm that has it.
TERMS = (("0", None), ("0.04", "k3"))
FISHER = {"base": "b", "data": "d", "responses": 4, "parameters": 9, "rank": 4, "smallest": 0.01}
FISHER |= {"largest": 1.0, "trace": 2.0, "norm": 50.0}


def log_rows(facts: Callable[..., dict], seeds: Sequence[int]) -> list[dict]:
    """Logs of RL with and without a KL term, of RFT and of SFT."""
    rows = []
    for seed in seeds:
        for algorithm, apart in APART.items():
            rows += _rl(facts("rl", algorithm, "reward", seed), KL * float(np.exp(apart)))
        for weight, estimator in TERMS:
            own = facts("rl", "grpo", "reward", seed)
            own |= {"run": f"{own['run']}-kl{weight}", "label_kl": weight, "estimator": estimator}
            rows += _rl(own, KL)
        rows += _evaluated(facts("rft", "rft", "reward", seed), ((0.5, 0.01), (0.9, 2 * KL)))
        rows += _evaluated(facts("sft", "sft-teacher", "own", seed), ((1.0, 2 * KL), (2.0, 4 * KL)))
    return rows


def _rl(facts: dict, kl: float) -> list[dict]:
    """Ten steps on the leash, evaluated after the fifth and the last; ‖ΔW‖ grows to one."""
    rows = []
    for step in range(1, STEPS + 1):
        row = {
            **facts,
            "step": step,
            "updates": 4 * step,
            "kl": kl * step / STEPS,
            "delta_norm": step / STEPS,
        }
        row |= {"kl_k1": row["kl"], "kl_k2": 2 * row["kl"], "pass_at_1": 0.5 if step in (5, 10) else np.nan}
        # √(2 · 0.02 / 0.01) = 2 bounds a norm of 1.
        row |= {"step_kl": 1e-3, "tilt_kl": 1.0, "step_kl_response": 0.02, "step_norm": 1.0}
        rows.append(row)
    return rows


def _evaluated(facts: dict, ends: Sequence[tuple[float, float]]) -> list[dict]:
    rows = []
    for number, (norm, kl) in enumerate(ends, 1):
        place = {"step": 10 * number, "updates": 40 * number, "pass_at_1": 0.5, "delta_norm": norm, "kl": kl}
        rows += [{**facts, **place, "step": place["step"] - 5, "pass_at_1": np.nan, "kl": np.nan}]
        rows += [{**facts, **place, "kl_k1": kl, "kl_k2": kl}]
    return rows


def fisher() -> pd.DataFrame:
    """The Fisher matrix of the one base."""
    return pd.DataFrame([FISHER])


# --- planters


def _of_seed(frame: pd.DataFrame, values: Values) -> pd.Series:
    seeds = sorted(frame.loc[frame["rate"] == "reward", "seed"].unique())
    return frame["seed"].map(dict(zip(seeds, values, strict=True))).astype(float)


def ratio(algorithm: str, norm: float, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """KL of SFT or RFT where its norm is that, as a multiple of RL's at its end."""
    where = (frame["algorithm"] == algorithm) & (frame["delta_norm"] == norm) & frame["kl"].notna()
    frame.loc[where, "kl"] = (KL * _of_seed(frame, values))[where]
    return frame


def without(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """KL at the end without a term, as a multiple of that with one."""
    where = (frame["label_kl"] == "0") & (frame["step"] == STEPS)
    frame.loc[where, "kl"] = (KL * _of_seed(frame, values))[where]
    return frame


def broken(column: str, level: float, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """In every RL run of a seed as many steps are broken as its share leaves."""
    rl = (frame["method"] == "rl") & (frame["rate"] == "reward")
    last = frame["step"] > STEPS - (STEPS * (1 - _of_seed(frame, values))).round()
    frame.loc[rl & last, column] = level
    return frame
