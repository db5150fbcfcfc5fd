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
FISHER = {"base": "b", "data": "d", "responses": 9, "parameters": 9, "rank": 9, "smallest": 0.01}
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
        own = facts("sft", "sft-teacher", "own", seed)
        # After the fifth step at RL's norm, after the tenth at as many steps, and at its end.
        rows += _evaluated(own, ((1.0, 2 * KL), (1.5, 3 * KL), (2.0, 4 * KL)), steps=(5, 10, 20))
        style = facts("sft", "sft-same-style", "own", seed)
        rows += _evaluated(style, ((1.0, 2 * KL), (2.0, 4 * KL)))
        # GRPO's own run at the mask rate is among the rows of `planted_rates`, and ends at that KL too.
        for algorithm, apart in (("dapo", 0.01), ("reinforce++", -0.01)):
            small = facts("rl", algorithm, "mask", seed)
            rows += _evaluated(small, ((0.001, KL / 2), (0.002, KL * float(np.exp(apart)))))
        for algorithm in ("sft-teacher", "sft-same-style"):
            small = facts("sft", algorithm, "mask", seed)
            rows += _evaluated(small, ((0.003, KL), (0.004, 2 * KL)))
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


def _evaluated(
    facts: dict, ends: Sequence[tuple[float, float]], steps: Sequence[int] = (10, 20)
) -> list[dict]:
    rows = []
    for step, (norm, kl) in zip(steps, ends, strict=True):
        place = {"step": step, "updates": 4 * step, "pass_at_1": 0.5, "delta_norm": norm, "kl": kl}
        rows += [{**facts, **place, "step": step - 2, "pass_at_1": np.nan, "kl": np.nan}]
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


def at_common_step(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """KL of SFT at the last step that RL was evaluated at too, as a multiple of RL's there."""
    where = (frame["algorithm"] == "sft-teacher") & (frame["rate"] == "own") & (frame["step"] == STEPS)
    frame.loc[where, "kl"] = (KL * _of_seed(frame, values))[where]
    return frame


def at_mask_rate(algorithm: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """KL of SFT at the mask rate, at its end, as a multiple of RL's there."""
    where = (frame["algorithm"] == algorithm) & (frame["rate"] == "mask") & (frame["delta_norm"] == 0.004)
    where &= frame["kl"].notna()
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
